"""What may not stand in both train and test: a video, a near-duplicate of it, an environment.

Train is what is learned from (splits train and fail), test what is judged (test and probe).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from vw2.console import UserError, track
from vw2.data.manifest import Entry
from vw2.data.shards import ClipStore
from vw2.media.resize import resize_frames

JUDGED = ("test", "probe")
UNKNOWN = "unknown"  # environment of videos about which nothing is said
SAMPLES, SIDE = 8, 16  # a signature: grey frames evenly spread over a video, pixels of their side
ALIKE, CELLS = 8, 0.98  # levels of 255 by which the cells of near-duplicates differ at most, but for the odd 2 %
SPARSE = 16  # every 16th cell is compared first
SHOWN = 5  # pairs named in an error


@dataclass(frozen=True)
class SplitsConfig:
    """Group `splits` of params.yaml: what train and test may share."""

    environments: bool = False
    near_duplicates: bool = False


def parted(entries: Sequence[Entry]) -> set[str]:
    """The known environments that train and test may not share, as `check_splits` asks: of a source with several (or of
    which not all is known), or of several sources. None where there is a single one in all: nothing can be kept apart.
    """
    of_source: dict[str, set[str]] = {}
    of_environment: dict[str, set[str]] = {}
    for entry in entries:
        of_source.setdefault(entry.source, set()).add(entry.environment)
        of_environment.setdefault(entry.environment, set()).add(entry.source)
    if len(of_environment) == 1:
        return set()
    several = lambda sources: len(sources) > 1 or any(len(of_source[each]) > 1 for each in sources)  # noqa: E731
    return {name for name, sources in of_environment.items() if name != UNKNOWN and several(sources)}


def keep_together(entries: Sequence[Entry], config: SplitsConfig) -> list[Entry]:
    """Entries whose split is still open, made so that `check_splits` will find their environments on one side.

    They get the side that others of their environment have, where these agree, or become kin
    (vw2.data.manifest.assign_splits), but for those that are kin of others already.
    """
    names = set() if config.environments else parted(entries)
    given: dict[str, set[str]] = {}
    for entry in entries:
        if entry.split:
            given.setdefault(entry.environment, set()).add(entry.split if entry.split in JUDGED else "train")
    found = []
    for entry in entries:
        if entry.split is None and entry.environment in names:
            sides = given.get(entry.environment, set())
            if len(sides) == 1:
                entry = replace(entry, split=next(iter(sides)))
            elif not sides and entry.kin is None:
                entry = replace(entry, kin=hashlib.sha256(entry.environment.encode()).hexdigest())
        found.append(entry)
    return found


def check_splits(frame: pl.DataFrame, config: SplitsConfig) -> None:
    """Refuse a manifest with the same content, or the same known environment, in both train and test.

    Where all videos of a source are from one environment, none can be kept for test, and it may be shared.
    Raises: UserError that lists them.
    """
    sides = frame.with_columns(pl.col("split").is_in(JUDGED).alias("judged"))
    pairs = shared_content(sides)
    if pairs:
        raise UserError(f"the same video is in both train and test: {listed(pairs)}; give copies one split")
    if not config.environments:
        apart = pl.col("environment").n_unique().over("source") > 1
        several = apart | (pl.col("source").n_unique().over("environment") > 1)
        known = sides.filter((pl.col("environment") != UNKNOWN) & several)
        shared = known.group_by("environment").agg(both=pl.col("judged").n_unique() > 1).filter("both")
        if len(shared):
            raise UserError(
                f"environments are in both train and test: {listed(sorted(shared['environment']))}; give all videos of "
                "an environment one split, or set splits.environments to true"
            )


def shared_content(sides: pl.DataFrame) -> list[str]:
    """Videos on both sides that show the same, or overlap by more than half a frame: "a = b", sorted.

    Of a video that overlaps several of the other side one is named.
    Args: sides: id, hash, start, stop, fps of the manifest, and judged: is the video one of test?
    """
    pairs = set()
    both = sides.filter(pl.col("judged").n_unique().over("hash") > 1)
    spans = both.with_columns(pl.col("start").fill_null(0.0), pl.col("stop").fill_null(math.inf))
    spans = spans.sort("hash", "start", "id")
    furthest: dict[tuple[str, bool], tuple[float, str]] = {}  # where the last one of each side to end does so
    for row in spans.select("hash", "judged", "start", "stop", "fps", "id").iter_rows():
        content, judged, start, stop, fps, name = row
        end, other = furthest.get((content, not judged), (-math.inf, ""))
        if min(stop, end) - start > 0.5 / fps:
            pairs.add(" = ".join(sorted((name, other))))
        furthest[content, judged] = max(furthest.get((content, judged), (-math.inf, "")), (stop, name))
    return sorted(pairs)


def signature(frames: np.ndarray) -> np.ndarray:
    """(F, H, W, 3) uint8, F >= 1 -> (SAMPLES SIDE SIDE,) uint8: what a video looks like from far away."""
    chosen = frames[np.linspace(0, len(frames) - 1, SAMPLES).round().astype(int)]
    small = resize_frames(chosen, SIDE, SIDE, "stretch")
    return small.astype(np.float32).mean(-1).round().astype(np.uint8).ravel()


def near_duplicates(signatures: np.ndarray, judged: Sequence[bool]) -> list[tuple[int, int]]:
    """Pairs (learned from, judged) of videos that look alike from beginning to end (our choice).

    Meant for the same recording encoded again, resized or renamed; not for parts, mirror images or crops of it.

    Args:
        signatures: (V, D) uint8; judged: V times, is the video one of test?
    """
    judged = np.asarray(judged, bool)
    brightness = signatures.mean(1)  # alike videos differ little in it, so only neighbours need be compared
    train = np.flatnonzero(~judged)
    train = train[np.argsort(brightness[train], kind="stable")]
    ranked = brightness[train]
    reach = ALIKE + (1 - CELLS) * 255
    odd = (1 - CELLS) * signatures.shape[1]  # cells that may differ
    pairs = []
    for row in np.flatnonzero(judged):
        low, high = np.searchsorted(ranked, [brightness[row] - reach, brightness[row] + reach])
        near = train[low:high]
        near = near[differing(signatures[near, ::SPARSE], signatures[row, ::SPARSE]) <= odd]  # most are told apart here
        near = near[differing(signatures[near], signatures[row]) <= odd]
        pairs += [(int(other), int(row)) for other in near]
    return sorted(pairs)


def differing(some: np.ndarray, one: np.ndarray) -> np.ndarray:
    """How many cells of each of some signatures (V, D) differ by more than ALIKE from those of one (D,)."""
    return (np.abs(some.astype(np.int16) - one) > ALIKE).sum(1)


def check_duplicates(store: ClipStore) -> None:
    """Refuse near-duplicates in both train and test. Raises: UserError that lists them."""
    splits = dict(store.index.select("video", "split").iter_rows())
    names, judged = list(splits), [split in JUDGED for split in splits.values()]
    looks = [signature(store.spread(name, SAMPLES)) for name in track(names, "look for near-duplicates")]
    pairs = [f"{names[a]} ~ {names[b]}" for a, b in near_duplicates(np.stack(looks), judged)]
    if pairs:
        raise UserError(
            f"videos of train and test look the same: {listed(pairs)}; take one of each pair out, give both one split, "
            "or set splits.near_duplicates to true"
        )


def listed(items: Sequence[str]) -> str:
    """The first items, and how many more there are."""
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return ", ".join(items[:SHOWN]) + more
