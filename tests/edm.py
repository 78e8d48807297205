"""The release's denoiser in its own terms (EDM, arXiv 2206.00364), to hold what trains and samples against."""

import torch
from torch import Tensor

from vw2.models.denoiser import release_weight
from vw2.models.flow import flow_loss, over_latents


def sigma_of(time: Tensor) -> Tensor:
    """Noise level sigma = t / (1 - t)."""
    return time / (1 - time)


def denoised(velocity: Tensor, noisy: Tensor, time: Tensor, first: Tensor) -> Tensor:
    """x_0 = x_t - t v, with the given first latent frame (B, C, 1, h, w) in its place (release: frame_replace)."""
    clean = noisy - over_latents(time) * velocity
    return torch.cat([first, clean[:, :, 1:]], dim=2)


def denoising_loss(velocity: Tensor, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
    """What training makes of the release's choices: the mean of (1 + sigma^2) / sigma^2 (x_0 - x_0^)^2."""
    return flow_loss(velocity, clean, noise, release_weight(time, clean.shape[2]))
