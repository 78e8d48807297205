"""CALVIN source: windows become videos frame by frame; strangers' pickles run nothing; broken files are refused."""

import io
import os
import pickle
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from numbered import numbered_frame, read_number

from vw2.console import UserError
from vw2.data import manifest
from vw2.data.manifest import Entry, Refused, content_hash
from vw2.data.numpy_files import DataError, parse_array, plain, read_array, read_npz, read_objects
from vw2.data.sources import calvin
from vw2.data.sources.base import TRACKS, IngestConfig
from vw2.media.decode import read_frames

REAL = Path(__file__).parents[2] / "shared" / "realvideo" / "calvin" / "sim_task_D_D"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="no folder of CALVIN files beside the repository")


def write_frame(folder, number, **other):
    """One frame file that carries its number in picture, action and state."""
    arrays = {
        "rgb_static": numbered_frame(number),
        "rel_actions": number + np.arange(7) / 8,
        "robot_obs": -number - np.arange(15) / 16,
        "depth_static": np.zeros((4, 4), np.float32),
    }
    np.savez_compressed(folder / f"episode_{number:07d}.npz", **arrays | other)


def write_annotations(folder, windows, indices=None):
    """auto_lang_ann.npy as the official scripts write it: windows of (first, last, task, instruction)."""
    (folder / "lang_annotations").mkdir(exist_ok=True)
    value = {
        "language": {
            "ann": [each[3] for each in windows],
            "task": [each[2] for each in windows],
            "emb": np.zeros((len(windows), 1, 384), np.float32),
        },
        "info": {"episodes": [], "indx": indices or [(each[0], each[1]) for each in windows]},
    }
    np.save(folder / "lang_annotations" / "auto_lang_ann.npy", value, allow_pickle=True)


@pytest.fixture
def data(tmp_path):
    """Two splits: three windows in 30 frames of training, one recorded episode without words in validation."""
    root = tmp_path / "task_ABC_D"
    for name, frames in (("training", range(10, 40)), ("validation", range(5, 17))):
        (root / name).mkdir(parents=True)
        for number in frames:
            write_frame(root / name, number)
        np.save(root / name / "ep_start_end_ids.npy", np.array([[frames[0], frames[-1]]]))
    np.save(root / "training" / "scene_info.npy", {"calvin_scene_B": [10, 24], "calvin_scene_A": [25, 39]})
    windows = [(10, 20, "lift_block", "lift the block"), (18, 31, "turn_on_led", "light!"), (27, 39, "push", "push it")]
    indices = [(10, 20), np.array([18, 31]), (np.int64(27), np.int64(39))]  # all three are found in the wild
    write_annotations(root / "training", windows, indices)
    return root


def take(root, work, workers=2, **other):
    config = IngestConfig(**{"source": "calvin", "path": str(root), "licence": "MIT", "time_limit": 60.0} | other)
    items = list(calvin.entries(config, work, workers))
    taken = {item.id: item for item in items if isinstance(item, Entry)}
    refused = {item.path.removeprefix(f"{root}/"): item.reason for item in items if isinstance(item, Refused)}
    assert len(taken) + len(refused) == len(items)
    return taken, refused


def numbers(work, entry):
    return [read_number(frame) for _, frame in read_frames(work / "videos" / f"{entry.id}.mp4")]


def test_windows_are_videos_frame_by_frame(data, tmp_path):
    work = tmp_path / "work"
    taken, refused = take(data, work)
    assert not refused
    assert {name: entry.environment for name, entry in taken.items()} == {
        "training_0000010-0000020_lift_block": "calvin_B",
        "training_0000018-0000031_turn_on_led": "calvin_B",
        "training_0000027-0000039_push": "calvin_A",
        "validation_0000005-0000016_play": "calvin_D",
    }
    for name, entry in taken.items():
        first, last = map(int, name.split("_")[1].split("-"))
        assert numbers(work, entry) == list(range(first, last + 1))  # inclusive, in order, none twice
        assert (entry.frames, entry.fps, entry.width, entry.height) == (last - first + 1, 30.0, 96, 48)
        assert entry.path == f"data/videos/{name}.mp4" and entry.source == "calvin" and entry.licence == "MIT"
        assert entry.hash == content_hash(work / "videos" / f"{name}.mp4")
        track = pl.read_parquet(work / "tracks" / f"{name}.parquet")
        assert dict(track.schema) == TRACKS
        assert track["frame"].to_list() == list(range(entry.frames)) and track["video"].unique().to_list() == [name]
        frames = np.arange(first, last + 1)[:, None]
        assert np.array_equal(track["action"].to_list(), frames + np.arange(7) / 8)
        assert np.array_equal(track["state"].to_list(), -frames - np.arange(15) / 16)
        assert track["instruction"].unique().to_list() == [entry.instruction or None]
    lift = taken["training_0000010-0000020_lift_block"]
    assert (lift.split, lift.task, lift.instruction) == ("train", "lift_block", "lift the block")
    play = taken["validation_0000005-0000016_play"]
    assert (play.split, play.task, play.instruction) == ("test", "play", "")


def test_half_a_character_in_an_annotation_becomes_a_question_mark(data, tmp_path):
    write_annotations(data / "training", [(10, 20, "lift\udfff", "lift \ud800 it")])
    taken, _ = take(data, tmp_path / "work")
    frame = manifest.build(manifest.assign_splits(taken.values()))
    assert frame.filter(split="train").select("task", "instruction").rows() == [("lift?", "lift ? it")]
    track = pl.read_parquet(tmp_path / "work/tracks" / f"{frame['id'][0]}.parquet")
    assert track["instruction"].unique().to_list() == ["lift ? it"]
    manifest.write_quarantine(tmp_path / "q.parquet", [manifest.Refused("a\ud800", "is \udfff")])
    assert pl.read_parquet(tmp_path / "q.parquet").rows() == [("a?", "is ?")]


def test_any_number_of_workers_and_a_second_run_agree(data, tmp_path, monkeypatch):
    first = take(data, tmp_path / "a", workers=1)
    assert first == take(data, tmp_path / "b", workers=3)
    with monkeypatch.context() as patch:
        patch.setattr(calvin, "make_video", None)  # all is remembered: nothing is called
        assert first == take(data, tmp_path / "b")
    write_frame(data / "training", 15, rgb_static=numbered_frame(99))  # an edited frame is looked at again
    taken = take(data, tmp_path / "b")[0]
    name = "training_0000010-0000020_lift_block"
    assert numbers(tmp_path / "b", taken[name])[5] == 99 and taken[name].hash != first[0][name].hash


def test_interrupted_work_goes_on(data, tmp_path):
    config = IngestConfig(source="calvin", path=str(data), licence="MIT", time_limit=60.0)
    running = calvin.entries(config, tmp_path / "work", 1)
    first = next(running)
    running.close()  # ends the workers, as an interruption does
    (done,) = (tmp_path / "work" / "entries").iterdir()
    before = done.stat().st_mtime_ns, (tmp_path / "work/videos" / f"{first.id}.mp4").stat().st_mtime_ns
    assert take(data, tmp_path / "work") == take(data, tmp_path / "straight")
    assert before == (done.stat().st_mtime_ns, (tmp_path / "work/videos" / f"{first.id}.mp4").stat().st_mtime_ns)


def test_one_split_and_names_of_folders(data, tmp_path):
    taken, _ = take(data / "validation", tmp_path / "a")
    assert [(entry.id, entry.split) for entry in taken.values()] == [("validation_0000005-0000016_play", "test")]
    (data / "training" / "scene_info.npy").unlink()
    (data / "training" / "lang_annotations").rename(data / "training" / "lang_paraphrase")
    taken, _ = take(data, tmp_path / "b")
    assert {entry.environment for entry in taken.values()} == {"calvin_ABC", "calvin_D"} and len(taken) == 4
    write_annotations(data / "training", [(10, 12, "a/b", "one"), (10, 12, "a/b", "two")])  # twice the same window
    taken, _ = take(data, tmp_path / "c")
    assert {"training_0000010-0000012_a_b", "training_0000010-0000012_a_b-2"} < set(taken)


def test_broken_frames_refuse_their_windows_only(data, tmp_path):
    training = data / "training"
    windows = [(number, number + 1, "t", "x") for number in range(10, 28, 2)] + [(30, 30, "t", "short")]
    write_annotations(training, windows)
    (training / "episode_0000010.npz").unlink()
    path = training / "episode_0000013.npz"
    path.write_bytes(path.read_bytes()[:-40])
    path = training / "episode_0000014.npz"
    broken = bytearray(path.read_bytes())
    broken[100:110] = bytes(10)
    path.write_bytes(broken)
    write_frame(training, 17, rgb_static=np.zeros((48, 98, 3), np.uint8))
    write_frame(training, 18, rgb_static=np.zeros((48, 96), np.uint8))
    np.savez(training / "episode_0000020.npz", rgb_static=numbered_frame(20))
    write_frame(training, 22, rel_actions=np.array([{"a": 1}], object))
    write_frame(training, 25, rel_actions=np.zeros(8))
    write_frame(training, 27, rel_actions=np.array([0, np.inf]), robot_obs=np.zeros(2))
    write_frame(training, 26, rel_actions=np.zeros(2), robot_obs=np.zeros(2))
    taken, refused = take(data, tmp_path / "work")
    expected = {
        10: "lacks its frame 10: episode_0000010.npz is not there",
        12: "episode_0000013.npz is damaged or not an npz file",
        14: "episode_0000014.npz is damaged or not an npz file",
        16: "changes its size at frame 1 from 96x48 to 98x48",
        18: "uint8 (48, 96): episode_0000018.npz",
        20: "without rel_actions: episode_0000020.npz",
        22: "episode_0000022.npz holds pickled Python objects",
        26: "holds no finite action (nan, infinity, null) in frame 1",
        24: "rel_actions is float64 (8,): episode_0000025.npz",
    }
    for number, words in expected.items():
        assert words in refused.pop(f"training#{number:07d}-{number + 1:07d}"), number
    assert refused == {"training#0000030-0000030": "holds 1 frame, ingest.min_frames is 2"}
    assert list(taken) == ["validation_0000005-0000016_play"]
    assert not list((tmp_path / "work/videos").glob(".*")) and len(list((tmp_path / "work/videos").iterdir())) == 1


def test_limits(data, tmp_path):
    assert "more than 70 on a side" in take(data, tmp_path / "a", max_side=70)[1]["validation#0000005-0000016"]
    _, refused = take(data, tmp_path / "b", max_side=50, min_frames=12)  # the unpacking itself is limited
    assert "holds 11 frames" in refused["training#0000010-0000020"]
    assert "declares 13952 bytes for rgb_static, more than 8524" in refused["training#0000018-0000031"]
    assert "takes longer than 1e-09 s" in take(data, tmp_path / "c", time_limit=1e-9)[1]["validation#0000005-0000016"]


@pytest.mark.parametrize(
    "break_it, words",
    [
        (lambda root: [file.unlink() for file in (root / "validation").glob("*.npz")], "expected frames episode_"),
        (lambda root: (root / "validation/ep_start_end_ids.npy").unlink(), "holds neither ep_start_end_ids.npy nor"),
        (lambda root: np.save(root / "validation/ep_start_end_ids.npy", np.zeros(3)), "whole numbers"),
        (lambda root: np.save(root / "validation/ep_start_end_ids.npy", np.array([[9, 5]])), r"got \[9, 5\]"),
        (lambda root: (root / "validation/ep_start_end_ids.npy").write_bytes(b"x"), "is not a NumPy file"),
        (lambda root: write_annotations(root / "training", [(1, 2, "t", "x")], [(1, 2), (3, 4)]), r"got \[1, 2\]"),
        (lambda root: write_annotations(root / "training", [(1, 2, "t", "x")], [(1, "2")]), "info.indx 0"),
        (lambda root: write_annotations(root / "training", [(1, 2, "t", "x")], [(0, 10**12)]), "info.indx 0"),
        (lambda root: write_annotations(root / "training", [(1, 2, "t", None)]), "expected words"),
        (lambda root: np.save(root / "training/scene_info.npy", np.zeros(3)), "where a dictionary is expected"),
        (lambda root: np.save(root / "training/lang_annotations/auto_lang_ann.npy", {"a": 1}), "no such lists"),
        (
            lambda root: np.save(root / "training/lang_annotations/auto_lang_ann.npy", [1, {}]),
            "no single object|numbers",
        ),
    ],
)
def test_faulty_tables_are_one_sentence(data, tmp_path, break_it, words):
    break_it(data)
    with pytest.raises(UserError, match=words) as caught:
        take(data, tmp_path / "work")
    assert "\n" not in str(caught.value)


def test_missing_folder(tmp_path):
    with pytest.raises(UserError, match="got nothing"):
        take(tmp_path / "none", tmp_path / "work")


# ---------------------------------------------------------------- strangers' NumPy files


@pytest.mark.parametrize("name", ["validation", "training/lang_annotations", "training/scene_info.npy"])
def test_a_link_to_nothing_is_told(data, tmp_path, name):
    (data / name).rename(tmp_path / "aside")
    (data / name).symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=f"{name} is a link to nothing; mend or remove it"):
        take(data, tmp_path / "work")


def write_pickle(path, pickled):
    """An object array as np.save writes it, around any pickle."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "|O", "fortran_order": False, "shape": ()})
    Path(path).write_bytes(stream.getvalue() + pickled)


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def test_a_malicious_pickle_is_not_run(data, tmp_path):
    witness = tmp_path / "witness"
    path = data / "training/lang_annotations/auto_lang_ann.npy"
    evil = {"language": Evil(os.system, f"touch {witness}"), "info": {}}
    np.save(path, evil, allow_pickle=True)
    np.load(path, allow_pickle=True)
    assert witness.exists()  # the trap works
    witness.unlink()
    with pytest.raises(UserError, match="asks for 'posix.system', but only arrays and plain containers") as caught:
        take(data, tmp_path / "work")
    assert not witness.exists() and "\n" not in str(caught.value)
    for function in (eval, exec, getattr, __import__, np.load, np.lib.format.read_array, open, pickle.loads):
        np.save(path, Evil(function, "1"), allow_pickle=True)
        with pytest.raises(DataError, match="asks for"):
            read_objects(path)


@pytest.mark.parametrize(
    "pickled",
    [
        b"cnumpy\nndarray\n}b.",  # changes what reads it
        b"cnumpy\ndtype\n(N}X\x09\x00\x00\x00_functionI1\nsb.",
        b"cnumpy\ndtype\n(X\x01\x00\x00\x00OtR(tb.",
        b"cnumpy\ndtype\n(cnumpy\nndarray\ntR.",
        b"cnumpy\ndtype\n(X\x10\x00\x00\x00i4,(99999999,)i4tR.",
        b"cnumpy\nndarray\n)\x81.",  # a new object of it
        b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(X\x01\x00\x00\x00OtRX\x08\x00\x00\x00AAAAAAAAtR.",
        b"cnumpy.core.multiarray\n_reconstruct\n(I1\nI2\ntR.",  # an array without content
        b"cnumpy.core.multiarray\nscalar.__globals__\n.",
        b"\x8c\x05numpy\x8c\x12ndarray.__reduce__\x93.",
        b"\x82\x01.",  # extension registry
        b"Pname\n.",  # persistent id
        b"\x8e" + b"\xff" * 7 + b"\x7f.",  # eight exabytes of bytes
        b"r\xff\xff\xff\x7f.",  # a memo of two thousand million places
        b"]",
        b"",
    ],
)
def test_other_tricks_end_in_a_sentence(tmp_path, pickled):
    write_pickle(tmp_path / "x.npy", pickled)
    before = time.process_time()
    with pytest.raises(DataError):
        read_objects(tmp_path / "x.npy")
    assert time.process_time() - before < 5


def test_plain_objects_are_read_as_they_are(tmp_path):
    value = {
        "words": ["a", "ä", b"raw"],
        "numbers": (1, 2.5, True, None, 10**30),
        "scalars": [np.int64(-3), np.float32(0.5), np.bool_(True), np.str_("é")],
        "set": {1, 2},
    }
    arrays = [np.arange(6, dtype=">i4").reshape(2, 3), np.asfortranarray(np.eye(3)), np.array(["x", "yz"])]
    for number, array in enumerate(arrays):
        value[number] = array
    np.save(tmp_path / "x.npy", value | {"set": [1, 2]}, allow_pickle=True)
    found = read_objects(tmp_path / "x.npy")
    assert found["words"] == value["words"] and found["numbers"] == value["numbers"]
    assert found["scalars"] == [-3, 0.5, True, "é"] and [type(each) for each in found["scalars"]] == [
        int,
        float,
        bool,
        str,
    ]
    for number, array in enumerate(arrays):
        assert plain(found[number]) == array.tolist()
    for protocol in (2, 4, 5):
        nested = np.empty((), object)
        nested[()] = {"a": np.arange(3), "o": np.array(["a", None], object)}
        if protocol == 2:  # Python 2 wrote bytes through _codecs.encode, which stays out
            continue
        write_pickle(tmp_path / "y.npy", pickle.dumps(nested, protocol=protocol))
        found = read_objects(tmp_path / "y.npy")
        assert plain(found["a"]) == [0, 1, 2] and plain(found["o"]) == ["a", None]


def test_headers_that_lie_allocate_nothing(tmp_path):
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": (2**16, 2**16)})
    with pytest.raises(DataError, match="declares an array of 4294967296 bytes"):
        parse_array(stream.getvalue() + b"abc")
    for shape in ((0, 2**62, 8), (0,) * 70, (2**40, 2**40)):
        stream = io.BytesIO()
        np.lib.format.write_array_header_1_0(stream, {"descr": "<f8", "fortran_order": False, "shape": shape})
        with pytest.raises(DataError, match="declares an array"):
            parse_array(stream.getvalue())
    np.savez_compressed(tmp_path / "bomb.npz", rgb_static=np.zeros(2**24, np.uint8))
    with pytest.raises(DataError, match="declares 16777344 bytes for rgb_static"):
        read_npz(tmp_path / "bomb.npz", ("rgb_static",), limit=2**20)
    data = (tmp_path / "bomb.npz").read_bytes()
    short = (2**24 + 128).to_bytes(4, "little")
    assert short in data
    (tmp_path / "lie.npz").write_bytes(data.replace(short, (1000).to_bytes(4, "little")))
    with pytest.raises(DataError, match="damaged|declares an array"):
        read_npz(tmp_path / "lie.npz", ("rgb_static",), limit=2**20)


def test_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for read in (read_array, read_objects, lambda path: read_npz(path, ("a",), limit=1)):
        with pytest.raises(DataError, match="is a folder, pipe or device, not a file"):
            read(tmp_path / "pipe")


# ---------------------------------------------------------------- the real layout, where it is


@needs_real
def test_real_files(tmp_path):
    taken, refused = take(REAL, tmp_path, min_frames=2)
    assert not refused
    said = {(entry.split, entry.frames, entry.task, entry.instruction) for entry in taken.values()}
    assert len(taken) == 3
    assert ("train", 29, "turn_on_led", "turn on the green light") in said
    assert ("train", 35, "lift_red_block_table", "pick up the red block on the table") in said
    assert {entry.environment for entry in taken.values()} == {"calvin_D"}
    assert {(entry.width, entry.height, entry.fps) for entry in taken.values()} == {(200, 200, 30.0)}
    entry = next(entry for entry in taken.values() if entry.frames == 35)
    track = pl.read_parquet(tmp_path / "tracks" / f"{entry.id}.parquet")
    for row, (_, frame) in zip(
        track.iter_rows(named=True), read_frames(tmp_path / "videos" / f"{entry.id}.mp4"), strict=True
    ):
        with np.load(REAL / "training" / f"episode_{29 + row['frame']:07d}.npz") as arrays:
            assert np.abs(frame.astype(int) - arrays["rgb_static"]).mean() < 2
            assert np.array_equal(np.float32(row["action"]), np.float32(arrays["rel_actions"]))
            assert np.array_equal(np.float32(row["state"]), np.float32(arrays["robot_obs"]))


@needs_real
def test_real_recorded_episodes(tmp_path):
    root = tmp_path / "task_D_D" / "training"
    root.mkdir(parents=True)
    for file in [*(REAL / "training").glob("*.npz"), REAL / "training" / "ep_start_end_ids.npy"]:
        (root / file.name).symlink_to(file)
    taken, refused = take(root.parent, tmp_path / "work")
    assert not refused and sorted(entry.frames for entry in taken.values()) == [29, 35, 43]
    assert {(entry.task, entry.instruction, entry.environment) for entry in taken.values()} == {
        ("play", "", "calvin_D")
    }
