"""Rectified flow: x_t = (1 - t) x_0 + t noise, velocity v = noise - x_0, from noise (t = 1) to data (t = 0)."""

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor


def draw_time(batch: int, shift: float, rng: torch.Generator) -> Tensor:
    """(B,) times t = sigmoid(n + shift), n ~ N(0, 1); shift = ln sqrt 24 = 1.59 in the authors' code."""
    return torch.sigmoid(torch.randn(batch, generator=rng) + shift)


def add_noise(clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
    time = time[:, None, None, None, None]
    return (1 - time) * clean + time * noise


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
def sample(velocity, noise: Tensor, first: Tensor, steps: int, shift: float, start: float = 1.0) -> Tensor:
    """Integrate the flow with Euler steps (diffusers' FlowMatchEulerDiscreteScheduler).

    Args:
        velocity: function (x_t, t (B,)) -> velocity.
        noise: (B, C, L, h, w) what to start from: noise, or below start = 1 a guess with noise of that level.
        first: (B, C, 1, h, w) known first latent frame.
        shift: > 1 spends more steps at high noise.
        start: noise level t of the beginning (SDEdit, arXiv 2108.01073, starts from a guess in this way).
    Returns: (B, C, L, h, w) whose first frame is `first`.
    """
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=shift)
    top = start / (shift - (shift - 1) * start)  # what the shift turns into `start`
    # its own grid spends the last step on nothing
    scheduler.set_timesteps(sigmas=np.linspace(top, top / steps, steps))
    latents = noise
    for timestep, sigma in zip(scheduler.timesteps, scheduler.sigmas[:-1], strict=True):
        time = torch.full((len(latents),), float(sigma))
        latents = scheduler.step(velocity(latents, time), timestep, latents, return_dict=False)[0]
    return torch.cat([first, latents[:, :, 1:]], dim=2)
