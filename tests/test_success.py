"""The rule in time, sequential success and the classifier's own figures, on hand-made sequences."""

import numpy as np
import pytest

from vw2.evaluation import success
from vw2.evaluation.intervals import wilson

TARGETS = [0, 1, 2]


def frames(text: str) -> np.ndarray:
    """One digit per frame; '.' is a class that is no step (9)."""
    return np.array([9 if letter == "." else int(letter) for letter in text])


@pytest.mark.parametrize(
    ("text", "hold", "times"),
    [
        ("..000111222", 3, [2, 5, 8]),
        ("..000111222", 4, []),
        ("..0.0.0", 2, []),  # never held
        ("000222111222", 3, [0]),  # step 3 before step 2: what comes after a skipped step does not count
        ("222000111222", 3, []),
        ("000221112222", 3, [0, 5, 8]),  # what is not held is not seen
        ("000111000222", 3, [0, 3, 9]),  # an earlier step again takes nothing back
        ("111222", 1, []),  # a step counts only if all before it do
        ("0...12", 1, [0, 4, 5]),
        ("0011000011122", 2, [0, 2, 11]),  # the first held run counts, what follows does not take it back
        ("00", 3, []),  # shorter than hold
        ("", 1, []),
    ],
)
def test_step_times(text, hold, times):
    assert success.step_times(frames(text), TARGETS, hold) == times
    assert success.steps_reached(frames(text), TARGETS, hold) == len(times)


@pytest.mark.parametrize(
    ("text", "times"), [("000222111222", [0, 6, 9]), ("000222111", [0, 6]), ("222000111222", [3, 6, 9]), ("111222", [])]
)
def test_loose_order_overlooks_what_comes_too_early(text, times):
    assert success.step_times(frames(text), TARGETS, 3, "loose") == times
    strict = success.step_times(frames(text), TARGETS, 3, "strict")
    assert strict == times[: len(strict)], "the strict order is never the kinder one"


def test_no_steps_to_reach():
    assert success.step_times(frames("0011"), [], 2) == []


def test_step_times_refuses_nonsense():
    with pytest.raises(ValueError, match="hold"):
        success.steps_reached(frames("01"), TARGETS, 0)
    with pytest.raises(ValueError, match="distinct"):
        success.steps_reached(frames("01"), [1, 1], 1)


def test_predict_and_targets():
    probabilities = [[0.6, 0.4], [0.1, 0.9]]
    assert success.predict(probabilities).tolist() == [0, 1]
    assert success.predict(probabilities, threshold=0.7).tolist() == [success.UNCLEAR, 1]
    names = ["failed", "boat_1", "boat_2", "airplane_2", "airplane_1"]
    assert success.step_targets("airplane", names, 2) == [4, 3]
    with pytest.raises(ValueError, match="no class boat_3"):
        success.step_targets("boat", names, 3)


def test_final_state_holds_to_the_end():
    assert success.final_state(frames("0002111"), 1, 3)
    assert success.final_state(frames("0002111"), 1, 4) is False  # three of four
    assert success.final_state(frames("0011110"), 1, 4) is False  # it did hold, but not to the end
    assert success.final_state(frames("1"), 1, 8)  # shorter than hold: all there is
    with pytest.raises(ValueError, match="F >= 1"):
        success.final_state(frames(""), 1, 1)


def test_survival_conditional_and_mean():
    videos = np.repeat([0, 1, 2, 3], 2)
    reached = [0, 0, 1, 1, 2, 2, 3, 3]
    curve = success.survival(reached, videos, 3)
    assert [step.value for step in curve] == [0.75, 0.5, 0.25]
    assert all(step.n == 4 and step.low <= step.value <= step.high for step in curve)
    steps = success.conditional_success(reached, videos, 3)
    assert [step.value for step in steps] == pytest.approx([3 / 4, 2 / 3, 1 / 2])
    assert [step.n for step in steps] == [4, 3, 2]
    mean = success.mean_steps(reached, videos, 3)
    assert mean.value == 1.5 == sum(step.value for step in curve)
    assert (mean.low, mean.high, mean.n) == (sum(step.low for step in curve), sum(step.high for step in curve), 4)
    assert curve == success.survival(reached, videos, 3)


def test_nobody_reaches_a_step():
    assert success.survival([0, 0], [0, 1], 2) == [wilson(0, 2)] * 2
    assert success.conditional_success([0, 0], [0, 1], 2) == [wilson(0, 2), None]
    with pytest.raises(ValueError, match=r"\[0, 2\]"):
        success.survival([3], [0], 2)


def test_accuracy_is_by_video():
    pred, labels, videos = [0, 1, 1, 1], [0, 1, 0, 0], ["a", "a", "b", "b"]
    estimate = success.accuracy(pred, labels, videos)
    assert (estimate.value, estimate.n) == (0.5, 2) and (estimate.low, estimate.high) == (
        wilson(1, 2).low,
        wilson(1, 2).high,
    )
    assert success.accuracy(labels, labels, videos) == wilson(2, 2)


def test_expected_calibration_error():
    sure = np.tile([0.8, 0.2], (10, 1))
    assert success.expected_calibration_error(sure, [0] * 8 + [1] * 2) == pytest.approx(0.0, abs=1e-12)
    assert success.expected_calibration_error(sure, [0] * 5 + [1] * 5) == pytest.approx(0.3)
    assert success.expected_calibration_error([[1.0, 0.0]], [1]) == 1.0
    # Two bins that err in opposite ways do not cancel: (10 * 0.3 + 10 * 0.4) / 20.
    both = np.concatenate([sure, np.tile([0.6, 0.4], (10, 1))])
    assert success.expected_calibration_error(both, [0] * 5 + [1] * 5 + [0] * 10) == pytest.approx(0.35)
    curve = success.reliability(both, [0] * 20, bins=5)
    assert curve["count"].tolist() == [0, 0, 10, 10, 0]  # bins are (low, high]: 0.6 -> (0.4, 0.6], 0.8 -> (0.6, 0.8]
    assert curve["confidence"] == pytest.approx([0, 0, 0.6, 0.8, 0])
    with pytest.raises(ValueError, match="labels"):
        success.expected_calibration_error(sure, [0])
