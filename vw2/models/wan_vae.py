"""The VAEs of Wan behind the port: 2.1 (16 channels, 8x; also Cosmos-Predict2's) and 2.2 (48 channels, 16x).

Both are diffusers' AutoencoderKLWan with other numbers, read from the model's own config. Legend: B batch, T frames, L
latent frames (1 + (T-1)/4), C latent channels, h w latent pixels.
"""

from collections.abc import Mapping
from typing import Any

import vw2.torchvision_ops  # noqa: F401  (must come before diffusers)

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor, nn

STRIDE = 4  # frames per latent frame
WAN_2_2 = {  # 704,688,668 parameters; its mean and standard deviation come with the weights
    "base_dim": 160,
    "decoder_base_dim": 256,
    "z_dim": 48,
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_spatial": 16,
    "latents_mean": [0.0] * 48,
    "latents_std": [1.0] * 48,
}


def check_network(config: Mapping[str, Any]) -> None:
    """Refuse numbers of an AutoencoderKLWan that contradict each other or the port. Raises: ValueError."""
    for key in ("latents_mean", "latents_std"):
        if len(config[key]) != config["z_dim"]:
            raise ValueError(f"expected {key} of z_dim, {config['z_dim']}, numbers, got {len(config[key])}")
    if min(config["latents_std"]) <= 0:
        raise ValueError(f"expected latents_std above 0, got {min(config['latents_std'])}")
    halved = config["temperal_downsample"]
    if 2 ** sum(halved) != STRIDE:
        raise ValueError(f"expected a VAE with {STRIDE} frames per latent frame, got temperal_downsample {halved}")
    if (config["scale_factor_spatial"] or 0) < 1:  # cuts tiles, whether there are any or not
        raise ValueError(f"expected scale_factor_spatial of at least 1, got {config['scale_factor_spatial']}")
    patch = 1 if config["patch_size"] is None else config["patch_size"]
    channels = (config["in_channels"], config["out_channels"])
    if patch < 1 or channels != (3 * patch**2, 3 * patch**2):
        raise ValueError(f"expected in_channels and out_channels 3 patch_size^2, got {channels} and patch_size {patch}")


class WanVAE(nn.Module):
    """Latents normalised by the mean and standard deviation that Wan's authors measured for each channel."""

    def __init__(self, net: AutoencoderKLWan):
        """Wrap a network, pretrained or random. Raises: ValueError if its numbers contradict each other."""
        super().__init__()
        config = net.config
        check_network(config)
        self.net = net
        self.latent = config.z_dim
        self.side = 2 ** (len(config.dim_mult) - 1) * (config.patch_size or 1)
        for name, values in (("mean", config.latents_mean), ("std", config.latents_std)):
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1, 1), persistent=False)

    def encode(self, video: Tensor) -> Tensor:
        """(B, 3, T, H, W) in [-1, 1] -> (B, C, L, h, w): the mean of the posterior, normalised.

        Raises: AssertionError unless T = 1 + 4m and H and W are multiples of `side`.
        """
        frames, *size = video.shape[2:]
        assert (frames - 1) % STRIDE == 0, f"expected T = 1 + 4m frames, got {frames}"
        assert not any(each % self.side for each in size), f"expected multiples of {self.side} pixels, got {size}"
        mode = self.net.encode(video.to(self.net.dtype)).latent_dist.mode()
        return ((mode - self.mean.to(mode)) / self.std.to(mode)).type_as(video)

    def decode(self, latents: Tensor) -> Tensor:
        """(B, C, L, h, w) -> (B, 3, T, H, W), clamped to [-1, 1]."""
        given = (latents * self.std.to(latents) + self.mean.to(latents)).to(self.net.dtype)
        return self.net.decode(given).sample.type_as(latents).clamp(-1, 1)
