"""The authors' layout: clips grouped by name, whole recordings cut at key frames, no video in both splits."""

from pathlib import Path

import pytest
from numbered import numbered_frame, read_number, write_raw
from test_ingest import parameters

from stages import clip as clip_stage
from stages import ingest as ingest_stage
from vw2.console import UserError
from vw2.data import manifest
from vw2.data.manifest import Entry, Refused
from vw2.data.shards import ClipStore
from vw2.data.sources import videocraft
from vw2.data.sources.base import IngestConfig
from vw2.media.segments import read_span


def take(root, work, **other):
    config = IngestConfig(**{"source": "videocraft", "path": str(root), "time_limit": 60.0} | other)
    items = list(videocraft.entries(config, work, 1))
    taken = {item.id: item for item in items if isinstance(item, Entry)}
    refused = {(Path(item.path).name, item.reason) for item in items if isinstance(item, Refused)}
    assert len(taken) + len(refused) == len(items)
    return taken, refused


def write(root, *names, frames=6):
    root.mkdir(parents=True, exist_ok=True)
    for name in names:
        write_raw(root / f"{name}.mp4", map(numbered_frame, range(frames)), 10)
    return root


@pytest.mark.parametrize(
    "stem, expected",
    [
        ("buildingblock_horse_0_0", ("buildingblock_horse_0", "buildingblock_horse", 0)),
        ("paper_boat_30_12", ("paper_boat_30", "paper_boat", 12)),
        ("paper_airplane_supp_4_1", ("paper_airplane_supp_4", "paper_airplane", 1)),
        ("paper_airplane_supp_complex_15_3", ("paper_airplane_supp_complex_15", "paper_airplane", 3)),
        ("paper_boat_supp_complex_3", ("paper_boat_supp_complex_3", "paper_boat", None)),
        ("holiday", None),
        ("_1", None),
    ],
)
def test_names(stem, expected):
    assert videocraft.parse(stem) == expected


def test_clips_are_taken_and_videos_stay_in_one_split(tmp_path):
    names = [f"paper_boat_{video}_{clip}" for video in range(12) for clip in range(3)]
    root = write(tmp_path / "Paper_and_Block_clips", *names, "holiday")
    write_raw(root / "paper_boat_3_3.mp4", [numbered_frame(0)], 10)
    (root / "paper_boat_3_4.mp4").write_text("no video")
    taken, refused = take(root, tmp_path / "work")
    assert sorted(taken) == sorted(names) and taken[names[0]].frames == 6
    assert {name for name, _ in refused} == {"holiday.mp4", "paper_boat_3_3.mp4", "paper_boat_3_4.mp4"}
    reasons = dict(refused)
    assert "holds 1 frames, ingest.min_frames is 2" in reasons["paper_boat_3_3.mp4"]
    assert "is not named <video id>_<clip>" in reasons["holiday.mp4"]
    groups = {}
    for entry in taken.values():
        assert entry.task == "paper_boat" and entry.instruction == "paper boat"
        groups.setdefault(entry.environment, set()).add(entry.split)
    assert len(groups) == 12 and all(len(split) == 1 for split in groups.values())
    assert set.union(*groups.values()) == {"train", "test"}


def test_splits_of_few_videos():
    assert videocraft.assign({"a"}) in ({"a": "train"}, {"a": "test"})
    for number in range(20):
        assert set(videocraft.assign({f"x{number}", f"y{number}"}).values()) == {"train", "test"}


def test_a_whole_recording_with_two_numbers():
    """Its name alone would say that it is a clip; key frames, or clips named after it, say what it is."""
    files = ["paper_boat_30_1.mp4", "paper_boat_30_1_0.mp4", "paper_boat_30_0.mp4", "paper_boat_31_2.mp4", "a.mp4"]
    files += ["paper_boat_32_0.mp4", "paper_boat_32_1.mp4"]
    assert videocraft.read_names(files, {"paper_boat_31_2.mp4": [], "paper_boat_32_1.mp4": []}) == {
        "paper_boat_30_1.mp4": ("paper_boat_30_1", "paper_boat", None),
        "paper_boat_30_1_0.mp4": ("paper_boat_30_1", "paper_boat_30", 0),
        "paper_boat_30_0.mp4": ("paper_boat_30", "paper_boat", 0),
        "paper_boat_31_2.mp4": ("paper_boat_31_2", "paper_boat", None),
        "a.mp4": None,
        "paper_boat_32_0.mp4": ("paper_boat_32", "paper_boat", 0),
        "paper_boat_32_1.mp4": ("paper_boat_32", "paper_boat", 1),  # with the other clip of its video, on one side
    }


def test_whole_recordings_are_cut_at_key_frames(tmp_path):
    root = write(tmp_path / "full", "paper_boat_1", "paper_boat_2", frames=50)
    write(root, "paper_boat_3", "paper_boat_3_0")
    (root / "keyframes.csv").write_text(
        "file,clip,start,stop,instruction\n"
        "paper_boat_1.mp4,1,2.0,5.0,fold it\n"
        "paper_boat_1.mp4,0,0,2.0,\n"
        "paper_boat_1.mp4,2,4.0,9.5,\n"
        "gone_1.mp4,0,0,1,\n"
    )
    taken, refused = take(root, tmp_path / "work")
    assert sorted(taken) == ["paper_boat_1_0", "paper_boat_1_1", "paper_boat_2", "paper_boat_3_0"]
    first, second, whole = (taken[name] for name in ("paper_boat_1_0", "paper_boat_1_1", "paper_boat_2"))
    assert (first.frames, second.frames, whole.frames, whole.start) == (20, 30, 50, None)
    assert (first.instruction, second.instruction) == ("paper boat", "fold it")
    assert first.split == second.split and first.environment == second.environment == "paper_boat_1"
    frames = read_span(Path(second.path), second.start, second.stop, second.fps)
    assert [read_number(picture.rgb()) for _, picture in frames] == list(range(20, 50))
    assert refused == {
        ("gone_1.mp4", "is listed in keyframes.csv but is not there"),
        ("paper_boat_1.mp4", "ends at 5.000 s, keyframes.csv has paper_boat_1_2 up to 9.500 s"),
        ("paper_boat_3.mp4", "is the whole of the video paper_boat_3, whose clips are taken already"),
    }


@pytest.mark.parametrize(
    "text, words",
    [
        ("file,clip\n", "expected the columns file, clip, start, stop and maybe instruction, got file, clip"),
        ("file,clip,start,stop,mood\n", "expected the columns"),
        ("file,clip,start,stop\na_1.mp4,0,2,1\n", "line 2: expected a file, a clip from 0 on"),
        ("file,clip,start,stop\na_1.mp4,0,0,inf\n", "line 2: expected"),
        ("file,clip,start,stop\na_1.mp4,0,nan,1\n", "line 2: expected"),
        ("file,clip,start,stop\na_1.mp4,0,0,1\na_1.mp4,0,1,2\n", "line 3: clip 0 of a_1.mp4 is listed twice"),
    ],
)
def test_faulty_key_frames_are_told(tmp_path, text, words):
    root = write(tmp_path / "full", "a_1")
    (root / "keyframes.csv").write_text(text)
    with pytest.raises(UserError, match=words):
        take(root, tmp_path / "work")


def test_stages_on_the_layout(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "craft", "paper_boat_1", frames=60)
    write_raw(tmp_path / "craft/paper_boat_2_0.mp4", map(numbered_frame, range(200, 260)), 10)
    (tmp_path / "craft/keyframes.csv").write_text("file,clip,start,stop\npaper_boat_1.mp4,0,1.0,5.0\n")
    parameters(tmp_path, source="videocraft", path="craft")
    ingest_stage.main(Path("params.yaml"))
    clip_stage.main(Path("params.yaml"))
    frame = manifest.read(Path("data/manifest.parquet"))
    assert frame["id"].to_list() == ["paper_boat_1_0", "paper_boat_2_0"] and frame["start"].to_list() == [1.0, None]
    store = ClipStore(Path("data/clips"))
    assert [len(store.video(name)) for name in frame["id"]] == [64, 96]  # 40 and 60 frames at 10 fps


def test_a_folder_without_videos_is_told(tmp_path):
    with pytest.raises(UserError, match="no video in ingest.path"):
        take(tmp_path, tmp_path / "work")
