"""The causal 3-D parts of an LDM, to the letter of paper and release: their numbers, and their way to the code digits.

Encoder: causal_encoder.py; queries: qformer.py; coarse decoder: causal_decoder.py; connector to the VDM: a residual
block over the code tokens. T = 1 + 4 m; 93 frames of 240x416 give 23 steps of 15x26 feature pixels.

Legend: B batch, L latent frames, K = L - 1 steps, N queries a step, G code digits, C feature width, h w feature pixels,
D width of the VDM's context.
"""

from dataclasses import dataclass
from math import log2
from typing import Literal

from einops import rearrange
from torch import Tensor, nn

from vw2.models.causal3d import SpaceConv
from vw2.models.causal_decoder import space_ups, time_ups
from vw2.models.causal_encoder import halvings
from vw2.models.qformer import QFormer
from vw2.models.ranges import at_least


@dataclass(frozen=True)
class CausalConfig:
    """Group `dldm.causal` of params.yaml; the defaults are the release's."""

    view: Literal["prefix", "adjacent"] = "adjacent"  # what step k sees: f_0..f_k (paper), f_(k-1) and f_k (release)
    channels: int = 128
    multipliers: tuple[int, ...] = (2, 4, 4)  # widths of the levels, in channels; C is the last
    blocks: int = 2  # residual blocks a level; the decoder has one more
    patch: int = 4  # side of the Haar patches, pixels and frames; 1 = none
    space: int = 16  # compression of height and width, patches included
    time: int = 4  # compression of time
    z_channels: int = 256  # between features and digits
    z_factor: int = 1  # width that the queries' read is narrowed to, in z_channels
    query_layers: int = 2
    query_heads: int = 4
    connector: int = 1024  # D of the release's connector; 0 = none, the VDM then reads `dldm.projection` (paper)
    resolution: int = 1024  # nominal, pixels: only says in which levels there is attention
    encoder_attention: tuple[int, ...] = (32,)  # nominal sizes of levels with attention
    decoder_attention: tuple[int, ...] = (64,)
    legacy: bool = False  # the decoder doubles the frames from its first way up on, not from the second (their switch)

    def __post_init__(self):
        at_least("dldm.causal", self, channels=1, multipliers=1, blocks=1, z_channels=1, query_layers=1, query_heads=1)
        at_least("dldm.causal", self, connector=0, resolution=1, z_factor=1)
        for name in ("patch", "space", "time"):
            if getattr(self, name) < 1 or not log2(getattr(self, name)).is_integer():
                raise ValueError(f"dldm.causal.{name} must be a power of 2, got {getattr(self, name)}; change it")
        for name in ("space", "time"):
            if (size := getattr(self, name)) < self.patch:
                raise ValueError(
                    f"dldm.causal.{name} must be at least dldm.causal.patch {self.patch}, which is part of it, got "
                    f"{size}; raise dldm.causal.{name} or lower dldm.causal.patch"
                )
        if not self.multipliers:
            raise ValueError("dldm.causal.multipliers must name at least one level, got none; add one")
        space, time = halvings(self.space, self.patch), halvings(self.time, self.patch)
        count, late = len(self.multipliers), time_ups(len(self.multipliers), time, self.legacy)
        if sum(space_ups(late, space, time)) != space or sum(late) != time:
            raise ValueError(
                f"dldm.causal: {count} multipliers cannot compress patches of {self.patch} to space {self.space} and "
                f"time {self.time}; add multipliers, or change patch, space or time"
            )
        if self.width % (2 * self.query_heads):
            raise ValueError(
                f"dldm.causal: the width {self.width} must be a multiple of {2 * self.query_heads}; change channels"
            )

    @property
    def width(self) -> int:
        """C."""
        return self.channels * self.multipliers[-1]

    @property
    def ratios(self) -> tuple[int, int, int]:
        """What encoder and decoder compress by: patch, space, time."""
        return self.patch, self.space, self.time

    @property
    def attending(self) -> tuple[bool, ...]:
        """In which levels of the encoder there is attention: those of a nominal size in `encoder_attention`."""
        top = self.resolution // self.patch
        return tuple(top // 2**i in self.encoder_attention for i in range(len(self.multipliers)))

    @property
    def listening(self) -> tuple[bool, ...]:
        """The same of the decoder, finest level first; its sizes are doubled from the coarsest on (release)."""
        last = len(self.multipliers) - 1
        low = self.resolution // self.patch // 2**last
        return tuple(low * 2 ** (last - i) in self.decoder_attention for i in range(last + 1))


class CausalQueries(nn.Module):
    """What the Q-former read, narrowed to the digits that are quantised (release)."""

    def __init__(self, former: QFormer, width: int, narrow: int, digits: int):
        super().__init__()
        self.former, self.out, self.to_digits = former, SpaceConv(width, narrow), SpaceConv(narrow, digits)

    def forward(self, features: Tensor) -> Tensor:
        """f (B, C, L, h, w) -> z (B, K, N, G), unbounded; of a single frame K = 0."""
        read = self.former(features)
        z = self.to_digits(self.out(rearrange(read, "b k n c -> b c (k n) 1 1")))
        return rearrange(z, "b g (k n) 1 1 -> b k n g", n=read.shape[2])
