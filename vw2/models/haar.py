"""Haar patches of a causal video: every 4x4x4 block of pixels becomes one column of 64 wavelet coefficients a colour.

The coefficients, their order and scale are those of diffusers' CosmosPatchEmbed3d(4, "haar"), which the fixed matrix
here is read from; as one matrix product the transform is some ten times faster on a CPU than as grouped convolutions.
The first frame is repeated 4 times, so that it has patches of its own.
"""

import vw2.torchvision_ops  # noqa: F401

import torch
from diffusers.models.autoencoders.autoencoder_kl_cosmos import CosmosPatchEmbed3d
from einops import rearrange
from torch import Tensor, nn

PATCH = 4


def blocks(video: Tensor, side: int, frames: int = PATCH) -> Tensor:
    """(B, C, T, H, W), T = 1 + frames (L - 1) -> (B, L, h, w, C, frames side side): pixels of causal blocks."""
    head = video[:, :, :1].expand(-1, -1, frames - 1, -1, -1)
    video = torch.cat([head, video], dim=2)
    return rearrange(video, "b c (l t) (h p) (w q) -> b l h w c (t p q)", t=frames, p=side, q=side)


def unblocks(cells: Tensor, side: int, frames: int = PATCH) -> Tensor:
    """The inverse of `blocks`."""
    video = rearrange(cells, "b l h w c (t p q) -> b c (l t) (h p) (w q)", t=frames, p=side, q=side)
    return video[:, :, frames - 1 :]


def haar_matrix() -> Tensor:
    """(64, 64) coefficients from pixels of a block; its inverse is 64 times its transpose."""
    impulses = torch.eye(PATCH**3).view(PATCH**3, 1, PATCH, PATCH, PATCH)
    video = torch.cat([torch.zeros(PATCH**3, 1, 1, PATCH, PATCH), impulses], dim=2)  # behind an empty first frame
    return CosmosPatchEmbed3d(PATCH, "haar")(video)[:, :, 1, 0, 0].T.contiguous()


class HaarPatch(nn.Module):
    """(B, C, T, H, W) <-> (B, 64 C, L, H/4, W/4)."""

    def __init__(self):
        super().__init__()
        self.register_buffer("matrix", haar_matrix(), persistent=False)

    def forward(self, video: Tensor) -> Tensor:
        return rearrange(blocks(video, PATCH) @ self.matrix.T, "b l h w c s -> b (s c) l h w")

    def inverse(self, patches: Tensor) -> Tensor:
        coefficients = rearrange(patches, "b (s c) l h w -> b l h w c s", s=PATCH**3)
        return unblocks(coefficients @ self.matrix * PATCH**3, PATCH)
