"""Folder source: every file is taken or refused with a true reason; nothing crashes or hangs."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import polars as pl
import pytest
from numbered import noisy_frame, numbered_frame, write_raw

from vw2.console import UserError
from vw2.data import manifest
from vw2.data.manifest import Entry, Refused
from vw2.data.sources import folder
from vw2.data.sources.base import IngestConfig

REAL = Path(__file__).parents[2] / "shared" / "realvideo"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="no folder of real videos beside the repository")


def take(root, work, workers=2, **other):
    """Videos by file name and reasons by file name."""
    config = IngestConfig(**{"source": "folder", "path": str(root), "time_limit": 60.0} | other)
    items = list(folder.entries(config, work, workers))
    taken = {Path(item.path).relative_to(root).as_posix(): item for item in items if isinstance(item, Entry)}
    refused = {Path(item.path).relative_to(root).as_posix(): item.reason for item in items if isinstance(item, Refused)}
    assert len(taken) + len(refused) == len(items)
    return taken, refused


def write_sound(path):
    """A file with sound only."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.fixture
def films(tmp_path):
    """Good and bad files of many kinds."""
    root = tmp_path / "films"
    (root / "fold_boat").mkdir(parents=True)
    good = write_raw(root / "fold_boat/good.mp4", map(numbered_frame, range(40)), options={"g": "5"})
    write_raw(root / "UPPER.MOV", map(numbered_frame, range(20)), Fraction(30000, 1001))
    write_raw(root / "one.mp4", [numbered_frame(0)])
    (root / "text.mp4").write_text('{"streams": []}\n')
    (root / "empty.mkv").write_bytes(b"")
    (root / "noise.avi").write_bytes(np.random.default_rng(0).bytes(5000))
    write_sound(root / "sound.mp4")
    data = good.read_bytes()
    (root / "no_index.mp4").write_bytes(data[: len(data) // 2])  # the index of an mp4 comes last
    front = {"movflags": "faststart"}
    frames = [noisy_frame(i) for i in range(60)]
    path = write_raw(root / "cut.mp4", frames, options={"g": "5"}, container_options=front)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    path = write_raw(root / "cut.mkv", frames, options={"g": "5"})
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    path = write_raw(root / "hole.mp4", frames, options={"g": "5"}, container_options=front)
    broken = bytearray(path.read_bytes())
    hole = slice(len(broken) // 2, len(broken) * 6 // 10)  # several pictures; garbage within one may decode
    broken[hole] = bytes(hole.stop - hole.start)
    path.write_bytes(broken)
    (root / "notes.txt").write_text("no video by name")
    (root / ".hidden.mp4").write_text("nor this")
    return root


def test_good_files_are_taken_and_bad_ones_refused(films, tmp_path):
    taken, refused = take(films, tmp_path / "work")
    assert set(taken) == {"fold_boat/good.mp4", "UPPER.MOV"}
    good = taken["fold_boat/good.mp4"]
    assert (good.task, good.instruction, good.environment) == ("fold_boat", "fold boat", "unknown")
    assert (good.id, good.frames, good.fps, good.width, good.height) == ("fold_boat__good", 40, 30.0, 96, 48)
    assert good.hash == manifest.content_hash(films / "fold_boat/good.mp4")
    assert good.split is None and good.licence == "unknown" and good.source == "folder"
    assert taken["UPPER.MOV"].fps == pytest.approx(29.97, abs=0.001) and taken["UPPER.MOV"].task == "films"
    expected = {
        "one.mp4": "holds 1 frame, ingest.min_frames is 2",
        "text.mp4": "not a video",
        "empty.mkv": "is empty",
        "noise.avi": "not a video",
        "sound.mp4": "no video stream, only audio",
        "no_index.mp4": "not a video",
        "cut.mp4": "frames",
        "cut.mkv": "frames",
        "hole.mp4": "frames",
    }
    assert set(refused) == set(expected)
    for file, words in expected.items():
        assert words in refused[file], file
    for file in ("cut.mp4", "cut.mkv", "hole.mp4"):  # they tell how much came out
        count = int(next(word for word in refused[file].split() if word.isdigit()))
        assert 0 < count < 60, refused[file]


def test_no_video_is_passed_over(tmp_path):
    for kind in ("mpeg4", "3gpp", "insv", "mpe", "m1v", "m2v", "m2t", "dv", "mjpeg", "mjpg", "obu", "nut"):
        write_raw(tmp_path / "a.mp4", [numbered_frame(0)] * 2).rename(tmp_path / f"{kind}.{kind}")
    assert len(folder.find_videos(tmp_path)) == 12


def test_a_recording_does_not_come_twice(tmp_path):
    root = tmp_path / "films"
    root.mkdir()
    write_raw(root / "GX010001.MP4", map(numbered_frame, range(5)))
    write_raw(root / "a.mp4", map(numbered_frame, range(5))).rename(root / "GL010001.LRV")  # as GoPro names them
    (root / "videos.csv").write_text("file,task\nGX010001.MP4,ski\nGL010001.LRV,ski\n")
    taken, refused = take(root, tmp_path / "work")
    assert list(taken) == ["GX010001.MP4"] and list(refused) == ["GL010001.LRV"]
    assert "is a camera's small preview of another file" in refused["GL010001.LRV"]


def test_limits(films, tmp_path):
    _, refused = take(films, tmp_path / "a", max_side=64)
    assert "declares 96x48 pixels, more than 64 on a side" in refused["UPPER.MOV"]
    _, refused = take(films, tmp_path / "b", min_frames=30)
    assert "holds 20 frames" in refused["UPPER.MOV"]
    _, refused = take(films, tmp_path / "c", time_limit=1e-9)
    assert "takes longer than 1e-09 s" in refused["UPPER.MOV"]


def test_any_number_of_workers_and_a_second_run_agree(films, tmp_path):
    first = take(films, tmp_path / "a", workers=1)
    assert first == take(films, tmp_path / "b", workers=3)
    assert first == take(films, tmp_path / "b", workers=3)  # from memory
    write_raw(films / "one.mp4", map(numbered_frame, range(9)))  # an edited file is looked at again
    assert "one.mp4" in take(films, tmp_path / "b")[0]


def test_sidecar(films, tmp_path):
    (films / "videos.csv").write_text(
        "file,task,instruction,split,environment,licence\n"
        "fold_boat/good.mp4,boat,Fold a boat.,test,kitchen,CC0\n"
        "UPPER.MOV,,,train,,\n"
        "gone.mp4,,,,,\n"
    )
    taken, refused = take(films, tmp_path / "work", licence="mine")
    good, upper = taken["fold_boat/good.mp4"], taken["UPPER.MOV"]
    assert (good.task, good.instruction, good.split) == ("boat", "Fold a boat.", "test")
    assert (good.environment, good.licence) == ("kitchen", "CC0")
    assert (upper.task, upper.split, upper.environment, upper.licence) == ("films", "train", "unknown", "mine")
    assert refused["gone.mp4"] == "is listed in the sidecar but is not a video in the folder"
    (films / "videos.csv").unlink()
    pl.DataFrame({"file": ["UPPER.MOV"], "task": ["film"]}).write_parquet(films / "videos.parquet")
    assert take(films, tmp_path / "other")[0]["UPPER.MOV"].task == "film"


def test_blank_rows_of_a_sidecar(films, tmp_path):
    (films / "videos.csv").write_text("file,task\nUPPER.MOV,x\n,\n ,\n")
    taken, refused = take(films, tmp_path / "work")
    assert taken["UPPER.MOV"].task == "x" and "." not in refused
    (films / "videos.csv").write_text("file,task\n,fold\n")
    with pytest.raises(UserError, match="a row with 'fold' names no file"):
        take(films, tmp_path / "other")


@pytest.mark.parametrize(
    "text, words",
    [
        ("name,task\na.mp4,x\n", "no column 'file'|unknown column 'name'"),
        ("file,colour\na.mp4,x\n", "unknown column 'colour'"),
        ("file,split\na.mp4,validation\n", "got 'validation'"),
        ("file,task\na.mp4,x\na.mp4,y\n", "twice"),
        ("", "cannot be read as a table"),
    ],
)
def test_faulty_sidecar_is_one_sentence(films, tmp_path, text, words):
    (films / "videos.csv").write_text(text)
    with pytest.raises(UserError, match=words):
        take(films, tmp_path / "work")


def test_two_sidecars_are_refused(films, tmp_path):
    (films / "videos.csv").write_text("file,task\nUPPER.MOV,x\n")
    (films / "videos.parquet").write_bytes(b"")
    with pytest.raises(UserError, match="keep one"):
        take(films, tmp_path / "work")


def test_missing_or_empty_folder(tmp_path):
    with pytest.raises(UserError, match="got nothing"):
        take(tmp_path / "none", tmp_path / "work")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no video"):
        take(tmp_path / "empty", tmp_path / "work")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="got a file"):
        take(tmp_path / "file", tmp_path / "work")
    with pytest.raises(ValueError, match="needs ingest.path"):
        IngestConfig(source="folder")


def test_ids_are_unique_and_fit_for_file_names():
    files = ["a b.mp4", "a_b.mp4", "a/b.mp4", "a/b.mkv", ".x/y.mp4", "ä/ö.mp4", f"{'z' * 150}.mp4", "-n.mp4"]
    ids = folder.make_ids(files)
    assert len(set(ids.values())) == len(files)
    assert ids == folder.make_ids(files[::-1])
    for name in ids.values():
        assert len(name) <= 100 and name.isascii() and "/" not in name and name[0] not in ".-"


# ---------------------------------------------------------------- real files, where there are any


@needs_real
def test_real_hands_and_robots(tmp_path):
    taken, refused = take(REAL / "hands", tmp_path / "hands")
    assert len(taken) == 5 and not refused
    assert taken["sam2_03_blocks.mp4"].frames == 292 and taken["intel_asl_again.mkv"].fps == 30.0
    taken, refused = take(REAL / "robots", tmp_path / "robots")
    assert len(taken) == 6 and not refused
    assert taken["irasim_languagetable_example.mp4"].frames == 18


@needs_real
def test_real_edge_cases(tmp_path):
    taken, refused = take(REAL / "edge", tmp_path / "edge")
    reasons = {
        "decord_corrupted.mp4": "breaks after 28 frames",
        "ffmpeg-cli-wrapper_ffprobe-text.mp4": "not a video",
        "imagegif_interlaced.gif": "holds 1 frame",
        "jcodec_37.mp4": "holds 1 frame",
        "libwebm_block_ends_beyond_cluster.mkv": "begins in the middle",
        "libwebm_invalid_vp9_bitstream-bug_1416.webm": "12336x12336",
        "mp4parse_bipbop_nonfragment_header.mp4": "no frame",
        "mp4parse_h264_white_frame_sar_16_9.mp4": "holds 1 frame",
        "mp4parse_invalid_userdata.mp4": "no frame that can be decoded (5544 declared)",
        "mp4parse_no_timescale.mp4": "breaks after",
        "mp4parse_sine-3s-xhe-aac-44khz-mono.mp4": "only audio",
        "mp4parse_tiny_av1.mp4": "holds 1 frame",
        "mp4parser_redbull_100kbit_dash.mp4": "no frame",
        "pillow_decompression_bomb_extents.gif": "1 frame",
        "pillow_first_frame_transparency.gif": "holds 1 frame",
    }
    assert set(refused) == set(reasons)
    for file, words in reasons.items():
        assert words in refused[file], (file, refused[file])
    counted = {
        "autoeditor_h264-png.mp4": 60,  # with a cover picture
        "mmaction2_test.avi": 164,  # times run backwards
        "moviepy_no_duration.webm": 74,
        "mp4parser_count-video.mp4": 245,
        "torchcodec_nasa_13013.mp4": 325,  # the default of two video streams
        "torchcodec_h265_10bits.mp4": 30,
    }
    for file, frames in counted.items():
        assert taken[file].frames == frames, file
    assert taken["mp4parser_count-video.mp4"].variable and not taken["mmaction2_test.avi"].variable
    turned = taken["decord_video_270.mov"]
    assert (turned.width, turned.height) == (320, 568)
    assert taken["autoeditor_SAR-2by3.mp4"].sar == pytest.approx(2 / 3)
