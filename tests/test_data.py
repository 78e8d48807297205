"""Data: manifest, splits, worker pool, clips that share a frame, shards, sampler, the craft source and both stages."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import fake_world
import numpy as np
import polars as pl
import pytest
from numbered import numbered_frame, read_number, write_raw

from stages import clip as clip_stage
from stages import ingest as ingest_stage
from vw2.console import UserError
from vw2.data import manifest
from vw2.data.clips import clip_count, valid_frames
from vw2.data.manifest import Entry
from vw2.data.pool import Failure, run_jobs, run_resumable, worker_count
from vw2.data.sampler import batch_indices
from vw2.data.shards import ClipStore, plan_shards, write_shards
from vw2.data.sources import craft
from vw2.media.decode import read_frames
from vw2.worlds.craft import CraftConfig

ROOT = Path(__file__).parents[1]
WORLD = CraftConfig(train_videos=4, fail_videos=1, test_paper=1, test_blocks=1, probe_videos=1)


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
    assert [video.split for video in manifest.assign_splits([entry("a", low)])] == ["train"]


def test_paths_are_found_from_queued_runs(tmp_path, monkeypatch):
    (tmp_path / "real" / "videos").mkdir(parents=True)
    (tmp_path / "temporary").mkdir()
    monkeypatch.chdir(tmp_path / "temporary")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "real"))
    assert manifest.locate("videos") == tmp_path / "real" / "videos"
    assert manifest.locate("nowhere") == Path("nowhere")


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


@pytest.mark.skipif(sys.platform != "linux", reason="the limit needs /proc")
def test_pool_bounds_memory():
    assert list(run_jobs(fake_world.odd_jobs, {"a": "memory"}, memory_gib=0.5)) == [("a", "no memory")]


def test_pool_remembers(tmp_path):
    (tmp_path / "a.json").write_text('"remembered"')
    results = dict(run_resumable(fake_world.odd_jobs, {"a": "raise", "b": "x"}, tmp_path))
    assert results == {"a": "remembered", "b": "X"}
    assert json.loads((tmp_path / "b.json").read_text()) == "X"


def test_worker_count():
    assert worker_count({}) == 1 and worker_count({"workers": 3, "device": "cpu"}) == 3
    for wrong in (0, "two", True, 1.5):
        with pytest.raises(UserError, match="runtime.workers"):
            worker_count({"workers": wrong})


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


# ---------------------------------------------------------------- craft source


def run_craft(work, workers, render=fake_world.render):
    items = list(craft.entries(WORLD, work, workers, render=render))
    return sorted(items, key=lambda item: item.id)


def test_craft_source_is_the_same_for_any_number_of_workers(tmp_path):
    one, three = run_craft(tmp_path / "1", 1), run_craft(tmp_path / "3", 3)
    assert one == three and len(one) == 8
    assert one[0] == replace(one[0], split="fail", task="paper_boat", frames=40, width=96, height=48, fps=16.0)
    manifest.build(one)
    for item in one:
        name = Path(item.path).name
        assert (tmp_path / "1/videos" / name).read_bytes() == (tmp_path / "3/videos" / name).read_bytes()
        truth = pl.read_parquet(tmp_path / f"1/truth/{item.id}.parquet")
        assert dict(truth.schema) == craft.TRUTH and len(truth) == 40
        assert truth["video"].unique().to_list() == [item.id]
    last = one[-1]
    assert [read_number(f) for _, f in read_frames(tmp_path / "1" / "videos" / Path(last.path).name)] == [
        (40 * 3 + i) % 1024 for i in range(40)
    ]


def test_craft_source_goes_on_where_it_stopped(tmp_path):
    with pytest.raises(ValueError, match="out of paper"):
        run_craft(tmp_path, 1, fake_world.render_or_fail)
    done = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "videos").glob("*.mp4")}
    assert len(done) == 2
    items = run_craft(tmp_path, 2)
    assert len(items) == 8
    assert all((tmp_path / "videos" / name).stat().st_mtime_ns == stamp for name, stamp in done.items())


# ---------------------------------------------------------------- the stages


STAGES = {"ingest": ingest_stage.main, "clip": clip_stage.main}


@pytest.fixture
def stage(tmp_path, monkeypatch):
    """Run a stage in `tmp_path`, in this process."""
    monkeypatch.chdir(tmp_path)
    return lambda name: STAGES[name](Path("params.yaml"))


def parameters(folder, **ingest):
    world = {"resolution": 32, "fps": 16.0, "nuisance": 1, "paper_frames": [113, 120]}
    world |= {"train_videos": 3, "fail_videos": 1, "test_paper": 1, "test_blocks": 1, "probe_videos": 1}
    groups = {
        "seed": 0,
        "craft": world,
        "ingest": {"source": "craft", "path": None, "licence": "unknown", "min_frames": 2}
        | {"max_side": 8192, "time_limit": 60.0}
        | ingest,
        "clip": {"frames": 17, "fps": 16.0, "height": 32, "width": 32, "fit": "cover", "min_frames": 17},
        "runtime": {"workers": 2},
    }
    (folder / "params.yaml").write_text(json.dumps(groups))


def digest(folder):
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): manifest.content_hash(file) for file in files}


def test_stages_on_the_craft_world(tmp_path, stage):
    parameters(tmp_path)
    for name in STAGES:
        stage(name)
    frame = manifest.read(tmp_path / "data/manifest.parquet")
    truth = pl.read_parquet(tmp_path / "data/truth.parquet")
    store = ClipStore(tmp_path / "data/clips")
    assert len(frame) == 7 and len(truth) == frame["frames"].sum()
    assert set(frame["split"]) == {"train", "test", "probe", "fail"}
    for row in frame.iter_rows(named=True):
        assert len(store.video(row["id"])) == row["frames"]
    figures = json.loads((tmp_path / "metrics/clip.json").read_text())
    assert figures["clips"] == len(store) and figures["videos"] == 7 and figures["seed"] == 0
    assert json.loads((tmp_path / "metrics/ingest.json").read_text())["split"]["train"] == 3
    assert (tmp_path / "plots/ingest.png").exists() and (tmp_path / "plots/clip.png").exists()
    assert not list((tmp_path / ".vw2").rglob("*.mp4"))  # scratch is cleared
    first = digest(tmp_path / "data")
    shutil.rmtree(tmp_path / "data")
    for name in STAGES:
        stage(name)
    assert digest(tmp_path / "data") == first  # to the byte


def test_stages_on_a_folder(tmp_path, stage):
    for task in ("fold_paper", "stack"):
        (tmp_path / "films" / task).mkdir(parents=True)
    write_raw(tmp_path / "films/fold_paper/a.mp4", map(numbered_frame, range(90)))
    write_raw(tmp_path / "films/stack/b.mkv", map(numbered_frame, range(60)))
    write_raw(tmp_path / "films/stack/short.mp4", map(numbered_frame, range(12)))
    (tmp_path / "films/stack/text.mp4").write_text("not a video")
    parameters(tmp_path, source="folder", path="films")
    for name in STAGES:
        stage(name)
    frame = manifest.read(tmp_path / "data/manifest.parquet")
    assert frame["path"].to_list() == ["films/fold_paper/a.mp4", "films/stack/b.mkv", "films/stack/short.mp4"]
    assert set(frame["split"]) == {"train", "test"}
    refused = pl.read_parquet(tmp_path / "data/quarantine.parquet")
    assert refused["path"].to_list() == ["films/stack/text.mp4"]
    assert len(pl.read_parquet(tmp_path / "data/truth.parquet")) == 0
    assert list((tmp_path / "data/videos").iterdir()) == []
    too_short = pl.read_parquet(tmp_path / "data/clips/quarantine.parquet")
    assert too_short.rows() == [("films/stack/short.mp4", "is too short for a clip: 7 frames at 16 fps, 17 needed")]
    write_raw(tmp_path / "films/stack/b.mkv", map(numbered_frame, range(61)))
    with pytest.raises(UserError, match="not the file that was ingested"):
        stage("clip")


@pytest.mark.parametrize(
    "files, ingest, words",
    [
        ({}, {"source": "folder", "path": None}, "needs ingest.path"),
        ({}, {"source": "folder", "path": "nowhere"}, "got nothing; change ingest.path"),
        ({"films/readme.txt": "x"}, {"source": "folder", "path": "films"}, "no video in ingest.path films"),
        ({"films/a.mp4": "x"}, {"source": "folder", "path": "films"}, "none of 1 files could be taken; the first"),
        ({"films/a.mp4": "x"}, {"source": "files", "path": "films"}, "ingest.source"),
    ],
)
def test_ingest_says_what_is_wrong(tmp_path, stage, files, ingest, words):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    parameters(tmp_path, **ingest)
    with pytest.raises(UserError, match=words):
        stage("ingest")
    assert not (tmp_path / "data").exists()


def test_a_missing_input_is_one_sentence_and_exit_code_1(tmp_path):
    parameters(tmp_path, source="folder", path="nowhere")
    done = subprocess.run(
        [sys.executable, "-m", "stages.ingest"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 1 and len(errors) == 1 and "got nothing; change ingest.path" in errors[0]
    assert "Traceback" not in done.stderr and done.stdout == ""


def test_ctrl_c_leaves_nothing_half_done_and_the_same_command_goes_on(tmp_path):
    parameters(tmp_path)
    command = [sys.executable, "-m", "stages.ingest"]
    setting = {"cwd": tmp_path, "env": os.environ | {"PYTHONPATH": str(ROOT)}, "stderr": subprocess.PIPE, "text": True}
    first = subprocess.Popen(command, start_new_session=True, **setting)
    deadline = time.monotonic() + 300
    while not (done := list(tmp_path.glob(".vw2/ingest/*/entries/train*.json"))) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(first.pid, signal.SIGINT)  # as a terminal does: to parent and workers
    errors = first.communicate(timeout=120)[1]
    assert first.returncode == 130 and "error: interrupted" in errors and "Traceback" not in errors
    assert done and not (tmp_path / "data").exists()
    stamps = {file: file.stat().st_mtime_ns for file in tmp_path.glob(".vw2/ingest/*/videos/train*.mp4")}
    again = subprocess.run(command, **setting)
    assert again.returncode == 0, again.stderr
    kept = [tmp_path / "data/videos" / file.name for file in stamps]
    assert kept and any(new.stat().st_mtime_ns in stamps.values() for new in kept)  # taken over, not made again
    assert len(manifest.read(tmp_path / "data/manifest.parquet")) == 7


def test_clip_without_a_long_enough_video(tmp_path, stage):
    (tmp_path / "films").mkdir()
    write_raw(tmp_path / "films/a.mp4", map(numbered_frame, range(12)))
    parameters(tmp_path, source="folder", path="films")
    with pytest.raises(UserError, match="dvc repro ingest"):
        stage("clip")
    stage("ingest")
    with pytest.raises(UserError, match="none of 1 videos gives a clip; the first, films/a.mp4, is too short"):
        stage("clip")
    assert not (tmp_path / "data/clips").exists()
