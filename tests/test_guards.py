"""Nothing may be in both train and test."""

import hashlib

import numpy as np
import polars as pl
import pytest

from vw2.console import UserError
from vw2.data import guards, manifest
from vw2.data.manifest import Entry
from vw2.data.shards import ClipStore, write_shards

STRICT = guards.SplitsConfig()


def rows(*triples) -> pl.DataFrame:
    """(id, split, environment, hash) rows of a manifest, as far as the guards look at them."""
    schema = {"id": pl.String, "split": pl.String, "environment": pl.String, "hash": pl.String}
    nothing = {"start": pl.lit(None, pl.Float64), "stop": pl.lit(None, pl.Float64), "source": pl.lit("folder")}
    nothing["fps"] = pl.lit(30.0)
    return pl.DataFrame(triples, schema=schema, orient="row").with_columns(**nothing)


def test_disjoint_splits_pass():
    learned = ("a", "train", "oak", "1"), ("b", "fail", "oak", "1")
    guards.check_splits(rows(*learned, ("c", "test", "elm", "2"), ("d", "probe", "elm", "3")), STRICT)


def test_the_same_video_on_both_sides_is_refused():
    with pytest.raises(UserError, match="same video is in both train and test: a = c;"):
        guards.check_splits(rows(("a", "train", "oak", "1"), ("c", "test", "elm", "1")), STRICT)


def test_parts_of_one_file_are_different_videos():
    frame = rows(("a", "train", "unknown", "1"), ("c", "test", "unknown", "1"))
    frame = frame.with_columns(start=pl.Series([0.0, 2.0]), stop=pl.Series([2.0, 4.0]))
    guards.check_splits(frame, STRICT)


@pytest.mark.parametrize("starts, stops", [([None, 1.0], [None, 2.0]), ([1.0, 0.0], [3.0, 1.1]), ([0.0, 0.5], [9, 1])])
def test_parts_that_overlap_are_refused(starts, stops):
    frame = rows(("a", "train", "unknown", "1"), ("c", "probe", "unknown", "1"), ("b", "train", "unknown", "2"))
    frame = frame.with_columns(start=pl.Series([*starts, 0.0]), stop=pl.Series([*map(float_or_none, stops), 99.0]))
    with pytest.raises(UserError, match="same video is in both train and test: a = c;"):
        guards.check_splits(frame, STRICT)
    frame = frame.with_columns(start=pl.Series([0.0, 1.99, 0.0]), stop=pl.Series([2.0, 3.0, 99.0]))
    guards.check_splits(frame, STRICT)  # less than half a frame


def float_or_none(value):
    return None if value is None else float(value)


def test_a_shared_environment_is_refused_unless_allowed_or_unknown():
    frame = rows(("a", "fail", "oak", "1"), ("b", "train", "elm", "3"), ("c", "probe", "oak", "2"))
    with pytest.raises(UserError, match="environments are in both train and test: oak;"):
        guards.check_splits(frame, STRICT)
    guards.check_splits(frame, guards.SplitsConfig(environments=True))
    guards.check_splits(frame.with_columns(environment=pl.lit("unknown")), STRICT)


def test_one_environment_for_all_cannot_be_kept_apart():
    guards.check_splits(rows(("a", "train", "oak", "1"), ("c", "test", "oak", "2")), STRICT)


def entry(
    name: str, environment: str, source: str = "folder", split: str | None = None, kin: str | None = None
) -> Entry:
    digest = hashlib.sha256(name.encode()).hexdigest()
    facts = {"fps": 30.0, "frames": 9, "width": 16, "height": 16, "codec": "h264", "licence": "CC0"}
    text = {"path": f"{name}.mp4", "task": "fold", "instruction": "fold", "hash": digest}
    return Entry(id=name, source=source, split=split, environment=environment, kin=kin, **text, **facts)


def room(environment: str, count: int, source: str = "folder", **given) -> list[Entry]:
    return [entry(f"{source}_{environment}_{i}", environment, source, **given) for i in range(count)]


@pytest.mark.parametrize(
    ("entries", "apart"),
    [
        (room("kitchen", 20) + room("garage", 20), {"kitchen", "garage"}),
        (room("kitchen", 20) + room("unknown", 20), {"kitchen"}),
        (room("kitchen", 20, "a") + room("kitchen", 20, "b") + room("garage", 20, "b"), {"kitchen", "garage"}),
        (room("kitchen", 20, "a") + room("kitchen", 20, "b") + room("yard", 20, "c"), {"kitchen"}),
        (room("kitchen", 20), set()),
        (room("kitchen", 20, "a") + room("garage", 20, "b"), set()),
        (room("unknown", 20), set()),
        (room("kitchen", 20) + room("garage", 20) + [entry("x", "kitchen", split="test")], {"kitchen", "garage"}),
    ],
)
def test_environments_that_may_not_be_shared_stay_together(entries, apart):
    assert guards.parted(entries) == apart
    frame = manifest.build(manifest.assign_splits(guards.keep_together(entries, STRICT)))
    guards.check_splits(frame, STRICT)
    assert set(frame["split"]) == {"train", "test"}
    sides = dict(frame.group_by("environment").agg(pl.col("split").n_unique()).iter_rows())
    assert all(sides[name] == 1 for name in apart)
    shared = manifest.assign_splits(guards.keep_together(entries, guards.SplitsConfig(environments=True)))
    assert shared == manifest.assign_splits(entries), "where it is allowed, the content decides"


def test_the_one_environment_of_two_sources_is_told_about():
    entries = room("kitchen", 20, "a") + room("kitchen", 20, "b")
    frame = manifest.build(manifest.assign_splits(guards.keep_together(entries, STRICT)))
    with pytest.raises(UserError, match="or set splits.environments to true"):
        guards.check_splits(frame, STRICT)


def test_kin_and_given_splits_come_first():
    entries = [*room("kitchen", 2, kin="0" * 64), *room("garage", 2, split="test"), entry("x", "garage")]
    kept = {each.id: each for each in guards.keep_together(entries, STRICT)}
    assert kept["folder_kitchen_0"].kin == "0" * 64 and kept["x"].split == "test"


def test_long_lists_are_cut():
    assert guards.listed(list("abcdefgh")) == "a, b, c, d, e and 3 more"


def moving(seed: int, frames: int = 40, side: int = 64) -> np.ndarray:
    """A scene with a bright square that wanders."""
    rng = np.random.default_rng(seed)
    scene = np.kron(rng.integers(60, 180, (8, 8, 3)), np.ones((side // 8, side // 8, 1))).astype(np.uint8)
    video = np.repeat(scene[None], frames, 0)
    for t, (y, x) in enumerate(np.clip(np.cumsum(rng.integers(-6, 7, (frames, 2)), 0) + side // 2, 0, side - 16)):
        video[t, y : y + 16, x : x + 16] = 250
    return video


def test_a_video_encoded_again_is_found_and_another_in_the_same_room_is_not():
    one, rng = moving(0), np.random.default_rng(9)
    worse = np.clip(one.astype(int) + rng.integers(-12, 13, one.shape), 0, 255).astype(np.uint8)
    other = moving(0)[::-1]  # same room, something else happens
    signatures = np.stack([guards.signature(video) for video in (one, moving(1), worse, other)])
    assert guards.near_duplicates(signatures, [False, False, True, True]) == [(0, 2)]
    assert not guards.near_duplicates(signatures, [False] * 4)


def test_clips_of_train_and_test_that_look_the_same_are_refused(tmp_path):
    videos = []
    for name, split, seed in (("a", "train", 0), ("b", "train", 1), ("c", "test", 0)):
        moving(seed).tofile(tmp_path / f"{name}.u8")
        videos.append((name, split, "task", tmp_path / f"{name}.u8", 40))
    (tmp_path / "clips").mkdir()
    write_shards(tmp_path / "clips", videos, {"frames": 9, "height": 64, "width": 64, "fps": 16.0})
    store = ClipStore(tmp_path / "clips")
    for name in "abc":  # over the borders of clips
        picks = np.linspace(0, 39, guards.SAMPLES).round().astype(int)
        assert np.array_equal(store.spread(name, guards.SAMPLES), store.video(name)[picks])
    with pytest.raises(UserError, match="look the same: a ~ c;"):
        guards.check_duplicates(store)


def test_a_signature_does_not_depend_on_length_or_size():
    one = moving(3)
    longer = np.repeat(one, 2, 0)
    larger = one.repeat(2, 1).repeat(2, 2)
    assert guards.signature(one).shape == (guards.SAMPLES * guards.SIDE**2,)
    assert np.abs(guards.signature(larger).astype(int) - guards.signature(one)).max() <= 1
    both = np.stack([guards.signature(one), guards.signature(longer)])
    assert guards.near_duplicates(both, [False, True]) == [(0, 1)]
