"""LeRobot v2 and v3: every episode to the frame, with its actions; what is missing or disagrees is refused by name."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from numbered import numbered_frame, read_number, write_raw
from odd_videos import lock
from test_ingest import parameters

from stages import clip as clip_stage
from stages import ingest as ingest_stage
from vw2.console import UserError
from vw2.data import manifest
from vw2.data.clips import ClipConfig, cut_file
from vw2.data.manifest import Entry, Refused
from vw2.data.shards import ClipStore
from vw2.data.sources import lerobot, lerobot_meta
from vw2.data.sources.base import TRACKS, IngestConfig
from vw2.data.sources.table import ADAPTERS
from vw2.media.decode import MediaError, read_frames
from vw2.media.segments import read_span, scan_spans

REAL = Path(__file__).parents[2] / "shared" / "realvideo"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="no folder of real videos beside the repository")
CAMERAS = ("observation.images.top", "observation.images.side")
TEXTS = ["Pick up the cup.", "Open the drawer."]
V2_DATA, V2_VIDEO = lerobot_meta.USUAL_DATA, lerobot_meta.USUAL_VIDEO
V3_DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
V3_VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"


def write_info(root, version, fps, data, video, **other):
    (root / "meta").mkdir(parents=True, exist_ok=True)
    features = {name: {"dtype": "video"} for name in CAMERAS} | {"action": {"dtype": "float32", "shape": [2]}}
    info = {"codebase_version": version, "fps": fps, "chunks_size": 2, "features": features, "splits": {"train": "0:9"}}
    (root / "meta/info.json").write_text(json.dumps(info | {"data_path": data, "video_path": video} | other))


def rows(episode, length, fps, first):
    """A table as LeRobot writes it; the action holds the number that the frame shows."""
    number = np.arange(length)
    return pl.DataFrame(
        {
            "action": np.stack([first + number, -number], 1).astype(np.float32),
            "observation.state": [[float(i)] for i in number],
            "timestamp": (number / fps).astype(np.float32),
            "frame_index": number,
            "episode_index": np.full(length, episode),
            "task_index": np.full(length, episode % 2),
        }
    )


def write_v2(root, lengths=(20, 31, 25), fps=10, version="v2.1", data=V2_DATA, video=V2_VIDEO, cameras=CAMERAS):
    """Episode e shows 100 e + i in its frame i; the second camera shows 500 more."""
    write_info(root, version, fps, data, video)
    with (root / "meta/episodes.jsonl").open("w") as stream:
        for index, length in enumerate(lengths):
            stream.write(json.dumps({"episode_index": index, "tasks": [TEXTS[index % 2]], "length": length}) + "\n")
    lines = (json.dumps({"task_index": number, "task": text}) for number, text in enumerate(TEXTS))
    (root / "meta/tasks.jsonl").write_text("\n".join(lines) + "\n")
    for index, length in enumerate(lengths):
        values = {"episode_chunk": index // 2, "episode_index": index}
        file = root / V2_DATA.format(**values)
        file.parent.mkdir(parents=True, exist_ok=True)
        rows(index, length, fps, 100 * index).write_parquet(file)
        for shift, camera in enumerate(cameras):
            file = root / V2_VIDEO.format(**values, video_key=camera)
            file.parent.mkdir(parents=True, exist_ok=True)
            write_raw(file, (numbered_frame(100 * index + i + 500 * shift) for i in range(length)), fps)
    return root


def write_v3(root, files=((20, 31, 25), (18,)), fps=10, options=None, shift=0.0):
    """As `write_v2`, one camera; each tuple of lengths is one mp4 and one table."""
    write_info(root, "v3.0", fps, V3_DATA, V3_VIDEO)
    pl.DataFrame({"task_index": [0, 1], "__index_level_0__": TEXTS}).write_parquet(root / "meta/tasks.parquet")
    index, listed, camera = 0, [], CAMERAS[1]
    for number, lengths in enumerate(files):
        frames, tables, start = [], [], 0.0
        for length in lengths:
            frames += [numbered_frame(100 * index + i) for i in range(length)]
            tables.append(rows(index, length, fps, 100 * index))
            place = {"data/chunk_index": 0, "data/file_index": number}
            place |= {f"videos/{camera}/chunk_index": 0, f"videos/{camera}/file_index": number}
            stop = start + length / fps
            place |= {f"videos/{camera}/from_timestamp": start + shift, f"videos/{camera}/to_timestamp": stop + shift}
            listed.append({"episode_index": index, "length": length, "tasks": [TEXTS[index % 2]]} | place)
            index, start = index + 1, stop
        names = {"chunk_index": 0, "file_index": number}
        for file in (root / V3_DATA.format(**names), root / V3_VIDEO.format(**names, video_key=camera)):
            file.parent.mkdir(parents=True, exist_ok=True)
        pl.concat(tables).write_parquet(root / V3_DATA.format(**names))
        write_raw(root / V3_VIDEO.format(**names, video_key=camera), frames, fps, options=options)
    (root / "meta/episodes/chunk-000").mkdir(parents=True, exist_ok=True)
    pl.DataFrame(listed).write_parquet(root / "meta/episodes/chunk-000/file-000.parquet")
    return root


def take(root, work, **other):
    """Entries by episode, and reasons."""
    config = IngestConfig(**{"source": "lerobot", "path": str(root), "time_limit": 60.0} | other)
    items = list(lerobot.entries(config, work, 1))
    taken = {int(item.id.rsplit("_", 1)[1]): item for item in items if isinstance(item, Entry)}
    refused = sorted(item.reason for item in items if isinstance(item, Refused))
    assert len(taken) + len(refused) == len(items)
    return taken, refused


def numbers(entry):
    frames = read_span(Path(entry.path), entry.start, entry.stop, entry.fps)
    return [read_number(picture.rgb()) for _, picture in frames]


def track(work, entry):
    table = pl.read_parquet(work / "tracks" / f"{entry.id}.parquet")
    assert dict(table.schema) == TRACKS and table["frame"].to_list() == list(range(entry.frames))
    return table


@pytest.mark.parametrize("version", ["v2.0", "v2.1"])
def test_v2_episodes_with_their_tracks(tmp_path, version):
    root = write_v2(tmp_path / "arm", version=version)
    taken, refused = take(root, tmp_path / "work")
    assert refused == [] and sorted(taken) == [0, 1, 2]
    for index, entry in taken.items():
        assert entry.frames == (20, 31, 25)[index] and entry.fps == 10 and entry.start is None and entry.stop is None
        assert entry.instruction == TEXTS[index % 2] and entry.id == f"arm_episode_{index:06d}"
        shown = numbers(entry)  # the camera `side` comes first by name, it was written second
        assert shown == [500 + 100 * index + i for i in range(entry.frames)]
        table = track(tmp_path / "work", entry)
        assert [int(action[0]) + 500 for action in table["action"].to_list()] == shown
        assert table["state"].to_list() == [[float(i)] for i in range(entry.frames)]
        assert table["instruction"].unique().to_list() == [TEXTS[index % 2]]
    assert taken[0].task == "pick_up_the_cup"
    top = take(root, tmp_path / "top", camera=CAMERAS[0])[0]
    assert numbers(top[1]) == [100 + i for i in range(31)]


@pytest.mark.parametrize("options", [{}, {"g": "1"}, {"g": "250", "bf": "3"}], ids=["plain", "key frames", "B-frames"])
@pytest.mark.parametrize("fps", [3, 10, 30])
def test_v3_episodes_in_one_file_are_exact(tmp_path, fps, options):
    root = write_v3(tmp_path / "arm", fps=fps, options=options)
    taken, refused = take(root, tmp_path / "work", camera=CAMERAS[1])
    assert refused == [] and [taken[i].frames for i in range(4)] == [20, 31, 25, 18]
    assert len({entry.path for entry in taken.values()}) == 2
    for index, entry in taken.items():
        assert numbers(entry) == [100 * index + i for i in range(entry.frames)]
        assert [int(each[0]) for each in track(tmp_path / "work", entry)["action"].to_list()] == numbers(entry)
    manifest.build(manifest.assign_splits(taken.values()))


def test_times_within_half_a_frame_are_the_same_frame(tmp_path):
    for shift in (-0.04, 0.04):
        taken, refused = take(write_v3(tmp_path / f"arm{shift}", shift=shift), tmp_path / "work")
        assert sorted(taken) == ([0, 1, 2, 3] if shift > 0 else [1, 2])  # before 0 s there is no picture
        assert all("from -0.04 to" in reason for reason in refused)
        assert numbers(taken[1]) == [100 + i for i in range(31)]


def test_clips_are_cut_from_their_episode(tmp_path, monkeypatch):
    write_v3(tmp_path / "arm", fps=16)
    monkeypatch.chdir(tmp_path)
    parameters(tmp_path, source="lerobot", path="arm", camera=CAMERAS[1])
    ingest_stage.main(Path("params.yaml"))
    params = json.loads(Path("params.yaml").read_text())
    params["clip"] |= {"height": 48, "width": 96}
    Path("params.yaml").write_text(json.dumps(params))
    clip_stage.main(Path("params.yaml"))
    frame, tracks = manifest.read(Path("data/manifest.parquet")), pl.read_parquet("data/tracks.parquet")
    store = ClipStore(Path("data/clips"))
    assert len(frame) == 4 and set(frame["split"]) == {"train", "test"}
    assert (
        dict(tracks.schema) == TRACKS and tracks["video"].unique(maintain_order=True).to_list() == frame["id"].to_list()
    )
    for index, row in enumerate(frame.iter_rows(named=True)):
        shown = [read_number(picture) for picture in store.video(row["id"])]
        assert shown == [100 * index + i for i in range(row["frames"])]
        assert tracks.filter(video=row["id"])["action"].list.first().to_list() == shown
    assert json.loads(Path("metrics/ingest.json").read_text())["frames"] == 94


def test_overlapping_parts_and_whole_files_are_cut_together(tmp_path):
    path = write_raw(tmp_path / "a.mp4", map(numbered_frame, range(60)), 10, options={"g": "7", "bf": "2"})
    spans = {"b": (3.0, 6.0), "a": (0.0, 2.0), "c": (1.0, 4.0), "d": (5.97, 99.0), "whole": (None, None)}
    facts = {"fps": 10.0, "variable": False, "sar": 1.0, "width": 96, "height": 48}
    table = [{"id": name, "start": start, "stop": stop, **facts} for name, (start, stop) in spans.items()]
    written = cut_file(path, table, ClipConfig(height=48, width=96, fps=10.0), tmp_path)
    counts = {name: each.frames for name, each in written}
    assert counts == {"a": 20, "b": 30, "c": 30, "d": 0, "whole": 60}
    raw = np.fromfile(tmp_path / "c.u8", np.uint8).reshape(30, 48, 96, 3)
    assert [read_number(each) for each in raw] == list(range(10, 40))
    _, times = scan_spans(path, [spans["a"], spans["d"]])
    assert [len(each) for each in times] == [20, 0]


def test_variable_rate_goes_by_the_times_of_the_part(tmp_path):
    times = [0.1 * i + (0.03 if i % 3 else 0.0) for i in range(40)]
    path = write_raw(tmp_path / "a.mkv", map(numbered_frame, range(40)), 10, times=times)
    part = list(read_span(path, 2.0, 3.0, 10.0))
    assert [read_number(picture.rgb()) for _, picture in part] == list(range(20, 30)) and part[0][0] == 0.0


def test_what_disagrees_or_is_missing_is_refused(tmp_path):
    root = write_v2(tmp_path / "arm", lengths=(20,) * 10)
    data = [root / V2_DATA.format(episode_chunk=i // 2, episode_index=i) for i in range(10)]
    film = [root / V2_VIDEO.format(episode_chunk=i // 2, episode_index=i, video_key=CAMERAS[0]) for i in range(10)]
    film[0].unlink()
    data[1].unlink()
    pl.read_parquet(data[2]).head(19).write_parquet(data[2])
    write_raw(film[3], map(numbered_frame, range(21)), 10)
    film[4].write_text("not a video")
    data[5].write_bytes(b"PAR1 no table PAR1")
    pl.read_parquet(data[6]).with_columns(timestamp=pl.col("timestamp") * 2).write_parquet(data[6])
    actions = [[float(i), np.nan if i == 5 else 0.0] for i in range(20)]
    pl.read_parquet(data[8]).with_columns(action=pl.Series(actions)).write_parquet(data[8])
    states = [[None] if i == 3 else [0.0] for i in range(20)]
    pl.read_parquet(data[9]).with_columns(pl.Series("observation.state", states)).write_parquet(data[9])
    taken, refused = take(root, tmp_path / "work", camera=CAMERAS[0])
    assert sorted(taken) == [7] and numbers(taken[7]) == [700 + i for i in range(20)]
    expected = [
        "(episode 0) is named in the metadata but missing",
        "(episode 1) is named in the metadata but missing",
        "(episode 2) holds 20 frames of it, the metadata say 20, its table has 19 rows",
        "(episode 3) holds 21 frames of it, the metadata say 20, its table has 20 rows",
        "(episode 4) is not a video",
        "(episode 5) cannot be used: data/chunk-002/episode_000005.parquet",
        "(episode 6) and data/chunk-003/episode_000006.parquet disagree by up to 1.9 s on when the frames are due",
        "(episode 8) holds no finite action (nan, infinity, null) in frame 5",
        "(episode 9) holds no finite state (nan, infinity, null) in frame 3",
    ]
    assert len(refused) == 9
    for words, reason in zip(expected, refused, strict=True):
        assert reason.startswith(words)
    assert (tmp_path / "work/tracks").is_dir() and len(list((tmp_path / "work/tracks").iterdir())) == 1


def test_a_cut_v3_file_refuses_its_episodes(tmp_path):
    root = write_v3(tmp_path / "arm")
    film = root / V3_VIDEO.format(chunk_index=0, file_index=0, video_key=CAMERAS[1])
    write_raw(film, map(numbered_frame, range(60)), 10)  # 76 are needed
    taken, refused = take(root, tmp_path / "work", camera=CAMERAS[1])
    assert sorted(taken) == [0, 1, 3] and refused == [
        "(episode 2) holds 9 frames of it, the metadata say 25, its table has 25 rows"
    ]


def test_splits_of_the_data_set_are_kept(tmp_path):
    root = write_v2(tmp_path / "arm")
    write_info(root, "v2.1", 10, V2_DATA, V2_VIDEO, splits={"train": "0:2", "test": "2:3"})
    assert [take(root, tmp_path / "work")[0][i].split for i in range(3)] == ["train", "train", "test"]


@pytest.mark.parametrize(
    "splits, expected",
    [
        ({"train": "0:2", "val": "2:3"}, {0: "train", 1: "train", 2: "test"}),
        ({"train": "0:1", "validation": "1:2", "test": "2:3"}, {0: "train", 1: "test", 2: "test"}),
        ({"eval": "0:1", "train": None, "more": "1:9"}, {0: "test"}),
        ({"train": "0:9"}, {}),
        (None, {}),
        ({"train": "0:2", "test": "1:3"}, "episode 1 is in both train and test by the splits"),
        (["train"], "expected splits such as"),
        ({"train": "0:2", "val": "a few"}, "expected splits such as"),
    ],
)
def test_names_of_splits(splits, expected):
    if isinstance(expected, dict):
        assert lerobot_meta.read_splits({"splits": splits}) == expected
        return
    with pytest.raises(UserError, match=expected):
        lerobot_meta.read_splits({"splits": splits})


def test_all_cameras_of_an_episode_go_to_one_split(tmp_path):
    root = write_v2(tmp_path / "arm", lengths=(4,) * 16)
    both = []
    for camera in CAMERAS:
        taken, _ = take(root, tmp_path / camera, camera=camera)
        both += [replace(entry, id=f"{camera}.{entry.id}", source=camera) for entry in taken.values()]
    frame = manifest.build(manifest.assign_splits(both)).with_columns(episode=pl.col("id").str.tail(6))
    assert frame.group_by("episode").agg(pl.col("split").n_unique())["split"].to_list() == [1] * 16
    assert set(frame["split"]) == {"train", "test"}
    folder = [replace(entry, id=f"x{entry.id}", kin=None) for entry in both[:16]]  # the same files once more
    split = {entry.id: entry.split for entry in manifest.assign_splits([*both, *folder])}
    assert all(split[entry.id] == split[entry.id[1:]] for entry in folder)


def test_files_in_the_usual_place_are_found_in_spite_of_the_pattern(tmp_path):
    odd = {"data": V2_DATA.replace("episode_chunk", "episode_index"), "video": V2_VIDEO}
    assert len(take(write_v2(tmp_path / "arm", **odd), tmp_path / "work")[0]) == 3


def test_depth_maps_and_cameras_on_the_hand_are_no_first_choice(tmp_path):
    (tmp_path / "meta").mkdir()

    def camera(chosen=None, **features):
        features = {f"observation.images.{name}": {"dtype": "video"} | facts for name, facts in features.items()}
        info = {"codebase_version": "v2.1", "features": features}
        (tmp_path / "meta/info.json").write_text(json.dumps(info))
        config = IngestConfig(source="lerobot", path=str(tmp_path), camera=chosen)
        return lerobot_meta.read_info(config, tmp_path)[1].removeprefix("observation.images.")

    old, new = {"video_info": {"video.is_depth_map": True}}, {"info": {"is_depth_map": True}}
    plain = {"info": {"video.is_depth_map": False}}
    assert camera(depth=old, far=new, rgb=plain) == "rgb"
    assert camera(left_wrist={}, rgb={"info": None}, side={}) == "rgb" and camera(a_depth=old, wrist={}) == "wrist"
    assert camera("observation.images.depth", depth=old, rgb={}) == "depth"
    with pytest.raises(UserError, match="one of observation.images.far, got null with depth maps alone; change"):
        camera(far=new)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"codebase_version": "v1.6"}, "expected codebase_version v2.0, v2.1, v3.0, got 'v1.6'"),
        ({"features": {"a": {"dtype": "image"}}}, "no feature of dtype video"),
        ({"features": 3}, "cannot be read as LeRobot writes it"),
        ({"video_path": "../{video_key}.mp4"}, "leads out of the data set"),
        ({"video_path": "/etc/{episode_index}.mp4"}, "leads out of the data set"),
        ({"video_path": "a/{video_key}/x.mp4", "features": {"../..": {"dtype": "video"}}}, "leads out of the data set"),
        ({"video_path": "{episode_index.__class__}"}, "expected a pattern such as"),
        ({"video_path": "{episode_index:999999999d}"}, "expected a pattern such as"),
        ({"video_path": "{secret}.mp4"}, "asks for 'secret'"),
        ({"data_path": None}, "expected a pattern such as"),
        ({"video_path": "one.mp4"}, "gives one file to two episodes"),
        ({"chunks_size": 0}, "expected chunks_size"),
    ],
)
def test_metadata_that_cannot_be_right(tmp_path, change, words):
    root = write_v2(tmp_path / "arm", lengths=(4, 4))
    (root / "one.mp4").touch()
    info = json.loads((root / "meta/info.json").read_text())
    (root / "meta/info.json").write_text(json.dumps(info | change))
    with pytest.raises(UserError, match=words):
        take(root, tmp_path / "work")


def test_faulty_lists_are_told(tmp_path):
    root = write_v2(tmp_path / "arm", lengths=(4, 4))
    with pytest.raises(UserError, match="expected one of .*side, .*top, got wrist; change ingest.camera"):
        take(root, tmp_path / "work", camera="wrist")
    lines = (root / "meta/episodes.jsonl").read_text()
    for text, words in (
        (lines + lines, "names an episode twice"),
        (lines + "{", "episodes.jsonl, line 3: cannot be read"),
        ('{"length": 3}', "the list of episodes is broken"),
        ('{"episode_index": 0, "length": Infinity}', "the list of episodes is broken"),
        ('{"episode_index": 0, "length": 4, "tasks": [5]}', "expected texts as tasks, got .5"),
        ('{"a":' * 20000, "episodes.jsonl, line 1: cannot be read"),
    ):
        (root / "meta/episodes.jsonl").write_text(text)
        with pytest.raises(UserError, match=words):
            take(root, tmp_path / "work")
    lines = [{"episode_index": i, "length": 4, "tasks": tasks} for i, tasks in enumerate(("pick\ud800 it", []))]
    (root / "meta/episodes.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (root / "meta/tasks.jsonl").unlink()
    taken, refused = take(root, tmp_path / "work")
    assert [taken[i].instruction for i in range(2)] == ["pick? it", "unknown"] and not refused
    (root / "meta/info.json").write_text('{"a":' * 20000)
    with pytest.raises(UserError, match="info.json cannot be read as LeRobot writes it"):
        take(root, tmp_path / "work")
    write_info(root, "v2.1", 10, V2_DATA, V2_VIDEO)
    (root / "meta/episodes.jsonl").unlink()
    with pytest.raises(UserError, match="does not exist; the data set is incomplete"):
        take(root, tmp_path / "work")


def test_links_are_followed_and_locked_folders_told(tmp_path, monkeypatch):
    root = write_v3(tmp_path / "data", ((20, 31),))
    (root / "meta/episodes/chunk-000").rename(tmp_path / "store")
    (root / "meta/episodes/chunk-000").symlink_to(tmp_path / "store", target_is_directory=True)
    taken, refused = take(root, tmp_path / "work")
    assert len(taken) == 2 and not refused
    (root / "meta/episodes/locked").mkdir()
    with monkeypatch.context() as patch:
        lock(patch, "locked")
        with pytest.raises(UserError, match="locked is a folder that cannot be opened .Permission denied.; change"):
            take(root, tmp_path / "work")
    (root / "meta/tasks.parquet").unlink()
    (root / "meta/tasks.parquet").symlink_to(tmp_path / "nowhere")
    lerobot_meta.read_tasks.cache_clear()
    with pytest.raises(UserError, match="tasks.parquet is a link to nothing"):
        take(root, tmp_path / "work")


def test_pickles_are_refused_in_one_sentence(tmp_path):
    (tmp_path / "openx").mkdir()
    (tmp_path / "openx/a.pickle").write_bytes(b"\x80\x04")
    for source in ("lerobot", "folder", "frames", "videocraft", "rlds"):
        config = IngestConfig(source=source, path=str(tmp_path / "openx"))
        with pytest.raises(UserError, match="holds pickles .a.pickle.*set ingest.source to lerobot or rlds"):
            list(ADAPTERS[source].entries(config, tmp_path / "work", 1))


def test_a_folder_that_is_none_is_told_alike_by_all_sources(tmp_path):
    (tmp_path / "file").write_text("x")
    for source in ADAPTERS:
        for path, got in (("nothing", "nothing"), ("file", "a file")):
            config = IngestConfig(source=source, path=str(tmp_path / path))
            words = f"^expected a folder of .* at ingest.path {tmp_path}/{path}, got {got}; change ingest.path$"
            with pytest.raises(UserError, match=words):
                list(ADAPTERS[source].entries(config, tmp_path / "work", 1))


def test_parts_need_times(tmp_path):
    path = write_raw(tmp_path / "a.h264", map(numbered_frame, range(9)), 10)
    with pytest.raises(MediaError, match="does not say when its frames are due"):
        scan_spans(path, [(0.0, 0.5)])


# ---------------------------------------------------------------- real data


@needs_real
def test_real_v3(tmp_path):
    root = REAL / "lerobot/v3_bridge"
    expected = json.loads((REAL / "lerobot/v3_bridge_expected.json").read_text())
    taken, refused = take(root, tmp_path)
    assert refused == [] and len(taken) == expected["total_episodes"]
    for told in expected["episodes"]:
        entry = taken[told["episode_index"]]
        parts = read_span(Path(entry.path), entry.start, entry.stop, entry.fps)
        frames = [picture.rgb() for _, picture in parts]
        assert len(frames) == entry.frames == told["length"] and entry.instruction == told["task"]
        for key, frame in (("first", frames[0]), ("last", frames[-1])):
            for kind in ("", "source_"):
                mean = frame.reshape(-1, 3).mean(0)
                assert np.abs(mean - told[f"{kind}{key}_frame_mean_rgb"]).max() < 3
        source = read_frames(REAL / "robots" / told["source"])
        gaps = [np.abs(a.astype(int) - b).mean() for a, (_, b) in zip(frames, source, strict=True)]
        assert max(gaps) < told["mean_abs_pixel_error"]["all_max"] + 1.5  # frame by frame: none lost, none repeated
        table = track(tmp_path, entry)
        assert np.allclose(table["action"][0].to_list(), told["action_first"])
        assert np.allclose(table["state"][0].to_list(), told["state_first"])


@needs_real
def test_real_v2(tmp_path):
    taken, refused = take(REAL / "lerobot/g1_inspire_v21_partial", tmp_path / "g1")
    assert {index: entry.frames for index, entry in taken.items()} == {29: 221, 30: 277, 31: 267}
    assert len(refused) == 97 and all("is named in the metadata but missing" in reason for reason in refused)
    taken, refused = take(REAL / "lerobot/gr00t_robot_sim.PickNPlace", tmp_path / "gr00t")
    assert refused == [] and [taken[i].frames for i in range(3)] == [416, 470, 470] and len(taken) == 5
    assert taken[0].instruction == "pick the pear from the counter and place it in the plate"
    assert len(track(tmp_path / "gr00t", taken[0])["action"][0]) == 44
    with pytest.raises(UserError, match="expected codebase_version"):
        take(REAL / "edge/lerobot_malformed/omx_sim_v3_incomplete", tmp_path / "omx")
