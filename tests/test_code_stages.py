"""extract_codes and train_ar on random clips with an untrained plain LDM, in an empty folder."""

import json
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch
from ruamel.yaml import YAML

from stages import extract_codes, train_ar
from vw2.console import UserError
from vw2.data import manifest
from vw2.data.codes import CodesInfo, read_codes, write_codes
from vw2.data.shards import write_shards
from vw2.models.ar import ARConfig, ARTransformer, CodeShape
from vw2.models.ar_files import load_ar
from vw2.models.ldm import LDM, LDMConfig
from vw2.models.ldm_files import save_ldm
from vw2.training.judge import code_figures
from vw2.training.sequences import Sequences, hide_words
from vw2.variant import paths

SPLITS = ("train", "train", "train", "fail", "test", "test")
FRAMES = (25, 17, 9, 17, 25, 12)  # clips of 9 frames: 3, 2, 1, 2, 3, 2
PLACE = paths("plain_ldm")
PARAMS = {
    "seed": 0,
    "compute": {"threads": 1, "dtype": "float32"},
    "ar": {
        "sources": None,
        "model": {"width": 16, "layers": 1, "heads": 2, "dropout": 0.1, "max_clips": 4, "unknown": 0.1},
        "optim": {
            "steps": 40,
            "batch": 2,
            "lr": 0.01,
            "muon": None,
            "warmup": 2,
            "weight_decay": 0.05,
            "betas": [0.9, 0.98],
            "clip": 1.0,
            "save_every": 20,
        },
    },
}


def entry(number: int) -> manifest.Entry:
    task = ("boat", "tower")[number % 2]
    return manifest.Entry(
        id=f"v{number}",
        source="folder",
        path=f"v{number}.mp4",
        split=SPLITS[number],
        environment="table",
        task=task,
        instruction=f"make a {task}",
        fps=16.0,
        frames=FRAMES[number],
        width=16,
        height=16,
        codec="h264",
        hash=str(number),
        licence="CC0-1.0",
    )


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A folder with clips, manifest, params.yaml and an untrained LDM of 8 codes; both stages have run in it."""
    folder = tmp_path_factory.mktemp("workspace")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("VW2_SCRATCH", str(folder / "scratch"))
        (folder / "data" / "clips").mkdir(parents=True)
        entries = [entry(number) for number in range(len(SPLITS))]
        manifest.write(train_ar.MANIFEST, manifest.build(entries))
        rng, videos = np.random.default_rng(0), []
        for each in entries:
            raw = folder / f"{each.id}.u8"
            raw.write_bytes(rng.integers(0, 256, each.frames * 16 * 16 * 3, np.uint8).tobytes())
            videos.append((each.id, each.split, each.task, raw, each.frames))
        write_shards(folder / "data" / "clips", videos, {"frames": 9, "fps": 16.0, "height": 16, "width": 16})
        torch.manual_seed(0)
        ldm = LDM(LDMConfig(codebook=8, queries=3, size=16, width=32, query_width=16, query_layers=1))
        save_ldm(ldm, PLACE.dldm)
        with open("params.yaml", "w") as stream:
            YAML().dump(PARAMS, stream)
        extract_codes.main(folder / "params.yaml", "plain_ldm")
        train_ar.main(folder / "params.yaml", "plain_ldm")
    return folder


@pytest.fixture(autouse=True)
def inside(workspace, monkeypatch):
    monkeypatch.chdir(workspace)
    monkeypatch.setenv("VW2_SCRATCH", str(workspace / "scratch"))


def test_codes_of_all_videos(monkeypatch):
    codes = read_codes(PLACE.codes)
    assert codes.info == CodesInfo((8,), 2, 3)
    assert [len(codes[f"v{i}"]) for i in range(6)] == [3, 2, 1, 2, 3, 2]
    assert codes.videos("test") == ["v4", "v5"] and codes.videos("train") == ["v0", "v1", "v2"]
    assert codes.frame.sort("video", "clip", "step", "query").equals(codes.frame)
    report = pl.read_parquet(PLACE.codes / "report.parquet")
    assert report["codes"].to_list() == [18, 12, 6, 12, 18, 12] and report["digit_used"][0].to_list() == [
        len(np.unique(codes["v0"]))
    ]
    metrics = json.loads(open("metrics/plain_ldm/extract_codes.json").read())
    assert metrics["train"]["used"] == len(np.unique(codes.stacked(codes.videos("train"))))
    assert set(metrics["test"]) == {"entropy_bits", "used", "used_fraction", "perplexity", "dead_digits"}
    before = (PLACE.codes / "codes.parquet").read_bytes()
    monkeypatch.setattr(extract_codes, "CHUNK", 2)
    extract_codes.main("params.yaml", "plain_ldm")
    assert (PLACE.codes / "codes.parquet").read_bytes() == before


def test_dead_digits_are_those_of_each_query_as_in_the_training_stages(tmp_path):
    clips = pl.DataFrame({"video": ["a", "b", "c"], "split": ["train", "train", "test"], "clip": [0, 0, 0]})
    index = np.array([[[0, 11], [5, 11]], [[10, 7], [11, 3]], [[1, 9], [1, 9]]])  # code = digit of 4 + 4 * digit of 3
    store = write_codes(tmp_path, clips, index, CodesInfo((4, 3), 2, 2))
    found = {key: figure["value"] for key, figure in extract_codes.summary(store).items()}
    assert found["train.dead_digits"] == 1, "the second query's first digit is 3 in all four; the first query's is not"
    assert found["test.dead_digits"] == 4
    for split, rows in (("train", index[:2]), ("test", index[2:])):
        assert code_figures(rows, (4, 3), ["a"])["codes.dead_digits"]["value"] == found[f"{split}.dead_digits"]


def test_videos_that_are_cut_are_told(monkeypatch, tmp_path, capsys):
    def enough(*_):
        raise InterruptedError

    monkeypatch.setattr(train_ar, "train", enough)
    short = PARAMS | {"ar": PARAMS["ar"] | {"model": PARAMS["ar"]["model"] | {"max_clips": 2}}}
    with (tmp_path / "params.yaml").open("w") as stream:
        YAML().dump(short, stream)
    for file, told in ((tmp_path / "params.yaml", True), ("params.yaml", False)):
        with pytest.raises(InterruptedError):
            train_ar.main(file, "plain_ldm")
        said = "1 of 3 videos have more than 2 clips (ar.model.max_clips) and are cut there"
        assert (said in capsys.readouterr().err) == told


def test_written_codes_are_checked(tmp_path):
    clips = pl.DataFrame({"video": ["b", "a"], "split": ["train"] * 2, "clip": [0, 0]})
    codes = np.arange(12).reshape(2, 2, 3)
    store = write_codes(tmp_path, clips, codes, CodesInfo((4, 3), 2, 3))
    assert np.array_equal(store["a"][0], codes[1]) and read_codes(tmp_path).frame.equals(store.frame)
    for wrong, info in ((codes, CodesInfo((4, 3), 3, 2)), (codes, CodesInfo((8,), 2, 3))):
        with pytest.raises(ValueError, match="expected codes"):
            write_codes(tmp_path, clips, wrong, info)
    with pytest.raises(UserError, match="dvc repro extract_codes"):
        read_codes(tmp_path / "nothing")


def test_instructions_without_a_word():
    """Play data says nothing: then the first frame alone tells what to do."""
    data = SimpleNamespace(instructions=["___", ""], first=torch.zeros(2, 4, 2, 2))
    inputs = train_ar.inputs_of(data)
    assert (inputs.words, inputs.length) == ((), 0)
    model = ARTransformer(ARConfig(width=12, layers=1, heads=2), CodeShape((8,), 1, 2), inputs)
    sequences = Sequences.__new__(Sequences)
    sequences.instructions, sequences.first = data.instructions, data.first
    sequences.codes = [torch.zeros(clips, 1, 2, dtype=torch.int64) for clips in (1, 2)]
    batch = sequences.batch([0, 1], inputs)
    batch.words = hide_words(batch.words, 0.5, torch.Generator())
    assert batch.words.shape == (2, 0) and model(batch)[0].isfinite()
    codes = model.eval().sample(batch.words, batch.first, ["a/0", "b/0"], 0, 0.5, 1.0)
    assert len(codes) == 2 and codes[0].shape[1:] == (1, 2)


def test_the_transformer_is_trained_and_judged(workspace):
    model = load_ar(PLACE.ar)
    assert model.inputs.words == ("a", "boat", "make", "tower") and model.inputs.size == (4, 4)
    assert (model.shape.codebook, model.shape.steps, model.shape.queries) == (8, 2, 3)
    metrics = json.loads(open("metrics/plain_ldm/train_ar.json").read())
    detail = json.loads(open("metrics/detail/plain_ldm/train_ar.json").read())
    assert set(metrics) == {"train", "test", "swapped", "control", "n", "seed"}
    assert metrics["n"] == 3 and detail["test"]["bits"]["n"] == 2
    assert metrics["swapped"]["bits"] != metrics["test"]["bits"]
    codes = read_codes(PLACE.codes)
    seen = codes.stacked(codes.videos("train")).reshape(-1, 3)
    likely = [np.bincount(slot, minlength=8).argmax() for slot in seen.T]
    right = (codes.stacked(codes.videos("test")) == likely).mean()
    assert metrics["control"]["unigram_accuracy"] == pytest.approx(right, rel=1e-5)
    curve = pl.read_csv("plots/plain_ldm/train_ar/train/bits.tsv", separator="\t")
    assert curve.columns == ["step", "bits"] and curve["step"].to_list() == [20, 40]
    assert not (workspace / "scratch").exists() or not list((workspace / "scratch").rglob("*.pt"))


def test_interrupted_training_ends_the_same(monkeypatch):
    outputs = [PLACE.ar / "ar.safetensors", *sorted(PLACE.plots.rglob("*.tsv"))]
    before = {path: path.read_bytes() for path in outputs}
    predict, calls = train_ar.ARTransformer.forward, []

    def interrupt(self, batch):
        calls.append(len(calls))
        if len(calls) == 33:
            raise KeyboardInterrupt
        return predict(self, batch)

    monkeypatch.setattr(train_ar.ARTransformer, "forward", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train_ar.main("params.yaml", "plain_ldm")
    train_ar.main("params.yaml", "plain_ldm")
    assert len(calls) == 33 + 20, "goes on at step 20 of 40"
    assert {path: path.read_bytes() for path in outputs} == before


def test_bad_input_ends_in_one_sentence(workspace, monkeypatch, tmp_path):
    with pytest.raises(UserError, match="data/dldm does not exist"):
        extract_codes.main("params.yaml", "vw2")
    with pytest.raises(UserError, match="dvc repro extract_codes"):
        train_ar.main("params.yaml", "vw2")
    facts = (PLACE.codes / "codes.json").read_text()
    (PLACE.codes / "codes.json").write_text(facts.replace("8", "9"))
    try:
        with pytest.raises(UserError, match="dldm.codebook is 9 in data/plain_ldm/codes but 8 in data/plain_ldm/dldm"):
            train_ar.main("params.yaml", "plain_ldm")
    finally:
        (PLACE.codes / "codes.json").write_text(facts)
