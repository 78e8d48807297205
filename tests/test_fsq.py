"""The quantiser: exhaustive code <-> index identity, an example by hand, gradients, agreement with the authors."""

from math import prod
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from vw2.evaluation.codes import code_digits, code_report
from vw2.models.fsq import FSQ, LEVELS, resolve_levels

GRIDS = ((8, 5, 5, 5), (8,), (8, 8, 8, 8), (8, 8, 8, 5, 5, 5))
AUTHORS = Path(__file__).parent / "fixtures" / "fsq_io.safetensors"
each_grid = pytest.mark.parametrize("levels", GRIDS, ids=str)


@each_grid
def test_every_code_comes_back(levels):
    fsq, everything = FSQ(levels), torch.arange(prod(levels))
    codes = fsq.to_codes(everything)
    assert fsq.codebook == len(everything) and codes.shape == (len(everything), len(levels))
    assert torch.equal(fsq.to_index(codes), everything)
    assert len(torch.unique(codes, dim=0)) == len(everything), "no two codes share a vector"
    assert codes.min() == -1 and codes.max() <= 1
    digits = fsq.digits(everything)
    assert [len(torch.unique(digits[:, g])) for g in range(len(levels))] == list(levels)
    assert np.array_equal(digits.numpy(), code_digits(everything.numpy(), levels)), "evaluation counts the same digits"


@each_grid
def test_every_code_can_be_reached(levels):
    # atanh of a level's middle, moved by the offset of even level counts, is quantised to that level.
    fsq, everything = FSQ(levels), torch.arange(prod(levels))
    half = (fsq.sizes - 1) * 1.001 / 2
    offset = torch.where(fsq.sizes % 2 == 0, 0.5, 0.0)
    wanted = (fsq.digits(everything) - fsq.sizes // 2).double()
    z = torch.atanh((wanted + offset) / half) - torch.atanh(offset / half)
    codes, index = fsq(z)
    assert torch.equal(index, everything) and torch.equal(codes, fsq.to_codes(everything))
    assert code_report(index.numpy(), levels)["used_fraction"] == 1.0


def test_example_by_hand():
    # 5 levels: tanh(z) 2.002 -> 1.52, 0.93, -0.93; rounded 2, 1, -1: digits 4, 3, 1; codes 1, 1/2, -1/2.
    # 8 levels: tanh(z + atanh(0.5 / 3.5035)) 3.5035 - 0.5: z = 1 -> 2.36 -> 2: digit 6, code 1/2; z = 0 -> 0: digit 4.
    fsq = FSQ((8, 5, 5, 5))
    z = torch.tensor([[1.0, 0.5, -0.5, 1.0], [0.0] * 4, [99.0] * 4, [-99.0] * 4])
    codes, index = fsq(z)
    assert index.tolist() == [6 + 3 * 8 + 1 * 40 + 4 * 200, 4 + 2 * 8 + 2 * 40 + 2 * 200, 999, 0]
    assert codes.tolist() == [[0.5, 0.5, -0.5, 1], [0] * 4, [0.75, 1, 1, 1], [-1] * 4]
    assert fsq.digits(torch.tensor([870])).tolist() == [[6, 3, 1, 4]]


def test_gradient_goes_straight_through():
    fsq = FSQ((8, 5, 5, 5))
    z = torch.linspace(-2, 2, 28).view(7, 4).requires_grad_()
    weight = torch.arange(28.0).view(7, 4)
    (fsq(z)[0] * weight).sum().backward()
    given, z.grad = z.grad, None
    (fsq.bound(z) / (fsq.sizes // 2) * weight).sum().backward()  # as if there were no rounding
    assert torch.equal(given, z.grad) and (given.flatten()[1:] > 0).all()


def test_shapes_dtypes_and_parameters():
    fsq = FSQ((8, 5, 5, 5))
    codes, index = fsq(torch.zeros(2, 3, 4, 4, dtype=torch.bfloat16))
    assert codes.shape == (2, 3, 4, 4) and codes.dtype == torch.float32
    assert index.shape == (2, 3, 4) and index.dtype == torch.int64
    assert not list(fsq.parameters()) and not fsq.state_dict()
    with pytest.raises(ValueError, match=r"expected 4 digits on the last axis, got shape \(2, 5\)"):
        fsq(torch.zeros(2, 5))


def test_levels_of_a_codebook():
    assert [prod(levels) for levels in LEVELS.values()] == list(LEVELS) == [8, 1000, 4096, 64000]
    assert resolve_levels(1000, None) == (8, 5, 5, 5) and resolve_levels(64000, None) == (8, 8, 8, 5, 5, 5)
    assert resolve_levels(105, (7, 5, 3)) == (7, 5, 3)


@pytest.mark.parametrize(
    "codebook, levels, sentence",
    [
        (1024, None, "dldm.codebook 1024 has no preset levels (known: 8, 1000, 4096, 64000); set dldm.levels"),
        (4096, (8, 8, 8), "dldm.levels 8,8,8 multiply to 512 but dldm.codebook is 4096; leave dldm.levels null"),
        (8, (4, 2), "dldm.levels must be at least 3 (a digit of 2 is dead under the bound), got 2"),
    ],
)
def test_wrong_levels_end_in_a_sentence(codebook, levels, sentence):
    with pytest.raises(ValueError) as error:
        resolve_levels(codebook, levels)
    assert str(error.value).startswith(sentence)


@each_grid
def test_agrees_with_a_search_for_the_nearest_level(levels):
    """Written another way: of all levels the one nearest to the bounded value, and the index of an array's cell."""
    z = np.random.default_rng(0).normal(scale=2, size=(2000, len(levels)))
    digits = []
    for each, value in zip(levels, z.T, strict=True):
        reach, shift = 1.001 * (each - 1) / 2, 0.5 * (each % 2 == 0)
        bounded = reach * np.tanh(value + np.arctanh(shift / reach)) - shift
        places = np.arange(each) - each // 2
        digits.append(np.abs(bounded[:, None] - places).argmin(1))
    codes, index = FSQ(levels)(torch.from_numpy(z))
    assert np.array_equal(index.numpy(), np.ravel_multi_index(digits, levels, order="F"))
    middle = np.array([each // 2 for each in levels])
    np.testing.assert_allclose(codes.numpy(), (np.stack(digits, 1) - middle) / middle, atol=1e-6)


@pytest.mark.parametrize(
    "suffix, levels",
    [("", (8, 5, 5, 5)), ("_8", (8,)), ("_8_8_6_5", (8, 8, 8, 5, 5, 5)), ("_7_5_5_5_5", (7, 5, 5, 5, 5))],
)
def test_agrees_with_the_authors(suffix, levels):
    recorded = load_file(AUTHORS)
    fsq, last = FSQ(levels), lambda x: x.movedim(1, -1)  # theirs has the digits on axis 1
    codes, index = fsq(last(recorded[f"z{suffix}"]))
    assert torch.equal(index, recorded[f"indices{suffix}"].long())
    assert torch.equal(codes, last(recorded[f"codes{suffix}"]))
    if not suffix:
        assert torch.equal(fsq.to_codes(torch.arange(1000)), recorded["codebook"])


@pytest.mark.parametrize("levels", [(1001,), (1002,), (1003,), (2000, 3), (2,)])
def test_however_many_levels_the_ends_are_the_last(levels):
    fsq = FSQ(levels)
    for end, index in ((-1e3, 0), (1e3, fsq.codebook - 1)):
        codes, found = fsq(torch.full((1, len(levels)), end))
        assert found.item() == index and codes.abs().max() <= 1 and torch.equal(fsq.to_codes(found), codes)


def test_a_digit_needs_two_levels():
    with pytest.raises(ValueError, match="at least 2"):
        FSQ((8, 1))
