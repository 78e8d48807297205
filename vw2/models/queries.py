"""Learnable queries that read from a video what happened in each of its steps (VideoWorld 2, sec. 3.2 and Alg. 1).

Legend: B batch, L latent frames, K = L - 1 steps, N queries a step, G digits, C feature width, P pixels of a frame.
"""

import torch
from einops import rearrange
from torch import Tensor, nn

from vw2.models.attend import attend
from vw2.models.layers import HEADS


def changes(features: Tensor) -> Tensor:
    """f_j - f_(j-1), and 0 for the first frame: what stands still says nothing (our choice)."""
    return features - torch.cat([features[:, :, :1], features[:, :, :-1]], dim=2)


VIEWS = {"features": lambda features: features, "change": changes}


class PlacedAttention(nn.Module):
    """Attention of queries to pixels whose values are multiplied by a learned vector of their place, then an MLP.

    The product lets one sum over pixels say both what there is and where it is; values are not normalised, so pixels
    that show nothing say nothing. Adding place vectors instead cost 0.5 dB of the coarse video at equal training time
    (our choice).
    """

    def __init__(self, width: int, source: int, pixels: int):
        super().__init__()
        self.norm, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_q, self.to_k = nn.Linear(width, width), nn.Linear(source, width)
        self.to_v = nn.Linear(source, width, bias=False)
        self.place_key = nn.Parameter(0.5 * torch.randn(pixels, width))
        self.place_value = nn.Parameter(torch.randn(pixels, width) * pixels**0.5)  # a mean of P random signs: 1/sqrt P
        self.to_out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, source: Tensor, bias: Tensor) -> Tensor:
        """x (B, Q, width), source (B, L, P, C), bias (heads, Q, L P) -> like x."""
        split = lambda y: rearrange(y, "b s (n d) -> b n s d", n=HEADS)  # noqa: E731
        key = (self.to_k(source) + self.place_key).flatten(1, 2)
        value = (self.to_v(source) * self.place_value).flatten(1, 2)
        mixed = attend(split(self.to_q(self.norm(x))), split(key), split(value), bias)
        x = x + self.to_out(rearrange(mixed, "b n s d -> b s (n d)"))
        return x + self.mlp(self.norm_mlp(x))


class PrefixQueries(nn.Module):
    """N learnable queries look at the features f_0..f_k of each step k (VideoWorld 2, Alg. 1: prefix).

    All steps run as one masked attention. Time enters as a learned bias on the age k - j of a frame j alone, so that
    the same change at another step gets the same codes; it starts with half of the heads at the newest frame and half
    at the one before. Queries start small, or they would drown what they read (our choices; the paper is silent).

    Args:
        queries: N.
        digits: G.
        source: C.
        pixels: P.
        view: what the queries see of the frames, a key of VIEWS.
        max_steps: most steps K.
    """

    def __init__(
        self, queries: int, digits: int, source: int, pixels: int, width: int, layers: int, view: str, max_steps: int
    ):
        super().__init__()
        self.view = view
        self.queries = nn.Parameter(0.02 * torch.randn(queries, width))
        age = torch.arange(max_steps + 1).float()
        favourite = torch.arange(HEADS) % 2  # 0 or 1 step old
        self.age = nn.Parameter(-2.0 * (age - favourite[:, None]).abs().clamp(max=4))
        self.layers = nn.ModuleList([PlacedAttention(width, source, pixels) for _ in range(layers)])
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, digits))

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, L, h, w) -> z (B, K, N, G), unbounded."""
        frames, pixels = features.shape[2], features.shape[3] * features.shape[4]
        source = rearrange(VIEWS[self.view](features), "b c l h w -> b l (h w) c")
        steps, queries = frames - 1, len(self.queries)
        x = self.queries.repeat(steps, 1).expand(len(features), -1, -1)  # (B, K N, width)
        age = torch.arange(1, frames)[:, None] - torch.arange(frames)[None, :]  # (K, L)
        bias = self.age[:, age.clamp(min=0)].masked_fill(age.to(x.device) < 0, float("-inf"))  # (heads, K, L)
        bias = bias.repeat_interleave(queries, 1).repeat_interleave(pixels, 2)  # (heads, K N, L P)
        for layer in self.layers:
            x = layer(x, source, bias)
        return rearrange(self.out(x), "b (k n) g -> b k n g", k=steps)
