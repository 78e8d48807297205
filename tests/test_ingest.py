"""The craft source and the stages ingest and clip: same bytes for any workers, resume, one sentence per mistake."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
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
from vw2.data.clips import ClipConfig
from vw2.data.shards import ClipStore, write_shards
from vw2.data.sources import craft
from vw2.media.decode import read_frames
from vw2.media.picture import Picture
from vw2.worlds.craft import CraftConfig

ROOT = Path(__file__).parents[1]
WORLD = CraftConfig(train_videos=4, fail_videos=1, test_paper=1, test_blocks=1, probe_videos=1)


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
        | {"max_side": 8192, "time_limit": 60.0, "camera": None, "frames_fps": 16.0}
        | ingest,
        "splits": {"environments": False, "near_duplicates": True},  # numbered frames look much alike
        "clip": asdict(ClipConfig(frames=17, fps=16.0, height=32, width=32, min_frames=17)),
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


def test_the_contact_sheet_makes_rgb_of_a_few_frames_only(tmp_path, monkeypatch):
    looks = []
    monkeypatch.setattr(Picture, "rgb", lambda _: looks.append(1) or numbered_frame(len(looks)))
    monkeypatch.setattr(ingest_stage, "PLOT", tmp_path / "a.png")
    monkeypatch.setattr(ingest_stage, "SHEET_LOOKS", 20)
    write_raw(tmp_path / "a.mkv", map(numbered_frame, range(150)))
    row = {"id": "a", "source": "folder", "task": "t", "path": str(tmp_path / "a.mkv"), "frames": 150, "fps": 30.0}
    row |= {"width": 96, "height": 48, "start": None, "stop": None, "split": "train"}
    for part in ({}, {"start": 1.0, "stop": 4.0, "frames": 90}):
        looks.clear()
        ingest_stage.draw(pl.DataFrame([row | part]))
        assert 20 <= len(looks) < 40 and (tmp_path / "a.png").stat().st_size


def test_contact_sheets_show_a_task_as_it_should_be(tmp_path, monkeypatch):
    shown = []
    for stage in (ingest_stage, clip_stage):
        monkeypatch.setattr(stage, "write_sheet", lambda _, rows: shown.append([title for title, _ in rows]))
    monkeypatch.setattr(ingest_stage, "read_span", lambda *_, **__: iter(()))
    monkeypatch.setattr(ingest_stage, "thumbnails", lambda *_: None)
    row = {"source": "craft", "path": "a.mkv", "frames": 9, "fps": 16.0, "width": 8, "height": 8}
    row |= {"start": None, "stop": None}
    videos = [("fail_0", "boat", "fail"), ("fail_1", "horse", "fail"), ("train_0", "boat", "train")]
    ingest_stage.draw(pl.DataFrame([row | {"id": id, "task": task, "split": split} for id, task, split in videos]))
    raw = [(id, split, task, tmp_path / id, 9) for id, task, split in videos]
    for *_, path, frames in raw:
        np.zeros((frames, 8, 8, 3), np.uint8).tofile(path)
    (tmp_path / "clips").mkdir()
    write_shards(tmp_path / "clips", raw, {"frames": 5, "fps": 16.0, "height": 8, "width": 8})
    clip_stage.draw(ClipStore(tmp_path / "clips"))
    assert [sorted(titles) for titles in shown] == [["boat (train_0)", "horse (fail_1)"]] * 2


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
