"""What the latent dynamics codes hold: how much of the codebook is in use, what can be read from it, and controls.

Use alone proves little (random inputs also fill an FSQ codebook), so entropy stands beside linear probes whose folds
never split a video: otherwise a probe recognises the video and seems to read its action.

Legend: M codes, S steps of one video, N queries, G code digits, D features. A code is a whole number whose digits are
its FSQ levels, the first digit counting fastest: code = sum_g digit_g * prod_{h<g} levels_h (FSQ paper, sec. 3).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GroupKFold, StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from vw2.evaluation.intervals import Estimate, bootstrap_mean, bootstrap_ratio, success_interval


@dataclass(frozen=True)
class Probe:
    """A probe's held-out score with its interval by video, and the score that is had without looking (chance)."""

    score: Estimate  # 1 - sum of lost / sum of most
    chance: float
    lost: np.ndarray = field(compare=False, repr=False)  # (M,) what each row was missed by
    most: np.ndarray = field(compare=False, repr=False)  # (M,) what its miss is counted against


def code_digits(codes: ArrayLike, levels: Sequence[int]) -> np.ndarray:
    """Split codes into their digits (FSQ paper, sec. 3; order in the module docstring).

    Args:    codes: (...,) int in [0, prod(levels)); levels: G ints >= 2.
    Returns: (..., G) int64, digit g in [0, levels[g]).
    Raises:  ValueError on codes outside the codebook or fractional codes.
    """
    codes, size = np.asarray(codes), math.prod(levels)
    if not np.issubdtype(codes.dtype, np.integer) or (codes.size and not 0 <= codes.min() <= codes.max() < size):
        raise ValueError(f"expected whole codes in [0, {size}) for levels {list(levels)}, got {codes.dtype} {codes}")
    return np.stack(np.unravel_index(codes.astype(np.int64), tuple(levels), order="F"), axis=-1)


def digit_features(codes: ArrayLike, levels: Sequence[int]) -> np.ndarray:
    """One-hot digits as features of a probe: linear in which level each digit takes (our choice).

    Args:    codes: (M, N) int, the codes of one step in a row; levels: G ints.
    Returns: (M, N * sum(levels)) float64 of 0 and 1.
    """
    digits = code_digits(codes, levels)  # (M, N, G)
    hot = [np.eye(level)[digits[..., place]] for place, level in enumerate(levels)]  # each (M, N, level)
    return np.concatenate(hot, axis=-1).reshape(len(digits), -1)


def entropy_bits(symbols: ArrayLike, size: int) -> float:
    """Entropy in bits of the observed frequencies (plug-in estimate: low by about (used - 1) / (2 M ln 2) bits).

    Args:    symbols: (M,) int in [0, size), M > 0.
    """
    share = np.bincount(np.asarray(symbols).reshape(-1), minlength=size) / np.size(symbols)
    share = share[share > 0]
    return float(-(share * np.log2(share)).sum()) + 0.0  # + 0.0 turns -0.0 into 0.0


def code_report(codes: ArrayLike, levels: Sequence[int]) -> dict:
    """How the codebook is used.

    Args:    codes: (M,) int (any shape is flattened), M > 0; levels: G ints.
    Returns: "n" codes seen, "codebook" size, "entropy_bits" of the whole code, "used" codes, "used_fraction" of the
             codebook, "perplexity" = 2^entropy, "digits": per digit {"levels", "used", "entropy_bits"}.
    Raises:  ValueError if there are no codes or they lie outside the codebook.
    """
    codes = np.asarray(codes).reshape(-1)
    if not len(codes):
        raise ValueError("code_report expects at least one code, got none")
    digits, size = code_digits(codes, levels), math.prod(levels)  # (M, G)
    bits, used = entropy_bits(codes, size), len(np.unique(codes))
    places = [
        {
            "levels": level,
            "used": len(np.unique(digits[:, place])),
            "entropy_bits": entropy_bits(digits[:, place], level),
        }
        for place, level in enumerate(levels)
    ]
    return {
        "n": len(codes),
        "codebook": size,
        "entropy_bits": bits,
        "used": used,
        "used_fraction": used / size,
        "perplexity": 2.0**bits,
        "digits": places,
    }


def dead_digits(codes: ArrayLike, levels: Sequence[int]) -> np.ndarray:
    """Which digits of which query never change: pooled over the queries, a dead one hides behind the others.

    Args:    codes: (..., N) int, at least one of each query; levels: G ints.
    Returns: (N, G) bool.
    """
    digits = code_digits(codes, levels)  # (..., N, G)
    digits = digits.reshape(-1, *digits.shape[-2:])
    return digits.min(0) == digits.max(0)


def changed_fraction(a: ArrayLike, b: ArrayLike, videos: Sequence[str], seed: int) -> Estimate:
    """Fraction of positions at which two sets of codes of the same clips differ (did the joint stage move them?).

    Args: a, b: (clips, ...); videos: the video of each clip, the unit of the interval.
    Raises: ValueError on unequal shapes or no codes.
    """
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape or not a.size:
        raise ValueError(f"changed_fraction expects codes of one shape, at least one, got {a.shape} and {b.shape}")
    return bootstrap_mean((a != b).reshape(len(a), -1).mean(1), videos, seed)


def linear_probe(features: ArrayLike, labels: ArrayLike, groups: ArrayLike, seed: int, folds: int = 5) -> Probe:
    """How well a class can be read off linearly: logistic regression, folds by video (our choice).

    Args:    features: (M, D) finite, standardised inside each fold; labels: (M,) int or str, at least two classes;
             groups: (M,) video of every row; folds: at most, fewer if there are fewer videos.
    Returns: Probe: held-out accuracy over all rows, a fraction, interval by video; chance = share of the commonest
             class.
    Raises:  ValueError with fewer than two videos or classes, or unequal lengths.
    """
    features, labels, groups, folds = _probe_inputs(features, labels, groups, folds)
    names, labels = np.unique(labels, return_inverse=True)
    if labels.ndim != 1 or len(names) < 2:
        raise ValueError(f"linear_probe expects labels (M,) of at least two classes, got {len(names)}")
    count = np.bincount(labels)
    split = StratifiedGroupKFold(min(folds, count.max()), shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class")  # a rare class may be missing from a fold
        pred = _held_out(split, LogisticRegression(C=1.0, max_iter=500), features, labels, groups)
    chance = float(count.max() / len(labels))
    return Probe(success_interval(pred == labels, groups), chance, (pred != labels).astype(float), np.ones(len(labels)))


def linear_probe_r2(features: ArrayLike, targets: ArrayLike, groups: ArrayLike, seed: int, folds: int = 5) -> Probe:
    """How well numbers can be read off linearly: ridge regression, folds by video (our choice).

    Args:    features: (M, D) finite, standardised inside each fold; targets: (M,) or (M, E), columns of one unit;
             groups, folds: as in `linear_probe`.
    Returns: Probe: held-out R2 = 1 - squared error / variance, both pooled over rows and columns, interval by video;
             1 is perfect, chance is 0 (the mean), below 0 is worse than the mean.
    Raises:  ValueError with fewer than two videos, unequal lengths, or targets that do not vary.
    """
    features, targets, groups, folds = _probe_inputs(features, np.asarray(targets, np.float64), groups, folds)
    split = GroupKFold(folds, shuffle=True, random_state=seed)
    targets = targets.reshape(len(targets), -1)  # (M, E)
    pred = _held_out(split, Ridge(alpha=1.0), features, targets, groups)
    error = ((targets - pred) ** 2).sum(1)
    spread = ((targets - targets.mean(0)) ** 2).sum(1)
    if spread.sum() == 0:
        raise ValueError("linear_probe_r2 expects targets that vary; all rows are equal")
    lost = bootstrap_ratio(error, spread, groups, seed)
    low, high = (None if bound is None else 1 - bound for bound in (lost.high, lost.low))
    return Probe(Estimate(1 - lost.value, low, high, lost.n), 0.0, error, spread)


def probe_change(before: Probe, after: Probe, groups: ArrayLike, seed: int) -> Estimate:
    """How much a probe's score rose from one set of features of the same rows to another, interval by video.

    The difference is taken row by row: what both miss alike, as some videos are harder than others, does not widen it.

    Args:    before, after: probes of the same rows in the same order; groups: (M,) video of every row.
    Raises:  ValueError if they are of other rows.
    """
    if before.most.shape != after.most.shape or not np.allclose(before.most, after.most):
        raise ValueError("probe_change expects two probes of the same rows")
    return bootstrap_ratio(before.lost - after.lost, after.most, groups, seed)


def shuffle_steps(codes: ArrayLike, rng: np.random.Generator) -> np.ndarray:
    """Control: the codes of one video in another order, each step's N codes kept together.

    Args:    codes: (S, N). Returns: (S, N), the rows permuted (a video of one step stays as it is).
    """
    return rng.permutation(np.asarray(codes), axis=0)


def random_codes(shape: int | tuple[int, ...], codebook: int, rng: np.random.Generator) -> np.ndarray:
    """Control: codes drawn uniformly from the codebook, int64 of the given shape."""
    return rng.integers(0, codebook, shape)


def _probe_inputs(
    features: ArrayLike, targets: ArrayLike, groups: ArrayLike, folds: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Check that a probe has aligned rows and videos to hold out; return arrays and the number of folds possible."""
    features, targets, groups = np.asarray(features, np.float64), np.asarray(targets), np.asarray(groups)
    videos = len(np.unique(groups))
    if features.ndim != 2 or not len(features) == len(targets) == len(groups):
        raise ValueError(
            "a probe expects features (M, D) and as many targets and groups, "
            f"got {features.shape}, {targets.shape} and {groups.shape}"
        )
    if videos < 2 or folds < 2:
        raise ValueError(f"a probe needs at least two videos and two folds, got {videos} and {folds}")
    return features, targets, groups, min(folds, videos)


def _held_out(
    split: GroupKFold | StratifiedGroupKFold,
    model: BaseEstimator,
    features: np.ndarray,
    targets: np.ndarray,
    groups: np.ndarray,
) -> np.ndarray:
    """Predict every row by a model that has not seen its video."""
    pred = np.empty_like(targets)
    for train, test in split.split(features, targets, groups):
        if (targets[train] == targets[train[0]]).all():
            pred[test] = targets[train[0]]  # a fold that saw one value only can say nothing else
            continue
        fitted = make_pipeline(StandardScaler(), model).fit(features[train], targets[train])
        pred[test] = fitted.predict(features[test]).reshape(targets[test].shape)
    return pred
