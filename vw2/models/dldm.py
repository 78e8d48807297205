"""The dynamics-enhanced latent dynamics model (dLDM): an LDM whose codes learn from a pretrained VDM's denoising loss.

Codes reach the coarse decoder detached, so that reconstruction teaches them nothing in the joint stage; they reach the
VDM with gradient, through projection and causal cross-attention; the coarse video steers the VDM through a
gradient-stopped control branch (VideoWorld 2, sec. 3 and 5.5). The paper's ablation of the architecture in parameters:

no VDM                                      stages.train_plain_ldm
VDM, decoder loss reaches the codes         dldm.reconstruction codes, dldm.control.blocks 0
+ stop-gradient                             dldm.reconstruction decoder, dldm.control.blocks 0
+ control branch (the dLDM)                 dldm.reconstruction decoder, dldm.control.blocks from 1 on

Legend: B batch, T frames, L latent frames, K = L - 1 steps, N queries, G digits, C latent channels.
"""

from dataclasses import dataclass, field, fields
from typing import Literal

import torch
from torch import Tensor, nn

from vw2.console import UserError
from vw2.media.jitter import jitter
from vw2.models.adapt import AdaptConfig, adapt_vdm
from vw2.models.attention import Attention, Sight
from vw2.models.backends import BackendConfig
from vw2.models.control import SEES, ControlBranch, ControlConfig, blind
from vw2.models.denoiser import LEVEL_WEIGHTS, NOISE_LEVELS, SOLVERS, Levels, LevelWeight, guided
from vw2.models.drawing import Drawing
from vw2.models.flow import (
    FRAME_TIMES,
    SAMPLERS,
    FrameTimes,
    Order,
    add_noise,
    flow_loss,
    motion_weight,
    noised,
    normal,
)
from vw2.models.ldm import LDM, LDMConfig
from vw2.models.port import VideoPrior
from vw2.models.projection import Projection, ProjectionConfig
from vw2.models.ranges import at_least
from vw2.models.timeline import STRIDE, Window, draw_window, fill, windows


def stop_both(first: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    return first.detach(), codes.detach()


def stop_codes(first: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    return first, codes.detach()


def stop_nothing(first: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    return first, codes


# What of (f_0, codes) the coarse loss may reach in the joint stage; each name adds to those before it.
REACH = {"off": stop_both, "decoder": stop_both, "trunk": stop_codes, "codes": stop_nothing}


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
    sampling_steps: int = 6
    sampling_solver: Literal["euler", "ab2"] = "euler"  # see SOLVERS
    sampling_shift: float = 3.0  # bends the noise levels: euler's shift, ab2's rho
    sampling_start: float = 1.0  # noise level at which sampling begins, on top of the coarse video; 1 = noise alone
    sampling_order: Order = "clip"  # all latent frames together, or one after the other over its clean past

    def __post_init__(self):
        super().__post_init__()
        at_least("dldm", self, reconstruction_weight=0, denoising_weight=0, motion_weight=0, first_noise=0, guidance=0)
        at_least("dldm", self, sampling_steps=1, target_jitter=0)
        if not (0 < self.sampling_start <= 1 and self.sampling_shift > 0):
            raise ValueError(
                "dldm.sampling_start must lie in (0, 1] and dldm.sampling_shift be above 0, "
                f"got {self.sampling_start} and {self.sampling_shift}; change them"
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

    def for_clips(self, frames: int):
        """As of the LDM; and what the VDM draws at once must fit its projection."""
        config, most = super().for_clips(frames), self.projection.max_steps
        parts = windows((frames - 1) // config.stride, self.window, config.stride)
        if (longest := max(part.end - part.begin for part in parts)) > most:
            raise ValueError(
                f"the VDM draws {longest} steps at once but dldm.projection.max_steps is {most}; "
                "raise it or lower dldm.window"
            )
        return config

    @property
    def ldm(self) -> LDMConfig:
        """The part that the LDM alone is made from."""
        return LDMConfig(**{each.name: getattr(self, each.name) for each in fields(LDMConfig)})


@dataclass
class JointBatch:
    """One batch of the joint stage."""

    video: Tensor  # (B, 3, T, H, W) in [-1, 1]
    first: Tensor  # (B, 3, 1, H, W) in [-1, 1], the frame to begin with: the video's own, or one that was drawn


class DLDM(nn.Module):
    """LDM + projection + control branch + VDM; the VAE stays outside.

    The VDM is the prior's own, adapted in place (vw2.models.adapt); the control branch copies blocks as they were.
    """

    def __init__(self, config: DLDMConfig, prior: VideoPrior):
        super().__init__()
        self.config = config
        self.ldm = LDM(config.ldm)
        self.vdm = prior.vdm
        self.vdm.layout.attention = config.attention
        self.vdm.layout.frame_sight = config.self_attention
        self.vdm.layout.code_sight = config.cross_attention
        self.projection = self.own_projection(prior.vdm.context)
        self.control = ControlBranch(config.control, self.vdm) if config.control.blocks else None
        adapt_vdm(self.vdm, config.vdm)
        self.ldm.decoder.requires_grad_(config.reconstruction != "off")
        if self.ldm.connector is not None:  # the codes' way to it leads through the decoder: the VDM teaches it
            self.ldm.decoder.from_digits.requires_grad_(True)
        self.reach = REACH[config.reconstruction]
        self.sees = SEES[config.control.sees] if config.control.blocks else blind
        self.stride = config.stride or STRIDE

    def own_projection(self, context: int) -> Projection | None:
        """From codes to the VDM's context tokens of this width; none where the LDM has a connector."""
        config = self.config
        if self.ldm.connector is None:
            return Projection(config.projection, config.queries, len(config.resolved()), context)
        if config.causal.connector != context:
            raise UserError(
                f"dldm.causal.connector must be {context}, the width of the VDM's context, or 0 for dldm.projection, "
                f"got {config.causal.connector}; change it"
            )
        return None

    def velocity(
        self, noisy: Tensor, time: Tensor, first: Tensor, codes: Tensor, hint: Tensor, untold: Tensor | None = None
    ) -> Tensor:
        """The VDM's velocity; noisy, time and first as in VDM.forward.

        Args:
            codes: (B, K, N, G).
            hint: (B, C, L, h, w) what the control branch sees of the coarse video (vw2.models.control.SEES).
            untold: (B,) bool, clips whose codes VDM and control branch are not told; None: all are told.
        """
        tokens, branch = self.tokens(codes, untold), self.control
        control = branch(self.vdm, noisy, time, first, tokens, hint) if branch is not None else None
        return self.vdm(noisy, time, first, tokens, control)

    def tokens(self, codes: Tensor, untold: Tensor | None = None) -> Tensor:
        """Context tokens (B, K N, D) of codes, by projection (paper) or by the LDM's connector (release); in place of
        those of clips `untold` the VDM's null token, which says as little as no tokens do."""
        tokens = self.ldm.tokens(codes) if self.projection is None else self.projection(codes)
        if untold is None:
            return tokens
        return torch.where(untold[:, None, None], self.vdm.null.type_as(tokens), tokens)

    def windows(self, steps: int) -> list[Window]:
        """The windows in which K steps are drawn."""
        return windows(steps, self.config.window, self.stride)

    def draw(self, frame: Tensor, codes: Tensor) -> Drawing:
        """What the coarse decoder draws for first frame and codes, with the gradients that `reconstruction` allows."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.reconstruction != "off"):
            return self.ldm.decoder(*self.reach(self.ldm.features(frame), codes))

    def denoising(self, clean: Tensor, known: Tensor, hint: Tensor, codes: Tensor, rng: torch.Generator) -> Tensor:
        """Denoising loss of one window, at noise levels and with noise drawn from `rng`.

        Args:
            clean: (B, C, L, h, w) latents of the real video.
            known: (B, C, 1, h, w) latents of the given first frame.
            hint: (B, C, L, h, w) of the coarse video, see `velocity`.
            codes: (B, K, N, G) of the window.
        """
        config, batch, frames = self.config, len(clean), clean.shape[2]
        noise, device = normal(clean, rng), clean.device
        levels = NOISE_LEVELS[config.noise_levels]
        time = FRAME_TIMES[config.frame_times](batch, frames, config.time_shift, rng, levels).to(device)
        jitter = config.first_noise * torch.rand(batch, 1, 1, 1, 1, generator=rng).to(device)
        first = known + jitter * normal(known, rng)
        untold = (torch.rand(batch, generator=rng) < config.code_dropout * self.training).to(device)
        velocity = self.velocity(add_noise(clean, noise, time), time, first, codes, hint, untold)
        weight = motion_weight(clean, config.motion_weight) * noised(time, frames)
        weight = weight * LEVEL_WEIGHTS[config.level_weight](time, frames)
        return flow_loss(velocity.float(), clean, noise, weight)

    def forward(self, batch: JointBatch, vae, rng: torch.Generator) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Loss of the joint stage: denoising (of a window drawn at random) + reconstruction.

        Args:
            vae: the frozen VAE.
            rng: of windows, noise and noise levels.
        Returns: loss, logs, and the last frame of the coarse video (B, 3, 1, H, W), without gradient.
        """
        small, frame = self.ldm.shrink(batch.video), self.ldm.shrink(batch.first)
        codes, index = self.ldm.quantise(self.ldm.features(small))
        drawing = self.draw(frame, codes)
        recon = self.ldm.loss(drawing.over(frame), small)
        window = draw_window(self.windows(codes.shape[1]), rng)
        with torch.no_grad():
            target, begin = jitter((batch.video, batch.first), self.config.target_jitter, rng)
            clean = vae.encode(fill(target[:, :, window.frames]))
            coarse = fill(drawing.over(batch.first)[:, :, window.frames].clamp(-1, 1))
            known = vae.encode(begin) if window.begin == 0 else clean[:, :, :1]
            hint = self.sees(vae, coarse, known)
        denoise = self.denoising(clean, known, hint, codes[:, window.steps], rng)
        loss = self.config.denoising_weight * denoise + self.config.reconstruction_weight * recon
        used = torch.unique(index).numel()
        logs = {"train/denoise": denoise.detach(), "train/recon": recon.detach(), "codes/used": used}
        return loss, logs, drawing.end(batch.first)

    @torch.no_grad()
    def render(self, vae, first_frame: Tensor, index: Tensor, noise: Tensor) -> Tensor:
        """Render one clip, window by window; each begins with the last frame of the one before.

        Args:
            vae: the VAE of the prior.
            first_frame: (B, 3, 1, H, W) in [-1, 1].
            index: (B, K, N) int64 codes.
            noise: (B, C, L, h, w) standard normal start.
        Returns: (B, 3, T, H, W) in [-1, 1].
        """
        codes, coarse = self.ldm.fsq.to_codes(index), self.ldm.coarse(first_frame, index)
        parts = [first_frame]
        for part in self.windows(index.shape[1]):
            frame = parts[-1][:, :, -1:]
            video = self.render_window(
                vae, frame, codes[:, part.steps], coarse[:, :, part.frames], noise[:, :, part.noise]
            )
            parts.append(video[:, :, min(part.number, 1) :])  # later windows share their first frame with the last
        return torch.cat(parts[1:], dim=2)

    def render_window(self, vae, frame: Tensor, codes: Tensor, coarse: Tensor, noise: Tensor) -> Tensor:
        """Known first frame (B, 3, 1, H, W), codes, coarse video and noise of a window -> its video, as `render`."""
        first, whole, config = vae.encode(frame), fill(coarse), self.config
        start = vae.encode(whole) if config.sampling_start < 1 else None  # from noise alone nobody looks at it
        hint = self.sees(vae, whole, first, start)
        untold = torch.ones(len(first), dtype=torch.bool, device=first.device)
        flow = lambda who: lambda x, t, frames: self.velocity(x, t, first, codes, hint[:, :, frames], who)  # noqa: E731
        velocity = guided(flow(None), flow(untold), config.guidance)  # both see first frame and coarse video (release)
        level = noise.new_full((len(noise),), config.sampling_start)
        latents = noise if start is None else add_noise(start, noise, level)
        schedule = config.sampling_steps, config.sampling_shift, config.sampling_start
        draw, solver = SAMPLERS[config.sampling_order], SOLVERS[config.sampling_solver]
        video = vae.decode(draw(velocity, latents, first, *schedule, self.vdm.layout, solver))
        return video[:, :, : coarse.shape[2]]
