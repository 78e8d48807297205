"""The latent dynamics model (LDM): video -> causal features -> codes of what is done -> coarse video.

Legend: B batch, T frames, L latent frames (1 + (T-1)/4; 2 for T = 2), K = L - 1 steps (transitions), N queries a step,
G code digits, C feature width, h w feature pixels (H/4, W/4).
Symbols as in VideoWorld 2, sec. 3 and Alg. 1. Space is the business of 2-D layers on single frames, time of small
causal ones between them: on two cores that trains about twice as fast as 3-D convolutions.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import interpolate, silu

from vw2.models.fsq import FSQ, resolve_levels
from vw2.models.haar import PATCH, HaarPatch
from vw2.models.layers import GROUPS, CrossAttention, FrameAttention, FrameBlock, flatten_frames, unflatten_frames, zero
from vw2.models.losses import LEAST_SIDE, Loss, reconstruction_loss
from vw2.models.queries import PrefixQueries
from vw2.models.timeline import STRIDE, fill, stride_of

HAAR_CHANNELS = 3 * PATCH**3


@dataclass(frozen=True)
class LDMConfig:
    """Part of group `dldm` of params.yaml."""

    codebook: int = 1000
    levels: tuple[int, ...] | None = None
    queries: int = 4  # N
    size: int = 32  # pixels: clips are shrunk to size x size for the LDM (the authors: 240x416 for 480x832)
    width: int = 64  # C
    encoder_blocks: int = 2
    decoder_blocks: int = 3
    query_width: int = 256
    query_layers: int = 1
    query_view: Literal["features", "change"] = (
        "change"  # what queries see of the frames: f_j (paper), or f_j - f_(j-1)
    )
    history_width: int = 128  # of the code history in the decoder
    max_steps: int = 64  # most steps K in a clip
    stride: int | None = None  # frames per step; None = derived from the clips (timeline.stride_of)
    reconstruction_loss: Literal["l2", "l1_vgg"] = "l2"
    vgg_weight: float = 0.1  # factor on the VGG part of l1_vgg
    vgg_file: str | None = None  # weights of that VGG; None = the torch hub cache
    pixel_motion_weight: float = 8.0  # how much more the coarse loss says where something moves; 0 = plain mean (paper)
    drawn_share: float = 0.5  # share of clips that begin with the drawn end of the clip before; 0 = none (paper)

    def __post_init__(self):
        resolve_levels(self.codebook, self.levels)
        if not 0 <= self.drawn_share <= 1:
            raise ValueError(f"dldm.drawn_share must lie in [0, 1], got {self.drawn_share}; change it")
        if self.size % (2 * PATCH):
            raise ValueError(f"dldm.size must be a multiple of {2 * PATCH}, got {self.size}; round it")
        if self.reconstruction_loss == "l1_vgg" and self.size < LEAST_SIDE:
            raise ValueError(f"dldm.reconstruction_loss l1_vgg needs dldm.size {LEAST_SIDE}, got {self.size}; raise it")
        if self.reconstruction_loss != "l1_vgg" and self.vgg_file:
            raise ValueError(
                f"dldm.vgg_file is set but dldm.reconstruction_loss is {self.reconstruction_loss}; "
                "set the loss to l1_vgg, or the file to null"
            )

    def resolved(self) -> tuple[int, ...]:
        return resolve_levels(self.codebook, self.levels)

    def loss(self) -> Loss:
        """What the coarse video is judged by in training."""
        return reconstruction_loss(self.reconstruction_loss, self.pixel_motion_weight, self.vgg_weight, self.vgg_file)

    def for_clips(self, frames: int):
        """This config with the stride of clips of T frames. Raises: ValueError if they do not fit."""
        return replace(self, stride=stride_of(self.stride, frames, self.max_steps))


class Encoder(nn.Module):
    """Causal encoder: frame t of the features depends on pixels up to frame 4 t only."""

    def __init__(self, config: LDMConfig):
        super().__init__()
        width = config.width
        self.patch = HaarPatch()
        self.conv_in = nn.Conv2d(HAAR_CHANNELS, width, 1)
        self.blocks = nn.ModuleList([FrameBlock(width) for _ in range(config.encoder_blocks - 1)])
        self.time = nn.Conv2d(2 * width, width, 1)  # a frame and the one before
        self.out = FrameBlock(width)

    def forward(self, video: Tensor) -> Tensor:
        """(B, 3, T, H, W) in [-1, 1] -> features f (B, C, L, h, w)."""
        assert (video.shape[2] - 1) % PATCH == 0, f"expected T = 1 + 4m frames, got {video.shape[2]}"
        batch = len(video)
        hidden = self.conv_in(flatten_frames(self.patch(video)))
        for block in self.blocks:
            hidden = block(hidden)
        frames = hidden.unflatten(0, (batch, -1))
        before = torch.cat([frames[:, :1], frames[:, :-1]], dim=1).flatten(0, 1)
        hidden = hidden + self.time(torch.cat([hidden, before], dim=1))
        return unflatten_frames(self.out(hidden), batch)


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


@dataclass(frozen=True)
class Drawing:
    """What the coarse decoder draws over a first frame: video = (1 - erase) frame + paint (our choice).

    What is left alone keeps every pixel of the first frame, at any size of it; and to let something vanish the decoder
    need not know what it looked like.
    """

    erase: Tensor  # (B, 1, T, size, size); 0 at first
    paint: Tensor  # (B, 3, T, size, size); 0 at first

    def over(self, frame: Tensor) -> Tensor:
        """First frame (B, 3, 1, H, W) in [-1, 1] -> video (B, 3, T, H, W)."""
        size = tuple(frame.shape[-2:])
        return (1 - enlarge(self.erase, size)) * frame + enlarge(self.paint, size)

    def end(self, frame: Tensor) -> Tensor:
        """The last frame of `over`, (B, 3, 1, H, W) in [-1, 1], without gradient: what a rollout goes on from."""
        return Drawing(self.erase[:, :, -1:].detach(), self.paint[:, :, -1:].detach()).over(frame).clamp(-1, 1)


def enlarge(video: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, T, h, w) -> (B, C, T, H, W), bilinear, frame by frame."""
    if tuple(video.shape[-2:]) == size:
        return video
    large = interpolate(video.transpose(1, 2).flatten(0, 1), size=size, mode="bilinear", antialias=False)
    return large.unflatten(0, (len(video), -1)).transpose(1, 2)


class CoarseDecoder(nn.Module):
    """f_0 and codes -> a blurred but motion-true video, drawn over the first frame.

    The codes are heard in every block, as modulation, and once as a spatial map; and what is decoded is drawn over the
    given first frame, so that all there is to learn is motion (our choices: a decoder that hears the codes at one
    place, or must first learn to draw what stands still, learns to ignore them).
    """

    MAP = 16  # channels of the spatial map

    def __init__(self, config: LDMConfig, digits: int):
        super().__init__()
        width, condition, self.side = config.width, config.history_width, config.size // PATCH
        self.history = CodeHistory(config, digits, condition)
        self.scene = nn.Linear(width, condition)
        self.map = nn.Linear(condition, self.MAP * self.side**2)
        self.join = nn.Conv2d(width + self.MAP, width, 1)
        self.blocks = nn.ModuleList([FrameBlock(width, condition) for _ in range(config.decoder_blocks)])
        self.space = FrameAttention(width)
        self.norm = nn.GroupNorm(GROUPS, width)
        self.conv_out = zero(nn.Conv2d(width, 4 * PATCH**3, 1))  # red, green, blue, erase
        self.patch = HaarPatch()
        self.stride = config.stride or STRIDE

    def forward(self, first: Tensor, codes: Tensor) -> Drawing:
        """f_0 (B, C, 1, h, w) of the first frame and codes (B, K, N, G) -> what to draw over that frame."""
        history = self.history(codes)  # (B, L, condition)
        condition = (history + self.scene(first.mean((2, 3, 4)))[:, None]).flatten(0, 1)
        where = rearrange(self.map(history), "b l (c h w) -> b c l h w", h=self.side, w=self.side)
        hidden = self.join(flatten_frames(torch.cat([first.expand(-1, -1, history.shape[1], -1, -1), where], dim=1)))
        for i, block in enumerate(self.blocks):
            hidden = block(hidden, condition)
            if i == 0:
                hidden = self.space(hidden)
        strokes = self.patch.inverse(unflatten_frames(self.conv_out(silu(self.norm(hidden))), len(codes)))
        strokes = strokes[:, :, : 1 + self.stride * codes.shape[1]]
        return Drawing(erase=strokes[:, 3:], paint=strokes[:, :3])


class LDM(nn.Module):
    """Encoder, prefix queries, quantiser and coarse decoder; on its own it is the plain LDM (VideoWorld)."""

    def __init__(self, config: LDMConfig):
        super().__init__()
        self.config = config
        levels = config.resolved()
        self.encoder = Encoder(config)
        self.query = PrefixQueries(
            config.queries,
            len(levels),
            config.width,
            (config.size // PATCH) ** 2,
            config.query_width,
            config.query_layers,
            config.query_view,
            config.max_steps,
        )
        # keeps each digit of each query spread over its levels; shared by all steps
        self.spread = nn.BatchNorm1d(config.queries * len(levels), affine=False, momentum=0.05)
        self.fsq = FSQ(levels)
        self.decoder = CoarseDecoder(config, len(levels))
        self.loss = config.loss()

    def features(self, video: Tensor) -> Tensor:
        """(B, 3, T, H, W) -> f (B, C, L, h, w)."""
        return self.encoder(fill(video))

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
        """First frame (B, 3, 1, H, W) and code indices (B, K, N) -> coarse video (B, 3, T, H, W)."""
        drawing = self.decoder(self.features(self.shrink(first_frame)), self.fsq.to_codes(index))
        return drawing.over(first_frame).clamp(-1, 1)

    def forward(self, video: Tensor, first: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Reconstruction loss of the warm-up (VideoWorld 2, sec. 3).

        Args:
            video: (B, 3, T, H, W), at any size.
            first: (B, 3, 1, H, W), the frame to draw over: the video's own, or one that was drawn (`drawn_share`).
        Returns: loss, logs, and the last frame drawn (B, 3, 1, H, W), without gradient.
        """
        small, frame = self.shrink(video), self.shrink(first)
        codes, index = self.quantise(self.features(small))
        drawing = self.decoder(self.features(frame), codes)
        loss = self.loss(drawing.over(frame), small)
        logs = {"train/recon": loss.detach(), "codes/used": torch.unique(index).numel()}
        return loss, logs, drawing.end(first)
