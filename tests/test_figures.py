"""Headline figures against closed forms: PSNR over moving pixels, codes of other videos, bits per code."""

from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn

from vw2.data.codes import CodesInfo, write_codes
from vw2.evaluation.prediction import predict_figures, unigram_figures
from vw2.evaluation.quality import MAX_PSNR, moving_error
from vw2.evaluation.rendering import comparable, other_clip, pooled_psnr, render_figures
from vw2.models.ar import Scores
from vw2.training.sequences import score

FIFTH = 51  # of 255: a squared error of 1/25
DB_OF_A_FIFTH = 20 * np.log10(5)


def clip(moved: int) -> np.ndarray:
    """Two frames of 4 x 4 pixels, black but for `moved` white pixels in the second one."""
    frames = np.zeros((2, 4, 4, 3), np.uint8)
    frames[1].reshape(16, 3)[:moved] = 255
    return frames


def wrong_by(real: np.ndarray, levels: int) -> np.ndarray:
    """The clip, darker by some grey levels wherever it is white, and quite wrong where nothing moves."""
    drawn = np.where(real == 255, 255 - levels, real).astype(np.uint8)
    drawn[1, 3, 3] = 200  # stands still in the real clip: does not count
    return drawn


def test_psnr_pools_errors_over_moving_pixels_by_video():
    real = [clip(1), clip(1)]
    same = pooled_psnr([moving_error(wrong_by(each, FIFTH), each) for each in real], ["a", "b"], seed=0)
    assert (same.value, same.low, same.high, same.n) == (*[pytest.approx(DB_OF_A_FIFTH)] * 3, 2)
    # One pixel of error 1/25 and three without: pooled over pixels, not averaged over clips.
    real = [clip(1), clip(3)]
    errors = [moving_error(wrong_by(each, by), each) for each, by in zip(real, (FIFTH, 0), strict=True)]
    mixed = pooled_psnr(errors, ["a", "b"], seed=0)
    assert mixed.value == pytest.approx(10 * np.log10(25 * 4))
    assert mixed.low == pytest.approx(DB_OF_A_FIFTH) and mixed.high == pytest.approx(MAX_PSNR)  # in this order
    alone = pooled_psnr([moving_error(wrong_by(clip(1), FIFTH), clip(1))], ["a"], seed=0)
    assert (alone.value, alone.low, alone.high) == (pytest.approx(DB_OF_A_FIFTH), None, None)


@pytest.mark.parametrize("videos", [list("aabb"), list("abab"), list("aaab"), list("aaabbbcc")])
def test_other_codes_are_of_another_video(videos):
    assert all(videos[other] != video for video, other in zip(videos, other_clip(videos), strict=True))
    assert other_clip(["a", "a"]).tolist() == [1, 0] and other_clip(["a"]).tolist() == [0]
    assert comparable(videos) and comparable(["a"] * 8) and not comparable(["a"] * 7)


def test_render_figures_of_a_renderer_that_is_known():
    """Codes say how dark what moves is drawn: own codes 0 (right), others' codes 51 (wrong by a fifth)."""
    real, videos = [clip(2), clip(2)], ["a", "b"]
    codes = np.array([0, FIFTH]).reshape(2, 1, 1)  # a's own codes are right for a, b's wrong for b

    def draw(numbers, told):
        return [wrong_by(real[i], int(code)) for i, code in zip(numbers, told[:, 0, 0], strict=True)]

    figures, own, other = render_figures(draw, real.__getitem__, codes, videos, seed=0)
    half = pytest.approx(10 * np.log10(25 * 2))
    assert {key: figure["value"] for key, figure in figures.items()} == {
        "render.psnr": half,
        "render.psnr_other_codes": half,
        "render.psnr_copy": pytest.approx(0),  # white where black is: an error of one
    }
    assert own[1].max() == other[0].max() == 204 and own[0].max() == other[1].max() == 255
    assert render_figures(draw, real.__getitem__, codes, videos, seed=0, batch=1)[0] == figures, "one after the other"
    assert render_figures(draw, real.__getitem__, codes, videos, seed=0, shown=[1])[1].keys() == {1}
    one = render_figures(draw, real.__getitem__, codes[:1], videos[:1], seed=0)[0]
    assert set(one) == {"render.psnr", "render.psnr_copy"}, "there are no other codes"
    still = [clip(0), clip(0)]
    assert render_figures(lambda numbers, told: still, still.__getitem__, codes, videos, seed=0)[0] == {}


class Foreteller(nn.Module):
    """Gives each code of video v 2^-(v + 1), END 1/4 where it comes and 1/8 where it might; right in video 0 alone."""

    inputs = None

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def score(self, batch) -> Scores:
        """Videos of two clips of two codes each, then END: places code, code, code (or END), code, END."""
        is_code = torch.tensor([True, True, True, True, False]).expand(len(batch.items), -1)
        end = torch.tensor([0, 0, 1 / 8, 0, 1 / 4]).expand(len(batch.items), -1)
        items = torch.tensor(batch.items)[:, None].expand(-1, 5)
        return Scores((items + 1).float(), items == 0, end, is_code, ~is_code)


class Items(list):
    """Stands for Sequences: a batch is the numbers of its videos."""

    def batch(self, items, inputs, instructions):
        numbers = list(items)
        return SimpleNamespace(items=numbers, to=lambda device: SimpleNamespace(items=numbers))


@pytest.mark.parametrize("batch", [1, 2, 16])
def test_bits_of_a_model_that_is_known(batch):
    model = Foreteller().train()
    figures = predict_figures(score(model, Items([0, 1, 2]), batch=batch), seed=0)
    assert {key: figure["value"] for key, figure in figures.items()} == {
        "bits": pytest.approx((1 + 2 + 3) / 3),
        "accuracy": pytest.approx(1 / 3),
        "end_probability": pytest.approx(1 / 4),
        "early_end_probability": pytest.approx(1 / 8),
    }
    assert figures["bits"]["n"] == 3 and model.training
    assert 1 <= figures["bits"]["low"] <= 2 <= figures["bits"]["high"] <= 3


def test_unigram_bits_in_closed_form(tmp_path):
    """Four codes; in training the first slot shows 0, 0, 0, 1, the second 2 and 3 twice."""
    clips = pl.DataFrame({"video": ["a", "b"], "split": ["train", "test"], "clip": [0, 0]})
    steps = np.array([[[0, 2], [0, 2], [0, 3], [1, 3]], [[0, 2], [0, 3], [0, 2], [2, 2]]])
    codes = write_codes(tmp_path, clips, steps, CodesInfo((4,), 4, 2))
    figures = unigram_figures(codes, ["a"], ["b"], seed=0, max_clips=9)
    value = {key: figure["value"] for key, figure in figures.items()}
    skewed = -(3 / 4 * np.log2(3 / 4) + 1 / 4 * np.log2(1 / 4))
    assert value["unigram_entropy_bits"] == pytest.approx((skewed + 1) / 2)  # mean of the two slots
    # Smoothed by half a count per code: 0 has 3.5 of 6 and 2 has 0.5 in the first slot, 2 and 3 have 2.5 in the second.
    assert value["unigram_bits"] == pytest.approx(-np.log2((3.5 / 6) ** 3 * (0.5 / 6) * (2.5 / 6) ** 4) / 8)
    assert value["unigram_accuracy"] == pytest.approx((3 + 3) / 8)  # the likeliest: 0, and 2 (the first of equals)
