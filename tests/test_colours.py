"""Other colours for whole videos: matrices in closed form, the same for all clips of a walk, no video forgotten."""

import math
from dataclasses import replace

import vw2.torchvision_ops  # noqa: F401  (must come before torchvision is imported)

import pytest
import torch
from torchvision.transforms import ColorJitter

from vw2.media.colours import ColourConfig, colour_mix, recolour
from vw2.media.jitter import CHANGES, jitter

ALL = ColourConfig(share=1.0)
STILL = replace(ALL, hue=0.0, saturation=0.0, contrast=0.0, brightness=0.0)


def videos(count: int = 64) -> torch.Tensor:
    return torch.rand(count, 3, 2, 4, 4, generator=torch.Generator().manual_seed(0)) * 1.2 - 0.6


def keys(count: int = 64, stretch: int = 0) -> list[tuple[int, int]]:
    return [(walker, stretch) for walker in range(count)]


def test_a_third_of_a_turn_permutes_the_channels_and_grey_stays_grey():
    angle, one = torch.tensor([0.0, 2 * math.pi / 3, 1.0]), torch.ones(3)
    mix = colour_mix(angle, one, one, torch.tensor([False, False, True]))
    torch.testing.assert_close(mix[0], torch.eye(3))
    torch.testing.assert_close(mix[1].abs(), torch.eye(3)[[2, 0, 1]], atol=1e-6, rtol=0)
    torch.testing.assert_close(mix @ one, torch.ones(3, 3))
    torch.testing.assert_close(mix[2], colour_mix(angle[2:], one[:1], one[:1], torch.tensor([False]))[0][[1, 0, 2]])


def test_saturation_and_contrast_in_closed_form():
    red = torch.tensor([1.0, 0.0, 0.0])
    none, half = torch.zeros(1), torch.tensor([0.5])
    mixed = colour_mix(none, half, torch.tensor([2.0]), torch.tensor([False]))[0] @ red
    torch.testing.assert_close(mixed, 2 * torch.tensor([1 / 3 + 1 / 3, 1 / 6, 1 / 6]))


def test_without_a_share_nothing_is_done_and_without_strength_channels_are_exchanged_at_most():
    video = videos()
    assert recolour(video, keys(), ColourConfig(), 0) is video
    found = recolour(video, keys(), STILL, 0)
    same = (found - video).abs().amax((1, 2, 3, 4)) < 1e-6
    swapped = (found - video[:, [1, 0, 2]]).abs().amax((1, 2, 3, 4)) < 1e-6
    assert (same | swapped).all() and 16 < same.sum() < 48


def test_colours_hang_on_seed_and_key_alone():
    video = videos()
    found = recolour(video, keys(), ALL, 0)
    assert torch.equal(recolour(video[5:9], keys()[5:9], ALL, 0), found[5:9]), "not on the others of the batch"
    for other in (recolour(video, keys(), ALL, 1), recolour(video, keys(stretch=1), ALL, 0)):
        assert ((other - found).abs().amax((1, 2, 3, 4)) > 0.05).float().mean() > 0.9
    one = recolour(video[:1].expand(2, -1, -1, -1, -1), [(3, 4)] * 2, ALL, 0)
    assert torch.equal(one[0], one[1]), "clips of one stretch share theirs"


def test_share_and_limits():
    video = videos(400)
    found = recolour(video, keys(400), replace(ALL, share=0.25), 0)
    changed = (found - video).abs().amax((1, 2, 3, 4)) > 1e-6
    assert 70 < changed.sum() < 130 and found.abs().max() <= 1
    light = recolour(torch.zeros(400, 3, 1, 1, 1), keys(400), ALL, 0)
    assert 0.18 < light.abs().max() <= 0.2 and abs(light.mean()) < 0.02
    for wrong in ({"share": 1.5}, {"hue": -0.1}, {"brightness": -1.0}):
        with pytest.raises(ValueError, match=r"dldm\.colours"):
            replace(ALL, **wrong)


def test_jitter_is_one_draw_a_clip_and_within_its_bounds():
    video, rng = videos(), lambda: torch.Generator().manual_seed(1)
    assert jitter((video, video), 0.0, None)[1] is video, "and nothing is drawn"
    changed, first = jitter((video, video[:, :, :1]), 1.0, rng())
    assert torch.equal(changed[:, :, :1], first), "the first frame shares it"
    alone = jitter((video[:, :, :1].expand_as(video),), 1.0, rng())[0]
    assert torch.equal(alone[:, :, 0], alone[:, :, 1]), "all frames do"
    grey = torch.full_like(video, -0.4)  # 0.3 of [0, 1]: hue, saturation and contrast do nothing to it
    light = (jitter((grey,), 1.0, rng())[0] + 1) / 2 / 0.3
    assert 0.7 <= light.min() < 0.8 and 1.2 < light.max() <= 1.3
    torch.testing.assert_close(light.amin((1, 2, 3, 4)), light.amax((1, 2, 3, 4)))
    half = (jitter((grey,), 0.5, rng())[0] + 1) / 2 / 0.3
    torch.testing.assert_close(2 * (half - 1), light - 1, atol=1e-5, rtol=0)


def test_jitter_is_torchvisions():
    video = videos(8)
    bounds = [(1 - width, 1 + width) if none else (-width, width) for _, none, width in CHANGES]
    torch.manual_seed(3)
    order, *factors = ColorJitter.get_params(*bounds)  # draws order and factors from torch's own generator

    draws = [(factor - none) / width for factor, (_, none, width) in zip(factors, CHANGES, strict=True)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "rand", lambda *_, **__: (torch.tensor(draws, dtype=torch.float64) + 1) / 2)
        patch.setattr(torch, "randperm", lambda *_, **__: order)
        found = jitter((video,), 1.0, torch.Generator())[0]
    torch.manual_seed(3)
    frames = (video.transpose(1, 2) + 1) / 2  # ColorJitter draws once for a whole tensor of frames
    expected = ColorJitter(*bounds)(frames).transpose(1, 2) * 2 - 1
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert (found - video).abs().max() > 0.05
