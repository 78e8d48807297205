"""The dynamics-enhanced latent dynamics model (dLDM): an LDM whose codes learn from a pretrained VDM's denoising loss.

Codes reach the coarse decoder detached, so that reconstruction teaches them nothing in the joint stage; they reach the
VDM with gradient, through projection and causal cross-attention; the coarse video steers the VDM through a
gradient-stopped control branch (VideoWorld 2, sec. 3 and 5.5).

Legend: B batch, T frames, L latent frames, K = L - 1 steps, N queries, G digits, C latent channels.
"""

from dataclasses import dataclass, field, fields
from typing import Literal

import torch
from torch import Tensor, nn

from vw2.models.attention import Attention, Sight
from vw2.models.backends import BackendConfig
from vw2.models.control import ControlBranch, ControlConfig
from vw2.models.denoiser import SOLVERS
from vw2.models.flow import FRAME_TIMES, SAMPLERS, FrameTimes, Order, add_noise, flow_loss, motion_weight, noised
from vw2.models.ldm import LDM, Drawing, LDMConfig, reconstruction_loss
from vw2.models.port import VideoPrior
from vw2.models.projection import Projection, ProjectionConfig


@dataclass(frozen=True)
class DLDMConfig(LDMConfig):
    """Group `dldm` of params.yaml: an LDM and what stands around it."""

    backend: BackendConfig = field(default_factory=BackendConfig)
    projection: ProjectionConfig = field(default_factory=ProjectionConfig)
    control: ControlConfig = field(default_factory=ControlConfig)
    attention: Attention = "dense"  # how the VDM's masked attention is computed; the result is the same
    self_attention: Sight = "causal"  # of the VDM, over latent frames
    cross_attention: Sight = "causal"  # of latent frames to code steps
    frame_times: FrameTimes = "shared"  # noise levels of a clip's latent frames in training
    reconstruction: Literal["off", "decoder", "trunk"] = "decoder"  # what the coarse loss teaches in the joint stage
    reconstruction_weight: float = 1.0
    time_shift: float = 1.59  # t = sigmoid(N(0, 1) + shift)
    motion_weight: float = 1.0  # how much more the loss says where something moves; 0 = plain mean
    first_noise: float = 0.1  # largest noise on the given first latent frame, against drift in chained rollouts
    sampling_steps: int = 6
    sampling_solver: Literal["euler", "ab2"] = "euler"  # see SOLVERS
    sampling_shift: float = 3.0  # bends the noise levels: euler's shift, ab2's rho
    sampling_start: float = 1.0  # noise level at which sampling begins, on top of the coarse video; 1 = noise alone
    sampling_order: Order = "clip"  # all latent frames together, or one after the other over its clean past

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.sampling_start <= 1 or self.sampling_steps < 1:
            raise ValueError(
                "dldm.sampling_start must lie in (0, 1] and dldm.sampling_steps be at least 1, "
                f"got {self.sampling_start} and {self.sampling_steps}"
            )
        if self.sampling_order == "frames" and (self.frame_times, self.self_attention) != ("independent", "causal"):
            raise ValueError(
                "dldm.sampling_order frames needs dldm.frame_times independent and dldm.self_attention causal, "
                f"got {self.frame_times} and {self.self_attention}; change these or set it to clip"
            )
        if self.backend.tokens and (self.self_attention, self.cross_attention) != ("full", "full"):
            raise ValueError(
                "dldm.backend.tokens goes with dldm.self_attention and dldm.cross_attention full, "
                f"got {self.self_attention} and {self.cross_attention}; change these or set it to 0"
            )

    @property
    def ldm(self) -> LDMConfig:
        """The part that the LDM alone is made from."""
        return LDMConfig(**{each.name: getattr(self, each.name) for each in fields(LDMConfig)})


@dataclass
class JointBatch:
    """One batch of the joint stage."""

    video: Tensor  # (B, 3, T, size, size) in [-1, 1]: what the LDM sees
    ends: Tensor  # (B, 3, 2, H, W) in [-1, 1]: first and last frame, at full size
    latents: Tensor  # (B, C, L, h, w): what the VDM learns to make

    def to(self, device) -> "JointBatch":
        return JointBatch(self.video.to(device), self.ends.to(device), self.latents.to(device))


class DLDM(nn.Module):
    """LDM + projection + control branch + VDM; the VAE stays outside."""

    def __init__(self, config: DLDMConfig, prior: VideoPrior):
        super().__init__()
        self.config = config
        self.ldm = LDM(config.ldm)
        self.vdm = prior.vdm
        self.vdm.layout.attention = config.attention
        self.vdm.layout.frame_sight = config.self_attention
        self.vdm.layout.code_sight = config.cross_attention
        digits = len(config.ldm.resolved())
        self.projection = Projection(config.projection, config.ldm.queries, digits, prior.vdm.context)
        self.control = ControlBranch(config.control, self.vdm) if config.control.blocks else None

    def velocity(self, noisy: Tensor, time: Tensor, first: Tensor, codes: Tensor, hint: Tensor) -> Tensor:
        """The VDM's velocity; noisy, time and first as in VDM.forward.

        Args:
            codes: (B, K, N, G).
            hint: (B, C, L, h, w) the latents of the coarse video minus those of the first frame.
        """
        tokens, branch = self.projection(codes), self.control
        control = branch(self.vdm, noisy, time, first, tokens, hint) if branch is not None else None
        return self.vdm(noisy, time, first, tokens, control)

    def draw(self, frame: Tensor, codes: Tensor) -> Drawing:
        """What the coarse decoder draws for detached codes, with the gradients that `reconstruction` allows."""
        features = self.ldm.features(frame)
        first = features if self.config.reconstruction == "trunk" else features.detach()
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.reconstruction != "off"):
            return self.ldm.decoder(first, codes.detach())

    def forward(self, batch: JointBatch, vae, rng: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of the joint stage: denoising + reconstruction. Returns (loss, logs).

        Args:
            vae: the frozen VAE that `batch.latents` come from.
            rng: of noise and noise levels.
        """
        clean = batch.latents
        codes, index = self.ldm.quantise(self.ldm.features(batch.video))
        large = self.ldm.given(batch.video, batch.ends)
        small = self.ldm.shrink(large)
        drawing = self.draw(small, codes)
        recon = reconstruction_loss(drawing.over(small), batch.video, self.config.pixel_motion_weight)
        with torch.no_grad():
            coarse = vae.encode(drawing.over(large))
            known = vae.encode(large)
        noise = torch.randn(clean.shape, generator=rng)
        time = FRAME_TIMES[self.config.frame_times](len(clean), clean.shape[2], self.config.time_shift, rng)
        jitter = self.config.first_noise * torch.rand(len(clean), 1, 1, 1, 1, generator=rng)
        first = known + jitter * torch.randn(known.shape, generator=rng)
        velocity = self.velocity(add_noise(clean, noise, time), time, first, codes, coarse - known)
        weight = motion_weight(clean, self.config.motion_weight) * noised(time, clean.shape[2])
        denoise = flow_loss(velocity.float(), clean, noise, weight)
        loss = denoise + self.config.reconstruction_weight * recon
        used = torch.unique(index).numel()
        return loss, {"train/denoise": denoise.detach(), "train/recon": recon.detach(), "codes/used": used}

    @torch.no_grad()
    def render(self, vae, first_frame: Tensor, index: Tensor, noise: Tensor) -> Tensor:
        """Render one clip.

        Args:
            vae: the VAE of the prior.
            first_frame: (B, 3, 1, H, W) in [-1, 1].
            index: (B, K, N) int64 codes.
            noise: (B, C, L, h, w) standard normal start.
        Returns: (B, 3, T, H, W) in [-1, 1].
        """
        first, codes = vae.encode(first_frame), self.ldm.fsq.to_codes(index)
        coarse = vae.encode(self.ldm.coarse(first_frame, index))
        hint, config = coarse - first, self.config
        velocity = lambda x, t, frames: self.velocity(x, t, first, codes, hint[:, :, frames])  # noqa: E731
        latents = add_noise(coarse, noise, torch.full((len(coarse),), config.sampling_start))
        schedule = config.sampling_steps, config.sampling_shift, config.sampling_start
        solver = SOLVERS[config.sampling_solver]
        return vae.decode(SAMPLERS[config.sampling_order](velocity, latents, first, *schedule, self.vdm.layout, solver))
