"""Data: manifest, splits, worker pool, clips that share a frame, shards and sampler."""

import hashlib
import json
import pickle
import sys
from pathlib import Path

import fake_world
import numpy as np
import polars as pl
import pytest
from numbered import numbered_frame, read_number

from vw2.console import UserError
from vw2.data import manifest
from vw2.data.manifest import Entry
from vw2.data.pool import Failure, _serve, run_jobs, run_resumable, worker_count
from vw2.data.sampler import batch_indices
from vw2.data.shards import ClipStore, clip_count, plan_shards, valid_frames, write_shards
from vw2.files import locate
from vw2.models.dldm_config import DLDMConfig


def entry(name, digest="0" * 64, split=None, **other):
    facts = {"source": "folder", "path": f"{name}.mp4", "environment": "e", "task": "t", "instruction": "i"}
    facts |= {"fps": 30.0, "frames": 60, "width": 8, "height": 8, "codec": "h264", "licence": "x"} | other
    return Entry(id=name, hash=digest, split=split, **facts)


# ---------------------------------------------------------------- manifest


def test_manifest_round_trip_is_sorted(tmp_path):
    frame = manifest.build([entry("b", split="test"), entry("a", split="train")])
    assert frame["id"].to_list() == ["a", "b"]
    manifest.write(tmp_path / "m.parquet", frame)
    assert manifest.read(tmp_path / "m.parquet").equals(frame)
    with pytest.raises(UserError, match="dvc repro ingest"):
        manifest.read(tmp_path / "none.parquet")
    pl.DataFrame({"id": ["a"]}).write_parquet(tmp_path / "old.parquet")
    with pytest.raises(UserError, match="expected the manifest columns"):
        manifest.read(tmp_path / "old.parquet")


@pytest.mark.parametrize(
    "bad, words",
    [
        ({"split": "validation"}, "split is not one of"),
        ({"fps": 0.0}, "frame rate"),
        ({"frames": 0}, "size or length"),
        ({"name": "a/b"}, "no file name"),
        ({"task": None}, "missing"),
    ],
)
def test_manifest_refuses(bad, words):
    with pytest.raises(ValueError, match=words):
        manifest.build([entry(**({"name": "v", "split": "train"} | bad))])


def test_manifest_refuses_two_videos_of_one_id():
    with pytest.raises(ValueError, match="not unique"):
        manifest.build([entry("a", split="train"), entry("a", split="test")])


def test_split_follows_content_not_name():
    digests = [f"{i * 2654435761 % 2**32:08x}" + "0" * 56 for i in range(4000)]
    videos = manifest.assign_splits([entry(f"v{i:04d}", digest) for i, digest in enumerate(digests)])
    share = sum(video.split == "test" for video in videos) / len(videos)
    assert 0.1 < share < 0.15
    renamed = manifest.assign_splits([entry(f"w{i:04d}", digest) for i, digest in enumerate(digests)])
    assert [video.split for video in renamed] == [video.split for video in videos]
    again = manifest.assign_splits([entry("a", digests[0]), entry("b", digests[0]), entry("c", digests[1])])
    assert again[0].split == again[1].split


def test_split_never_leaves_a_side_empty_and_keeps_what_is_given():
    low, high = "00000001" + "0" * 56, "00000009" + "0" * 56  # neither is a multiple of 8
    assert [video.split for video in manifest.assign_splits([entry("a", low), entry("b", high)])] == ["test", "train"]
    zeros = ["00000000" + "0" * 56, "00000008" + "0" * 56]  # both would be test
    assert {v.split for v in manifest.assign_splits([entry("a", zeros[0]), entry("b", zeros[1])])} == {"train", "test"}
    given = manifest.assign_splits([entry("a", low, "train"), entry("b", high, "train")])
    assert [video.split for video in given] == ["train", "train"]
    for alone in (low, zeros[0]):
        assert [video.split for video in manifest.assign_splits([entry("a", alone)])] == ["train"]
        twice = manifest.assign_splits([entry("a", alone), entry("b", alone)])
        assert [video.split for video in twice] == ["train", "train"], "copies of one film are one film"
    beside = manifest.assign_splits([entry("a", zeros[0]), entry("b", high, "test")])
    assert [video.split for video in beside] == ["train", "test"]


def test_paths_are_found_from_queued_runs(tmp_path, monkeypatch):
    (tmp_path / "real" / "videos").mkdir(parents=True)
    (tmp_path / "temporary").mkdir()
    monkeypatch.chdir(tmp_path / "temporary")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "real"))
    assert locate("videos") == tmp_path / "real" / "videos"
    assert locate("nowhere") == Path("nowhere")
    (tmp_path / "real" / "vgg.pth").write_bytes(b"weights")
    files = DLDMConfig(reconstruction_loss="l1_vgg", vgg_file="vgg.pth").files
    assert files == {"dldm.vgg_file": tmp_path / "real" / "vgg.pth"}, "weights of others too"


# ---------------------------------------------------------------- worker pool


def test_pool_answers_hangs_crashes_and_raises():
    jobs = {"a": "x", "b": "sleep", "c": "crash", "d": "y", "e": "z"}
    results = dict(run_jobs(fake_world.odd_jobs, jobs, workers=2, seconds=5))
    assert (results["a"], results["d"], results["e"]) == ("X", "Y", "Z")
    assert results["b"] == Failure("does not finish within the time limit")
    assert results["c"] == Failure("crashes the decoder (exit code 3)")
    with pytest.raises(KeyError, match="a bug"):
        list(run_jobs(fake_world.odd_jobs, {"a": "raise"}))
    with pytest.raises(ValueError, match="at least 1"):
        list(run_jobs(fake_world.odd_jobs, jobs, workers=0))
    assert list(run_jobs(fake_world.odd_jobs, {})) == []


@pytest.mark.parametrize("error", [EOFError, BrokenPipeError, ConnectionResetError])
def test_a_worker_whose_parent_died_ends_in_silence(error):
    class Pipe:
        def send(self, _):
            pass

        def recv(self):
            raise error

    _serve(Pipe(), fake_world.odd_jobs, None)


def test_pool_tries_a_job_again_whose_worker_was_killed(tmp_path):
    once, twice = tmp_path / "once", tmp_path / "twice"
    once.write_text("1")
    twice.write_text("1\n2")
    jobs = {"a": f"killed {once}", "b": "x"}
    found = dict(run_jobs(fake_world.odd_jobs, jobs, workers=2))
    assert found == {"a": f"killed {once}".upper(), "b": "X"}, "the system's doing is not the job's fault"
    found = dict(run_jobs(fake_world.odd_jobs, {"a": f"killed {twice}", "b": "x"}))
    assert found["b"] == "X" and "the system killed its worker twice" in found["a"].reason


@pytest.mark.skipif(sys.platform != "linux", reason="the limit needs /proc")
def test_pool_bounds_memory():
    assert list(run_jobs(fake_world.odd_jobs, {"a": "memory"}, memory_gib=0.5)) == [("a", "no memory")]


def test_pool_remembers(tmp_path):
    (tmp_path / "a.json").write_text('"remembered"')
    results = dict(run_resumable(fake_world.odd_jobs, {"a": "raise", "b": "x"}, tmp_path))
    assert results == {"a": "remembered", "b": "X"}
    assert json.loads((tmp_path / "b.json").read_text()) == "X"


def test_worker_count():
    assert worker_count({"workers": 3}) == 3
    for wrong in (0, "two", True, 1.5):
        with pytest.raises(UserError, match=r"runtime\.workers"):
            worker_count({"workers": wrong})
    for wrong in ({}, {"workers": 3, "devise": "cpu"}):
        with pytest.raises(UserError, match=r"runtime\.(workers|devise).*key"):
            worker_count(wrong)
    for wrong in (None, 4, [], "workers"):
        with pytest.raises(UserError, match="runtime: expected a group"):
            worker_count(wrong)


# ---------------------------------------------------------------- clips and shards


def test_clips_cover_a_video():
    assert [clip_count(frames, 17) for frames in (1, 2, 17, 18, 33, 34)] == [1, 1, 1, 2, 2, 3]
    assert [valid_frames(40, 17, clip) for clip in range(3)] == [17, 17, 8]
    for frames in range(2, 120):
        clips = clip_count(frames, 17)
        assert 2 <= valid_frames(frames, 17, clips - 1) <= 17
        assert sum(valid_frames(frames, 17, clip) - 1 for clip in range(clips)) == frames - 1


def test_shard_plan_keeps_videos_whole_where_it_can():
    plan = plan_shards({"a": 17, "b": 33, "c": 10}, 17, capacity=50)
    assert [[(run.video, run.first, run.clips, run.offset) for run in shard] for shard in plan] == [
        [("a", 0, 1, 0), ("b", 0, 2, 17)],
        [("c", 0, 1, 0)],
    ]
    long = plan_shards({"a": 100}, 17, capacity=40)  # 7 clips, 2 to a shard
    assert [(shard[0].first, shard[0].clips) for shard in long] == [(0, 2), (2, 2), (4, 2), (6, 1)]
    assert len(plan_shards({"a": 33}, 17, capacity=1)) == 2  # a shard holds at least one clip


@pytest.fixture
def store(tmp_path):
    """Three videos of 40, 17 and 100 numbered frames, in shards of at most 60 frames."""
    config = {"frames": 17, "fps": 16.0, "height": 48, "width": 96, "fit": "cover", "min_frames": 17}
    videos = []
    for name, split, task, first, count in (
        ("a", "train", "x", 0, 40),
        ("b", "test", "y", 100, 17),
        ("c", "train", "y", 200, 100),
    ):
        frames = np.stack([numbered_frame(first + i) for i in range(count)])
        frames.tofile(tmp_path / f"{name}.u8")
        videos.append((name, split, task, tmp_path / f"{name}.u8", count))
    (tmp_path / "clips").mkdir()
    write_shards(tmp_path / "clips", videos, config, shard_bytes=60 * 48 * 96 * 3)
    return ClipStore(tmp_path / "clips")


def test_store_reads_clips_that_share_a_frame(store):
    assert len(store) == 3 + 1 + 7
    assert (store.clip_frames, store.fps, store.height, store.width) == (17, 16.0, 48, 96)
    for video, first, count in (("a", 0, 40), ("b", 100, 17), ("c", 200, 100)):
        rows = store.select(video=video)
        clips = [[read_number(frame) - first for frame in store.frames(row)] for row in rows]
        for clip, numbers in enumerate(clips):
            expected = [min(clip * 16 + i, count - 1) for i in range(17)]  # the tail repeats the last frame
            assert numbers == expected
            assert store.index["valid"][rows[clip]] == len(set(numbers))
        assert all(left[-1] == right[0] for left, right in zip(clips, clips[1:], strict=False))
        assert [read_number(frame) - first for frame in store.video(video)] == list(range(count))
        assert store.whole_length(video) == 1 + clip_count(count, store.clip_frames) * (store.clip_frames - 1)


def test_store_selects_and_batches(store):
    assert store.select(split="test") == [3]
    assert store.select(split="train", task="x") == [0, 1, 2]
    assert store.select(video=["a", "b"]) == [0, 1, 2, 3]
    assert store.select(split="probe") == []
    assert store.select() == list(range(11))
    assert store.videos(task="y") == ["b", "c"]
    assert store.batch([0, 5]).shape == (2, 17, 48, 96, 3)
    with pytest.raises(ValueError, match="column"):
        store.select(colour="red")
    with pytest.raises(KeyError, match="nobody"):
        store.video("nobody")
    clip = store.frames(0)
    clip[:] = 0  # a copy: the shard is not touched
    assert store.frames(0).max() > 0
    store.frames(3)
    assert len(pickle.dumps(store)) < 20_000  # for loader processes: without the memory maps
    assert np.array_equal(pickle.loads(pickle.dumps(store)).frames(4), store.frames(4))


def test_shards_are_few_and_small(store):
    shards = sorted(store.path.glob("frames-*.npy"))
    assert store.index["shard"].max() == len(shards) - 1
    assert all(np.load(shard, mmap_mode="r").nbytes <= 60 * 48 * 96 * 3 for shard in shards)


def test_store_says_which_stage_makes_it(tmp_path):
    with pytest.raises(UserError, match="dvc repro clip"):
        ClipStore(tmp_path)


# ---------------------------------------------------------------- sampler


def test_sampler_visits_everything_once_an_epoch():
    stream = np.concatenate([batch_indices(3, step, 7, 50) for step in range(50)])  # 350 = 7 epochs
    for epoch in range(7):
        assert sorted(stream[50 * epoch : 50 * epoch + 50]) == list(range(50))
    assert not np.array_equal(stream[:50], stream[50:100])


def test_sampler_is_a_function_of_seed_and_step():
    first = batch_indices(1, 123, 16, 1000)
    for step in (0, 999, 5):
        batch_indices(1, step, 16, 1000)
    assert np.array_equal(first, batch_indices(1, 123, 16, 1000)) and first.dtype == np.int64
    assert not np.array_equal(first, batch_indices(2, 123, 16, 1000))
    assert sorted(batch_indices(0, 0, 10, 3)[:9]) == sorted([0, 1, 2] * 3)  # a batch larger than an epoch
    with pytest.raises(ValueError, match="expected seed"):
        batch_indices(0, 0, 4, 0)


def test_clips_json_tells_other_pixels_apart(store, tmp_path):
    # stages know their input by the hashes of index.parquet and clips.json
    (tmp_path / "black").mkdir()
    videos = []
    for name, split, task, count in (("a", "train", "x", 40), ("b", "test", "y", 17), ("c", "train", "y", 100)):
        (tmp_path / f"{name}.black").write_bytes(bytes(count * 48 * 96 * 3))
        videos.append((name, split, task, tmp_path / f"{name}.black", count))
    config = {key: value for key, value in store.config.items() if key != "sha256"}
    write_shards(tmp_path / "black", videos, config, shard_bytes=60 * 48 * 96 * 3)
    black = ClipStore(tmp_path / "black")
    assert black.index.equals(store.index)
    assert not set(black.config["sha256"]) & set(store.config["sha256"])
    shards = [np.load(file) for file in sorted((tmp_path / "black").glob("frames-*.npy"))]
    assert black.config["sha256"] == [hashlib.sha256(shard.tobytes()).hexdigest() for shard in shards]
