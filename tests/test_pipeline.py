"""The DAG through DVC: its shape (quick), and whole runs of the smoke preset in a clone (slow).

The slow tests work in clones below pytest's temporary folder, never in this repository. Most share one and run in the
order of this file; each leaves the clone as it found it.
"""

from __future__ import annotations

import functools
import importlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import typer
from numbered import numbered_frame, write_raw
from params_text import as_dvc_writes
from typer.testing import CliRunner

from vw2.params import load
from vw2.patch import patch

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "realvideo"
DVC = [sys.executable, "-m", "dvc"]
AFTER_CLIPS = ["warmup_dldm", "train_dldm", "extract_codes", "train_ar", "rollout", "evaluate", "report"]
AFTER_CODES = ["train_ar", "rollout", "evaluate", "report"]
FROZEN = ["pretrain_prior", "pretrain_ldm", "pretrain_vdm"]
STAGES = ["check", "ingest", "clip", *FROZEN, "train_classifier", *AFTER_CLIPS]
PLAIN = ["train_plain_ldm", "extract_codes", "train_ar", "rollout", "evaluate"]
slow = pytest.mark.slow


def environment() -> dict[str, str]:
    """That of the tests without what would lead a run out of its clone; `python` is the interpreter of the tests."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("DVC_", "VW2_", "GIT_", "PYTHONPATH"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}"
    return kept | {"PATH": path, "DVC_NO_ANALYTICS": "1", "GIT_CONFIG_GLOBAL": os.devnull}


def call(folder: Path, *command: str, code: int = 0) -> str:
    """Output and messages of a command that must end with `code`."""
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True)
    text = f"{done.stdout}\n{done.stderr}"
    assert done.returncode == code, f"{' '.join(command)} ended with {done.returncode}:\n{text[-4000:]}"
    return text


def dvc(folder: Path, *arguments: str) -> str:
    return call(folder, *DVC, *arguments)


def answer(folder: Path, *arguments: str):
    """The JSON a DVC command prints."""
    done = subprocess.run([*DVC, *arguments], cwd=folder, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def git(folder: Path, *arguments: str) -> str:
    return call(folder, "git", *arguments)


def begin(folder: Path) -> None:
    """Make a folder a Git repository with one commit."""
    git(folder, "init", "-q", "-b", "main")
    git(folder, "config", "user.name", "tests")
    git(folder, "config", "user.email", "tests@example.org")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "begin")


def tracked() -> list[str]:
    """Files of this checkout that Git tracks or would track: what is committed and what is not yet."""
    listed = subprocess.run(["git", "ls-files", "-coz", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("needs a Git checkout to make a clone of")
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def ran(text: str) -> list[str]:
    """Stages that `dvc repro` or `dvc exp run` did execute, in order."""
    return re.findall(r"Running stage '([^']+)'", text)


def made(text: str) -> list[str]:
    """Those of them that make something: `check` looks at every change of the settings, in seconds, whatever it is."""
    return [name for name in ran(text) if name != "check"]


# ---------------------------------------------------------------- shape of the DAG (quick)


@pytest.fixture(scope="module")
def outline(tmp_path_factory):
    """A repository with the pipeline files alone."""
    folder = tmp_path_factory.mktemp("outline")
    for name in ("dvc.yaml", "params.yaml", "plain_ldm/dvc.yaml", ".dvc/config", ".dvcignore", ".gitignore"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
    begin(folder)
    return folder


def test_dvc_reads_every_stage(outline):
    lines = [line.split(None, 1) for line in dvc(outline, "stage", "list", "--all").splitlines() if line.strip()]
    names = [name for name, _ in lines]
    assert sorted(name for name in names if ":" not in name) == sorted(STAGES)
    assert {f"plain_ldm/dvc.yaml:{name}" for name in PLAIN} <= set(names)
    assert all(text.strip() for _, text in lines), "each tells what it does"


def test_dag_has_the_order_of_the_mission(outline):
    edges = re.findall(r'"([\w/.:]+)" -> "([\w/.:]+)"', dvc(outline, "dag", "--dot"))
    after: dict[str, set[str]] = {}
    for above, below in edges:
        after.setdefault(above, set()).add(below)

    @functools.cache
    def below(name: str) -> frozenset[str]:
        near = after.get(name, set())
        return frozenset(near).union(*(below(each) for each in near))

    chain = ["ingest", "clip", "warmup_dldm", "train_dldm", "extract_codes", "train_ar", "rollout", "evaluate"]
    for above, next_ in zip(chain, [*chain[1:], "report"], strict=True):
        assert next_ in below(above), f"{next_} does not follow {above}"
    assert below("train_classifier") & set(STAGES) == {"evaluate", "report"}
    assert {"train_dldm", "rollout"} <= below("pretrain_prior")
    assert {"warmup_dldm", "rollout"} <= below("pretrain_ldm")
    assert {"train_dldm", "rollout"} <= below("pretrain_vdm")
    assert {"warmup_dldm", "train_dldm", "rollout"} <= below("check"), "checked before what takes long"
    assert not {"ingest", "clip"} & below("check"), "which ask nothing of the models"
    plain = {f"plain_ldm/dvc.yaml:{name}" for name in PLAIN}
    assert plain <= below("warmup_dldm") and not plain & below("train_dldm"), "the plain LDM never sees the dLDM"


@pytest.mark.parametrize("stage", [*STAGES, "train_plain_ldm"])
def test_every_stage_is_a_command(stage):
    app = typer.Typer()
    app.command()(importlib.import_module(f"stages.{stage}").main)
    shown = CliRunner().invoke(app, ["--help"])
    assert shown.exit_code == 0 and "Usage" in shown.output, shown.output


# ---------------------------------------------------------------- whole runs (slow)


def clone(folder: Path, overrides: dict | None = None) -> Path:
    """A repository with the files of this checkout, the smoke preset and some more overrides, committed."""
    for name in tracked():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
    if not (folder / "data/prior/transformer.safetensors").is_file():
        pytest.skip("the frozen prior (data/prior) is not in this checkout; `python -m stages.pretrain_prior` makes it")
    begin(folder)
    call(folder, sys.executable, "-m", "stages.preset", "smoke")
    change(folder, overrides or {})
    git(folder, "commit", "-q", "-a", "-m", "smoke")
    return folder


def change(folder: Path, overrides: dict) -> None:
    text = (folder / "params.yaml").read_text()
    (folder / "params.yaml").write_text(patch(text, overrides, "the test", "params.yaml")[0])


def restore(folder: Path) -> None:
    """Back to the last commit, outputs too."""
    git(folder, "checkout", "-q", ".")
    dvc(folder, "checkout", "-f")
    assert not ran(dvc(folder, "repro"))


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> tuple[Path, str]:
    """A clone after its first `dvc repro`, committed; and what that printed."""
    folder = clone(tmp_path_factory.mktemp("first"))
    text = dvc(folder, "repro")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "first run")
    return folder, text


@pytest.fixture
def workspace(first) -> Path:
    return first[0]


def numbers(tree: dict, above: str = "") -> dict[str, float]:
    found = {}
    for key, value in tree.items():
        found |= numbers(value, f"{above}{key}.") if isinstance(value, dict) else {f"{above}{key}": value}
    return found


@slow
def test_repro_runs_everything_but_the_frozen_prior(first):
    folder, text = first
    assert sorted(ran(text)) == sorted(set(STAGES) - set(FROZEN))
    order = {name: number for number, name in enumerate(ran(text))}
    assert [name for name in ran(text) if name in AFTER_CLIPS] == AFTER_CLIPS and order["ingest"] < order["clip"]
    for stage in ("warmup_dldm", "train_dldm", "extract_codes", "train_ar", "train_classifier", "evaluate"):
        values = numbers(json.loads((folder / f"metrics/{stage}.json").read_text()))
        assert values and all(isinstance(v, int | float) and math.isfinite(v) for v in values.values()), stage
        assert (folder / f"metrics/detail/{stage}.json").is_file(), stage
        spent = json.loads((folder / f"metrics/runtime/{stage}.json").read_text())
        assert spent["seconds"] > 0 and 0 < spent["peak_memory_gib"] < 8, stage
    assert (folder / "report/index.html").stat().st_size > 1000
    changed = git(folder, "diff", "--name-only", "HEAD~1").split()
    wild = [name for name in changed if not re.match(r"(metrics/|plots/|dvc\.lock)", name)]
    assert not wild, "a run writes metrics, plots and dvc.lock into Git, and nothing else"
    assert not (folder / ".vw2").exists() or not [f for f in (folder / ".vw2").rglob("*") if f.is_file()]


@slow
def test_metrics_have_the_keys_of_the_contract(workspace):
    read = lambda stage: numbers(json.loads((workspace / f"metrics/{stage}.json").read_text()))  # noqa: E731
    judged = read("evaluate")
    paper = [f"paper.step_{k}" for k in range(1, 8)]
    blocks = [f"blocks.{kind}" for kind in ("tower", "horse", "person")]
    controls = ("ground_truth", "ground_truth_codes", "shuffled_codes", "random_codes", "copy_first_frame")
    wanted = [*paper, "quality.ssim", "quality.psnr"] + [f"controls.{name}.{key}" for name in controls for key in paper]
    assert not [key for key in wanted if key not in judged]
    assert "quality.lpips" in judged or "quality.lpips_untrained" in judged
    for where in ("", "controls.ground_truth."):
        assert any(f"{where}{key}" in judged for key in blocks)
    assert "accuracy" in read("train_classifier")
    trained = read("train_dldm")
    for key in ("render.psnr", "render.psnr_other_codes", "render.psnr_copy"):
        assert key in trained, key
    for key in ("codes.entropy_bits", "codes.used", "codes.changed_fraction"):
        assert key in trained, key
    detail = json.loads((workspace / "metrics/detail/evaluate.json").read_text())
    assert set(detail["paper"]["step_1"]) == {"value", "low", "high", "n"}


@slow
def test_second_repro_does_nothing(workspace):
    text = dvc(workspace, "repro")
    assert not ran(text) and "up to date" in text
    assert "up to date" in dvc(workspace, "status", "dvc.yaml")
    assert not git(workspace, "status", "--porcelain").strip()


@slow
def test_rollouts_are_as_planned(workspace):
    table = pl.read_parquet(workspace / "data/rollout/rollouts.parquet")
    config = load(workspace / "params.yaml")
    for name, count in table.group_by("name", "video").len().select("name", "len").iter_rows():
        assert count == (config["rollout"]["samples"] if name == "vw2" else 1)
    assert set(table["name"]) == {"vw2", "ground_truth_codes", "shuffled_codes", "random_codes"}
    assert (table["frames"] == table["clips"] * (config["clip"]["frames"] - 1) + 1).all()
    assert all((workspace / "data/rollout" / path).stat().st_size for path in table["path"])


@slow
def test_another_clone_gives_the_same_bytes(workspace, tmp_path):
    other = clone(tmp_path)
    dvc(other, "repro")
    # dvc.lock holds the hash of every output of every stage
    assert (other / "dvc.lock").read_text() == (workspace / "dvc.lock").read_text()
    for file in sorted((workspace / "metrics").glob("*.json")) + sorted((workspace / "metrics/detail").glob("*.json")):
        assert (other / file.relative_to(workspace)).read_bytes() == file.read_bytes(), file.name


@slow
def test_changing_one_ar_key_runs_what_depends_on_it(workspace):
    lr = load(workspace / "params.yaml")["ar"]["optim"]["lr"]
    change(workspace, {"ar": {"optim": {"lr": 2 * lr}}})
    assert made(dvc(workspace, "repro")) == AFTER_CODES
    assert answer(workspace, "metrics", "diff", "--json")["metrics/train_ar.json"]
    change(workspace, {"ar": {"optim": {"lr": lr}}})
    assert not made(dvc(workspace, "repro")), "the way back is in the run cache"
    left = git(workspace, "diff", "--name-only").split()
    restore(workspace)
    wild = [name for name in left if name != "params.yaml" and not name.startswith("metrics/detail/")]
    assert not wild, "figures, plots and locks are what they were; intervals, no outputs, come back from Git alone"


@slow
def test_result_neutral_knobs_run_nothing(workspace):
    change(workspace, {"runtime": {"workers": 1}})
    assert not ran(dvc(workspace, "repro"))
    restore(workspace)


@slow
def test_metrics_and_plots_are_shown(workspace):
    shown = answer(workspace, "metrics", "show", "--json")
    files = next(iter(shown.values()))["data"]
    assert {f"metrics/{stage}.json" for stage in ("train_dldm", "train_ar", "evaluate")} <= set(files)
    assert "paper.step_1" in dvc(workspace, "metrics", "show")
    assert not answer(workspace, "metrics", "diff", "--json")
    dvc(workspace, "plots", "show")
    page = (workspace / "dvc_plots/index.html").read_text()
    assert "survival" in page and "confusion" in page and "rollout.png" in page
    assert "warmup_dldm" in dvc(workspace, "dag")


@slow
def test_experiment_in_a_temporary_copy(workspace):
    text = dvc(workspace, "exp", "run", "--temp", "-n", "warm", "-S", "ar.optim.lr=0.003")
    assert made(text) == AFTER_CODES
    assert not git(workspace, "status", "--porcelain").strip(), "the workspace is left alone"
    assert "warm" in dvc(workspace, "exp", "list", "--name-only")
    assert answer(workspace, "metrics", "diff", "--json", "HEAD", "warm")["metrics/train_ar.json"]


@slow
def test_experiment_in_the_queue(workspace):
    dvc(workspace, "exp", "run", "--queue", "-n", "late", "-S", "ar.optim.lr=0.004")
    dvc(workspace, "queue", "start", "-j", "1")
    try:
        end, state = time.monotonic() + 1800, ""
        while time.monotonic() < end and not re.search(r"late\b.*(Success|Failed)", state):
            time.sleep(3)
            state = dvc(workspace, "queue", "status")
        assert re.search(r"late\b.*Success", state), state + dvc(workspace, "queue", "logs", "late")
    finally:
        dvc(workspace, "queue", "stop", "--kill")
    assert not git(workspace, "status", "--porcelain").strip()
    assert answer(workspace, "metrics", "diff", "--json", "HEAD", "late")["metrics/train_ar.json"]


@slow
def test_a_finished_experiment_is_applied_where_the_plain_ldm_never_ran(workspace):
    """Outputs of the committed plain LDM are in no cache here: neither command may ask for them."""
    assert not (workspace / "data/plain_ldm").exists() and (workspace / "plain_ldm/dvc.lock").is_file()
    if "late" not in dvc(workspace, "exp", "list", "--name-only"):
        pytest.skip("needs the experiment of the test before")
    dvc(workspace, "checkout")
    dvc(workspace, "exp", "apply", "late")
    assert load(workspace / "params.yaml")["ar"]["optim"]["lr"] == 0.004
    assert not ran(dvc(workspace, "repro")), "weights and figures are those of the experiment"
    restore(workspace)


@slow
def test_another_codebook_by_experiment(workspace):
    before = (workspace / "params.yaml").read_text()
    text = dvc(workspace, "exp", "run", "-n", "large", "-S", "dldm.codebook=4096")
    assert made(text) == AFTER_CLIPS, "the judge need not be trained again"
    facts = json.loads((workspace / "data/codes/codes.json").read_text())
    assert math.prod(facts["levels"]) == 4096
    after = (workspace / "params.yaml").read_text()
    wanted = before.replace("codebook: 1000", "codebook: 4096")
    assert as_dvc_writes(after) == as_dvc_writes(wanted), "comments and order survive"
    restore(workspace)


@slow
def test_wrong_parameter_ends_in_a_sentence(workspace):
    change(workspace, {"dldm": {"codebook": 1024}})
    text = call(workspace, sys.executable, "-m", "stages.warmup_dldm", code=1)
    assert "dldm.codebook 1024 has no preset levels" in text and "Traceback" not in text
    git(workspace, "checkout", "-q", ".")


@slow
def test_rollout_from_a_picture(workspace, tmp_path):
    from PIL import Image

    found = sorted(path for path in (SHARED / "stills").glob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not found:
        found = [tmp_path / "table.png"]
        Image.fromarray(numbered_frame(5, 90, 160)).save(found[0])
    picture = str(found[0])
    call(workspace, sys.executable, "-m", "stages.rollout", "--image", picture, "--instruction", "fold a paper boat")
    made = sorted((workspace / "rollouts").glob("*.mp4"))
    assert len(made) == load(workspace / "params.yaml")["rollout"]["samples"] and all(f.stat().st_size for f in made)
    assert not git(workspace, "status", "--porcelain").strip()


@slow
def test_plain_ldm_stands_beside_it(workspace):
    done = ran(dvc(workspace, "repro", "plain_ldm/dvc.yaml"))
    names = [name.removeprefix("plain_ldm/dvc.yaml:") for name in done]
    assert [name for name in names if name in PLAIN] == PLAIN and not {"warmup_dldm", "train_dldm"} & set(done)
    for stage in ("train_dldm", "extract_codes", "train_ar", "evaluate"):
        ours, plain = (
            numbers(json.loads((workspace / "metrics" / part / f"{stage}.json").read_text()))
            for part in ("", "plain_ldm")
        )
        figures = ("render.", "codes.", "paper.step", "blocks.", "quality.", "test.")
        assert {k for k in plain if k.startswith(figures)} <= set(ours), "the same figures side by side"
        assert {k for k in ours if k.startswith(("render.psnr", "paper.step", "blocks."))} <= set(plain)
    assert not ran(dvc(workspace, "repro", "plain_ldm/dvc.yaml"))
    git(workspace, "add", "-A")
    git(workspace, "commit", "-q", "-m", "plain LDM")


def own_videos(folder: Path) -> Path:
    """Five short videos of numbers, of other sizes and rates than the preset's, and a file that is none."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(5):
        frames = [numbered_frame(50 * number + i, 72, 96 + 16 * number) for i in range(60 + 10 * number)]
        for i, frame in enumerate(frames):
            x = 10 + (i * (number + 1)) % 60
            frame[30:50, x : x + 16] = rng.integers(100, 255, 3, dtype=np.uint8)
        write_raw(folder / f"own_{number}.mp4", frames, rate=(16, 24)[number % 2])
    (folder / "notes.txt").write_text("no video")
    (folder / "broken.mp4").write_bytes(b"no video either")
    return folder


@slow
@pytest.mark.parametrize("source", ["generated", "hands", "robots"])
def test_own_folder_of_videos_runs_through(source, tmp_path):
    if source != "generated" and not (SHARED / source).is_dir():
        pytest.skip("no real videos beside the repository")
    videos = own_videos(tmp_path / "videos") if source == "generated" else SHARED / source
    folder = clone(tmp_path / "clone", {"ingest": {"source": "folder", "path": str(videos)}})
    text = dvc(folder, "repro")
    assert {"clip", "train_classifier", *AFTER_CLIPS} <= set(ran(text))
    listed = pl.read_parquet(folder / "data/manifest.parquet")
    assert len(listed) >= 2 and set(listed["source"]) == {"folder"} and {"train", "test"} == set(listed["split"])
    if source == "generated":
        assert len(listed) == 5
        assert "broken.mp4" in " ".join(pl.read_parquet(folder / "data/quarantine.parquet")["path"])
    assert "skipped" in json.loads((folder / "data/classifier/config.json").read_text())
    assert "skipped" in text, "what needs labels says so"
    judged = numbers(json.loads((folder / "metrics/evaluate.json").read_text()))
    assert judged["skipped"] == 1 and "quality.psnr" in judged and not any("paper" in key for key in judged)
    table = pl.read_parquet(folder / "data/rollout/rollouts.parquet")
    assert set(table["video"]) <= set(listed.filter(split="test")["id"]) and len(table)
    assert (folder / "report/index.html").is_file()
    assert not ran(dvc(folder, "repro"))
