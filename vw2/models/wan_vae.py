"""The VAEs of Wan behind the port: 2.1 (16 channels, 8x; also Cosmos-Predict2's) and 2.2 (48 channels, 16x).

Both are diffusers' AutoencoderKLWan with other numbers, read from the model's own config. Legend: B batch, T frames, L
latent frames (1 + (T-1)/4), C latent channels, h w latent pixels.
"""

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


class WanVAE(nn.Module):
    """Latents normalised by the mean and standard deviation that Wan's authors measured for each channel."""

    def __init__(self, net: AutoencoderKLWan):
        super().__init__()
        config = net.config
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
