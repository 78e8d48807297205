"""Layers that several models are made of. Legend: B batch, C channels, H W pixels, Q queries, S source tokens."""

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import silu

from vw2.models.attend import attend

GROUPS = 4  # of the group norms
HEADS = 4  # of the attention


def device_of(module: nn.Module) -> torch.device:
    """Where the (first) weights of a module are."""
    return next(module.parameters()).device


class CrossAttention(nn.Module):
    """Multi-head attention of queries to a source under a mask, then an MLP; pre-norm, residual."""

    def __init__(self, width: int, source: int, heads: int = HEADS):
        super().__init__()
        self.heads = heads
        self.norm, self.norm_source, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(source), nn.LayerNorm(width)
        self.to_q, self.to_kv = nn.Linear(width, width), nn.Linear(source, 2 * width)
        self.to_out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, source: Tensor, mask: Tensor) -> Tensor:
        """x (B, Q, width), source (B, S, source), mask (Q, S) True = may look, or bias (heads, Q, S) -> like x."""
        split = lambda y: rearrange(y, "b s (n d) -> b n s d", n=self.heads)  # noqa: E731
        key, value = self.to_kv(self.norm_source(source)).chunk(2, -1)
        mixed = attend(split(self.to_q(self.norm(x))), split(key), split(value), mask.to(x.device))
        x = x + self.to_out(rearrange(mixed, "b n s d -> b s (n d)"))
        return x + self.mlp(self.norm_mlp(x))


class FrameBlock(nn.Module):
    """Residual block of two 3x3 convolutions on single frames; starts as the identity.

    Args:
        condition: width of a vector that scales and shifts the features (FiLM); 0 = none.
    """

    def __init__(self, width: int, condition: int = 0):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(GROUPS, width), nn.GroupNorm(GROUPS, width)
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.film = nn.Linear(condition, 2 * width) if condition else None
        zero(self.conv2)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """x (B, C, H, W), condition (B, condition) -> like x."""
        hidden = self.norm1(x)
        if self.film is not None:
            scale, shift = self.film(condition)[:, :, None, None].chunk(2, 1)
            hidden = hidden * (1 + scale) + shift
        return x + self.conv2(silu(self.norm2(self.conv1(silu(hidden)))))


class FrameAttention(nn.Module):
    """Residual self-attention over the pixels of single frames; starts as the identity."""

    def __init__(self, width: int, heads: int = HEADS):
        super().__init__()
        self.heads = heads
        self.norm, self.to_qkv, self.to_out = (
            nn.GroupNorm(GROUPS, width),
            nn.Conv2d(width, 3 * width, 1),
            zero(nn.Conv2d(width, width, 1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> like x."""
        query, key, value = rearrange(
            self.to_qkv(self.norm(x)), "b (three n d) h w -> three b n (h w) d", three=3, n=self.heads
        )
        mixed = attend(query, key, value)
        return x + self.to_out(rearrange(mixed, "b n (h w) d -> b (n d) h w", h=x.shape[2]))


def zero(layer: nn.Linear | nn.Conv2d) -> nn.Linear | nn.Conv2d:
    """The same layer, at zero."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def flatten_frames(x: Tensor) -> Tensor:
    """(B, C, L, h, w) -> (B L, C, h, w), channels last in memory, which 2-D convolutions like best on a CPU."""
    return rearrange(x, "b c l h w -> (b l) c h w").contiguous(memory_format=torch.channels_last)


def unflatten_frames(x: Tensor, batch: int) -> Tensor:
    """The inverse of `flatten_frames`."""
    return rearrange(x, "(b l) c h w -> b c l h w", b=batch)
