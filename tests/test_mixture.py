"""Mixtures of sources: one manifest, ids by entry, weights that training keeps to, subsets by stage."""

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from numbered import numbered_frame, write_raw
from PIL import Image

from stages import clip as clip_stage
from stages import ingest as ingest_stage
from vw2 import params as parameters
from vw2.console import UserError
from vw2.data import guards, manifest, sampler
from vw2.data.clips import ClipConfig
from vw2.data.manifest import Entry
from vw2.data.sampler import Mixture, batch_indices, mixture
from vw2.data.shards import ClipStore
from vw2.data.sources import mixture as sources
from vw2.data.sources.base import IngestConfig
from vw2.patch import parse, patch
from vw2.training.frames import frame_rows
from vw2.worlds.craft import CraftConfig

# ---------------------------------------------------------------- ingest.source


def config(*entries, **group) -> IngestConfig:
    return IngestConfig(source=list(entries), **group)


def test_an_entry_inherits_from_the_group_what_it_does_not_say():
    room = {"source": "folder", "path": "a", "weight": 3, "licence": "CC0"}
    one, two = sources.parts(config(room, {"source": "craft", "weight": 1}, licence="x", min_frames=9))
    assert (one.name, one.path, one.weight, one.licence, one.min_frames) == ("folder", "a", 3.0, "CC0", 9)
    assert (two.name, two.path, two.source, two.licence) == ("craft", None, "craft", "x")
    assert sources.parts(IngestConfig()) == ()


@pytest.mark.parametrize(
    "entries, words",
    [
        ([], "empty list"),
        ([{"path": "a", "weight": 1}], r"ingest.source\[0\].source: expected one of craft, .* key is missing"),
        ([{"source": "folder", "path": "a"}], r"ingest.source\[0\].weight: expected a number, but the key is missing"),
        (
            [{"source": "folder", "path": "a", "weight": 0}],
            "entry folder of ingest.source needs a weight above 0, got 0",
        ),
        ([{"source": "folder", "path": "a", "weight": "2"}], r"ingest.source\[0\].weight: expected a number"),
        ([{"source": "folder", "weight": 1}], "entry folder of ingest.source needs a path"),
        ([{"source": "film", "path": "a", "weight": 1}], r"ingest.source\[0\].source: expected one of"),
        ([{"source": "craft", "weight": 1, "colour": 2}], r"ingest.source\[0\].colour: unknown key"),
        ([{"source": "craft", "weight": 1, "name": "a.b"}], "needs a name of 1 to 40 letters"),
        ([{"source": "craft", "weight": 1, "path": "a"}], "has the path a; remove it"),
        (
            [{"source": "folder", "path": name, "weight": 1} for name in "ab"],
            "2 entries .* are named folder; give each",
        ),
        ([{"source": "craft", "weight": 1}] * 2, "lists craft twice"),
        ([{"source": "craft", "weight": 1, "name": "world"}], "world .* has the source craft, but `craft` names"),
        ([{"source": "folder", "path": "a", "weight": 1, "name": "craft"}], "has the source folder, but `craft` names"),
    ],
)
def test_a_faulty_list_is_one_sentence(entries, words):
    with pytest.raises(UserError, match=words):
        sources.parts(config(*entries))


def test_a_list_goes_without_a_path_and_its_items_are_groups():
    with pytest.raises(ValueError, match="ingest.path is films beside a list"):
        config({"source": "craft", "weight": 1}, path="films")
    with pytest.raises(UserError, match="ingest.source: expected one of craft, .*or a list"):
        parameters.build(IngestConfig, IngestConfig().__dict__ | {"source": ["craft"]}, "ingest")


def test_a_preset_takes_the_place_of_a_list():
    text = "ingest:\n  # where from\n  source:\n  - source: craft\n    weight: 2\n  path: null  # where\nseed: 0\n"
    back, old = patch(text, parse("ingest:\n  source: craft\n", "x"), "x")
    assert back == "ingest:\n  # where from\n  source: craft\n  path: null  # where\nseed: 0\n"
    assert list(old) == ["ingest.source"]


def test_only_rank_0_gives_files_their_names_in_the_mixture(tmp_path, monkeypatch):
    own = tmp_path / "sources/near"
    facts = {"split": None, "environment": "e", "task": "t", "instruction": "i", "hash": "0", "licence": "CC0"}
    item = Entry("a", "rlds", "data/videos/a.mp4", fps=16.0, frames=2, width=8, height=8, codec="h264", **facts)
    for kind, suffix in (("videos", "mp4"), ("tracks", "parquet"), ("truth", "parquet")):
        (own / kind).mkdir(parents=True)
        pl.DataFrame({"video": ["a"]}).write_parquet(own / kind / f"a.{suffix}")
    monkeypatch.setattr(sources.table, "entries", lambda *_: iter([item]))
    listed = config({"source": "rlds", "path": "x", "weight": 1, "name": "near"})
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, made in (("1", []), ("0", ["tracks/near.a.parquet", "truth/near.a.parquet", "videos/near.a.mp4"])):
        monkeypatch.setenv("RANK", rank)
        assert len(list(sources.entries(listed, CraftConfig(), tmp_path, 1))) == 1
        files = (file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("near.a.*"))
        assert sorted(files) == made


def test_both_stages_on_films_pictures_and_the_craft_world(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("one", "two", "three"):
        (tmp_path / folder / "fold").mkdir(parents=True)
    write_raw(tmp_path / "one/fold/a.mp4", map(numbered_frame, range(40)))
    write_raw(tmp_path / "two/fold/a.mp4", map(numbered_frame, range(100, 150)))  # the same name
    (tmp_path / "two/fold/b.mp4").write_text("no video")
    for number in range(20):
        Image.fromarray(numbered_frame(200 + number)).save(tmp_path / f"three/fold/{number}.png")
    (tmp_path / "one/videos.csv").write_text("file,split\nfold/a.mp4,train\n")
    (tmp_path / "two/videos.csv").write_text("file,split\nfold/a.mp4,train\n")
    (tmp_path / "three/videos.csv").write_text("file,split\nfold,train\n")
    listed = [
        {"source": "folder", "path": "one", "weight": 1, "name": "near"},
        {"source": "folder", "path": "two", "weight": 2.5, "name": "far", "licence": "CC0"},
        {"source": "frames", "path": "three", "weight": 1, "frames_fps": 16.0},
        {"source": "craft", "weight": 0.5},
    ]
    world = {"resolution": 32, "fps": 16.0, "nuisance": 1, "paper_frames": [113, 120], "train_videos": 1}
    groups = {
        "seed": 0,
        "craft": world | {"fail_videos": 0, "test_paper": 1, "test_blocks": 0, "probe_videos": 1},
        "ingest": IngestConfig(source=listed, time_limit=60.0).__dict__,
        "splits": {"environments": False, "near_duplicates": True},
        "clip": asdict(ClipConfig(height=48, width=96)),
        "runtime": {"workers": 2},
    }
    Path("params.yaml").write_text(json.dumps(groups))
    ingest_stage.main(Path("params.yaml"))
    frame = manifest.read(Path("data/manifest.parquet"))
    counts = dict(frame["source"].value_counts().iter_rows())
    assert counts == {"near": 1, "far": 1, "frames": 1, "craft": 3}
    rows = {row["id"]: row for row in frame.iter_rows(named=True)}
    assert rows["near.fold__a"]["path"] == "one/fold/a.mp4" and rows["far.fold__a"]["licence"] == "CC0"
    assert rows["frames.fold"]["path"] == "data/videos/frames.fold.mp4" and Path(rows["frames.fold"]["path"]).is_file()
    assert {row["source"]: row["weight"] for row in rows.values()} == {
        "near": 1.0, "far": 2.5, "frames": 1.0, "craft": 0.5,
    }  # fmt: skip
    made = {Path(row["path"]).name for row in rows.values() if row["source"] in ("frames", "craft")}
    assert {file.name for file in Path("data/videos").iterdir()} == made
    assert pl.read_parquet("data/quarantine.parquet")["path"].to_list() == ["two/fold/b.mp4"]
    truth = pl.read_parquet("data/truth.parquet")
    assert set(truth["video"]) == {name for name in rows if name.startswith("craft.")}
    figures = json.loads(Path("metrics/ingest.json").read_text())
    assert figures["videos_of"] == {"near": 1, "far": 1, "frames": 1, "craft": 3}
    assert figures["share_of"]["far"] == pytest.approx(0.5)

    clip_stage.main(Path("params.yaml"))
    store = ClipStore()
    assert store.weights == {"craft": 0.5, "far": 2.5, "frames": 1.0, "near": 1.0}
    assert set(store.index.filter(pl.col("source") == "far")["video"]) == {"far.fold__a"}
    assert store.sources(None, "ar.sources") == ["craft", "far", "frames", "near"]
    assert store.sources(["near", "far"], "ar.sources") == ["far", "near"]
    with pytest.raises(UserError, match="ar.sources: expected some of the sources craft, far, frames, near, got openx"):
        store.sources(["craft", "openx"], "ar.sources")
    with pytest.raises(UserError, match="ar.sources: .* got none"):
        store.sources([], "ar.sources")
    assert set(store.index[store.train_rows(["far", "near"])]["source"]) == {"far", "near"}
    columns = frame_rows(store, truth, frame, ["train"])  # the classifier sees what has truth
    assert set(columns["video"]) == {name for name in rows if name.startswith("craft.train")}

    bare = frame.with_columns(split=pl.when(pl.col("source") == "near").then(pl.lit("test")).otherwise("split"))
    lost = store.index.with_columns(split=pl.when(pl.col("source") == "near").then(pl.lit("test")).otherwise("split"))
    store.index = lost
    with pytest.raises(UserError, match="no clip of split train of the source near"):
        store.train_rows(["far", "near"])
    with pytest.raises(UserError, match="no video of the source near gives a clip"):
        manifest.source_weights(bare, [name for name in rows if not name.startswith("near")])


def test_an_entry_without_a_video_stops_the_stage(tmp_path):
    (tmp_path / "films").mkdir()
    (tmp_path / "films/a.mp4").write_text("no video")
    entry = {"source": "folder", "path": str(tmp_path / "films"), "weight": 1, "name": "far"}
    with pytest.raises(UserError, match="entry far of ingest.source gave no video; the first file refused, .*a.mp4"):
        list(sources.entries(config(entry), CraftConfig(), tmp_path / "work", 1))


def test_adopted_videos_keep_their_tracks_and_the_adapter_its_files(tmp_path):
    own, work = tmp_path / "own", tmp_path / "work"
    for folder in (own / "videos", own / "tracks"):
        folder.mkdir(parents=True)
    (own / "videos/a.mp4").write_bytes(b"video")
    pl.DataFrame({"video": ["a"] * 2, "frame": [0, 1]}).write_parquet(own / "tracks/a.parquet")
    facts = {"environment": "e", "task": "t", "instruction": "i", "fps": 30.0, "frames": 2, "width": 8, "height": 8}
    entry = Entry("a", "rlds", "data/videos/a.mp4", None, codec="h264", hash="0", licence="x", **facts)
    part = sources.parts(config({"source": "rlds", "path": "x", "weight": 2, "name": "openx"}))[0]
    for _ in range(2):  # again after an interruption
        new = sources.adopt(entry, part, own, work)
        assert (new.id, new.path, new.source, new.weight) == ("openx.a", "data/videos/openx.a.mp4", "openx", 2.0)
        assert (work / "videos/openx.a.mp4").read_bytes() == b"video"
        assert pl.read_parquet(work / "tracks/openx.a.parquet")["video"].to_list() == ["openx.a"] * 2
    assert (own / "videos/a.mp4").is_file() and not (work / "truth").exists()


def test_one_environment_of_a_source_may_be_shared_within_it_alone():
    schema = {"id": pl.String, "source": pl.String, "split": pl.String, "environment": pl.String, "hash": pl.String}
    nothing = {"start": pl.lit(None, pl.Float64), "stop": pl.lit(None, pl.Float64), "fps": pl.lit(16.0)}

    def check(*rows):
        frame = pl.DataFrame(rows, schema=schema, orient="row").with_columns(**nothing)
        guards.check_splits(frame, guards.SplitsConfig())

    calvin = ("a", "calvin", "train", "calvin_D", "1"), ("b", "calvin", "test", "calvin_D", "2")
    check(*calvin, ("c", "craft", "train", "oak", "3"), ("d", "craft", "test", "elm", "4"))
    with pytest.raises(UserError, match="environments are in both train and test: oak;"):
        check(
            *calvin,
            ("c", "craft", "train", "oak", "3"),
            ("d", "craft", "test", "oak", "4"),
            ("e", "craft", "test", "f", "5"),
        )
    with pytest.raises(UserError, match="environments are in both train and test: oak;"):
        check(("c", "one", "train", "oak", "3"), ("d", "two", "test", "oak", "4"))
    with pytest.raises(UserError, match="same video is in both train and test: a = b"):
        check(("a", "one", "train", "oak", "3"), ("b", "two", "test", "elm", "3"))


# ---------------------------------------------------------------- sampler


def test_one_source_is_drawn_as_ever():
    for seed, batch, n in ((0, 16, 900), (3, 7, 50), (1, 10, 3)):
        drawn = mixture(["craft"] * n, {"craft": 0.125})
        for step in (0, 1, 5, 400, 99_999):
            assert np.array_equal(drawn.batch(seed, step, batch), batch_indices(seed, step, batch, n))


def test_shares_are_those_of_the_weights_whatever_the_sizes():
    names = ["big"] * 700 + ["small"] * 10 + ["rare"] * 90
    drawn = mixture(names, {"big": 1, "small": 2.5, "rare": 0.5})
    stream = np.concatenate([drawn.batch(0, step, 16) for step in range(2 * sampler.BLOCK // 16)])
    assert Counter(names[item] for item in stream) == {"big": 5000, "small": 12500, "rare": 2500}  # to the one
    part = Counter(names[item] for item in stream[:2000])
    assert part["small"] / 2000 == pytest.approx(0.625, abs=0.04) and part["rare"] > 150  # evenly mixed
    for name in set(names):  # every item as often as any other of its source
        times = np.bincount(stream, minlength=800)[np.array(names) == name]
        assert times.max() - times.min() <= 1


def test_quotas():
    assert Mixture([[0], [1], [2]], [1, 1, 1]).quota == (3334, 3333, 3333)
    assert Mixture([[0], [1]], [1e-9, 1]).quota == (1, 9999)
    assert sum(Mixture([[i] for i in range(500)], np.arange(1.0, 501)).quota) == sampler.BLOCK
    for groups, weights in (([], []), ([[0], []], [1, 1]), ([[0]], [0]), ([[0]], [1, 2])):
        with pytest.raises(ValueError, match="expected 1 to 10000 sources"):
            Mixture(groups, weights)
    with pytest.raises(ValueError, match="seed, step >= 0"):
        Mixture([[0], [1]], [1, 1]).batch(0, -1, 4)


def test_the_draw_is_a_function_of_seed_and_step():
    names, weights = ["a"] * 40 + ["b"] * 9, {"a": 1, "b": 3}
    first = [mixture(names, weights).batch(5, step, 32) for step in range(320)]  # beyond a block
    again = mixture(names, weights)
    for step in (319, 7, 312, 0, 200):
        assert np.array_equal(again.batch(5, step, 32), first[step])
    assert not np.array_equal(again.batch(6, 0, 32), first[0])
    joined = np.concatenate([again.batch(5, step, 64) for step in range(160)])  # batches cut one stream
    assert np.array_equal(joined, np.concatenate(first))
