"""The latent dynamics model (LDM): video -> causal features -> codes of what is done -> coarse video.

Legend: B batch, T frames, L latent frames (1 + (T-1)/4), K = L - 1 steps (transitions), N queries a step, G code
digits, C feature width, h w feature pixels (H/4, W/4), P = h w.
Convolutional parts are diffusers' Cosmos tokenizer blocks. Symbols as in VideoWorld 2, sec. 3 and Alg. 1.
"""

from dataclasses import dataclass
from typing import Literal

import vw2.torchvision_ops  # noqa: F401

import torch
from diffusers.models.autoencoders.autoencoder_kl_cosmos import (
    CosmosCausalAttention,
    CosmosCausalGroupNorm,
    CosmosConvProjection3d,
    CosmosResnetBlock3d,
    CosmosSpatialAttentionProcessor2_0,
    CosmosTemporalAttentionProcessor2_0,
)
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import interpolate, scaled_dot_product_attention, silu

from vw2.models.fsq import FSQ, resolve_levels
from vw2.models.haar import PATCH, HaarPatch

HAAR_CHANNELS = 3 * PATCH**3


@dataclass(frozen=True)
class LDMConfig:
    """Part of group `dldm` of params.yaml."""

    codebook: int = 1000
    levels: tuple[int, ...] | None = None
    queries: int = 4  # N
    size: int = 32  # pixels: clips are shrunk to size x size for the LDM (the authors: 240x416 for 480x832)
    width: int = 64  # C
    blocks: int = 1  # residual blocks of the encoder; the decoder has one more
    query_width: int = 128
    query_layers: int = 2
    query_view: Literal["features", "change"] = (
        "change"  # what queries see of the frames: f_j (paper), or f_j - f_(j-1)
    )
    max_steps: int = 64  # most steps K in a clip

    def __post_init__(self):
        resolve_levels(self.codebook, self.levels)
        if self.size % (2 * PATCH):
            raise ValueError(f"dldm.size must be a multiple of {2 * PATCH}, got {self.size}; round it")

    def resolved(self) -> tuple[int, ...]:
        return resolve_levels(self.codebook, self.levels)


def causal_attention(width: int, over: str) -> CosmosCausalAttention:
    """Single-head attention over the pixels of each frame, or causal over the frames of each pixel."""
    processor = CosmosSpatialAttentionProcessor2_0() if over == "space" else CausalTemporalProcessor()
    return CosmosCausalAttention(1, width, processor=processor)


class CausalTemporalProcessor(CosmosTemporalAttentionProcessor2_0):
    """diffusers' temporal attention with the lower-triangular mask that it leaves to its caller."""

    def __call__(self, attn, hidden_states, attention_mask=None):
        frames = hidden_states.shape[2]
        mask = torch.ones(frames, frames, dtype=torch.bool, device=hidden_states.device).tril()
        return super().__call__(attn, hidden_states, mask)


class Encoder(nn.Module):
    """Causal 3-D encoder: frame t of the features depends on pixels up to frame 4 t only."""

    def __init__(self, config: LDMConfig):
        super().__init__()
        width = config.width
        self.patch = HaarPatch()
        self.conv_in = nn.Conv3d(HAAR_CHANNELS, width, 1)
        self.blocks = nn.ModuleList([CosmosResnetBlock3d(width, width) for _ in range(config.blocks)])
        self.space = causal_attention(width, "space")
        self.time = causal_attention(width, "time")
        self.out = CosmosResnetBlock3d(width, width)
        self.norm = CosmosCausalGroupNorm(width)

    def forward(self, video: Tensor) -> Tensor:
        """(B, 3, T, H, W) in [-1, 1] -> features f (B, C, L, h, w)."""
        assert (video.shape[2] - 1) % PATCH == 0, f"expected T = 1 + 4m frames, got {video.shape[2]}"
        hidden = self.conv_in(self.patch(video))
        for block in self.blocks:
            hidden = block(hidden)
        return silu(self.norm(self.out(self.time(self.space(hidden)))))


class CrossAttention(nn.Module):
    """Multi-head attention of queries to a source under a mask, then an MLP; pre-norm, residual."""

    def __init__(self, width: int, source: int, heads: int = 4):
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
        mixed = scaled_dot_product_attention(
            split(self.to_q(self.norm(x))), split(key), split(value), attn_mask=mask.to(x.device)
        )
        x = x + self.to_out(rearrange(mixed, "b n s d -> b s (n d)"))
        return x + self.mlp(self.norm_mlp(x))


def changes(features: Tensor) -> Tensor:
    """f_j - f_(j-1), and 0 for the first frame: what stands still says nothing (our choice)."""
    return features - torch.cat([features[:, :, :1], features[:, :, :-1]], dim=2)


VIEWS = {"features": lambda features: features, "change": changes}


class PrefixQueries(nn.Module):
    """N learnable queries look at the features f_0..f_k of each step k (VideoWorld 2, Alg. 1: prefix).

    All steps run as one masked attention. Time enters as a learned bias on the age k - j of a frame j alone, so that
    the same change at another step gets the same codes; it starts with half of the heads at the newest frame and half
    at the one before. An MLP binds what a token shows to where it is before attention averages tokens (our choices;
    the paper is silent).
    """

    HEADS = 4

    def __init__(self, config: LDMConfig, digits: int):
        super().__init__()
        width, self.view = config.query_width, config.query_view
        self.queries = nn.Parameter(torch.randn(config.queries, width))
        self.lift = nn.Linear(config.width, width)
        self.place = nn.Parameter(0.5 * torch.randn((config.size // PATCH) ** 2, width))
        self.bind = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        age = torch.arange(config.max_steps + 1).float()
        favourite = torch.arange(self.HEADS) % 2  # 0 or 1 step old
        self.age = nn.Parameter(-2.0 * (age - favourite[:, None]).abs().clamp(max=4))
        self.layers = nn.ModuleList([CrossAttention(width, width, self.HEADS) for _ in range(config.query_layers)])
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, digits))

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, L, h, w) -> z (B, K, N, G), unbounded."""
        frames, pixels = features.shape[2], features.shape[3] * features.shape[4]
        seen = VIEWS[self.view](features)
        source = self.bind(self.lift(rearrange(seen, "b c l h w -> b l (h w) c")) + self.place).flatten(1, 2)
        steps, queries = frames - 1, len(self.queries)
        x = self.queries.repeat(steps, 1).expand(len(features), -1, -1)  # (B, K N, width)
        age = torch.arange(1, frames)[:, None] - torch.arange(frames)[None, :]  # (K, L)
        bias = self.age[:, age.clamp(min=0)].masked_fill(age.to(x.device) < 0, float("-inf"))  # (heads, K, L)
        bias = bias.repeat_interleave(queries, 1).repeat_interleave(pixels, 2)  # (heads, K N, L P)
        for layer in self.layers:
            x = layer(x, source, bias)
        return rearrange(self.out(x), "b (k n) g -> b k n g", k=steps)


class CodeHistory(nn.Module):
    """Codes of steps 1..k -> one vector per latent frame k (frame 0: nothing has happened), causal in k."""

    def __init__(self, config: LDMConfig, digits: int, width: int):
        super().__init__()
        self.lift = nn.Sequential(nn.Linear(config.queries * digits, width), nn.SiLU(), nn.Linear(width, width))
        self.start = nn.Parameter(torch.zeros(1, 1, width))
        self.when = nn.Parameter(0.02 * torch.randn(config.max_steps + 1, width))
        self.layer = CrossAttention(width, width)

    def forward(self, codes: Tensor) -> Tensor:
        """(B, K, N, G) -> (B, L, width)."""
        x = torch.cat([self.start.expand(len(codes), -1, -1), self.lift(codes.flatten(2))], dim=1)
        frames = x.shape[1]
        x = x + self.when[:frames]
        return self.layer(x, x, torch.ones(frames, frames, dtype=torch.bool).tril())


class ModulatedBlock(nn.Module):
    """A factorised causal residual block whose features are scaled and shifted by the code history (FiLM)."""

    def __init__(self, width: int, condition: int):
        super().__init__()
        self.norm1, self.norm2 = CosmosCausalGroupNorm(width), CosmosCausalGroupNorm(width)
        self.conv1, self.conv2 = CosmosConvProjection3d(width, width), CosmosConvProjection3d(width, width)
        self.film = nn.Linear(condition, 2 * width)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x (B, C, L, h, w), condition (B, L, condition)."""
        scale, shift = rearrange(self.film(condition), "b l (two c) -> two b c l 1 1", two=2)
        hidden = self.conv1(silu(self.norm1(x) * (1 + scale) + shift))
        return x + self.conv2(silu(self.norm2(hidden)))


class CoarseDecoder(nn.Module):
    """f_0 and codes -> a blurred but motion-true video.

    The codes are heard in every layer, as modulation, and once as a spatial map; and what is decoded is the change
    from the given first frame, so that all there is to learn is motion (our choices: a decoder that hears the codes at
    one place, or must first learn to draw what stands still, learns to ignore them).
    """

    def __init__(self, config: LDMConfig, digits: int):
        super().__init__()
        width, self.side = config.width, config.size // PATCH
        self.history = CodeHistory(config, digits, config.query_width)
        self.map = nn.Linear(config.query_width, 16 * self.side**2)
        self.join = nn.Conv3d(width + 16, width, 1)
        self.blocks = nn.ModuleList([ModulatedBlock(width, config.query_width) for _ in range(config.blocks + 1)])
        self.space = causal_attention(width, "space")
        self.norm = CosmosCausalGroupNorm(width)
        self.conv_out = nn.Conv3d(width, HAAR_CHANNELS, 1)
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)
        self.patch = HaarPatch()

    def forward(self, frame: Tensor, first: Tensor, codes: Tensor) -> Tensor:
        """First frame (B, 3, 1, H, W), its f_0 (B, C, 1, h, w), codes (B, K, N, G) -> coarse video (B, 3, T, H, W)."""
        history = self.history(codes)
        where = rearrange(self.map(history), "b l (c h w) -> b c l h w", h=self.side, w=self.side)
        hidden = self.join(torch.cat([first.expand(-1, -1, history.shape[1], -1, -1), where], dim=1))
        for i, block in enumerate(self.blocks):
            hidden = block(hidden, history)
            if i == 0:
                hidden = self.space(hidden)
        return frame + self.patch.inverse(self.conv_out(silu(self.norm(hidden))))


class LDM(nn.Module):
    """Encoder, prefix queries, quantiser and coarse decoder; on its own it is the plain LDM (VideoWorld)."""

    def __init__(self, config: LDMConfig):
        super().__init__()
        self.config = config
        levels = config.resolved()
        self.encoder = Encoder(config)
        self.query = PrefixQueries(config, len(levels))
        # keeps each digit of each query spread over its levels; shared by all steps
        self.spread = nn.BatchNorm1d(config.queries * len(levels), affine=False, momentum=0.05)
        self.fsq = FSQ(levels)
        self.decoder = CoarseDecoder(config, len(levels))

    def features(self, video: Tensor) -> Tensor:
        """(B, 3, T, H, W) -> f (B, C, L, h, w)."""
        return self.encoder(video)

    def quantise(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """f -> codes (B, K, N, G) straight-through in [-1, 1], index (B, K, N) int64."""
        z = self.query(features).float()
        return self.fsq(self.spread(z.flatten(2).flatten(0, 1)).view_as(z))

    def shrink(self, video: Tensor) -> Tensor:
        """(B, 3, T, H, W) -> (B, 3, T, size, size), antialiased by area."""
        size = self.config.size
        if tuple(video.shape[-2:]) == (size, size):
            return video
        small = interpolate(video.transpose(1, 2).flatten(0, 1), size=(size, size), mode="area")
        return small.unflatten(0, (len(video), -1)).transpose(1, 2)

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        """(B, 3, T, H, W) -> code indices (B, K, N) int64."""
        return self.quantise(self.features(self.shrink(video)))[1]

    @torch.no_grad()
    def coarse(self, first_frame: Tensor, index: Tensor) -> Tensor:
        """First frame (B, 3, 1, H, W) and code indices (B, K, N) -> coarse video (B, 3, T, size, size)."""
        frame = self.shrink(first_frame)
        return self.decoder(frame, self.features(frame), self.fsq.to_codes(index)).clamp(-1, 1)

    def forward(self, video: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Reconstruction loss of the warm-up (VideoWorld 2, table 4: L2). Returns (loss, logs)."""
        features = self.features(video)
        codes, index = self.quantise(features)
        coarse = self.decoder(video[:, :, :1], features[:, :, :1], codes)
        loss = reconstruction_loss(coarse, video)
        return loss, {"train/recon": loss.detach(), "codes/used": torch.unique(index).numel()}


def reconstruction_loss(coarse: Tensor, video: Tensor) -> Tensor:
    """Mean squared error over all frames (VideoWorld 2, table 4)."""
    return ((coarse.float() - video) ** 2).mean()
