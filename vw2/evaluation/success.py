"""Has the demonstration been done? From the classifier's frame-wise opinion to success rates.

The rule in time is fixed beforehand (our choice; the paper does not give one). Key step k of a paper task is reached
at the first frame, not before the time of step k-1, from which the predicted class equals "<task>_k" for `hold`
consecutive frames. A step counts only if all before it count (VideoWorld 2, sec. 5: sequential success); and where a
later step holds before its turn, steps were skipped, and nothing counts from there on (order strict; with order loose
what comes too early is overlooked, so that codes in any order pass whose steps are in the right one by luck). A block
task succeeds if its final state fills all of the last `hold` frames: it must hold as a key step must. Thresholds are
chosen on validation videos, never on the videos that are reported.

Legend: F frames of one video, M rows (frames or rollouts of many videos), C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike

from vw2.evaluation.intervals import Estimate, success_interval

Order = Literal["strict", "loose"]  # what a key step before its turn means
N_STEPS = 7  # key steps of a paper task (VideoWorld 2, sec. 5)
UNCLEAR = -1  # predicted class of a frame about which the classifier is not sure enough


def predict(probabilities: ArrayLike, threshold: float = 0.0) -> np.ndarray:
    """Most probable class per frame, or UNCLEAR (-1) where its probability is below the threshold.

    Args:    probabilities: (F, C), rows sum to 1; threshold: in [0, 1], 0 = always decide.
    Returns: (F,) int64 in [-1, C).
    Raises:  ValueError if not of shape (F, C).
    """
    probabilities = np.asarray(probabilities, np.float64)
    if probabilities.ndim != 2 or not probabilities.shape[1]:
        raise ValueError(f"predict expects probabilities (F, C), got {probabilities.shape}")
    return np.where(probabilities.max(1) >= threshold, probabilities.argmax(1), UNCLEAR)


def step_targets(task: str, names: Sequence[str], n_steps: int = N_STEPS) -> list[int]:
    """Class numbers of "<task>_1" ... "<task>_n", the key steps of a paper task in their order.

    Raises: ValueError naming the class that the classifier does not know.
    """
    wanted = [f"{task}_{step}" for step in range(1, n_steps + 1)]
    if unknown := [name for name in wanted if name not in names]:
        raise ValueError(f"the classifier has no class {', '.join(unknown)}; it knows {', '.join(names)}")
    return [list(names).index(name) for name in wanted]


def step_times(pred: ArrayLike, targets: Sequence[int], hold: int, order: Order = "strict") -> list[int]:
    """Frame at which each key step is reached, for the unbroken run of steps from the first one on (our choice).

    Args:    pred: (F,) class per frame; targets: class numbers of the key steps in order; hold: frames, >= 1;
             order: strict = a later step before its turn ends the run.
    Returns: as many frame numbers as steps are reached, ascending; the frame is the first of the `hold` frames.
    Raises:  ValueError if hold < 1, targets repeat or pred is not one-dimensional.
    """
    pred = np.asarray(pred)
    if pred.ndim != 1 or hold < 1 or len(set(targets)) != len(targets):
        raise ValueError(f"expected pred (F,), hold >= 1 and distinct targets, got {pred.shape}, {hold}, {targets}")
    times: list[int] = []
    if len(pred) < hold or not targets:
        return times
    held = np.stack([sliding_window_view(pred == target, hold).all(1) for target in targets])  # (steps, F - hold + 1)
    start = 0
    for step in range(len(targets)):
        hits = np.flatnonzero(held[step, start:])
        if not len(hits):
            break
        early = held[step + 1 :, start : start + int(hits[0])]
        if order == "strict" and early.any():
            break
        start += int(hits[0])
        times.append(start)
    return times


def steps_reached(pred: ArrayLike, targets: Sequence[int], hold: int, order: Order = "strict") -> int:
    """Number of key steps reached in sequence; arguments and errors as in `step_times` (VideoWorld 2, sec. 5)."""
    return len(step_times(pred, targets, hold, order))


def final_state(pred: ArrayLike, target: int, hold: int) -> bool:
    """Are all of the last `hold` frames of the target class? (block tasks; our choice)

    Args:    pred: (F,) class per frame, F >= 1; a video shorter than `hold` is judged by all its frames; hold >= 1.
    Raises:  ValueError on an empty video or hold < 1.
    """
    pred = np.asarray(pred)
    if pred.ndim != 1 or not len(pred) or hold < 1:
        raise ValueError(f"final_state expects pred (F,), F >= 1, and hold >= 1, got {pred.shape} and {hold}")
    return bool((pred[-hold:] == target).all())


def survival(reached: ArrayLike, videos: ArrayLike, n_steps: int) -> list[Estimate]:
    """Sequential success: the share of rollouts that reach step 1, 2, ... n (VideoWorld 2, sec. 5).

    Args:    reached: (M,) steps reached per rollout, in [0, n_steps]; videos: (M,) test case of every rollout.
    Returns: n_steps Estimates, fractions that never rise from one step to the next; n = number of videos.
    Raises:  ValueError on counts outside [0, n_steps], empty or unequal inputs.
    """
    reached = _counts(reached, n_steps)
    return [success_interval(reached >= step, videos) for step in range(1, n_steps + 1)]


def conditional_success(reached: ArrayLike, videos: ArrayLike, n_steps: int) -> list[Estimate | None]:
    """Of the rollouts that reached step k-1, the share that also reach step k: where the chain breaks (our choice).

    The interval is of the videos that still have a rollout at step k-1, whose number is `n`.

    Args:    as in `survival`.
    Returns: n_steps entries; None for a step before which no rollout is left.
    """
    reached, videos = _counts(reached, n_steps), np.asarray(videos)
    steps: list[Estimate | None] = []
    for step in range(1, n_steps + 1):
        left = reached >= step - 1
        steps.append(success_interval(reached[left] >= step, videos[left]) if left.any() else None)
    return steps


def mean_steps(reached: ArrayLike, videos: ArrayLike, n_steps: int) -> Estimate:
    """Mean number of steps completed per rollout (what CALVIN calls average length); arguments as in `survival`.

    The mean is the sum of `survival`, and so are its bounds (our choice: steps succeed and fail together; rather too
    wide an interval than one of no width where all rollouts get equally far).
    """
    steps = survival(reached, videos, n_steps)
    return Estimate(*(sum(getattr(step, key) for step in steps) for key in ("value", "low", "high")), steps[0].n)


def accuracy(pred: ArrayLike, labels: ArrayLike, videos: ArrayLike) -> Estimate:
    """Share of frames whose class is right, frames counting equally, interval by video.

    Args:    pred, labels: (M,) int; videos: (M,). Frames at a step's boundary are left out by the caller.
    Returns: Estimate, a fraction; n = number of videos.
    """
    pred, labels = _pairs(pred, labels)
    return success_interval(pred == labels, videos)


def reliability(probabilities: ArrayLike, labels: ArrayLike, bins: int = 15) -> dict[str, np.ndarray]:
    """Reliability curve: how often a stated confidence is right (Guo et al. 2017, sec. 2).

    Args:    probabilities: (M, C); labels: (M,) int; bins: equal-width bins (low, high] of the highest probability.
    Returns: "count", "confidence" (mean), "accuracy" (mean), each (bins,); 0 in empty bins.
    Raises:  ValueError on empty or unequal inputs.
    """
    probabilities, labels = np.asarray(probabilities, np.float64), np.asarray(labels)
    if probabilities.ndim != 2 or not len(labels) or labels.shape != probabilities.shape[:1]:
        raise ValueError(f"expected probabilities (M, C) and labels (M,), got {probabilities.shape} and {labels.shape}")
    confidence = probabilities.max(1)
    right = probabilities.argmax(1) == labels
    where = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    count = np.bincount(where, minlength=bins)
    shares = np.maximum(count, 1)
    return {
        "count": count,
        "confidence": np.bincount(where, confidence, bins) / shares,
        "accuracy": np.bincount(where, right, bins) / shares,
    }


def expected_calibration_error(probabilities: ArrayLike, labels: ArrayLike, bins: int = 15) -> float:
    """Mean distance of stated confidence from accuracy, in [0, 1] (Guo et al. 2017, eq. 3); see `reliability`."""
    curve = reliability(probabilities, labels, bins)
    gap = np.abs(curve["confidence"] - curve["accuracy"])
    return float((curve["count"] * gap).sum() / curve["count"].sum())


def _counts(reached: ArrayLike, n_steps: int) -> np.ndarray:
    """Check that every count of steps lies in [0, n_steps]."""
    reached = np.asarray(reached)
    if ((reached < 0) | (reached > n_steps)).any():
        raise ValueError(f"steps reached must lie in [0, {n_steps}], got {reached.min()} to {reached.max()}")
    return reached


def _pairs(pred: ArrayLike, labels: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Check that predictions and labels are of one shape (M,)."""
    pred, labels = np.asarray(pred), np.asarray(labels)
    if pred.ndim != 1 or pred.shape != labels.shape:
        raise ValueError(f"expected pred and labels of the same shape (M,), got {pred.shape} and {labels.shape}")
    return pred, labels
