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

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vw2.console import UserError
from vw2.media.jitter import jitter
from vw2.models.adapt import adapt_vdm
from vw2.models.control import SEES, ControlBranch, blind, leave_out
from vw2.models.denoiser import LEVEL_WEIGHTS, NOISE_LEVELS, SOLVERS, guided
from vw2.models.dldm_config import DLDMConfig
from vw2.models.drawing import Drawing
from vw2.models.flow import (
    FRAME_TIMES,
    SAMPLERS,
    add_noise,
    flow_loss,
    motion_weight,
    noised,
    normal,
)
from vw2.models.ldm import LDM
from vw2.models.port import VideoPrior
from vw2.models.projection import Projection
from vw2.models.timeline import STRIDE, Window, draw_window, fill, windows


def stop_both(first: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """(f_0, codes) as they are, without a gradient to either."""
    return first.detach(), codes.detach()


def stop_codes(first: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """(f_0, codes) with a gradient to f_0 alone."""
    return first, codes.detach()


def stop_nothing(first: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """(f_0, codes) with a gradient to both."""
    return first, codes


# What of (f_0, codes) the coarse loss may reach in the joint stage; each name adds to those before it.
REACH = {"off": stop_both, "decoder": stop_both, "trunk": stop_codes, "codes": stop_nothing}


def some(batch: int, share: float, rng: torch.Generator, device: torch.device) -> Tensor | None:
    """(B,) bool, true for about this share of the clips, drawn from `rng`; None, and nothing drawn, for no share."""
    return (torch.rand(batch, generator=rng) < share).to(device) if share else None


@dataclass
class JointBatch:
    """One batch of the joint stage."""

    video: Tensor  # (B, 3, T, H, W) in [-1, 1]
    first: Tensor  # (B, 3, 1, H, W) in [-1, 1], the frame to begin with: the video's own, or one that was drawn


class GivenTokens(nn.Module):
    """Context tokens that are given, (1, S, D), zeros at first."""

    def __init__(self, number: int, width: int):
        super().__init__()
        self.register_buffer("tokens", torch.zeros(1, number, width))

    def forward(self, batch: int) -> Tensor:
        """-> (batch, S, D)."""
        return self.tokens.expand(batch, -1, -1)


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
        if config.guidance_against is not None:  # kept with the weights; vw2.models.begin reads the file
            self.against = GivenTokens(config.backend.tokens, prior.vdm.context)
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
        self,
        noisy: Tensor,
        time: Tensor,
        first: Tensor,
        codes: Tensor,
        hint: Tensor,
        untold: Tensor | None = None,
        unsteered: Tensor | None = None,
    ) -> Tensor:
        """The VDM's velocity; noisy, time and first as in VDM.forward.

        Args:
            codes: (B, K, N, G).
            hint: (B, C, L, h, w) what the control branch sees of the coarse video (vw2.models.control.SEES).
            untold: (B,) bool, clips whose codes VDM and control branch are not told; None: all are told.
            unsteered: (B,) bool, clips that the control branch adds nothing to; None: all are steered.
        """
        return self.velocity_told(noisy, time, first, self.tokens(codes, untold), hint, unsteered)

    def velocity_told(
        self,
        noisy: Tensor,
        time: Tensor,
        first: Tensor,
        tokens: Tensor,
        hint: Tensor,
        unsteered: Tensor | None = None,
    ) -> Tensor:
        """The same, where VDM and control branch are told some context tokens (B, S, D)."""
        control = None
        if self.control is not None:
            control = leave_out(self.control(self.vdm, noisy, time, first, tokens, hint), unsteered)
        return self.vdm(noisy, time, first, tokens, control)

    def tokens(self, codes: Tensor, untold: Tensor | None = None) -> Tensor:
        """Context tokens (B, K N, D) of codes, by projection (paper) or by the LDM's connector (release); in place of
        those of clips `untold` the VDM's null token, which says as little as no tokens do."""
        tokens = self.ldm.tokens(codes) if self.projection is None else self.projection(codes)
        if untold is None:
            return tokens
        return torch.where(untold[:, None, None], self.vdm.null.type_as(tokens), tokens)

    def unsaid(self, codes: Tensor) -> Tensor:
        """Context tokens (B, S, D) that guidance compares those of codes with: of no codes, or of what was given."""
        if self.config.guidance_against is not None:
            return self.against(len(codes))
        return self.tokens(codes, torch.ones(len(codes), dtype=torch.bool, device=codes.device))

    def windows(self, steps: int) -> list[Window]:
        """The windows in which K steps are drawn."""
        return windows(steps, self.config.window, self.stride)

    def draw(self, frame: Tensor, codes: Tensor) -> Drawing:
        """What the coarse decoder draws for first frame and codes, with the gradients that `reconstruction` allows."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.reconstruction != "off"):
            return self.ldm.decoder(*self.reach(self.ldm.features(frame), codes))

    def denoising(
        self,
        clean: Tensor,
        known: Tensor,
        hint: Tensor,
        codes: Tensor,
        rng: torch.Generator,
        unsteered: Tensor | None = None,
    ) -> Tensor:
        """Denoising loss of one window, at noise levels and with noise drawn from `rng`.

        Args:
            clean: (B, C, L, h, w) latents of the real video.
            known: (B, C, 1, h, w) latents of the given first frame.
            hint: (B, C, L, h, w) of the coarse video, see `velocity`.
            codes: (B, K, N, G) of the window.
            unsteered: as in `velocity`; None: drawn from `rng` in training (`control.dropout`).
        """
        config, batch, frames = self.config, len(clean), clean.shape[2]
        noise, device = normal(clean, rng), clean.device
        levels = NOISE_LEVELS[config.noise_levels]
        time = FRAME_TIMES[config.frame_times](batch, frames, config.time_shift, rng, levels).to(device)
        jitter = config.first_noise * torch.rand(batch, 1, 1, 1, 1, generator=rng).to(device)
        first = known + jitter * normal(known, rng)
        untold = some(batch, config.code_dropout * self.training, rng, device)
        if unsteered is None:
            unsteered = some(batch, config.control.dropout * self.training, rng, device)
        velocity = self.velocity(add_noise(clean, noise, time), time, first, codes, hint, untold, unsteered)
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
    def render(
        self, vae, first_frame: Tensor, index: Tensor, noise: Tensor, coarse_first: Tensor | None = None
    ) -> Tensor:
        """Render one clip, window by window; each begins with the last frame of the one before.

        Args:
            vae: the VAE of the prior.
            first_frame: (B, 3, 1, H, W) in [-1, 1].
            index: (B, K, N) int64 codes.
            noise: (B, C, L, h, w) standard normal start.
            coarse_first: (B, 3, 1, ., .), what the coarse decoder begins with; None: `first_frame`.
        Returns: (B, 3, T, H, W) in [-1, 1].
        """
        codes = self.ldm.fsq.to_codes(index)
        begun = first_frame if coarse_first is None else coarse_first
        coarse = self.ldm.coarse(begun, index, tuple(first_frame.shape[-2:]))
        parts = [first_frame]
        for part in self.windows(index.shape[1]):
            frame = parts[-1][:, :, -1:]
            video = self.render_window(
                vae, frame, codes[:, part.steps], coarse[:, :, part.frames], noise[:, :, part.noise]
            )
            parts.append(video[:, :, min(part.number, 1) :])  # later windows share their first frame with the last
        return torch.cat(parts[1:], dim=2)

    def end(self, video: Tensor, coarse_first: Tensor, index: Tensor) -> Tensor:
        """What the coarse decoder begins the next clip with, (B, 3, 1, ., .), see `chain`.

        Args: what was rendered, (B, 3, T, H, W), what the coarse decoder began with, and the codes.
        """
        return video[:, :, -1:] if self.config.chain == "drawn" else self.ldm.coarse_end(coarse_first, index)

    def render_window(self, vae, frame: Tensor, codes: Tensor, coarse: Tensor, noise: Tensor) -> Tensor:
        """Known first frame (B, 3, 1, H, W), codes, coarse video and noise of a window -> its video, as `render`.

        With `sampling_remainder` kept the VDM's change of the coarse video is added to it in pixels (our choice): the
        coarse video then does not pass through the VAE, which would cost a chain of clips some detail at each of them.
        """
        first, whole, config = vae.encode(frame), fill(coarse), self.config
        start = vae.encode(whole) if config.sampling_start < 1 else None  # from noise alone nobody looks at it
        hint = self.sees(vae, whole, first, start)
        flow = lambda tokens: lambda x, t, at: self.velocity_told(x, t, first, tokens, hint[:, :, at])  # noqa: E731
        told, unsaid = flow(self.tokens(codes)), flow(self.unsaid(codes)) if config.guidance else None
        velocity = guided(told, unsaid, config.guidance)  # both see first frame and coarse video (release)
        level = noise.new_full((len(noise),), config.sampling_start)
        latents = noise if start is None else add_noise(start, noise, level)
        schedule = config.sampling_steps, config.sampling_shift, config.sampling_start
        draw, solver = SAMPLERS[config.sampling_order], SOLVERS[config.sampling_solver]
        video = vae.decode(draw(velocity, latents, first, *schedule, self.vdm.layout, solver))
        if config.sampling_remainder == "kept":
            video = (whole.float() + video.float() - vae.decode(start).float()).clamp(-1, 1)
        return video[:, :, : coarse.shape[2]]
