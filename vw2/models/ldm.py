"""The latent dynamics model (LDM): video -> causal features -> codes of what is done -> coarse video.

One class, and two kinds of parts for it: those of paper and release (causal.py), and lighter ones that the mini trains
(frames.py).

Legend: B batch, T frames, L latent frames (1 + (T-1)/4; 2 for T = 2), K = L - 1 steps (transitions), N queries a step,
G code digits, C feature width, h w feature pixels, D width of a context token. Symbols as in VideoWorld 2, sec. 3 and
Alg. 1.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from vw2.media.colours import ColourConfig
from vw2.models.causal import CausalConfig, CausalQueries
from vw2.models.causal3d import ResidualBlock
from vw2.models.causal_decoder import CausalDecoder
from vw2.models.causal_encoder import CausalEncoder
from vw2.models.drawing import Drawing, enlarge
from vw2.models.frames import CodeHistory, FrameDecoder, FrameEncoder, LookingDecoder
from vw2.models.fsq import FSQ, resolve_levels
from vw2.models.haar import PATCH
from vw2.models.layers import GROUPS, HEADS
from vw2.models.losses import LEAST_SIDE, Loss, reconstruction_loss
from vw2.models.qformer import QFormer
from vw2.models.queries import PrefixQueries
from vw2.models.ranges import at_least, multiples
from vw2.models.timeline import STRIDE, fill, stride_of


@dataclass(frozen=True)
class LDMConfig:
    """Part of group `dldm` of params.yaml."""

    codebook: int = 1000
    levels: tuple[int, ...] | None = None
    queries: int = 4  # N
    parts: Literal["frames", "causal"] = "frames"  # see PARTS
    size: int | tuple[int, int] = 32  # pixels: clips are shrunk to size x size, or (height, width), for the LDM
    shrink: Literal["area", "bilinear"] = "area"  # how; bilinear is not antialiased (release)
    # parts frames
    width: int = 64  # C
    encoder_blocks: int = 2
    decoder_blocks: int = 3
    query_width: int = 256
    query_layers: int = 1
    query_view: Literal["features", "change"] = (
        "change"  # what queries see of the frames: f_j (paper), or f_j - f_(j-1)
    )
    history_width: int = 128  # of the code history in the decoder
    lookups: int = 0  # colours that each place of the decoder looks up in the first frame
    # parts causal
    causal: CausalConfig = field(default_factory=CausalConfig)
    # both
    max_steps: int = 64  # most steps K in a clip
    stride: int | None = None  # frames per step; None = derived from the clips (timeline.stride_of)
    reconstruction_loss: Literal["l2", "l1_vgg"] = "l2"
    vgg_weight: float = 0.1  # factor on the VGG part of l1_vgg
    vgg_file: str | None = None  # weights of that VGG; None = the torch hub cache
    pixel_motion_weight: float = 8.0  # how much more the coarse loss says where something moves; 0 = plain mean (paper)
    drawn_share: float = 0.5  # share of clips that begin with the drawn end of the clip before; 0 = none (paper)
    colours: ColourConfig = field(default_factory=ColourConfig)  # changed in training

    def __post_init__(self):
        resolve_levels(self.codebook, self.levels)
        at_least("dldm", self, queries=1, size=1, encoder_blocks=1, decoder_blocks=1, query_layers=1, max_steps=1)
        at_least("dldm", self, vgg_weight=0, pixel_motion_weight=0, lookups=0)
        multiples("dldm", self, width=GROUPS, query_width=HEADS, history_width=HEADS)
        if not 0 <= self.drawn_share <= 1:
            raise ValueError(f"dldm.drawn_share must lie in [0, 1], got {self.drawn_share}; change it")
        unit = {"frames": 2 * PATCH, "causal": self.causal.space}[self.parts]
        if any(side % unit for side in self.sides):
            raise ValueError(f"dldm.size must be a multiple of {unit}, got {self.size}; round it")
        if self.reconstruction_loss == "l1_vgg" and min(self.sides) < LEAST_SIDE:
            raise ValueError(
                f"dldm.reconstruction_loss l1_vgg needs dldm.size {LEAST_SIDE}, got {self.size}; raise it, or take l2"
            )
        if self.reconstruction_loss != "l1_vgg" and self.vgg_file:
            raise ValueError(
                f"dldm.vgg_file is set but dldm.reconstruction_loss is {self.reconstruction_loss}; "
                "set the loss to l1_vgg, or the file to null"
            )

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of what the LDM sees, pixels."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    @property
    def time(self) -> int:
        """Frames of a latent frame."""
        return self.causal.time if self.parts == "causal" else STRIDE

    def resolved(self) -> tuple[int, ...]:
        return resolve_levels(self.codebook, self.levels)

    def loss(self) -> Loss:
        """What the coarse video is judged by in training."""
        return reconstruction_loss(self.reconstruction_loss, self.pixel_motion_weight, self.vgg_weight, self.vgg_file)

    def for_clips(self, frames: int):
        """This config with the stride of clips of T frames. Raises: ValueError if they do not fit."""
        if self.time != STRIDE:
            raise ValueError(
                f"dldm.causal.time must be {STRIDE}, the frames of a step, got {self.causal.time}; change it"
            )
        return replace(self, stride=stride_of(self.stride, frames, self.max_steps))


class Parts(NamedTuple):
    """What an LDM is put together from."""

    encoder: nn.Module  # (B, 3, T, H, W) -> f (B, C, L, h, w), causal
    query: nn.Module  # f -> z (B, K, N, G), causal
    spread: nn.Module  # z (B K, N G) -> the same, before it is quantised
    decoder: nn.Module  # f_0, codes (B, K, N, G) -> vw2.models.drawing.Drawing, causal
    connector: nn.Module | None  # lifted codes -> (B, D, K N, 1, 1), causal; None: the VDM reads codes in another way


def frame_parts(config: LDMConfig) -> Parts:
    """The mini's (our choice)."""
    digits, (height, width) = len(config.resolved()), (side // PATCH for side in config.sides)
    decoder = partial(LookingDecoder, number=config.lookups) if config.lookups else FrameDecoder
    return Parts(
        FrameEncoder(config.width, config.encoder_blocks),
        PrefixQueries(
            config.queries,
            digits,
            config.width,
            height * width,
            config.query_width,
            config.query_layers,
            config.query_view,
            config.max_steps,
        ),
        # keeps each digit of each query spread over its levels; shared by all steps
        nn.BatchNorm1d(config.queries * digits, affine=False, momentum=0.05),
        decoder(
            config.width,
            config.decoder_blocks,
            CodeHistory(config.queries * digits, config.history_width, config.max_steps),
            (height, width),
            config.stride or STRIDE,
        ),
        None,
    )


def causal_parts(config: LDMConfig) -> Parts:
    """Those of paper and release."""
    digits, causal = len(config.resolved()), config.causal
    levels, z = (causal.channels, causal.multipliers), causal.z_channels
    coarse = config.stride or causal.time, *levels, causal.blocks + 1, *causal.ratios, causal.listening, causal.legacy
    former = QFormer(config.queries, causal.width, causal.query_layers, causal.query_heads, causal.view)
    return Parts(
        CausalEncoder(*levels, causal.blocks, *causal.ratios, causal.attending),
        CausalQueries(former, causal.width, z * causal.z_factor, digits),
        nn.Identity(),
        CausalDecoder(digits, z, *coarse),
        ResidualBlock(z, causal.connector) if causal.connector else None,
    )


PARTS: dict[str, Callable[[LDMConfig], Parts]] = {"frames": frame_parts, "causal": causal_parts}


class LDM(nn.Module):
    """Encoder, queries, quantiser and coarse decoder; on its own it is the plain LDM (VideoWorld)."""

    def __init__(self, config: LDMConfig):
        super().__init__()
        self.config = config
        parts = PARTS[config.parts](config)
        self.encoder, self.query, self.spread = parts.encoder, parts.query, parts.spread
        self.fsq = FSQ(config.resolved())
        self.decoder, self.connector = parts.decoder, parts.connector
        self.loss = config.loss()

    def features(self, video: Tensor) -> Tensor:
        """(B, 3, T, H, W) -> f (B, C, L, h, w)."""
        return self.encoder(fill(video, self.config.time))

    def quantise(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """f -> codes (B, K, N, G) straight-through in [-1, 1], index (B, K, N) int64."""
        z = self.query(features).float()
        return self.fsq(self.spread(z.flatten(2).flatten(0, 1)).view_as(z))

    def tokens(self, codes: Tensor) -> Tensor:
        """(B, K, N, G) -> the connector's context tokens (B, K N, D), causal over the tokens."""
        return self.connector(self.decoder.lift(codes))[..., 0, 0].transpose(1, 2)

    def shrink(self, video: Tensor) -> Tensor:
        """(B, 3, T, H, W) -> (B, 3, T, *size)."""
        if tuple(video.shape[-2:]) == self.config.sides:
            return video
        small = interpolate(video.flatten(0, 1), size=self.config.sides, mode=self.config.shrink)
        return small.unflatten(0, video.shape[:2])

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        """(B, 3, T, H, W) -> code indices (B, K, N) int64."""
        return self.quantise(self.features(self.shrink(video)))[1]

    @torch.no_grad()
    def coarse(self, first_frame: Tensor, index: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """First frame (B, 3, 1, H, W) and code indices (B, K, N) -> coarse video (B, 3, T, H, W), or at `size`."""
        video = self.drawing(first_frame, index).over(first_frame)
        return enlarge(video, size or tuple(first_frame.shape[-2:])).clamp(-1, 1)

    @torch.no_grad()
    def coarse_end(self, first_frame: Tensor, index: Tensor) -> Tensor:
        """The last frame of the coarse video (B, 3, 1, *size), at the LDM's own size and not clamped (release)."""
        return self.drawing(first_frame, index).last().over(self.shrink(first_frame))

    def drawing(self, first_frame: Tensor, index: Tensor) -> Drawing:
        """What the coarse decoder draws for first frame and code indices."""
        return self.decoder(self.features(self.shrink(first_frame)), self.fsq.to_codes(index))

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
