"""Rectified flow in closed form: identities of noise and velocity, the loss, and sampling along a known flow."""

import math

import pytest
import torch
from tiny_models import draw

from vw2.models.flow import add_noise, draw_time, flow_loss, motion_weight, sample
from vw2.training.compute import generator

SHAPE = (2, 3, 4, 2, 2)  # (B, C, L, h, w)
CLEAN, NOISE = draw(*SHAPE, seed=1), draw(*SHAPE, seed=2)


def test_ends_of_the_path():
    assert torch.equal(add_noise(CLEAN, NOISE, torch.zeros(2)), CLEAN)
    assert torch.equal(add_noise(CLEAN, NOISE, torch.ones(2)), NOISE)
    mixed = add_noise(CLEAN, NOISE, torch.tensor([0.25, 0.5]))  # each row its own time
    torch.testing.assert_close(mixed[0], 0.75 * CLEAN[0] + 0.25 * NOISE[0])
    torch.testing.assert_close(mixed[1], 0.5 * CLEAN[1] + 0.5 * NOISE[1])


def test_velocity_is_the_slope_of_the_path():
    one, two = (add_noise(CLEAN, NOISE, torch.full((2,), t)).double() for t in (0.25, 0.75))
    torch.testing.assert_close(((two - one) / 0.5).float(), NOISE - CLEAN, atol=1e-5, rtol=0)
    time = torch.tensor([0.3, 0.8])
    noisy = add_noise(CLEAN, NOISE, time)
    back = (noisy - CLEAN) / time[:, None, None, None, None]  # as VDM.to_velocity makes it from a clean video
    torch.testing.assert_close(back, NOISE - CLEAN, atol=1e-5, rtol=1e-5)


def test_loss_in_closed_form():
    velocity = NOISE - CLEAN
    assert flow_loss(velocity, CLEAN, NOISE) == 0
    assert flow_loss(velocity + 3, CLEAN, NOISE) == pytest.approx(9, rel=1e-5)
    wrong_first = velocity.clone()
    wrong_first[:, :, 0] = 1e6  # the given frame is not judged
    assert flow_loss(wrong_first, CLEAN, NOISE) == 0
    off = velocity.clone()
    off[:, :, 1] += 2  # one of three frames: 4 / 3; with weight 3 on it: 4
    weight = torch.ones(2, 1, 4, 2, 2)
    weight[:, :, 1] = 3
    assert flow_loss(off, CLEAN, NOISE) == pytest.approx(4 / 3, rel=1e-5)
    assert flow_loss(off, CLEAN, NOISE, weight) == pytest.approx(4, rel=1e-5)


def test_times():
    time = draw_time(4000, 1.59, generator(0))
    assert time.shape == (4000,) and 0 < time.min() and time.max() < 1
    assert torch.equal(time, draw_time(4000, 1.59, generator(0)))
    logit = torch.logit(time.double())  # N(shift, 1): the bounds are 5 standard errors
    assert logit.mean() == pytest.approx(1.59, abs=5 / math.sqrt(4000))
    assert logit.std() == pytest.approx(1, abs=5 / math.sqrt(8000))
    assert (draw_time(4000, 0.0, generator(0)) < time).all(), "a larger shift is more noise"


def test_motion_weight():
    for strength in (0.0, 1.0, 5.0):
        weight = motion_weight(CLEAN, strength)
        assert weight.shape == (2, 1, 4, 2, 2)
        assert weight[:, :, 1:].mean() == pytest.approx(1, abs=1e-6)
    assert (motion_weight(CLEAN, 0.0) == 1).all()
    assert (motion_weight(CLEAN[:, :, :1].expand(SHAPE), 5.0) == 1).all(), "nothing moves"
    still = CLEAN[:, :, :1].repeat(1, 1, 4, 1, 1)
    still[0, :, 2, 0, 1] += 2  # one of 2 * 3 * 4 latent pixels moves: 1 + 2 s against 1, then mean 1
    weight = motion_weight(still, 3.0)
    mean = (23 + 7) / 24
    assert weight[0, 0, 2, 0, 1] == pytest.approx(7 / mean, rel=1e-5)
    assert weight[1, 0, 3, 1, 1] == pytest.approx(1 / mean, rel=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 6])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_sampling_a_point_mass_returns_it(steps, shift):
    seen = []

    def velocity(noisy, time):
        seen.append(time.clone())
        return (noisy - CLEAN) / time[:, None, None, None, None]

    first = draw(2, 3, 1, 2, 2, seed=5)
    result = sample(velocity, NOISE, first, steps, shift)
    torch.testing.assert_close(result[:, :, 1:], CLEAN[:, :, 1:], atol=1e-4, rtol=0)
    assert torch.equal(result[:, :, :1], first), "the known first frame is kept"
    times = torch.stack(seen)
    assert times.shape == (steps, 2) and (times[0] == 1).all() and (times > 0).all()
    assert (times[1:] < times[:-1]).all(), "from noise to data"


def test_shift_spends_steps_at_high_noise():
    def middle(shift):
        seen = []
        sample(lambda x, t: (seen.append(float(t[0])), torch.zeros_like(x))[1], NOISE, NOISE[:, :, :1], 6, shift)
        return seen[3]

    assert middle(3.0) > middle(1.0)


def test_no_step_is_spent_on_next_to_nothing():
    seen = []
    sample(lambda x, t: (seen.append(float(t[0])), torch.zeros_like(x))[1], NOISE, NOISE[:, :, :1], 6, 3.0)
    lengths = torch.tensor(seen) - torch.tensor([*seen[1:], 0.0])
    assert lengths.min() > 0.02, f"a call of the VDM per {lengths.tolist()} of the way"


def test_sampling_is_deterministic_and_needs_no_gradient():
    weight = torch.ones((), requires_grad=True)
    one, two = (sample(lambda x, t: weight * x, NOISE, CLEAN[:, :, :1], 3, 3.0) for _ in range(2))
    assert torch.equal(one, two) and not one.requires_grad
