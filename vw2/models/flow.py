"""Rectified flow: x_t = (1 - t) x_0 + t noise, velocity v = noise - x_0, from noise (t = 1) to data (t = 0)."""

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from vw2.models.attention import KVCache, Layout

FrameTimes = Literal["shared", "independent"]  # noise levels of a clip's latent frames, see FRAME_TIMES
Order = Literal["clip", "frames"]  # what sampling makes together, see SAMPLERS
Velocity = Callable[..., Tensor]  # (x_t (B, C, L, h, w), t (B,), ...) -> noise - x_0
Solver = Callable[..., Tensor]  # see `integrate`


def normal(like: Tensor, rng: torch.Generator) -> Tensor:
    """Standard normal noise of the shape of `like` and on its device; drawn on the CPU, so that all get the same."""
    return torch.randn(like.shape, generator=rng).to(like.device)


def draw_time(batch: int, shift: float, rng: torch.Generator) -> Tensor:
    """(B,) times t = sigmoid(n + shift), n ~ N(0, 1); shift = ln sqrt 24 = 1.59 in the authors' code."""
    return torch.sigmoid(torch.randn(batch, generator=rng) + shift)


Draw = Callable[[int, float, torch.Generator], Tensor]  # how levels are drawn, see vw2.models.denoiser.NOISE_LEVELS


def shared_time(batch: int, frames: int, shift: float, rng: torch.Generator, draw: Draw = draw_time) -> Tensor:
    """(B,) one time for all latent frames of a clip."""
    return draw(batch, shift, rng)


def independent_times(batch: int, frames: int, shift: float, rng: torch.Generator, draw: Draw = draw_time) -> Tensor:
    """(B, L) a time for each latent frame; those before a frame drawn from 1..L-1 are clean, t = 0.

    Noise of its own on every frame is diffusion forcing (arXiv 2407.01392); the clean beginning is what frame-by-frame
    sampling meets (our choice).
    """
    time = draw(batch * frames, shift, rng).view(batch, frames)
    clean = torch.randint(1, max(frames, 2), (batch, 1), generator=rng)
    return time.masked_fill(torch.arange(frames) < clean, 0)


FRAME_TIMES: dict[FrameTimes, Callable[..., Tensor]] = {
    "shared": shared_time,
    "independent": independent_times,
}


def over_latents(time: Tensor) -> Tensor:
    """Times (B,) or (B, L) -> (B, 1, 1 or L, 1, 1), to go with latents."""
    return time.reshape(len(time), 1, -1, 1, 1)


def add_noise(clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
    """(1 - t) clean + t noise, of latents (B, C, L, h, w) at times (B,) or (B, L)."""
    time = over_latents(time)
    return (1 - time) * clean + time * noise


def noised(time: Tensor, frames: int) -> Tensor:
    """(B, 1, L, 1, 1) weight of the loss: 0 on clean frames, which have nothing to be denoised, and its mean over all
    draws 1, so that a clip counts for as much whatever clips it goes through the model with.

    Args:
        time: (B,) of `shared_time`, or (B, L) of `independent_times`, of whose frames 1.. a share of L / (2 (L - 1)) is
            noisy on average.
        frames: L.
    """
    share = 1.0 if time.dim() == 1 else frames / (2 * (frames - 1))
    return over_latents((time > 0).float()).expand(-1, -1, frames, -1, -1) / share


def flow_loss(velocity: Tensor, clean: Tensor, noise: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean squared velocity error over all latent frames but the given first one.

    Args:
        weight: (B, 1, L, h, w) or broadcastable, mean about 1; say more where something moves (our choice).
    """
    error = (velocity - (noise - clean))[:, :, 1:] ** 2
    return (error if weight is None else error * weight[:, :, 1:]).mean()


def motion_weight(clean: Tensor, strength: float) -> Tensor:
    """(B, 1, L, h, w) weight 1 + strength * how far a latent pixel is from the first frame, mean 1 (our choice)."""
    moved = (clean - clean[:, :, :1]).abs().mean(1, keepdim=True)
    weight = 1 + strength * moved
    return weight / weight[:, :, 1:].mean()


@torch.no_grad()
def integrate(velocity: Velocity, noise: Tensor, steps: int, shift: float, start: float = 1.0) -> Tensor:
    """Follow the flow from `noise` to data with Euler steps (diffusers' FlowMatchEulerDiscreteScheduler).

    Args:
        velocity: function (x_t, t (B,)) -> velocity.
        noise: (B, C, L, h, w) what to start from: noise, or below start = 1 a guess with noise of that level.
        shift: > 1 spends more steps at high noise.
        start: noise level t of the beginning (SDEdit, arXiv 2108.01073, starts from a guess in this way).
    """
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=shift)
    top = start / (shift - (shift - 1) * start)  # what the shift turns into `start`
    # its own grid spends the last step on nothing
    scheduler.set_timesteps(sigmas=np.linspace(top, top / steps, steps))
    latents = noise
    for timestep, sigma in zip(scheduler.timesteps, scheduler.sigmas[:-1], strict=True):
        time = torch.full((len(latents),), float(sigma), device=latents.device)
        latents = scheduler.step(velocity(latents, time), timestep, latents, return_dict=False)[0]
    return latents


def sample(
    velocity: Velocity,
    noise: Tensor,
    first: Tensor,
    steps: int,
    shift: float,
    start: float = 1.0,
    solver: Solver = integrate,
) -> Tensor:
    """All latent frames together, at one noise level; the arguments but `first` as in `integrate`.

    Args:
        first: (B, C, 1, h, w) known first latent frame.
        solver: `integrate`, or another of vw2.models.denoiser.SOLVERS.
    Returns: (B, C, L, h, w) whose first frame is `first`.
    """
    return torch.cat([first, solver(velocity, noise, steps, shift, start)[:, :, 1:]], dim=2)


@torch.no_grad()
def sample_frames(
    velocity: Velocity,
    noise: Tensor,
    first: Tensor,
    steps: int,
    shift: float,
    start: float,
    layout: Layout,
    solver: Solver = integrate,
) -> Tensor:
    """Latent frame after latent frame, each over its clean past, whose keys and values are kept at time 0.

    A frame costs steps + 1 passes over its own tokens. The VDM must know clean frames before noisy ones: train it with
    `independent_times`. Self-attention must be causal.

    Args:
        velocity: function (x_t (B, C, 1, h, w), t (B,), frame) -> velocity; frame is the slice of the clip it is about.
        layout: of the VDM that velocity calls.
    Returns: as `sample`.
    """
    past, clip, frames = KVCache(), noise.shape[2], [first]
    for t in range(clip):
        frame = slice(t, t + 1)
        with layout.window(t, clip, past):
            if t > 0:
                one = lambda x, time, frame=frame: velocity(x, time, frame)  # noqa: E731
                frames.append(solver(one, noise[:, :, frame], steps, shift, start))
            if t + 1 < clip:  # nothing comes after the last
                velocity(frames[-1], torch.zeros(len(noise), device=noise.device), frame)
                past.keep()
    return torch.cat(frames, dim=2)


def sample_clip(
    velocity: Velocity,
    noise: Tensor,
    first: Tensor,
    steps: int,
    shift: float,
    start: float,
    layout: Layout,
    solver: Solver = integrate,
) -> Tensor:
    """`sample` with the arguments of `sample_frames`."""
    return sample(lambda x, time: velocity(x, time, slice(None)), noise, first, steps, shift, start, solver)


SAMPLERS: dict[Order, Callable[..., Tensor]] = {"clip": sample_clip, "frames": sample_frames}
