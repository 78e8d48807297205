"""Finite scalar quantisation (Mentzer et al., "Finite Scalar Quantization: VQ-VAE Made Simple", sec. 3).

Legend: G code digits, one level count each. An index is sum_g digit_g * basis_g, the first level fastest.
"""

from math import prod

import torch
from torch import Tensor, nn

LEVELS = {8: (8,), 1000: (8, 5, 5, 5), 4096: (8, 8, 8, 8), 64000: (8, 8, 8, 5, 5, 5)}  # 1000: the paper's


def resolve_levels(codebook: int, levels: tuple[int, ...] | None) -> tuple[int, ...]:
    """The FSQ levels of a codebook size.

    Raises: ValueError if the size has no known levels and none are given, or if given ones do not multiply to it.
    """
    if levels is None:
        if codebook not in LEVELS:
            raise ValueError(
                f"dldm.codebook {codebook} has no preset levels (known: {', '.join(map(str, LEVELS))}); "
                "set dldm.levels to numbers that multiply to it"
            )
        return LEVELS[codebook]
    if prod(levels) != codebook:
        raise ValueError(
            f"dldm.levels {','.join(map(str, levels))} multiply to {prod(levels)} but dldm.codebook is {codebook}; "
            "leave dldm.levels null to derive it"
        )
    least = min(levels, default=0)
    if least < 3:
        raise ValueError(f"dldm.levels must be at least 3 (a digit of 2 is dead under the bound), got {least}")
    return tuple(levels)


class FSQ(nn.Module):
    """Rounds each digit to one of its levels, with a straight-through gradient. Has no parameters."""

    def __init__(self, levels: tuple[int, ...]):
        super().__init__()
        self.levels = tuple(levels)
        if min(levels, default=0) < 2:
            raise ValueError(f"expected FSQ levels of at least 2, got {self.levels}")
        sizes = torch.tensor(levels, dtype=torch.int64)
        self.register_buffer("sizes", sizes, persistent=False)
        basis = torch.cumprod(torch.cat([torch.ones(1, dtype=torch.int64), sizes[:-1]]), 0)
        self.register_buffer("basis", basis, persistent=False)

    @property
    def codebook(self) -> int:
        return prod(self.levels)

    def bound(self, z: Tensor) -> Tensor:
        """Squash to the span of the levels, in units of one level (FSQ paper, sec. 3; 1.001 opens the ends)."""
        half = (self.sizes - 1) * 1.001 / 2
        offset = torch.where(self.sizes % 2 == 0, 0.5, 0.0)
        return torch.tanh(z + torch.atanh(offset / half)) * half - offset

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Quantise.

        Args:    z: (..., G) float, unbounded.
        Returns: codes (..., G) in [-1, 1], straight-through; index (...) int64 in [0, codebook).
        Raises:  ValueError if the last axis is not G.
        """
        if z.shape[-1] != len(self.levels):
            raise ValueError(f"expected {len(self.levels)} digits on the last axis, got shape {tuple(z.shape)}")
        bounded = self.bound(z.float())
        # from 1002 levels on the opened ends reach beyond the last level
        nearest = bounded.round().clamp(-(self.sizes // 2), (self.sizes - 1) // 2)
        rounded = bounded + (nearest - bounded).detach()
        codes = rounded / (self.sizes // 2)
        return codes, self.to_index(codes)

    def to_index(self, codes: Tensor) -> Tensor:
        """(..., G) codes -> (...) int64 index."""
        half = self.sizes // 2
        return ((codes.detach() * half + half).round().long() * self.basis).sum(-1)

    def digits(self, index: Tensor) -> Tensor:
        """(...) index -> (..., G) int64 digits, digit g in [0, levels_g)."""
        return index[..., None] // self.basis % self.sizes

    def to_codes(self, index: Tensor) -> Tensor:
        """(...) index -> (..., G) float32 codes in [-1, 1]."""
        half = self.sizes // 2
        return (self.digits(index) - half).float() / half
