"""Haar patches: the same numbers as diffusers' Cosmos patcher, undone exactly, and still where nothing moves."""

import vw2.torchvision_ops  # noqa: F401

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_cosmos import CosmosPatchEmbed3d, CosmosUnpatcher3d
from tiny_models import clip, draw

from vw2.models.haar import HaarPatch, blocks, haar_matrix, unblocks

each_size = pytest.mark.parametrize("shape", [(2, 3, 9, 8, 16), (1, 3, 1, 8, 8), (1, 2, 5, 4, 12)], ids=str)


@each_size
def test_equals_diffusers(shape):
    video = draw(*shape)
    ours, theirs = HaarPatch()(video), CosmosPatchEmbed3d(4, "haar")(video)
    assert ours.shape == theirs.shape == (shape[0], 64 * shape[1], (shape[2] + 3) // 4, shape[3] // 4, shape[4] // 4)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
    anything = draw(*ours.shape, seed=1)  # also coefficients that no video has
    undone, reference = HaarPatch().inverse(anything), CosmosUnpatcher3d(4, "haar")(anything)
    torch.testing.assert_close(undone, reference, atol=1e-5, rtol=1e-5)


@each_size
def test_inverse(shape):
    patch, video = HaarPatch(), draw(*shape)
    torch.testing.assert_close(patch.inverse(patch(video)), video, atol=1e-5, rtol=0)
    assert torch.equal(unblocks(blocks(video, 4), 4), video)


def test_matrix_is_orthogonal_up_to_scale():
    matrix = haar_matrix().double()
    torch.testing.assert_close(matrix @ matrix.T * 64, torch.eye(64).double(), atol=1e-6, rtol=0)


def test_constant_video_lies_in_the_low_band():
    colours = torch.tensor([0.5, -1.0, 0.25])
    patches = HaarPatch()(colours.view(1, 3, 1, 1, 1).expand(1, 3, 9, 8, 8))
    torch.testing.assert_close(patches[0, :3], colours.view(3, 1, 1, 1).expand(3, 3, 2, 2), atol=1e-6, rtol=0)
    assert patches[0, 3:].abs().max() < 1e-6


def test_still_picture_has_the_same_patches_in_every_frame():
    patches = HaarPatch()(clip(1, 1, 8).expand(-1, -1, 9, -1, -1))
    torch.testing.assert_close(patches[:, :, 1:], patches[:, :, :1].expand(-1, -1, 2, -1, -1), atol=1e-6, rtol=0)


def test_first_frame_has_patches_of_its_own():
    video, other = clip(1, 9, 8), clip(1, 9, 8, seed=1)
    other[:, :, :5] = video[:, :, :5]
    one, two = HaarPatch()(video), HaarPatch()(other)
    assert torch.equal(one[:, :, :2], two[:, :, :2]) and not torch.equal(one[:, :, 2], two[:, :, 2])
