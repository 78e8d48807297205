"""Cuts, still and black stretches in videos made for it, and what becomes of them."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from numbered import numbered_frame, read_number, write_raw
from test_ingest import parameters

from stages import clip as clip_stage
from stages import ingest as ingest_stage
from vw2.console import UserError
from vw2.data import manifest
from vw2.data.clips import ClipConfig, Written
from vw2.data.cutting import parts_of, stretch_figures, stretch_table
from vw2.data.shards import ClipStore
from vw2.data.stretches import CHUNK, WINDOW, Stretch, StretchConfig, StretchFinder, difference, segments
from vw2.media.decode import read_frames

FPS = 16.0


def scene(seed, height=120, width=400):
    """A picture of soft blobs of colour, (H, W, 3) float."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    picture = np.full((height, width, 3), rng.integers(60, 196, 3), float)
    for _ in range(40):
        cy, cx, r = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(8, 40)
        blob = np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / r**2)[..., None]
        picture = picture * (1 - blob) + blob * rng.integers(0, 256, 3)
    return picture


def shot(seed, frames, speed=2.0, noise=2.0, light=0.0):
    """A camera that pans over a scene by `speed` pixels a frame; sensor noise and flicker in levels."""
    rng, wide = np.random.default_rng(seed), scene(seed)
    for t in range(frames):
        left = int(speed * t) % 280
        view = wide[:, left : left + 120] + rng.normal(0, noise, (120, 120, 3)) + rng.normal(0, 1) * light
        yield view.clip(0, 255).astype(np.uint8)


def find(frames, **config):
    finder = StretchFinder(StretchConfig(**config), FPS)
    for frame in frames:
        finder.see(frame)
    return [(each.kind, each.start, each.stop) for each in finder.finish()]


# ---------------------------------------------------------------- cuts


@pytest.mark.parametrize("seed", range(8))
def test_a_cut_is_found_to_the_frame(seed):
    assert find([*shot(seed, 30), *shot(seed + 100, 25)]) == [("cut", 30, 30)]


def test_cuts_are_found_wherever_chunks_end():
    long, other = list(shot(1, 40)) * 7, list(shot(2, 20))
    for first in (CHUNK - WINDOW, *range(CHUNK - 2, CHUNK + 3), CHUNK + WINDOW):
        frames = long[:first] + other
        assert ("cut", first, first) in find(frames)
    short = [*shot(1, 3), *shot(2, 3)]  # a video shorter than the window
    assert find(short) == [("cut", 3, 3)]
    assert find([]) == [] and find(list(shot(1, 1))) == []


@pytest.mark.parametrize("speed", [0.5, 4, 12, 30, 60])
def test_a_pan_is_no_cut(speed):
    frames = [*shot(3, 20, 0.0), *list(shot(3, 30, speed))[1 : int(280 / speed)]]
    assert not [each for each in find(frames) if each[0] == "cut"]


@pytest.mark.parametrize("length", [1, 2, 3])
@pytest.mark.parametrize("level", [255, 0, 128])
def test_a_flash_that_returns_is_no_cut(length, level):
    frames = list(shot(4, 40))
    for t in range(20, 20 + length):
        frames[t] = np.full_like(frames[t], level)
    assert find(frames) == []


def test_changes_of_light_and_fades_are_no_cuts():
    assert find(shot(5, 60, light=25.0)) == []
    a, b = (np.stack(list(shot(seed, 64))).astype(float) for seed in (6, 7))
    weight = np.linspace(0, 1, 24).clip(0, 1)
    weight = np.concatenate([np.zeros(20), weight, np.ones(20)])[:, None, None, None]
    assert find((a * (1 - weight) + b * weight).astype(np.uint8)) == []
    faded = (a * np.concatenate([np.linspace(1, 0, 32), np.linspace(0, 1, 32)])[:, None, None, None]).astype(np.uint8)
    assert [kind for kind, *_ in find(faded)] in ([], ["black"])


def test_difference_by_hand():
    a, b = np.zeros((3, 64), np.float32), np.zeros((3, 64), np.float32)
    b[:, :40] += 30.0  # most cells: a change that all share, which does not count
    assert difference(a, b) == 0
    b[:, 0:40:2] += 60.0
    shift = np.sort(b[0])[32]
    assert difference(a, b) == np.sort(np.abs(b[0] - shift))[32]


# ---------------------------------------------------------------- still and black


@pytest.mark.parametrize("crf", [18, 35])
def test_a_still_stretch_is_found_through_noise_and_encoder(tmp_path, crf):
    moving, held = list(shot(8, 48, 4.0)), scene(8)[:, 188:308]
    rng = np.random.default_rng(0)
    still = [(held + rng.normal(0, 4, held.shape)).clip(0, 255).astype(np.uint8) for _ in range(56)]
    path = write_raw(tmp_path / "a.mp4", [*moving, *still, *moving[::-1]], 16, options={"crf": str(crf), "g": "12"})
    (found,) = find(frame for _, frame in read_frames(path))
    assert found[0] == "still" and abs(found[1] - 48) <= 2 and abs(found[2] - 104) <= 2
    assert find((frame for _, frame in read_frames(path)), still_seconds=4.0) == []


def test_slow_motion_is_not_still():
    assert find(shot(9, 160, speed=0.5, noise=0)) == []
    assert find([*shot(9, 1)] * 32) == [("still", 0, 32)]
    assert find([*shot(9, 1)] * 31) == []
    frames = np.full((64, 64, 64, 3), 100, np.uint8)
    for t in range(64):  # a finger, a thirtieth of the picture, comes and goes
        if t // 8 % 2:
            frames[t, 30:42, 30:42] = 160
    assert find(frames) == []


def test_black_is_found_and_is_not_still():
    dark = [np.random.default_rng(t).integers(0, 12, (120, 120, 3)).astype(np.uint8) for t in range(50)]
    frames = [*shot(1, 20), *dark, *shot(1, 20)]
    assert ("black", 20, 70) in find(frames) and not [each for each in find(frames) if each[0] == "still"]
    assert find([*shot(1, 20), *dark[:7], *shot(1, 20)])[0][0] != "black"
    assert find(dark) == [("black", 0, 50)]


def test_repeated_frames_last_longer_and_make_no_cuts():
    finder = StretchFinder(StretchConfig(), FPS)
    for frame in [*shot(1, 12), *shot(2, 12)]:  # at 4 frames per second
        finder.see(frame)
        for _ in range(3):
            finder.repeat()
    assert finder.frames == 96 and finder.finish() == [Stretch("cut", 48, 48)]
    held = StretchFinder(StretchConfig(), FPS)
    held.see(next(shot(1, 1)))
    for _ in range(39):
        held.repeat()
    assert held.finish() == [Stretch("still", 0, 40)]


def test_memory_is_bounded():
    finder = StretchFinder(StretchConfig(), FPS)
    frame = np.zeros((16, 16, 3), np.uint8)
    for _ in range(3 * CHUNK):
        finder.see(frame)
        assert len(finder._at) <= CHUNK and len(finder._tail) < CHUNK + 2 * WINDOW


@pytest.mark.parametrize("wrong", [{"cut_change": 0.0}, {"cut_ratio": 0.5}, {"still_seconds": -1.0}])
def test_config_refuses(wrong):
    with pytest.raises(ValueError, match=f"clip.{next(iter(wrong))}"):
        ClipConfig(**wrong)


# ---------------------------------------------------------------- what is left


def test_segments_by_hand():
    found = [Stretch("cut", 10, 10), Stretch("still", 20, 40), Stretch("cut", 40, 40), Stretch("black", 90, 100)]
    assert segments(100, found, StretchConfig()) == [(0, 100)]
    assert segments(100, found, StretchConfig(on_cut="drop")) == [(0, 10), (10, 40), (40, 100)]
    assert segments(100, found, StretchConfig(on_still="drop")) == [(0, 20), (40, 100)]
    everything = StretchConfig(on_cut="drop", on_still="drop", on_black="drop")
    assert segments(100, found, everything) == [(0, 10), (10, 20), (40, 90)]
    assert segments(5, [Stretch("black", 0, 5)], everything) == []
    inside = [Stretch("still", 10, 50), Stretch("cut", 30, 30), Stretch("black", 40, 60)]
    assert segments(80, inside, everything) == [(0, 10), (60, 80)]


def test_parts_have_names_of_their_own():
    config = ClipConfig(on_cut="drop", min_frames=17)
    whole = parts_of("v", Written(60, []), config)
    assert [(part.id, part.segment, part.start, part.frames) for part in whole] == [("v", 0, 0, 60)]
    cuts = Written(60, [Stretch("cut", 20, 20), Stretch("cut", 30, 30)])
    parts = [(part.id, part.segment, part.start, part.frames) for part in parts_of("v", cuts, config)]
    assert parts == [("v#1", 1, 0, 20), ("v#3", 3, 30, 30)]
    assert parts_of("v", Written(12, []), config) == []


def test_table_and_figures():
    results = {
        "b": {"found": [["cut", 16, 16], ["still", 32, 80]]},
        "a": {"found": [["black", 0, 8]]},
        "c": {"reason": "is too short"},
    }
    table = stretch_table(results, 16.0)
    assert table.rows() == [("a", "black", 0.0, 0.5), ("b", "cut", 1.0, 1.0), ("b", "still", 2.0, 5.0)]
    assert stretch_figures(table) == {"cuts": 1, "still": 1, "still_seconds": 3.0, "black": 1, "black_seconds": 0.5}
    assert set(stretch_figures(stretch_table({}, 16.0)).values()) == {0}


# ---------------------------------------------------------------- through the stages


def film(path, parts):
    """A video of numbered frames over scenes: (seed, frames, first number)."""
    frames = []
    for seed, count, first in parts:
        for t, view in enumerate(shot(seed, count, 1.0)):
            picture = np.zeros((136, 120, 3), np.uint8)
            picture[16:] = view
            picture[:8, :80] = numbered_frame(first + t)[:8, :80]
            frames.append(picture)
    return write_raw(path, frames, 16, options={"crf": "12", "g": "250", "bf": "2"})


@pytest.fixture
def films(tmp_path, monkeypatch):
    """Two films of several scenes, one of one; returns a function that runs the stages with some clip parameters."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "films").mkdir()
    film(tmp_path / "films/two.mp4", [(1, 40, 0), (2, 50, 100)])
    film(tmp_path / "films/three.mp4", [(3, 20, 200), (4, 10, 300), (5, 33, 400)])
    film(tmp_path / "films/one.mp4", [(6, 40, 500)])

    def run(**clip):
        parameters(tmp_path, source="folder", path="films")
        groups = json.loads(Path("params.yaml").read_text())
        groups["clip"] |= {"height": 136, "width": 120} | clip
        Path("params.yaml").write_text(json.dumps(groups))
        if not Path("data/manifest.parquet").exists():
            ingest_stage.main(Path("params.yaml"))
        clip_stage.main(Path("params.yaml"))
        return ClipStore(), json.loads(Path("metrics/clip.json").read_text())

    return run


def test_clips_never_straddle_a_dropped_cut(films):
    store, figures = films()
    assert sorted(store.videos()) == ["one", "three", "two"] and figures["cuts"] == 3 and figures["segments"] == 0
    assert set(store.index["segment"]) == {0} and figures["dropped_seconds"] == 0
    assert store.index["start"].equals(store.index["clip"].cast(pl.Int64) * 16, check_names=False)
    shards = [file.read_bytes() for file in sorted(store.path.glob("frames-*.npy"))]
    store, figures = films(on_cut="drop")
    assert sorted(store.videos()) == ["one", "three#1", "three#3", "two#1", "two#2"]
    assert (figures["videos"], figures["segments"], figures["dropped_seconds"]) == (3, 4, 10 / 16)
    expected = {"one": (500, 40), "three#1": (200, 20), "three#3": (400, 33), "two#1": (0, 40), "two#2": (100, 50)}
    for video, (first, count) in expected.items():
        assert [read_number(frame) for frame in store.video(video)] == list(range(first, first + count))
        rows = store.select(video=video)
        clips = [[read_number(frame) for frame in store.frames(row)] for row in rows]
        assert all(left[-1] == right[0] for left, right in zip(clips, clips[1:], strict=False))
        assert all(max(clip) - min(clip) < 17 for clip in clips)
    rows = store.index.filter(video="three#3").select("segment", "start", "clip", "valid").rows()
    assert rows == [(3, 30, 0, 17), (3, 46, 1, 17)]
    about = manifest.read(Path("data/manifest.parquet"), ["two#2", "one", "nobody"])
    assert about["id"].to_list() == ["two#2", "one"] and about["hash"].n_unique() == 2
    table = pl.read_parquet("data/clips/stretches.parquet")
    assert table.rows() == [("three", "cut", 1.25, 1.25), ("three", "cut", 1.875, 1.875), ("two", "cut", 2.5, 2.5)]
    films()
    assert [file.read_bytes() for file in sorted(store.path.glob("frames-*.npy"))] == shards


def test_a_video_without_a_whole_part_is_refused(films):
    store, figures = films(on_cut="drop", min_frames=45)
    assert store.videos() == ["two#2"] and figures["refused"] == 2
    assert figures["refused_for"] == {"is_too_short_for_a_clip": 1, "has_no_stretch_long_enough_for": 1}
    assert figures["fps"] == {"16": 1} and figures["size"] == {"120x136": 1}
    with pytest.raises(UserError, match="none of 3 videos gives a clip"):
        films(on_cut="drop", min_frames=60)
