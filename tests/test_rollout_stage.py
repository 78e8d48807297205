"""Stage rollout with small untrained models: what passes the guardrail, the files that `--image` leaves."""

import itertools
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image
from test_guardrail import Recorder
from tiny_models import STEPS, tiny_ldm
from tiny_stages import make_folder, write_params

from stages import rollout
from vw2 import rollout as library
from vw2.console import UserError
from vw2.data import manifest
from vw2.data.codes import CodesInfo, write_codes
from vw2.data.shards import ClipStore
from vw2.guardrail import Guardrail
from vw2.media.decode import read_video
from vw2.models import backends
from vw2.models.ar import ARConfig, ARInputs, ARTransformer, CodeShape
from vw2.models.ar_files import save_ar
from vw2.models.ldm_files import save_ldm
from vw2.training.sequences import first_features
from vw2.variant import paths

SAMPLES = 2
PARAMS = Path("params.yaml")
TOLD = "fold a boat"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    """A folder with all that the stage reads; in both variants the model is an untrained LDM."""
    folder = tmp_path_factory.mktemp("rollout")
    make_folder(folder, frames=9)
    write_params(folder, {"rollout": {"samples": SAMPLES, "batch": 2}})
    listed = pl.read_parquet(folder / rollout.MANIFEST)
    told = pl.concat_str(pl.lit("make "), "id")
    manifest.write(folder / rollout.MANIFEST, listed.with_columns(instruction=told))
    clips = ClipStore(folder / rollout.CLIPS).index.select("video", "split", "clip")
    codes = np.random.default_rng(0).integers(0, 1000, (len(clips), STEPS, 2))
    for variant, seed in (("vw2", 0), ("plain_ldm", 1)):
        place, ldm = paths(variant), tiny_ldm()
        save_ldm(ldm, folder / place.dldm)
        channels, *size = first_features(ldm, torch.zeros(1, 3, 1, 32, 32)).shape[1:]
        shape = CodeShape(ldm.config.resolved(), STEPS, 2)
        torch.manual_seed(seed)
        words = ARInputs(channels, tuple(size), ("boat", "fold", "make"), 4)
        ar = ARTransformer(ARConfig(width=12, layers=1, heads=2, max_clips=2), shape, words)
        for part in (place.ar, place.codes):
            (folder / part).mkdir(parents=True)
        save_ar(ar, folder / place.ar)
        write_codes(folder / place.codes, clips, codes, CodesInfo(shape.levels, STEPS, 2))
    for name, level in (("a/X.png", 60), ("b/X.png", 180)):
        (folder / name).parent.mkdir()
        Image.fromarray(np.full((40, 48, 3), level, np.uint8)).save(folder / name)
    return folder


@pytest.fixture(autouse=True)
def inside(workspace, monkeypatch, tmp_path):
    monkeypatch.chdir(workspace)
    monkeypatch.setenv("VW2_SCRATCH", str(tmp_path / "scratch"))
    shutil.rmtree("rollouts", ignore_errors=True)


@pytest.fixture
def checker(monkeypatch) -> Recorder:
    found = Recorder()
    monkeypatch.setattr(backends, "guardrail", lambda needed, enabled, device: Guardrail(found))
    return found


def frames_of(path: Path) -> np.ndarray:
    return read_video(path).astype(int)


def draw(image: str = "a/X.png", variant: str = "vw2", told: str = TOLD, params: Path = PARAMS) -> None:
    rollout.main(params, variant, Path(image), told)


def made() -> dict[str, bytes]:
    """Name -> bytes of all that `--image` left."""
    return {file.name: file.read_bytes() for file in sorted(Path("rollouts").glob("*"))}


# ---------------------------------------------------------------- the cases of the DAG


def test_all_that_is_said_and_drawn_is_checked(checker):
    rollout.main(PARAMS, "vw2", None, None)
    assert checker.texts == ["make v3", "make v4"], "the videos of split test"
    table = pl.read_parquet("data/rollout/rollouts.parquet")
    assert len(table) == len(checker.videos) == 2 * (SAMPLES + len(rollout.CONTROLS))
    assert sorted(table["frames"]) == sorted(map(len, checker.videos)) and not table["refused"].any()
    for path in table["path"]:
        frames = frames_of(Path("data/rollout") / path)
        assert np.abs(frames - Recorder.GREY).max() <= 2, f"{path} is what the guardrail made of it"


def test_refused_videos_do_not_end_the_stage(checker, monkeypatch, capsys):
    number = itertools.count()
    grey = lambda frames: np.full_like(frames, Recorder.GREY)  # noqa: E731
    monkeypatch.setattr(checker, "check_video_safety", lambda frames: None if next(number) % 3 else grey(frames))
    rollout.main(PARAMS, "vw2", None, None)
    table = pl.read_parquet("data/rollout/rollouts.parquet")
    assert (len(table), table["refused"].sum()) == (10, 6), "the first of every three is let through"
    said = " ".join(capsys.readouterr().err.split())
    assert "refuses 6 of 10 videos" in said
    for path, refused in table.select("path", "refused").iter_rows():
        black = frames_of(Path("data/rollout") / path).max() <= 2
        assert refused == black == (path.removesuffix(".mp4") in said), path


def test_a_refused_instruction_ends_the_stage_before_anything_is_drawn(checker, monkeypatch):
    monkeypatch.setattr(checker, "check_text_safety", lambda text: "v4" not in text)
    with pytest.raises(UserError, match="refuses the instruction 'make v4'"):
        rollout.main(PARAMS, "vw2", None, None)
    assert not checker.videos


# ---------------------------------------------------------------- a picture of the user's own


def test_instruction_and_frames_of_a_picture_are_checked(checker):
    draw()
    assert checker.texts == [TOLD] and len(checker.videos) == SAMPLES
    assert set(made()) == {"X_fold-a-boat_0.mp4", "X_fold-a-boat_1.mp4", "X_fold-a-boat.png"}
    for file in Path("rollouts").glob("*.mp4"):
        assert np.abs(frames_of(file) - Recorder.GREY).max() <= 2
    sheet = np.asarray(Image.open("rollouts/X_fold-a-boat.png").convert("RGB")).astype(int)
    assert (np.abs(sheet - Recorder.GREY).max(-1) <= 2).mean() > 0.5, "and the sheet is made of these"


def test_what_the_guardrail_refuses_of_a_picture_ends_it(checker, monkeypatch):
    monkeypatch.setattr(checker, "check_text_safety", lambda text: "boat" not in text)
    with pytest.raises(UserError, match="refuses the instruction"):
        draw()
    assert not checker.videos
    monkeypatch.setattr(checker, "check_video_safety", lambda frames: None)
    with pytest.raises(UserError, match="refuses a rendered video"):
        draw(told="fold")
    assert not made()


def test_no_result_takes_the_place_of_another(capsys):
    draw()
    first = made()
    draw(told="make a boat")
    draw(variant="plain_ldm")
    assert "in place of" not in capsys.readouterr().err
    names = ("X_fold-a-boat", "X_make-a-boat", "X_plain_ldm_fold-a-boat")
    assert set(made()) == {f"{name}{end}" for name in names for end in ("_0.mp4", "_1.mp4", ".png")}
    assert {name: made()[name] for name in first} == first
    draw()
    said = capsys.readouterr().err
    assert "wrote rollouts/X_fold-a-boat_0.mp4, rollouts/X_fold-a-boat_1.mp4 and rollouts/X_fold-a-boat.png" in said
    assert "in place of earlier ones" in said, "pictures of one name in two folders are told apart by nothing"
    assert {name: made()[name] for name in first} == first, "the same again"
    draw("b/X.png")
    assert "in place of earlier ones" in capsys.readouterr().err and made() != first


def test_an_interrupted_run_goes_on(monkeypatch, tmp_path):
    params = write_params(tmp_path, {"rollout": {"samples": SAMPLES, "batch": 1}})
    draw(params=params)
    straight, drawn, render = made(), [], library.render_batch
    shutil.rmtree("rollouts")

    def interrupted(renderer, rows, *rest):
        drawn.append([row.name for row in rows])
        if len(drawn) == 2:
            raise KeyboardInterrupt
        return render(renderer, rows, *rest)

    monkeypatch.setattr(library, "render_batch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        draw(params=params)
    draw(params=params)
    assert len(drawn) == 3 and drawn[1] == drawn[2], "what was finished is not drawn again"
    assert made() == straight
    assert not [file for file in (tmp_path / "scratch").rglob("*") if file.is_file()]


def test_an_instruction_without_a_picture_is_refused():
    with pytest.raises(UserError, match="--instruction goes with --image"):
        rollout.main(PARAMS, "vw2", None, "fold a boat")


@pytest.mark.parametrize("told", ["", " ?! "])
def test_an_instruction_without_a_word_is_refused(checker, told):
    with pytest.raises(UserError, match="--instruction must hold a word"):
        draw(told=told)
    assert not made()


@pytest.mark.parametrize("path, sentence", [("a", "a is a folder"), ("c.png", "c.png does not exist")])
def test_what_is_no_picture_is_refused(path, sentence):
    with pytest.raises(UserError, match=f"{sentence}; give the path of a picture with --image"):
        draw(path)
    with pytest.raises(UserError, match="params.yaml .*; give another picture with --image"):
        draw("params.yaml")
