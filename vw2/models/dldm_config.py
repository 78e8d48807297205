"""What a dLDM is made of and how it draws: group `dldm` of params.yaml."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

from vw2.files import locate
from vw2.models.adapt import AdaptConfig
from vw2.models.attention import Attention, Sight
from vw2.models.backends import BackendConfig
from vw2.models.control import ControlConfig
from vw2.models.denoiser import LEAST, Levels, LevelWeight
from vw2.models.flow import FrameTimes, Order
from vw2.models.ldm import LDMConfig
from vw2.models.projection import ProjectionConfig
from vw2.models.ranges import at_least
from vw2.models.timeline import STRIDE, windows

Chain = Literal["drawn", "own"]  # what the coarse decoder goes on from in the next clip of a video, see `DLDM.end`


@dataclass(frozen=True)
class DLDMConfig(LDMConfig):
    """Group `dldm` of params.yaml: an LDM and what stands around it."""

    backend: BackendConfig = field(default_factory=BackendConfig)
    projection: ProjectionConfig = field(default_factory=ProjectionConfig)
    control: ControlConfig = field(default_factory=ControlConfig)
    vdm: AdaptConfig = field(default_factory=AdaptConfig)
    window: int = 93  # most frames that the VDM draws at once
    attention: Attention = "dense"  # how the VDM's masked attention is computed; the result is the same
    self_attention: Sight = "causal"  # of the VDM, over latent frames
    cross_attention: Sight = "causal"  # of latent frames to code steps
    frame_times: FrameTimes = "shared"  # noise levels of a clip's latent frames in training
    # what the coarse loss teaches in the joint stage: nothing, the decoder, the encoder too, the codes too
    reconstruction: Literal["off", "decoder", "trunk", "codes"] = "decoder"
    reconstruction_weight: float = 1.0
    denoising_weight: float = 1.0  # the release: 10
    noise_levels: Levels = "logit_normal"  # how noise levels are drawn in training
    level_weight: LevelWeight = "uniform"  # what the denoising loss makes of them
    time_shift: float = 1.59  # logit_normal: t = sigmoid(N(0, 1) + shift)
    motion_weight: float = 1.0  # how much more the loss says where something moves; 0 = plain mean
    target_jitter: float = 0.0  # strength of other colours for the VDM alone; the release: 1
    first_noise: float = 0.1  # largest noise on the given first latent frame, against drift in chained rollouts
    code_dropout: float = 0.0  # share of training clips whose codes the VDM is not told
    guidance: float = 0.0  # how far rendering goes beyond what the VDM draws without codes; 0 = not at all
    # safetensors file of context tokens that guidance compares with instead; None: with no codes
    guidance_against: str | None = None
    sampling_steps: int = 6
    sampling_solver: Literal["euler", "ab2"] = "euler"  # see SOLVERS
    sampling_shift: float = 3.0  # bends the noise levels: euler's shift, ab2's rho
    sampling_start: float = 1.0  # noise level at which sampling begins, on top of the coarse video; 1 = noise alone
    # what the VAE cannot tell of that coarse video: lost, or kept = added to the frames drawn, see DLDM.render_window
    sampling_remainder: Literal["lost", "kept"] = "lost"
    sampling_order: Order = "clip"  # all latent frames together, or one after the other over its clean past
    chain: Chain = "drawn"  # the next clip's coarse video goes on from: the frame drawn, or its own last (release)

    def __post_init__(self):
        super().__post_init__()
        at_least("dldm", self, reconstruction_weight=0, denoising_weight=0, motion_weight=0, first_noise=0, guidance=0)
        at_least("dldm", self, sampling_steps=1, target_jitter=0)
        if not (0 < self.sampling_start <= 1 and self.sampling_shift > 0):
            raise ValueError(
                "dldm.sampling_start must lie in (0, 1] and dldm.sampling_shift be above 0, "
                f"got {self.sampling_start} and {self.sampling_shift}; change them"
            )
        if self.sampling_remainder == "kept" and self.sampling_start == 1:
            raise ValueError(
                "dldm.sampling_remainder kept goes with dldm.sampling_start below 1, where sampling begins on top of "
                "the coarse video, got 1; set it to lost or lower the start"
            )
        lowest = LEAST / (1 + LEAST)
        if self.sampling_solver == "ab2" and self.sampling_start <= lowest:
            raise ValueError(
                f"dldm.sampling_solver ab2 ends at noise level {lowest:.4f}, so dldm.sampling_start must lie above it, "
                f"got {self.sampling_start}; raise it or take euler"
            )
        if self.sampling_order == "frames" and (self.frame_times, self.self_attention) != ("independent", "causal"):
            raise ValueError(
                "dldm.sampling_order frames needs dldm.frame_times independent and dldm.self_attention causal, "
                f"got {self.frame_times} and {self.self_attention}; change these or set it to clip"
            )
        if not 0 <= self.code_dropout <= 1:
            raise ValueError(f"dldm.code_dropout must lie in [0, 1], got {self.code_dropout}; change it")
        if self.guidance and self.sampling_order == "frames":
            raise ValueError(
                f"dldm.guidance goes with dldm.sampling_order clip, got {self.guidance} and frames; set it to 0 or "
                "change the order"
            )
        if self.guidance_against is not None and not self.guidance:
            raise ValueError(
                f"dldm.guidance_against is {self.guidance_against} but dldm.guidance is 0, so that nothing is compared "
                "with it; set one of them"
            )
        if self.guidance_against is not None and not self.backend.tokens:
            raise ValueError(
                "dldm.guidance_against goes with dldm.backend.tokens, which its tokens are filled up to, got "
                f"{self.guidance_against} and 0; set it to null or give backend.tokens a number"
            )
        if self.backend.tokens and (self.self_attention, self.cross_attention) != ("full", "full"):
            raise ValueError(
                "dldm.backend.tokens goes with dldm.self_attention and dldm.cross_attention full, "
                f"got {self.self_attention} and {self.cross_attention}; change these or set it to 0"
            )
        if self.target_jitter and self.control.blocks and self.control.sees == "change":
            raise ValueError(
                "dldm.target_jitter goes with dldm.control.sees grey, as change would compare true colours with "
                f"others, got {self.target_jitter} and change; set it to 0 or see grey"
            )
        if self.window <= STRIDE or self.window % STRIDE != 1:
            raise ValueError(f"dldm.window must be 1 + {STRIDE}m frames, at least {1 + STRIDE}, got {self.window}")

    @property
    def connector(self) -> int:
        """Width of the LDM's connector to the VDM; 0: it has none, so that dldm.projection is the way."""
        return self.causal.connector if self.parts == "causal" else 0

    def for_clips(self, frames: int):
        """As LDMConfig.for_clips; the codes that the VDM is told at once must also fit its projection and context."""
        config, most, room = super().for_clips(frames), self.projection.max_steps, self.backend.tokens
        longest = config.steps_at_once(frames)
        if longest > most and not self.connector:
            raise ValueError(
                f"the VDM draws {longest} steps at once but dldm.projection.max_steps is {most}; "
                "raise it or lower dldm.window"
            )
        if room and longest * self.queries > room:
            raise ValueError(
                f"the VDM is told {longest} steps of {self.queries} codes at once but dldm.backend.tokens is {room}; "
                "raise it or lower dldm.window or dldm.queries"
            )
        return config

    def steps_at_once(self, frames: int) -> int:
        """Most steps of a clip of T frames that the VDM sees at once; of a config that `for_clips` has made."""
        parts = windows((frames - 1) // self.stride, self.window, self.stride)
        return max(part.end - part.begin for part in parts)

    @property
    def files(self) -> dict[str, Path]:
        """Key -> what is read beside the outputs of other stages. DVC knows their names alone."""
        named = {"control.weights": self.control.weights, "guidance_against": self.guidance_against}
        named |= {"vgg_file": self.vgg_file}
        return {f"dldm.{key}": locate(file) for key, file in named.items() if file}

    @property
    def ldm(self) -> LDMConfig:
        """The part that the LDM alone is made from."""
        return LDMConfig(**{each.name: getattr(self, each.name) for each in fields(LDMConfig)})
