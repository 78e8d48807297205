"""The dLDM tokenizer to the letter: causal 3-D encoder, Q-former, FSQ, coarse decoder, connector to the VDM.

Legend: B batch, T frames, H W pixels, L latent frames, K = L - 1 steps, N queries a step, G code digits, C feature
width, h w feature pixels, D width of the VDM's context. T = 1 + 4 m; 93 frames of 240x416 give 23 steps of 15x26.
Source: VideoWorld 2, sec. 3 and Alg. 1, and the authors' release (`TokenizerConfig()` is the release; the paper differs
in `view` alone).
"""

from dataclasses import dataclass
from math import log2
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from vw2.models.causal3d import ResidualBlock, SpaceConv
from vw2.models.causal_decoder import CausalDecoder, space_ups, time_ups
from vw2.models.causal_encoder import CausalEncoder, halvings
from vw2.models.fsq import FSQ, resolve_levels
from vw2.models.qformer import QFormer


@dataclass(frozen=True)
class TokenizerConfig:
    """The defaults are the release's."""

    codebook: int = 1000
    levels: tuple[int, ...] | None = None  # FSQ levels; None: those of the codebook
    queries: int = 4  # N
    view: Literal["prefix", "adjacent"] = "adjacent"  # what step k sees: f_0..f_k (paper), f_(k-1) and f_k (release)
    channels: int = 128
    multipliers: tuple[int, ...] = (2, 4, 4)  # widths of the levels, in channels; C is the last
    blocks: int = 2  # residual blocks a level; the decoder has one more
    patch: int = 4  # side of the Haar patches, pixels and frames
    space: int = 16  # compression of height and width, patches included
    time: int = 4  # compression of time
    z_channels: int = 256  # between features and digits
    query_layers: int = 2
    query_heads: int = 4
    context: int = 1024  # D
    resolution: int = 1024  # nominal, pixels: only says in which levels there is attention
    encoder_attention: tuple[int, ...] = (32,)  # nominal sizes of levels with attention
    decoder_attention: tuple[int, ...] = (64,)

    def __post_init__(self):
        resolve_levels(self.codebook, self.levels)
        for name in ("patch", "space", "time"):
            if getattr(self, name) < 2 or not log2(getattr(self, name)).is_integer():
                raise ValueError(f"{name} must be a power of 2, at least 2, got {getattr(self, name)}; change it")
        count, space, time = len(self.multipliers), halvings(self.space, self.patch), halvings(self.time, self.patch)
        if min(space, time) < 0 or sum(space_ups(count, space, time)) != space or sum(time_ups(count, time)) != time:
            raise ValueError(
                f"{count} multipliers cannot compress patches of {self.patch} to space {self.space} and time "
                f"{self.time}; add multipliers or change patch"
            )
        if self.width % (2 * self.query_heads):
            raise ValueError(f"the width {self.width} must be a multiple of {2 * self.query_heads}; change channels")

    @property
    def width(self) -> int:
        """C."""
        return self.channels * self.multipliers[-1]

    def resolved(self) -> tuple[int, ...]:
        return resolve_levels(self.codebook, self.levels)

    def attention(self, sizes: tuple[int, ...]) -> tuple[bool, ...]:
        """Which levels have one of the nominal sizes."""
        return tuple(self.resolution // self.patch // 2**i in sizes for i in range(len(self.multipliers)))


class Tokenizer(nn.Module):
    """Video -> codes -> coarse video, and codes -> context tokens of the VDM; causal throughout."""

    def __init__(self, config: TokenizerConfig):
        super().__init__()
        self.config = config
        digits = len(config.resolved())
        levels = (config.channels, config.multipliers)
        ratios = (config.patch, config.space, config.time)
        self.encoder = CausalEncoder(*levels, config.blocks, *ratios, config.attention(config.encoder_attention))
        self.query = QFormer(config.queries, config.width, config.query_layers, config.query_heads, config.view)
        self.query_out = SpaceConv(config.width, config.z_channels)
        self.to_digits = SpaceConv(config.z_channels, digits)
        self.fsq = FSQ(config.resolved())
        self.from_digits = SpaceConv(digits, config.z_channels)
        attention = config.attention(config.decoder_attention)
        self.decoder = CausalDecoder(config.z_channels, *levels, config.blocks + 1, *ratios, attention)
        self.connector = ResidualBlock(config.z_channels, config.context)

    def features(self, video: Tensor) -> Tensor:
        """(B, 3, T, H, W) in [-1, 1] -> f (B, C, L, h, w).

        Raises: ValueError for sizes that the compression does not divide.
        """
        frames, *sides = video.shape[2:]
        if (frames - 1) % self.config.time or any(side % self.config.space for side in sides):
            raise ValueError(
                f"expected 1 + {self.config.time} m frames whose sides are multiples of {self.config.space}, "
                f"got {frames} of {sides[0]}x{sides[1]}; cut or resize the clip"
            )
        return self.encoder(video)

    def digits(self, features: Tensor) -> Tensor:
        """f -> z (B, K, N, G), unbounded."""
        read = rearrange(self.query(features), "b k n c -> b c (k n) 1 1")
        return rearrange(self.to_digits(self.query_out(read)), "b g (k n) 1 1 -> b k n g", n=self.config.queries)

    def quantise(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """f -> codes (B, K, N, G) straight-through in [-1, 1], index (B, K, N) int64."""
        return self.fsq(self.digits(features))

    def lift(self, codes: Tensor) -> Tensor:
        """(B, K, N, G) -> (B, Z, K N, 1, 1), what decoder and connector read."""
        if not codes.shape[1]:
            raise ValueError("expected the codes of at least one step, got none; use a clip of several frames")
        return self.from_digits(rearrange(codes, "b k n g -> b g (k n) 1 1"))

    def decode(self, first: Tensor, codes: Tensor) -> Tensor:
        """f_0 (B, C, 1, h, w), codes (B, K, N, G) -> coarse video (B, 3, T, H, W), not clamped."""
        return self.decoder(first[:, :, :1], self.lift(codes), codes.shape[2])

    def tokens(self, codes: Tensor) -> Tensor:
        """(B, K, N, G) -> context tokens (B, K N, D) of the VDM, causal over the tokens."""
        return self.connector(self.lift(codes))[..., 0, 0].transpose(1, 2)

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        """(B, 3, T, H, W) -> code indices (B, K, N) int64."""
        return self.quantise(self.features(video))[1]

    @torch.no_grad()
    def coarse(self, first_frame: Tensor, index: Tensor) -> Tensor:
        """First frame (B, 3, 1, H, W) and code indices (B, K, N) -> coarse video (B, 3, T, H, W) in [-1, 1]."""
        return self.decode(self.features(first_frame), self.fsq.to_codes(index)).clamp(-1, 1)
