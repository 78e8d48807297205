"""Put figures and pictures of a run on one page, and the rollouts that went wrong on a sheet.

In:  metrics/*.json, metrics/detail (intervals), plots/*.png, data/evaluate/results.parquet, data/rollout, data/clips.
     --variant plain_ldm: metrics/plain_ldm/*.json, plots/plain_ldm/*.png, data/plain_ldm/...; the figures of
     VideoWorld 2 then stand beside those of the plain LDM, with the differences by test case.
Out: report/index.html (self-contained), plots/failures.png (per task the worst rollouts below their real videos).
     --variant plain_ldm: report/plain_ldm/index.html, plots/plain_ldm/failures.png.
Parts that a run does not have (labels, a stage) are left out. Takes seconds.
Tiny run: python -m stages.preset smoke && dvc repro report
"""

from pathlib import Path

import numpy as np
import polars as pl
import typer

from vw2.console import UserError, run, say
from vw2.data.shards import ClipStore
from vw2.evaluation.benchmark import CONTROLS, read_rollouts
from vw2.evaluation.report import page, read_details, verdict, worst
from vw2.evaluation.videos import read_rollout
from vw2.files import read_table
from vw2.media.sheet import write_sheet
from vw2.scratch import atomic_file
from vw2.variant import Variant, paths

CLIPS = Path("data/clips")
RESULTS = Path("data/evaluate")
METRICS = Path("metrics")
PLOTS = Path("plots")
OUT = Path("report")
PER_TASK = 2  # failures shown of each task
TASKS = 8  # most tasks on the sheet: own folders may have many
STAGES = ("evaluate", "compare", "train_dldm", "warmup_dldm", "extract_codes", "train_ar", "train_classifier") + (
    "pretrain_vdm",
    "pretrain_ldm",
    "pretrain_prior",
    "clip",
    "ingest",
)
TITLES = {"vw2": "VideoWorld 2", "plain_ldm": "Plain LDM (no video diffusion model)"}
# Pictures and figures that both variants have.
SHARED = ("ingest", "pretrain_prior", "pretrain_ldm", "warmup_dldm", "train_classifier")
PICTURES = {
    "rollout": "Rollouts: codes written by the AR transformer from one unseen first frame, rendered clip by clip.",
    "evaluate": "Success by key step, final states and PSNR, each with its controls; bands and bars are 95 % by video.",
    "failures": "What goes wrong: for each task the worst rollouts, below the real video of the same first frame.",
    "train_dldm": "Clips of unseen appearance: real, coarse, rendered with their own and with another clip's codes.",
    "warmup_dldm": "After the warm-up: real clips and what the coarse decoder makes of their codes.",
    "train_dldm_codes": "Health of the codes: entropy of each step, and of each digit of each query.",
    "pretrain_vdm": "Purposeless clips: real, coarse, drawn from noise by the taught VDM with own and another's codes.",
    "pretrain_ldm": "Purposeless clips kept out of pretraining: real, coarse, with own and with another clip's codes.",
    "pretrain_prior": "The frozen prior: real clips, their reconstruction, and samples from the first frame alone.",
    "ingest": "The videos: one of each task.",
}


def failure_rows(results: pl.DataFrame, rollout: Path) -> list[tuple[str, np.ndarray]]:
    """Rows of the contact sheet: the real video, then the worst rollouts of a task."""
    bad = worst(results, CONTROLS, PER_TASK)
    shown = set(bad["task"].unique(maintain_order=True).to_list()[:TASKS])
    files = {(name, video, sample): path for name, video, sample, path, _ in read_rollouts(rollout).iter_rows()}
    store = ClipStore(CLIPS)
    rows = []
    for row in bad.iter_rows(named=True):
        if row["task"] in shown:
            path, real = rollout / files[row["name"], row["video"], row["sample"]], store.video(row["video"])
            frames = read_rollout(path, real)
            rows += [(f"{row['task']}: {row['video']}, real", real), (verdict(row), frames)]
    return rows or [("no rollouts", np.full((1, 64, 64, 3), 255, np.uint8))]


def main(variant: Variant = typer.Option("vw2", help="Whose run: VideoWorld 2's, or the plain LDM's.")) -> None:
    """Write the report of a run and the sheet of its failures."""
    place = paths(variant)
    results = (RESULTS if variant == "vw2" else place.rollout.with_name(RESULTS.name)) / "results.parquet"
    if not results.is_file():
        raise UserError(f"{results} does not exist; run `dvc repro evaluate` first")
    write_sheet(place.plots / "failures.png", failure_rows(read_table(results), place.rollout))
    details, rival = read_details(METRICS, STAGES, place.metrics_prefix), None
    if variant != "vw2":
        everything = read_details(METRICS, STAGES)
        details |= {key: leaf for key, leaf in everything.items() if key.split(":")[0] in SHARED}
        rival = (TITLES["vw2"], {key: leaf for key, leaf in everything.items() if key.split(":")[0] not in SHARED})
    pictures = {(PLOTS if name in SHARED else place.plots) / f"{name}.png": text for name, text in PICTURES.items()}
    out = OUT / place.metrics_prefix / "index.html"
    with atomic_file(out) as temporary:
        temporary.write_text(page(TITLES[variant], details, pictures, rival), encoding="utf-8")
    say(f"report: {out}")


if __name__ == "__main__":
    run(main)
