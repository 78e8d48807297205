"""Figures with an interval whose unit is the video.

Rollouts, clips and frames of one video resemble each other, so they are not independent draws: the three rollouts of
a test case are less than three observations. The unit of every interval here is therefore the whole video ("group").
An interval says what other test videos would have given; it does not say what another training seed would give.

Legend: M rows (rollouts, clips or frames), V videos.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit


@dataclass(frozen=True)
class Estimate:
    """A figure, its interval and the number of independent units (videos) behind it.

    `low` and `high` are None where no interval can be given (a single video says nothing about the spread of videos).
    """

    value: float
    low: float | None
    high: float | None
    n: int

    def as_dict(self) -> dict[str, float | int | None]:
        """Return {"value", "low", "high", "n"}, the shape of metrics/detail/*.json."""
        return asdict(self)


def wilson(successes: float, n: float, level: float = 0.95) -> Estimate:
    """Score interval of a proportion (Wilson 1927, J. Am. Stat. Assoc. 22:209).

    Args:    successes: in [0, n]; n: trials, at least 1; both may be fractional (rows that are worth so many trials);
             level: in (0, 1).
    Returns: Estimate in [0, 1]; never of zero width, also at 0 and n successes.
    Raises:  ValueError outside these ranges.
    """
    _check_level(level)
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"wilson expects 0 <= successes <= n and n >= 1, got {successes} of {n}")
    z = NormalDist().inv_cdf((1 + level) / 2)
    rate = successes / n
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    # The clips only remove rounding: the exact bounds lie in [0, rate] and [rate, 1].
    return Estimate(rate, min(rate, max(0.0, centre - half)), max(rate, min(1.0, centre + half)), int(n))


def bootstrap_ratio(
    numerators: ArrayLike, denominators: ArrayLike, groups: ArrayLike, seed: int, level: float = 0.95, draws: int = 2000
) -> Estimate:
    """Ratio of two sums with a percentile interval from resampling whole groups (cluster bootstrap; Efron 1979).

    Args:    numerators, denominators: (M,), denominators >= 0; groups: (M,) sortable labels; seed: of the resampling.
    Returns: value = sum of numerators / sum of denominators, n = number of groups; no bounds with a single group.
    Raises:  ValueError on empty, non-finite or unequal inputs, or if the denominators sum to 0.
    """
    _check_level(level)
    top, bottom = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    names, where = _groups(top, groups)
    if bottom.shape != top.shape or not np.isfinite(bottom).all() or (bottom < 0).any() or bottom.sum() == 0:
        raise ValueError(f"bootstrap_ratio expects {top.shape} finite denominators >= 0 that do not all vanish")
    count = len(names)
    top, bottom = np.bincount(where, top, count), np.bincount(where, bottom, count)  # (M,) -> (V,)
    value = float(top.sum() / bottom.sum())
    if count == 1:
        return Estimate(value, None, None, 1)
    picked = np.random.default_rng(seed).integers(0, count, (draws, count))
    tops, bottoms = top[picked].sum(1), bottom[picked].sum(1)  # (draws,)
    resampled = tops[bottoms > 0] / bottoms[bottoms > 0]
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value, float(low), float(high), count)


def bootstrap_mean(values: ArrayLike, groups: ArrayLike, seed: int, level: float = 0.95, draws: int = 2000) -> Estimate:
    """Mean over all rows with a percentile interval from resampling whole groups (cluster bootstrap; Efron 1979).

    Rows count equally. For "mean over frames, then videos" reduce first: `bootstrap_mean(*mean_by_video(v, g), seed)`.
    For a paired comparison of two methods pass the differences of their values on the same rows.

    Args:    values: (M,) finite; groups: (M,) video of every row; seed: of the resampling.
    Returns: Estimate in the unit of the values, n = number of groups; no bounds with a single group.
    Raises:  ValueError on empty, non-finite or unequal inputs.
    """
    return bootstrap_ratio(values, np.ones(np.shape(values)), groups, seed, level, draws)


def mean_by_video(values: ArrayLike, videos: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Average the rows of each video, so that long videos weigh as much as short ones.

    Args:    values: (M,) finite; videos: (M,) video of every row.
    Returns: means (V,) float64 and ids (V,), sorted by id: the first two arguments of `bootstrap_mean`.
    Raises:  ValueError on empty, non-finite or unequal inputs.
    """
    values = np.asarray(values, np.float64)
    names, where = _groups(values, videos)
    return np.bincount(where, values, len(names)) / np.bincount(where, minlength=len(names)), names


def success_interval(successes: ArrayLike, videos: ArrayLike, level: float = 0.95) -> Estimate:
    """Success rate with Wilson's interval of as many trials as the rows are worth (Dean and Pagano 2015).

    Rows are worth p (1 - p) / s^2 trials, s^2 being the variance of the rate between videos (Kish 1965, design effect):
    as many as there are videos where the rows of a video all agree (and where nothing, or everything, succeeds), as
    there are rows where they differ as rows of different videos do; and less by Korn and Graubard's (1998) factor, as
    few videos tell little of s^2. With one row a video it is Wilson's own interval. Where a few videos have most of
    the rows it is still too narrow.

    Args:    successes: (M,) bool or 0/1, one per rollout or frame; videos: (M,).
    Returns: Estimate in [0, 1], a fraction, whose interval always has a width; n = number of videos.
    Raises:  ValueError on empty or unequal inputs, or values other than 0 and 1.
    """
    successes = np.asarray(successes, np.float64)
    if not np.isin(successes, (0.0, 1.0)).all():
        raise ValueError("success_interval expects successes of 0 or 1")
    names, where = _groups(successes, videos)
    rows, count = len(successes), len(names)
    rate = float(successes.mean())
    least = rows**2 / float((np.bincount(where) ** 2).sum())  # as many as videos, were they of one length (Kish)
    worth = least
    if 0 < rate < 1 and count > 1:
        surplus = np.bincount(where, successes - rate)  # (V,)
        spread = count / (count - 1) * float((surplus**2).sum()) / rows**2
        worth = min(rate * (1 - rate) / spread, rows) if spread else rows
        tail = (1 + level) / 2
        worth *= float(stdtrit(rows - 1, tail) / stdtrit(count - 1, tail)) ** 2
        worth = min(max(worth, least), rows)
    found = wilson(rate * worth, worth, level)
    return Estimate(rate, min(found.low, rate), max(found.high, rate), count)


def _groups(values: np.ndarray, groups: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Check rows against their groups; return the sorted names (V,) and each row's position among them (M,)."""
    groups = np.asarray(groups)
    if values.ndim != 1 or values.shape != groups.shape or not len(values) or not np.isfinite(values).all():
        raise ValueError(
            f"expected finite values and groups of the same shape (M,), M > 0, got {values.shape} and {groups.shape}"
        )
    return np.unique(groups, return_inverse=True)


def _check_level(level: float) -> None:
    """Refuse 95 where 0.95 is meant."""
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1), got {level}")
