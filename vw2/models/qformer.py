"""Q-former: learnable queries that read from the features what happened in each step (VideoWorld 2, sec. 3.2, Alg. 1).

Two views of the features: step k sees the frames f_0 .. f_k (`prefix`, the paper), or f_(k-1) and f_k alone
(`adjacent`, the release). Nothing tells the queries when a frame was: time is what the causal encoder wrote into the
features.

Legend: B batch, C width, L latent frames, K = L - 1 steps, N queries a step, S pixels of a frame.
"""

from math import pi

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import relu, scaled_dot_product_attention

VIEWS = {"prefix": None, "adjacent": 2}  # how many of the newest frames a step sees; None = all


def view_mask(view: str, frames: int, device: torch.device | None = None) -> Tensor:
    """(K, L) bool, True where step k + 1 sees frame j."""
    age = torch.arange(1, frames, device=device)[:, None] - torch.arange(frames, device=device)
    return (age >= 0) & (age < (VIEWS[view] or frames))


class FourierPlaces(nn.Module):
    """A vector of each pixel's place: sine and cosine of random directions across the picture (SAM's)."""

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("frequencies", torch.randn(2, width // 2))

    def forward(self, height: int, width: int) -> Tensor:
        """-> (C, height, width); pixel centres, x before y, from -1 to 1."""
        y, x = (
            (torch.arange(side, device=self.frequencies.device, dtype=self.frequencies.dtype) + 0.5) / side
            for side in (height, width)
        )
        across, down = ((2 * side - 1)[:, None] * each for side, each in zip((x, y), self.frequencies, strict=True))
        # sums, as autocast would take a product of matrices to bfloat16, which is too coarse for many turns
        angle = 2 * pi * (across + down[:, None])
        return torch.cat([angle.sin(), angle.cos()], dim=-1).permute(2, 0, 1)


class Attention(nn.Module):
    """Multi-head attention of half the width inside."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width // 2) for _ in range(3))
        self.to_out = nn.Linear(width // 2, width)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """query (B, Q, C), key and value (B, T, C), mask (Q, T) True = may look, None = at all -> (B, Q, C)."""
        split = lambda x: rearrange(x, "b t (n d) -> b n t d", n=self.heads)  # noqa: E731
        mixed = scaled_dot_product_attention(
            split(self.to_q(query)), split(self.to_k(key)), split(self.to_v(value)), attn_mask=mask
        )
        return self.to_out(rearrange(mixed, "b n t d -> b t (n d)"))


class QFormerLayer(nn.Module):
    """Attention of the queries to the pixels, then an MLP; post-norm, no attention among queries (release)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.attention, self.norm = Attention(width, heads), nn.LayerNorm(width)
        self.lin1, self.lin2, self.norm_mlp = nn.Linear(width, width), nn.Linear(width, width), nn.LayerNorm(width)

    def forward(self, x: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """x (B, Q, C), key and value (B, T, C), mask (Q, T) True = may look, None = at all -> like x."""
        x = self.norm(x + self.attention(x, key, value, mask))
        return self.norm_mlp(x + self.lin2(relu(self.lin1(x))))


class QFormer(nn.Module):
    """N learnable queries, the same for every step, look at the pixels of the frames that their step may see.

    All steps of all clips run as one masked attention, so that the pixels are projected to keys and values once,
    however many steps look at them.

    Args:
        queries: N.
        width: C, a multiple of twice the heads.
        view: a key of VIEWS.
    """

    def __init__(self, queries: int, width: int, layers: int, heads: int, view: str):
        super().__init__()
        self.view = view
        self.query = nn.Parameter(torch.randn(queries, width))
        self.places = FourierPlaces(width)
        self.layers = nn.ModuleList([QFormerLayer(width, heads) for _ in range(layers)])
        self.last, self.norm = Attention(width, heads), nn.LayerNorm(width)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, L, h, w) -> (B, K, N, C); of a single frame K = 0."""
        frames, height, width = features.shape[2:]
        seen = view_mask(self.view, frames, features.device)
        mask = seen.repeat_interleave(len(self.query), 0).repeat_interleave(height * width, 1)  # (K N, L S)
        value = rearrange(features, "b c l h w -> b (l h w) c")
        key = rearrange(features + self.places(height, width)[:, None], "b c l h w -> b (l h w) c")
        x = self.query.repeat(frames - 1, 1).expand(len(features), -1, -1)  # (B, K N, C)
        for layer in self.layers:
            x = layer(x, key, value, mask)
        x = self.norm(x + self.last(2 * x, key, value, mask))  # the release adds the queries to themselves
        return x.unflatten(1, (frames - 1, len(self.query)))
