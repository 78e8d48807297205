"""RLDS source: episodes come out of TFRecord shards frame by frame, without TensorFlow; damage is named, not hidden."""

import io
import json
import os
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from numbered import numbered_frame, read_number
from odd_videos import lock
from PIL import Image

from vw2.console import UserError
from vw2.data.manifest import Entry, Refused
from vw2.data.sources import rlds
from vw2.data.sources.base import TRACKS, IngestConfig
from vw2.data.sources.rlds_keys import choose, kinds_of_schema
from vw2.data.tfrecord import (
    TABLE,
    RecordError,
    crc32c,
    features,
    index_records,
    masked,
    read_record,
    values,
)
from vw2.media.decode import read_frames

# ---------------------------------------------------------------- a writer of our own


def varint(value):
    value &= 2**64 - 1
    data = b""
    while value > 127:
        data += bytes([value & 127 | 128])
        value >>= 7
    return data + bytes([value])


def field(number, data):
    """A protobuf field of wire type 2."""
    return varint(number << 3 | 2) + varint(len(data)) + data


def feature(content):
    """tf.train.Feature of a list of bytes, or a float or integer array."""
    if isinstance(content, list):
        return field(1, b"".join(field(1, each) for each in content))
    content = np.asarray(content)
    if content.dtype.kind == "f":
        return field(2, field(1, content.astype("<f4").tobytes()))
    return field(3, field(1, b"".join(varint(int(each)) for each in content.ravel())))


def example(contents):
    """tf.train.Example as bytes."""
    entries = [field(1, field(1, key.encode()) + field(2, feature(each))) for key, each in contents.items()]
    return field(1, b"".join(entries))


def sequence_example(context, steps):
    """tf.train.SequenceExample; steps: name -> one content per step."""
    lists = b""
    for key, each in steps.items():
        lists += field(1, field(1, key.encode()) + field(2, b"".join(field(1, feature(step)) for step in each)))
    return example(context) + field(2, lists)


def record(data):
    header = struct.pack("<Q", len(data))
    return header + struct.pack("<I", masked(crc32c(header))) + data + struct.pack("<I", masked(crc32c(data)))


def write_shard(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(map(record, records)))
    return path


def encoded(frame, kind="png"):
    stream = io.BytesIO()
    Image.fromarray(frame).save(stream, kind, **({"quality": 95} if kind == "jpeg" else {}))
    return stream.getvalue()


def episode(first, count=6, kind="png", **other):
    """An episode in the manner of Bridge, its frames numbered from `first`."""
    numbers = np.arange(first, first + count, dtype=np.float32)[:, None]
    contents = {
        "steps/observation/image": [encoded(numbered_frame(first + i), kind) for i in range(count)],
        "steps/observation/wrist_image": [encoded(numbered_frame(0))] * count,
        "steps/observation/state": numbers + np.arange(8, dtype=np.float32) / 8,
        "steps/action": -numbers - np.arange(7, dtype=np.float32) / 8,
        "steps/language_instruction": [f"put {first}".encode()] * count,
        "steps/is_first": np.eye(1, count, dtype=int)[0],
        "steps/reward": np.zeros(count, np.float32),
        "episode_metadata/file_path": [b"/a/b.npy"],
    }
    return contents | other


def leaf(kind, **inside):
    return {"pythonClassName": f"tensorflow_datasets.core.features.{kind}", **inside}


def tensor(*shape, dtype="float32"):
    return leaf("tensor_feature.Tensor", tensor={"shape": {"dimensions": [*map(str, shape)]}, "dtype": dtype})


def picture(channels="3", dtype="uint8"):
    return leaf("image_feature.Image", image={"shape": {"dimensions": ["-1", "-1", channels]}, "dtype": dtype})


def features_dict(**children):
    return leaf("features_dict.FeaturesDict", featuresDict={"features": children})


def write_info(folder, lengths, observation=None, **other):
    """features.json and dataset_info.json as TFDS writes them."""
    observation = observation or features_dict(image=picture(), wrist_image=picture(), state=tensor(8))
    step = features_dict(
        action=tensor(7), language_instruction=leaf("text_feature.Text", text={}), observation=observation
    )
    steps = leaf("dataset_feature.Dataset", sequence={"feature": step, "length": "-1"})
    (folder / "features.json").write_text(json.dumps(features_dict(steps=steps)))
    splits = [{"name": name, "shardLengths": [*map(str, each)]} for name, each in lengths.items()]
    info = {"name": "toy", "fileFormat": "tfrecord", "splits": splits} | other
    (folder / "dataset_info.json").write_text(json.dumps(info))


@pytest.fixture
def data(tmp_path):
    root = tmp_path / "openx"
    folder = root / "toy" / "1.0.0"
    write_shard(folder / "toy-train.tfrecord-00000-of-00002", [example(episode(10)), example(episode(20, 9, "jpeg"))])
    write_shard(folder / "toy-train.tfrecord-00001-of-00002", [example(episode(40))])
    write_shard(folder / "toy-val.tfrecord-00000-of-00001", [example(episode(60, 4))])
    write_info(folder, {"train": [2, 1], "val": [1]})
    return root


def take(root, work, workers=2, **other):
    config = IngestConfig(**{"source": "rlds", "path": str(root), "licence": "CC-BY-4.0", "time_limit": 60.0} | other)
    items = list(rlds.entries(config, work, workers))
    taken = {item.id: item for item in items if isinstance(item, Entry)}
    refused = {item.path.removeprefix(f"{root}/"): item.reason for item in items if isinstance(item, Refused)}
    assert len(taken) + len(refused) == len(items)
    return taken, refused


def check_episode(work, entry, first, count):
    """Video and track are those of `episode(first, count)`."""
    seen = [read_number(frame) for _, frame in read_frames(work / "videos" / f"{entry.id}.mp4")]
    assert seen == list(range(first, first + count)) and entry.frames == count
    assert (entry.width, entry.height, entry.path) == (96, 48, f"data/videos/{entry.id}.mp4")
    track = pl.read_parquet(work / "tracks" / f"{entry.id}.parquet")
    assert dict(track.schema) == TRACKS and track["frame"].to_list() == list(range(count))
    assert track["video"].unique().to_list() == [entry.id]
    numbers = np.arange(first, first + count)[:, None]
    assert np.array_equal(track["action"].to_list(), -numbers - np.arange(7) / 8)
    assert np.array_equal(track["state"].to_list(), numbers + np.arange(8) / 8)
    return track


def test_episodes_are_videos_frame_by_frame(data, tmp_path):
    taken, refused = take(data, tmp_path / "work")
    assert not refused
    stem = "toy__1.0.0__toy"
    expected = {
        f"{stem}-train-00000-of-00002_00000": (10, 6, "train"),
        f"{stem}-train-00000-of-00002_00001": (20, 9, "train"),
        f"{stem}-train-00001-of-00002_00000": (40, 6, "train"),
        f"{stem}-val-00000-of-00001_00000": (60, 4, "test"),
    }
    assert set(taken) == set(expected)
    for name, (first, count, split) in expected.items():
        entry = taken[name]
        track = check_episode(tmp_path / "work", entry, first, count)
        assert track["instruction"].to_list() == [f"put {first}"] * count
        assert (entry.split, entry.instruction, entry.task) == (split, f"put {first}", "toy")
        assert (entry.source, entry.fps, entry.environment, entry.licence) == ("rlds", 10.0, "unknown", "CC-BY-4.0")


def test_any_number_of_workers_and_a_second_run_agree(data, tmp_path, monkeypatch):
    first = take(data, tmp_path / "a", workers=1)
    assert first == take(data, tmp_path / "b", workers=3)
    monkeypatch.setattr(rlds, "make_video", None)  # all is remembered: nothing is called
    assert first == take(data, tmp_path / "b")


def test_without_info_and_in_other_shapes(tmp_path):
    """No features.json; parts of actions; words under observation; SequenceExample; one instruction for all."""
    root = tmp_path / "data"
    plain = episode(1)
    action = plain.pop("steps/action")
    del plain["steps/language_instruction"]
    parts = plain | {
        "steps/action/a_world_vector": action[:, :3],
        "steps/action/b_rotation": action[:, 3:],
        "steps/observation/natural_language_instruction": [b"pick"] * 5 + [b""],
        "steps/observation/depth": [encoded(np.zeros((4, 4), np.uint16))] * 6,
    }
    steps = {
        key.removeprefix("steps/"): value for key, value in episode(30).items() if "action" in key or "/image" in key
    }
    steps = {key: [[each] if isinstance(each, bytes) else each for each in value] for key, value in steps.items()}
    whole = {"episode_metadata/language_instruction": [b"sweep"]}
    code = np.zeros((6, 5), int)
    code[:, :2] = [104, 105]
    table = {**episode(50), "steps/observation/instruction": code}
    del table["steps/language_instruction"]
    shard = [example(parts), sequence_example(whole, steps), example(table)]
    write_shard(root / "my set.tfrecord", shard)
    taken, refused = take(root, tmp_path / "work")
    assert not refused and sorted(taken) == [f"my_set_{number:05d}" for number in range(3)]
    track = check_episode(tmp_path / "work", taken["my_set_00000"], 1, 6)
    assert track["instruction"].to_list() == ["pick"] * 5 + [None]
    assert (taken["my_set_00000"].split, taken["my_set_00000"].task) == (None, "my set")
    entry = taken["my_set_00001"]
    assert [read_number(frame) for _, frame in read_frames(tmp_path / f"work/videos/{entry.id}.mp4")] == [
        *range(30, 36)
    ]
    track = pl.read_parquet(tmp_path / f"work/tracks/{entry.id}.parquet")
    assert track["instruction"].to_list() == ["sweep"] * 6 and track["state"].to_list() == [[]] * 6
    assert np.array_equal(track["action"].to_list(), episode(30)["steps/action"])
    assert taken["my_set_00002"].instruction == "hi"


def test_frame_rate_from_the_info(data, tmp_path):
    folder = data / "toy" / "1.0.0"
    write_info(folder, {"train": [2, 1], "val": [1]}, metadata={"robot": {"control_frequency": "5"}})
    taken, _ = take(data, tmp_path / "work")
    assert {entry.fps for entry in taken.values()} == {5.0}
    assert (
        rlds.find_fps({"fps": 0, "hz": True, "a": [3], "b": {"hz": 3}}) == 3.0
        and rlds.find_fps({"fps": "fast"}) is None
    )


def test_absent_cameras_are_passed_over(data, tmp_path):
    black = [encoded(np.zeros((48, 96, 3), np.uint8), "jpeg")] * 4
    wrist = [encoded(numbered_frame(i)) for i in range(70, 74)]
    shown = episode(60, 4) | {"steps/observation/image": black, "steps/observation/wrist_image": wrist}
    dark = shown | {"steps/observation/wrist_image": black}
    write_shard(data / "toy/1.0.0/toy-val.tfrecord-00000-of-00001", [example(shown), example(dark)])
    taken, refused = take(data, tmp_path / "work")
    name = "toy__1.0.0__toy-val-00000-of-00001_00000"
    assert [read_number(frame) for _, frame in read_frames(tmp_path / f"work/videos/{name}.mp4")] == [*range(70, 74)]
    assert "one flat colour" in refused["toy/1.0.0/toy-val.tfrecord-00000-of-00001#1"] and len(taken) == 4


def test_damaged_shards_are_named(data, tmp_path):
    folder = data / "toy" / "1.0.0"
    records = [record(example(episode(first))) for first in (100, 110, 120)]
    start = len(records[0])

    def shard(name, content):
        (folder / f"{name}-train.tfrecord-00000-of-00001").write_bytes(content)

    whole = b"".join(records)
    flipped = bytearray(whole)
    flipped[start + 500] ^= 1
    length = bytearray(whole)
    length[start] ^= 1
    header = struct.pack("<Q", 2**32 - 1)
    lie = records[0] + header + struct.pack("<I", masked(crc32c(header))) + records[1]
    shard("cut", whole[:-1000])
    shard("head", whole[: start + 5])
    shard("flip", flipped)
    shard("length", length)
    shard("lie", lie)
    shard("gzip", b"\x1f\x8b" + bytes(100))
    shard("text", b"hello, world, this is a text")
    shard("none", b"")
    shard("noise", record(b"\xff" * 40) + record(b"") + record(example({"a": np.zeros(3)})))
    (folder / "far-train.tfrecord-00003-of-00007").write_bytes(records[0])
    taken, refused = take(data, tmp_path / "work")
    there = {name.split("__")[2] for name in taken if "toy-" not in name}
    ids = {"cut": 2, "head": 1, "flip": 2, "length": 1, "lie": 1}
    expected = {f"{name}-train-00000-of-00001_{n:05d}" for name, count in ids.items() for n in range(count)}
    expected = expected - {"flip-train-00000-of-00001_00001"} | {"flip-train-00000-of-00001_00002"}
    assert there == expected | {"far-train-00003-of-00007_00000"}
    reasons = {
        "cut-train.tfrecord-00000-of-00001#2": "the file ends after",
        "head-train.tfrecord-00000-of-00001#1": "ends within its header (5 of 12",
        "flip-train.tfrecord-00000-of-00001#1": "has data with a wrong checksum",
        "length-train.tfrecord-00000-of-00001#1": "has a length with a wrong checksum",
        "lie-train.tfrecord-00000-of-00001#1": "declares 4294967295 bytes of data, but the file ends after",
        "gzip-train.tfrecord-00000-of-00001#0": "is compressed with gzip",
        "text-train.tfrecord-00000-of-00001#0": "no TFRecord file",
        "none-train.tfrecord-00000-of-00001": "is empty",
        "noise-train.tfrecord-00000-of-00001#0": "broken message",
        "noise-train.tfrecord-00000-of-00001#1": "shows nothing in steps/observation/image",
        "noise-train.tfrecord-00000-of-00001#2": "shows nothing in steps/observation/image",
        "far-train.tfrecord-00000-of-00007": "is not there, nor are 5 others of 7 shards",
    }
    for name, words in reasons.items():
        assert words in refused.pop(f"toy/1.0.0/{name}"), name
    assert not refused
    for name in expected:
        entry = taken[f"toy__1.0.0__{name}"]
        check_episode(tmp_path / "work", entry, 100 + 10 * int(name[-5:]), 6)


def test_what_is_no_file_is_refused(data, tmp_path):
    folder = data / "toy" / "1.0.0"
    (folder / "gone.tfrecord-00000-of-00001").symlink_to(tmp_path / "nowhere")
    os.mkfifo(folder / "pipe.tfrecord")
    taken, refused = take(data, tmp_path / "work")
    assert len(taken) == 4 and refused == {
        "toy/1.0.0/gone.tfrecord-00000-of-00001": "cannot be read (No such file or directory)",
        "toy/1.0.0/pipe.tfrecord": "cannot be read (it is a pipe or device, not a file)",
    }


def test_linked_data_sets_are_taken_once_and_locked_folders_told(data, tmp_path, monkeypatch):
    (data / "toy").rename(tmp_path / "store")
    (data / "linked").symlink_to(tmp_path / "store", target_is_directory=True)
    (data / "twice").symlink_to(tmp_path / "store", target_is_directory=True)
    (data / "locked").mkdir()
    lock(monkeypatch, "locked")
    write_shard(data / "a\udcff.tfrecord", [example(episode(0))])
    taken, refused = take(data, tmp_path / "work")
    assert len(taken) == 4 and all(name.startswith("linked__1.0.0__toy-") for name in taken)
    assert refused == {
        "a\\xff.tfrecord": "has a name that is not UTF-8",
        "locked": "is a folder that cannot be opened (Permission denied)",
    }


def test_a_link_to_nothing_beside_the_shards_is_told(data, tmp_path):
    (data / "toy/1.0.0/metadata.json").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="metadata.json is a link to nothing; mend or remove it"):
        take(data, tmp_path / "work")


def test_faulty_episodes_and_counts(data, tmp_path):
    folder = data / "toy" / "1.0.0"
    images = episode(0)["steps/observation/image"]
    odd = [
        {"steps/observation/image": [*images[:3], images[3][:-60], *images[4:]]},
        {"steps/observation/image": [*images[:3], b"", *images[4:]]},
        {"steps/observation/image": [*images[:3], b"%!PS-Adobe-3.0 EPSF-3.0", *images[4:]]},
        {"steps/observation/image": [*images[:5], encoded(np.zeros((50, 96, 3), np.uint8))]},
        {"steps/observation/image": [encoded(np.zeros((8, 9000, 3), np.uint8))] * 6},
        {"steps/observation/image": [], "steps/observation/wrist_image": [b""] * 6},
        {"steps/action": np.zeros(13, np.float32)},
        {"steps/action": [b"x"] * 6},
        {"steps/language_instruction": [b"x"] * 4},
        episode(0, 1),
        {"steps/action": np.where(np.arange(42).reshape(6, 7) == 15, np.nan, 0).astype(np.float32)},
    ]
    words = [
        "has a damaged picture in frame 3",
        "holds nothing in frame 3",
        "holds no colour picture in JPEG or PNG in frame 3",
        "changes its size at frame 5 from 96x48 to 96x50",
        "more than 8192 on a side",
        "shows nothing in steps/observation/image, steps/observation/wrist_image",
        "holds 13 numbers in steps/action for 6 frames",
        "lacks the numbers of steps/action",
        "holds 4 instructions in steps/language_instruction for 6 frames",
        "holds 1 frame, ingest.min_frames is 2",
        "holds no finite action (nan, infinity, null) in frame 2",
    ]
    write_shard(folder / "toy-val.tfrecord-00000-of-00001", [example(episode(0) | each) for each in odd])
    taken, refused = take(data, tmp_path / "work", min_frames=2)
    for number, reason in enumerate(words):
        assert reason in refused.pop(f"toy/1.0.0/toy-val.tfrecord-00000-of-00001#{number}"), number
    assert refused == {"toy/1.0.0/toy-val.tfrecord-00000-of-00001": "holds 11 episodes, dataset_info.json declares 1"}
    assert len(taken) == 3 and len(list((tmp_path / "work/videos").iterdir())) == 3


@pytest.mark.parametrize(
    "name, text, words",
    [
        ("features.json", "{", "cannot be read as JSON"),
        ("features.json", '{"featuresDict": []}', "faulty"),
        ("features.json", "[1]", "faulty"),
        ("dataset_info.json", '{"fileFormat": "array_record"}', "says array_record; convert"),
        ("dataset_info.json", '{"splits": [{"shardLengths": ["1"]}]}', "faulty"),
    ],
)
def test_faulty_info_is_one_sentence(data, tmp_path, name, text, words):
    (data / "toy" / "1.0.0" / name).write_text(text)
    with pytest.raises(UserError, match=words) as caught:
        take(data, tmp_path / "work")
    assert "\n" not in str(caught.value)


def test_missing_or_empty_folder(tmp_path):
    with pytest.raises(UserError, match="got nothing"):
        take(tmp_path / "none", tmp_path / "work")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no TFRecord file.*change ingest.path"):
        take(tmp_path / "empty", tmp_path / "work")


def test_choice_of_features():
    observation = features_dict(
        depth=picture("1", "uint16"), gripper_image=picture(), a_side=picture(), rgb=picture(), proprio=tensor(7)
    )
    action = features_dict(world_vector=tensor(3), gripper=tensor(1), name=tensor(dtype="string"))
    step = features_dict(action=action, observation=observation, instruction=tensor(dtype="string"))
    schema = features_dict(steps=leaf("dataset_feature.Dataset", sequence={"feature": step}))
    kinds = kinds_of_schema(json.loads(json.dumps(schema)))
    assert "steps/observation/depth" not in kinds
    keys = choose(kinds)
    assert keys.images[0] == "steps/observation/rgb" and keys.state == ("steps/observation/proprio",)
    assert keys.action == ("steps/action/gripper", "steps/action/world_vector")
    assert keys.instruction == "steps/instruction"
    del kinds["steps/observation/rgb"]
    assert choose(kinds).images == ("steps/observation/a_side", "steps/observation/gripper_image")


# ---------------------------------------------------------------- the file format


def test_checksum():
    """Against the published value, RFC 3720's examples and a plain loop, for lengths about all the steps of folding."""
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA and crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E

    def slow(data):
        crc = 0xFFFFFFFF
        for value in data:
            crc = TABLE[(crc ^ value) & 255] ^ crc >> 8
        return crc ^ 0xFFFFFFFF

    random = np.random.default_rng(0)
    for size in (0, 1, 3, 4, 255, 256, 257, 259, 260, 4095, 4096, 4100, 65537, 131071, 131072, 131075, 131077, 200001):
        data = random.bytes(size)
        assert crc32c(data) == slow(data), size


def test_a_known_record():
    """An Example of integers, numbers and strings; lists packed, as TensorFlow writes them, and unpacked."""
    data = example({"a": np.array([1, -1]), "b": np.array([0.5], np.float32), "c": [b"x"]})
    unpacked = field(1, field(1, b"d") + field(2, field(3, b"\x08\x05\x08\x06"))) + field(
        1, field(1, b"e") + field(2, field(2, b"\x0d" + struct.pack("<f", 1.5)))
    )
    found = features(memoryview(data + field(1, unpacked)))
    assert values(found["a"]).tolist() == [1, -1] and values(found["b"]).tolist() == [0.5]
    assert (
        values(found["c"]) == [b"x"] and values(found["d"]).tolist() == [5, 6] and values(found["e"]).tolist() == [1.5]
    )


@pytest.mark.parametrize(
    "data",
    [b"\x0a", b"\x0a\xff\xff\xff\xff\x0f", b"\x80" * 11, b"\x0b", b"\x0a\x02\x0a\x05", b"\x09abc", b"\xff" * 9],
)
def test_broken_messages_are_refused(data):
    with pytest.raises(RecordError):
        for parts in features(memoryview(data)).values():
            values(parts)


def test_random_damage_ends_in_record_errors():
    """Whatever the bytes are: an answer or a RecordError, nothing else."""
    random = np.random.default_rng(0)
    good = example(episode(0, 2))
    for _ in range(200):
        bad = bytearray(good)
        for place in random.integers(0, len(bad), 3):
            bad[place] = random.integers(256)
        try:
            found = features(memoryview(bytes(bad)))
            for parts in found.values():
                values(parts)
        except RecordError:
            pass


def test_a_length_that_lies_allocates_nothing(tmp_path):
    header = struct.pack("<Q", 2**32 - 1)
    path = tmp_path / "x.tfrecord"
    path.write_bytes(header + struct.pack("<I", masked(crc32c(header))) + bytes(100))
    tracemalloc.start()
    with pytest.raises(RecordError, match="declares 4294967295 bytes"):
        list(index_records(path))
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
    with path.open("wb") as stream:  # a file that is really that long (of holes), but no message can be
        stream.write(header + struct.pack("<I", masked(crc32c(header))))
        stream.truncate(2**32 + 15)
    with pytest.raises(RecordError, match="more than a message may have"):
        list(index_records(path))


def test_a_shard_that_shrinks_meanwhile(tmp_path):
    path = write_shard(tmp_path / "x.tfrecord", [b"a" * 100])
    (found,) = index_records(path)
    path.write_bytes(path.read_bytes()[:50])
    with path.open("rb") as stream, pytest.raises(RecordError, match="ends after 38"):
        read_record(stream, found)


def test_all_of_a_large_shard_is_not_read_at_once(tmp_path):
    """Hopping over 64 MB of records takes no memory; one record is read at a time."""
    path = write_shard(tmp_path / "x.tfrecord", [bytes(2**22)] * 16)
    tracemalloc.start()
    found = list(index_records(path))
    with path.open("rb") as stream:
        for each in found:
            assert len(read_record(stream, each)) == 2**22
    assert len(found) == 16 and tracemalloc.get_traced_memory()[1] < 2 * 2**22 + 2**21
    tracemalloc.stop()
    assert Path(path).stat().st_size == 16 * (2**22 + 16)
