"""From codes to the context tokens that the VDM's cross-attention reads (VideoWorld 2, sec. 3.3 and table 3c).

Legend: B batch, K steps, N queries, G digits, D context width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vw2.models.attention import frame_mask
from vw2.models.layers import HEADS, CrossAttention
from vw2.models.ranges import at_least, multiples


@dataclass(frozen=True)
class ProjectionConfig:
    """MLP, then `layers` of causal self-attention over steps (the paper: MLP + self-attention; 0 = MLP alone)."""

    width: int = 128
    layers: int = 1
    max_steps: int = 64

    def __post_init__(self):
        multiples("dldm.projection", self, width=HEADS)
        at_least("dldm.projection", self, layers=0, max_steps=1)


class Projection(nn.Module):
    """codes -> tokens; a token of step k depends on codes of steps <= k only."""

    def __init__(self, config: ProjectionConfig, queries: int, digits: int, context: int):
        super().__init__()
        width = config.width
        self.mlp = nn.Sequential(nn.Linear(digits, width), nn.GELU(), nn.Linear(width, width))
        self.which = nn.Parameter(0.02 * torch.randn(queries, width))
        self.when = nn.Parameter(0.02 * torch.randn(config.max_steps, 1, width))
        self.layers = nn.ModuleList([CrossAttention(width, width) for _ in range(config.layers)])
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, context))

    def forward(self, codes: Tensor) -> Tensor:
        """(B, K, N, G) -> (B, K N, D)."""
        steps, queries = codes.shape[1:3]
        x = (self.mlp(codes) + self.which + self.when[:steps]).flatten(1, 2)  # (B, K N, width)
        mask = frame_mask(steps, queries, x.device)  # a step sees itself and those before, as latent frames do
        for layer in self.layers:
            x = layer(x, x, mask)
        return self.out(x)
