"""Folders of pictures: exact to the pixel and the order, or refused with the picture that is to blame."""

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from numbered import numbered_frame, read_number
from PIL import Image
from test_ingest import parameters

from stages import clip as clip_stage
from stages import ingest as ingest_stage
from vw2.console import UserError
from vw2.data import manifest
from vw2.data.manifest import Entry, Refused
from vw2.data.sources import frames
from vw2.data.sources.base import IngestConfig
from vw2.media.decode import MediaError, read_frames

REAL = Path(__file__).parents[2] / "shared" / "realvideo"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="no folder of real pictures beside the repository")


def take(root, work, workers=1, **other):
    config = IngestConfig(**{"source": "frames", "path": str(root), "time_limit": 60.0} | other)
    items = list(frames.entries(config, work, workers))
    taken = {item.id: item for item in items if isinstance(item, Entry)}
    refused = {Path(item.path).relative_to(root).as_posix(): item.reason for item in items if isinstance(item, Refused)}
    assert len(taken) + len(refused) == len(items)
    return taken, refused


def save(folder, count, name="{}.png", shift=0, **size):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.fromarray(numbered_frame(number + shift, **size)).save(folder / name.format(number))


def bomb(width, height):
    """A PNG of a few hundred bytes that claims to be huge."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def shown(work, entry):
    return [frame for _, frame in read_frames(work / "videos" / f"{entry.id}.mp4")]


def test_pictures_are_stored_without_loss_in_natural_order(tmp_path):
    root, rng = tmp_path / "pictures", np.random.default_rng(0)
    noise = rng.integers(0, 256, (12, 37, 51, 3), dtype=np.uint8)
    (root / "fold/a").mkdir(parents=True)
    for number, picture in enumerate(noise):
        Image.fromarray(picture).save(root / f"fold/a/img{number}.png")  # img10 comes after img2
    save(root / "fold/b.1", 11, "{}_cam.bmp")
    save(root / "c", 25, "frame_{:04d}.webp", shift=300)
    taken, refused = take(root, tmp_path / "work", frames_fps=7.5)
    assert refused == {} and sorted(taken) == ["c", "fold__a", "fold__b.1"]
    assert np.array_equal(np.stack(shown(tmp_path / "work", taken["fold__a"])), noise)
    assert [read_number(each) for each in shown(tmp_path / "work", taken["fold__b.1"])] == list(range(11))
    assert [read_number(each) for each in shown(tmp_path / "work", taken["c"])] == list(range(300, 325))
    entry = taken["fold__a"]
    assert (entry.fps, entry.frames, entry.width, entry.height, entry.task) == (7.5, 12, 51, 37, "fold")
    assert entry.path == "data/videos/fold__a.mp4" and taken["c"].task == "pictures"
    assert entry.hash == manifest.content_hash(tmp_path / "work/videos/fold__a.mp4")


def test_broken_pictures_refuse_their_video_by_name(tmp_path):
    root = tmp_path / "pictures"
    names = ("good", "cut", "size", "deep", "bomb", "large", "script", "alone")
    for name in names:
        save(root / name, 1 if name == "alone" else 6)
    (root / "cut/4.png").write_bytes((root / "cut/4.png").read_bytes()[:150])
    Image.fromarray(numbered_frame(0, height=64)).save(root / "size/3.png")
    for number in range(6):
        Image.fromarray(np.full((48, 96), 40000, np.uint16)).save(root / f"deep/{number}.png")
    (root / "bomb/2.png").write_bytes(bomb(60000, 60000))
    (root / "large/0.png").write_bytes(bomb(8000, 8193))
    (root / "script/5.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    (root / "good/notes.txt").write_text("not a picture by name")
    (root / ".hidden").mkdir()
    (root / ".hidden/0.png").write_text("nor this")
    taken, refused = take(root, tmp_path / "work", workers=2)
    assert list(taken) == ["good"] and taken["good"].frames == 6
    expected = {
        "cut": "breaks after 4 pictures: 4.png is",
        "size": "changes its size after 3 pictures: 3.png is 96x64, the first is 96x48",
        "deep": "breaks after 0 pictures: 0.png has pixels of more than 8 bits",
        "bomb": "breaks after 2 pictures: 2.png is",
        "large": "breaks after 0 pictures: 0.png is 8000x8193 pixels, more than 8192 on a side",
        "script": "breaks after 5 pictures: 5.png is not a picture in a known format",
        "alone": "holds 1 pictures, ingest.min_frames is 2",
    }
    assert sorted(refused) == sorted(expected)
    for name, words in expected.items():
        assert refused[name].startswith(words), refused[name]
    assert [file.name for file in (tmp_path / "work/videos").iterdir()] == ["good.mp4"]
    _, refused = take(root, tmp_path / "slow", time_limit=1e-9)
    assert "takes longer than 1e-09 s to read" in refused["good"]


def test_sidecar_and_the_root_as_a_video(tmp_path):
    root = tmp_path / "walk"
    save(root, 5)
    save(root / "b", 5, shift=50)
    (root / "videos.csv").write_text("file,task,instruction,split\nb,go,Go home.,test\ngone,,,\n")
    taken, refused = take(root, tmp_path / "work", licence="mine")
    assert sorted(taken) == ["b", "walk"] and taken["walk"].task == "walk" and taken["walk"].licence == "mine"
    assert (taken["b"].task, taken["b"].instruction, taken["b"].split) == ("go", "Go home.", "test")
    assert refused == {"gone": "is listed in the sidecar but is not a folder of pictures"}
    assert [read_number(each) for each in shown(tmp_path / "work", taken["walk"])] == list(range(5))


def test_any_number_of_workers_gives_the_same_bytes_and_edits_are_seen(tmp_path):
    root = tmp_path / "pictures"
    for name in "abc":
        save(root / name, 8)
    first = take(root, tmp_path / "1", workers=1)
    assert first == take(root, tmp_path / "2", workers=2) == take(root, tmp_path / "2", workers=1)
    save(root / "a", 9)
    assert take(root, tmp_path / "2")[0]["a"].frames == 9


def test_stages_on_pictures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        save(tmp_path / "pictures" / name, 20, shift=ord(name))
    parameters(tmp_path, source="frames", path="pictures")
    ingest_stage.main(Path("params.yaml"))
    clip_stage.main(Path("params.yaml"))
    assert len(manifest.read(Path("data/manifest.parquet"))) == 2 and len(list(Path("data/videos").iterdir())) == 2


def test_an_empty_folder_is_told(tmp_path):
    with pytest.raises(UserError, match="no picture in ingest.path"):
        take(tmp_path, tmp_path / "work")
    with pytest.raises(ValueError, match="ingest.frames_fps must lie above 0"):
        IngestConfig(source="frames", path="x", frames_fps=0.0)


def test_no_picture_is_taken_for_another(tmp_path):
    """Animations, names that come twice, numbers that are missing, a pipe; previews and times are no fault."""
    root = tmp_path / "pictures"
    for name in ("webp", "apng", "twice", "gap", "phone", "pipe"):
        save(root / name, 4)
    film = [Image.fromarray(numbered_frame(number)) for number in range(3)]
    film[0].save(root / "webp/2.png", format="webp", save_all=True, append_images=film[1:])
    film[0].save(root / "apng/2.png", save_all=True, append_images=film[1:])
    film[0].save(root / "twice/3.jpg")
    (root / "gap/2.png").rename(root / "gap/7.png")
    for number in range(4):
        film[0].save(root / f"phone/{number}.jpg", format="MPO", save_all=True, append_images=film[1:2])
        (root / f"phone/{number}.png").unlink()
    (root / "pipe/2.png").unlink()
    os.mkfifo(root / "pipe/2.png")
    (root / "times").mkdir()
    for number, jitter in enumerate((0, 10**6, -(10**6), 0)):  # nanoseconds
        film[0].save(root / f"times/left_{1403636579763555584 + 50_000_000 * number + jitter}.png")
    taken, refused = take(root, tmp_path / "work")
    assert {name: entry.frames for name, entry in taken.items()} == {"phone": 4, "times": 4}
    assert refused == {
        "webp": "breaks after 2 pictures: 2.png is animated: it holds 3 pictures, expected one",
        "apng": "breaks after 2 pictures: 2.png is animated: it holds 3 pictures, expected one",
        "twice": "holds one picture twice by its name: 3.jpg and 3.png; keep one kind",
        "gap": "lacks pictures: its numbers go from 3.png to 7.png, elsewhere in steps of 1; number them evenly",
        "pipe": "breaks after 2 pictures: 2.png is a pipe or device, not a file",
    }


@pytest.mark.parametrize(
    "stems, even",
    [
        ("5 10 15", True),
        ("b cc d7 e9", True),
        ("1 2 5 6", False),
        ("1 01 2", False),
        ("1 3 4 6 7 9", False),
        ("a1b1 a1b2 a1b4", False),
        ("a1b1 a2b4 a7b9", True),  # two numbers may mean anything
        ("frame_0001_cam2 frame_0002_cam2", True),
    ],
)
def test_names_that_count_evenly(stems, even):
    names = [f"{stem}.png" for stem in stems.split()]
    if even:
        frames.check_names(names)
    else:
        with pytest.raises(MediaError, match="lacks pictures: its numbers go from"):
            frames.check_names(names)


def test_a_higher_limit_of_the_size_holds_to_the_clips(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "pictures/a", 17, width=8400, height=32)
    parameters(tmp_path, source="frames", path="pictures", max_side=10000)
    ingest_stage.main(Path("params.yaml"))
    clip_stage.main(Path("params.yaml"))
    assert manifest.read(Path("data/manifest.parquet"))["width"].to_list() == [8400]


@needs_real
def test_real_pictures(tmp_path):
    """Stills of different sizes in one folder are no video."""
    taken, refused = take(REAL / "stills", tmp_path / "work")
    assert taken == {} and "changes its size after" in refused["."]
