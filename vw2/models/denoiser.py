"""The release's denoiser: rectified flow with noise levels sigma = t / (1 - t), its levels, loss weight and sampler.

The authors write x = x_0 + sigma noise (EDM, arXiv 2206.00364); scaled by 1 - t this is x_t = (1 - t) x_0 + t noise of
`vw2.models.flow`, on which everything here works. Legend: B batch, C channels, L latent frames, h w latent pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler
from torch import Tensor

from vw2.models.flow import Velocity, draw_time, integrate, over_latents

Levels = Literal["logit_normal", "release"]  # how noise levels are drawn in training, see NOISE_LEVELS
LevelWeight = Literal["uniform", "release"]  # what the loss makes of them, see LEVEL_WEIGHTS


LARGEST, LEAST = 80.0, 0.002  # noise levels sigma between which the release samples


@dataclass(frozen=True)
class NoiseConfig:
    """How noise levels are drawn; the defaults are the release's."""

    scale: float = 24**0.5  # median of sigma
    high_share: float = 0.05  # share of levels drawn from the range below instead
    low: float = 200.0  # sigma
    high: float = 1e5


def time_of(sigma: Tensor) -> Tensor:
    """Flow time t = sigma / (1 + sigma)."""
    return sigma / (1 + sigma)


def draw_noise_time(batch: int, config: NoiseConfig, rng: torch.Generator) -> Tensor:
    """(B,) times: ln sigma ~ N(ln scale, 1), for a share of them uniform in ln sigma instead (release)."""
    normal, uniform, chance = torch.randn(batch, generator=rng), *torch.rand(2, batch, generator=rng)
    spread = np.log(config.high / config.low)
    high = config.low * (spread * uniform).exp()
    return time_of(torch.where(chance < config.high_share, high, config.scale * normal.exp()))


def release_time(batch: int, shift: float, rng: torch.Generator) -> Tensor:
    """`draw_noise_time` with the release's numbers and the arguments of `vw2.models.flow.draw_time`."""
    return draw_noise_time(batch, NoiseConfig(), rng)


NOISE_LEVELS: dict[Levels, Callable[[int, float, torch.Generator], Tensor]] = {
    "logit_normal": draw_time,
    "release": release_time,
}


def uniform_weight(time: Tensor, frames: int) -> Tensor:
    """(1, 1, 1, 1, 1) every noise level counts alike in the loss of the velocity (our choice)."""
    return time.new_ones(1, 1, 1, 1, 1)


def release_weight(time: Tensor, frames: int) -> Tensor:
    """(B, 1, L, 1, 1) what the release's loss makes of times (B,) or (B, L), with a mean over the frames from 1 on.

    (1 + sigma^2) / sigma^2 (x_0 - x_0^)^2 is ((1 - t)^2 + t^2) (v - v^)^2; and its given first frame has no error but
    counts in the mean over all L.
    """
    weight = over_latents((1 - time) ** 2 + time**2).expand(-1, -1, frames, -1, -1)
    return weight * (frames - 1) / frames


LEVEL_WEIGHTS: dict[LevelWeight, Callable[[Tensor, int], Tensor]] = {
    "uniform": uniform_weight,
    "release": release_weight,
}


def guided(conditional: Velocity, unconditional: Velocity, scale: float) -> Velocity:
    """Classifier-free guidance v_c + scale (v_c - v_u) (arXiv 2207.12598); the release: 7, none: 0.

    The same holds for x_0, linear in v.
    """

    def velocity(*state) -> Tensor:
        wanted = conditional(*state)
        return wanted + scale * (wanted - unconditional(*state))

    return velocity if scale else conditional


def karras_sigmas(steps: int, rho: float, largest: float = LARGEST, least: float = LEAST) -> np.ndarray:
    """steps + 1 noise levels, evenly spaced in sigma^(1/rho) (EDM, eq. 5; the release: 35 steps, rho 7)."""
    return np.linspace(largest ** (1 / rho), least ** (1 / rho), steps + 1) ** rho


@torch.no_grad()
def integrate_ab2(
    velocity: Velocity, noise: Tensor, steps: int, rho: float = 7.0, start: float = 1.0, watch: Callable | None = None
) -> Tensor:
    """Two-step Adams-Bashforth in -ln sigma over Karras' noise levels, first step Euler (release).

    That is DPM-Solver++ (2M) of diffusers, in its form `heun`. One more evaluation of x_0 ends it: steps + 1 calls.

    Args:
        velocity, noise, steps: as in vw2.models.flow.integrate.
        rho: Karras' exponent.
        start: noise level t of `noise`; from the release's largest, sigma = 80, up it is taken as noise alone.
        watch: called with (x_t, t) after every step.
    Returns: (B, C, L, h, w).
    """
    top = LARGEST / (1 + LARGEST)
    latents = noise if start < top else noise * top
    sigmas = karras_sigmas(steps, rho, min(LARGEST, start / (1 - start) if start < 1 else LARGEST))
    scheduler = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, solver_type="heun", final_sigmas_type="zero"
    )
    scheduler.set_timesteps(steps + 1)
    # its own levels are others; the last step, to zero, is the further evaluation of x_0
    scheduler.sigmas = torch.from_numpy(np.append(sigmas / (1 + sigmas), 0.0))
    scheduler.set_begin_index(0)
    for timestep, (now, then) in zip(scheduler.timesteps, pairwise(scheduler.sigmas.tolist()), strict=True):
        time = torch.full((len(latents),), now, device=latents.device)
        latents = scheduler.step(velocity(latents, time), timestep, latents, return_dict=False)[0]
        if watch is not None:
            watch(latents, then)
    return latents


# how the flow is followed from noise to data; the fourth argument bends the noise levels: shift, or rho
SOLVERS = {"euler": integrate, "ab2": integrate_ab2}
