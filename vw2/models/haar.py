"""Haar patches of a causal video: every 4x4x4 block of pixels becomes one column of 64 wavelet coefficients a colour.

The coefficients, their order and scale are those of diffusers' CosmosPatchEmbed3d(4, "haar"), which the fixed matrix
here is read from; as one matrix product the transform is some ten times faster on a CPU than as grouped convolutions.
The first frame is repeated 4 times, so that it has patches of its own. Other powers of 2 than 4 do as well.
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


def haar_matrix(side: int = PATCH) -> Tensor:
    """(side^3, side^3) coefficients from pixels of a block; its inverse is side^3 times its transpose."""
    volume = side**3
    with torch.device("cpu"):  # also where a model is built on the meta device
        impulses = torch.eye(volume).view(volume, 1, side, side, side)
        video = torch.cat([torch.zeros(volume, 1, 1, side, side), impulses], dim=2)  # behind an empty first frame
        matrix = CosmosPatchEmbed3d(side, "haar")(video)[:, :, 1, 0, 0].T.contiguous()
    return matrix.to(torch.get_default_device())


class HaarPatch(nn.Module):
    """(B, C, T, H, W) <-> (B, side^3 C, L, H/side, W/side)."""

    def __init__(self, side: int = PATCH):
        super().__init__()
        self.side = side
        self.register_buffer("matrix", haar_matrix(side), persistent=False)

    def forward(self, video: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, side^3 C, L, H / side, W / side)."""
        return rearrange(self.times(blocks(video, self.side, self.side), self.matrix.T), "b l h w c s -> b (s c) l h w")

    def inverse(self, patches: Tensor) -> Tensor:
        """(B, side^3 C, L, H / side, W / side) -> (B, C, T, H, W)."""
        return unblocks(self.cells(patches), self.side, self.side)

    def cells(self, patches: Tensor) -> Tensor:
        """(B, side^3 C, L, H/side, W/side) -> pixels of blocks as `unblocks` takes them."""
        coefficients = rearrange(patches, "b (s c) l h w -> b l h w c s", s=self.side**3)
        return self.times(coefficients, self.matrix * self.side**3)

    @staticmethod
    def times(cells: Tensor, matrix: Tensor) -> Tensor:
        """(..., s) @ (s, s) as one product of two matrices; torch would take a product for every patch."""
        return (cells.reshape(-1, len(matrix)) @ matrix).view(cells.shape)
