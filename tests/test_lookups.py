"""Colours that places of the coarse decoder look up in the first frame; at the beginning all is as without them."""

import pytest
import torch
from tiny_models import SIDE, clip, draw, tiny_config, tiny_ldm, wake

from vw2.models.drawing import LookedStrokes, Strokes
from vw2.models.haar import PATCH
from vw2.models.layers import zero

LATENTS = 3  # latent frames of the drawings below
T = 1 + PATCH * (LATENTS - 1)
PLACES = 2  # a side; they look at 4 by 4 cells
KEY = 16


def strokes(frames: int = T) -> dict[str, torch.Tensor]:
    """What draws nothing but the frame itself, at 8 by 8 pixels."""
    side = PLACES * PATCH
    sizes = {"flow": 2, "erase": 1, "paint": 3}
    return {name: torch.zeros(1, channels, frames, side, side) for name, channels in sizes.items()}


def looking_at(cells: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and keys with which each place (L, py, px, M) looks at one of the 16 cells."""
    key = 30 * torch.eye(KEY)[None]
    return key[0][cells][None], key


def test_a_place_paints_with_the_colour_of_the_cell_it_looks_at():
    frame = draw(1, 3, 1, 16, 16, seed=1).tanh()
    cells = torch.randint(0, 16, (LATENTS, PLACES, PLACES, 2), generator=torch.Generator().manual_seed(0))
    weight = torch.zeros(1, LATENTS, PLACES, PLACES, 2, PATCH**3)
    weight[0, 1, 0, 1, 0] = 1.0  # latent frame 1 is frames 1 to 4; of its upper right place all pixels
    weight[0, 1, 0, 1, 1] = 0.5
    query, key = looking_at(cells)
    video = LookedStrokes(**strokes(), weight=weight, query=query, key=key).over(frame)
    added = video - Strokes(**strokes()).over(frame)
    colours = frame[0, :, 0].unflatten(1, (4, 4)).unflatten(3, (4, 4)).mean((2, 4)).flatten(1)  # (3, 16 cells)
    one, two = cells[1, 0, 1].tolist()
    wanted = colours[:, one] + 0.5 * colours[:, two]
    assert torch.equal(added[:, :, 0], torch.zeros(1, 3, 16, 16)) and not added[:, :, 5:].any()
    inner = added[0, :, 1:5, 1:7, 9:15]  # away from where enlarging mixes places
    torch.testing.assert_close(inner, wanted.view(3, 1, 1, 1).expand_as(inner), atol=1e-5, rtol=0)
    assert not added[0, :, 1:5, 9:].any() and not added[0, :, 1:5, :, :7].any()


@torch.no_grad()
def test_at_first_nothing_is_looked_up():
    plain, looking = tiny_ldm(), tiny_ldm(lookups=2)
    missing, unexpected = looking.load_state_dict(plain.state_dict(), strict=False)
    zero(looking.decoder.weigh)
    assert not unexpected and {key.split(".")[1] for key in missing} == {
        "weigh",
        "query",
        "key",
        "query_place",
        "key_place",
    }
    index = plain.encode(clip())
    assert torch.equal(looking.encode(clip()), index)
    torch.testing.assert_close(looking.coarse(clip(frames=1), index), plain.coarse(clip(frames=1), index))


@torch.no_grad()
def test_what_is_looked_up_is_heard_and_causal():
    ldm = wake(tiny_ldm(lookups=2), 3).eval()
    index = ldm.encode(clip())
    before, late = ldm.coarse(clip(frames=1), index), index.clone()
    late[:, 1] = (late[:, 1] + 7) % 1000
    now = ldm.coarse(clip(frames=1), late)
    assert torch.equal(before[:, :, :5], now[:, :, :5]) and not torch.equal(before[:, :, 5:], now[:, :, 5:])
    zero(ldm.decoder.weigh)
    assert not torch.equal(before, ldm.coarse(clip(frames=1), index))


@torch.no_grad()
@pytest.mark.parametrize("frames, stride", [(9, 4), (2, 1)])
def test_the_last_frame_alone(frames, stride):
    ldm = wake(tiny_ldm(lookups=2, stride=stride), 3).eval()
    frame, index = clip(frames=1), ldm.encode(clip(frames=frames))
    drawing = ldm.drawing(frame, index)
    torch.testing.assert_close(drawing.last().over(frame), drawing.over(frame)[:, :, -1:], atol=1e-6, rtol=0)
    small = ldm.shrink(frame)
    assert small.shape[-1] < SIDE and drawing.over(small).shape == (2, 3, frames, *small.shape[-2:]), "any size"


def test_the_loss_teaches_all_of_it():
    ldm = wake(tiny_ldm(lookups=2), 3).train()
    video = clip()
    ldm(video, video[:, :, :1])[0].backward()
    new = [p for name, p in ldm.decoder.named_parameters() if name.startswith(("weigh", "query", "key"))]
    assert len(new) == 8 and all(p.grad.any() for p in new)


def test_lookups_that_cannot_be():
    with pytest.raises(ValueError, match="dldm.lookups must be at least 0, got -1"):
        tiny_config(lookups=-1)
