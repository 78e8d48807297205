"""Train the judge: which key step does a frame show, where is the hand, how far is the flap turned?

In:  data/clips, data/truth.parquet, data/manifest.parquet, data/prior (its VAE); params groups seed, compute,
     classifier, prior.model and evaluate.hold. Trained on the splits train and fail, as they are and (every
     `vae_every`-th clip) as the VAE gives them back; measured on the split test, whose appearance families no training
     frame has.
Out: data/classifier/{classifier.safetensors,config.json}, metrics/train_classifier.json, plots/train_classifier (one
     TSV per logged number), plots/confusion.csv (a row per test frame). Which frame has which class:
     vw2/evaluation/labels.py. Without truth (own videos) the stage says so and writes config.json with `skipped`.
     `ceiling.*` is what the judge makes of all real test videos: steps in strict order, every frame decided. Of those
     that were rolled out, and by the whole rule of the group evaluate, the control ground_truth of evaluate tells it.
Time and memory at the committed sizes: 1 to 3 minutes on two cores, 6 GiB (mapped clips among it). Expect
accuracy of 0.98 on unseen appearance.
Tiny run: python -m stages.preset smoke && python -m stages.train_classifier (after ingest, clip and the prior)
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import polars as pl
import torch
import typer

from vw2 import params as parameters
from vw2.closure import import_closure
from vw2.console import UserError, console, run, table
from vw2.data import manifest
from vw2.data.shards import ClipStore
from vw2.evaluation.labels import CLASSES
from vw2.evaluation.step_report import confusion
from vw2.files import read_json, read_table, write_json
from vw2.models.classifier import StepClassifier, load_classifier
from vw2.models.prior import Prior, PriorModelConfig
from vw2.provenance import anew, check_record, runtime, write_metrics
from vw2.scratch import atomic_dir, atomic_file, clear, fingerprint, scratch_dir
from vw2.training.classifier import TrainConfig, judge, train
from vw2.training.compute import ComputeConfig, start
from vw2.training.curves import write_curves
from vw2.training.frames import FrameSet, frame_rows, real_frames, vae_frames

CLIPS = Path("data/clips")
TRUTH = Path("data/truth.parquet")
MANIFEST = Path("data/manifest.parquet")
PRIOR = Path("data/prior")
OUT = Path("data/classifier")
PLOTS = Path("plots/train_classifier")
CONFUSION = Path("plots/confusion.csv")
ROOT = Path(__file__).parents[1]
TRAIN, TEST = ("train", "fail"), ("test",)


def collect(
    splits: Sequence[str],
    truth: pl.DataFrame,
    config: TrainConfig,
    prior: PriorModelConfig,
    folder: Path,
    device: torch.device,
) -> tuple[FrameSet, FrameSet | None]:
    """Frames of some splits with their truth: as they are, and through the VAE (None if that is switched off)."""
    store = ClipStore(CLIPS)
    rows = frame_rows(store, truth, manifest.read(MANIFEST), splits)
    if not len(rows):
        raise UserError(f"expected videos of the splits {', '.join(splits)} with truth, got none; add some to craft.*")
    size, name = config.model.size, splits[0]
    real = real_frames(store, rows, size, folder / f"{name}.npy")
    if not config.vae_every:
        return real, None
    made = read_json(PRIOR / "config.json")["model"]
    check_record(made, asdict(prior), "prior.model", anew("pretrain_prior"))
    vae = Prior(prior).load(PRIOR).vae.to(device).eval()
    return real, vae_frames(store, rows, vae, config.vae_every, size, folder / f"{name}_vae.npy", device)


def write_plots(history: list[dict[str, float]], frames: pl.DataFrame) -> None:
    """Learning curves, and the table of `confusion` as CSV."""
    write_curves(history, PLOTS)
    with atomic_file(CONFUSION) as temporary:
        frames.write_csv(temporary)


def skip(reason: str, seed: int) -> None:
    """Outputs that say why there is no classifier, so that later stages can say so too."""
    with atomic_dir(OUT) as temporary:
        write_json(temporary / "config.json", {"skipped": reason})
    write_plots([], confusion(np.zeros(0, int), np.zeros(0, int)))
    write_metrics("train_classifier", {"skipped": 1}, seed=seed)
    console.print(f"no classifier: {reason}", markup=False)


def main(params: Path = typer.Option(Path("params.yaml"), help="Parameter file.")) -> None:
    """Train the step classifier and measure it on unseen appearance; skipped where the videos have no truth."""
    values = parameters.load(params)
    seed = values["seed"]
    config = parameters.build(TrainConfig, values["classifier"], "classifier")
    compute = parameters.build(ComputeConfig, values["compute"], "compute")
    prior = parameters.leaf(values, "prior.model", PriorModelConfig)
    if (hold := parameters.leaf(values, "evaluate.hold", int)) < 1:
        raise UserError(f"evaluate.hold must be at least 1, got {hold}; raise it")
    table("train_classifier", asdict(config) | {"classes": len(CLASSES), "evaluate.hold": hold})
    truth = read_table(TRUTH)
    if truth.is_empty():
        return skip("the videos have no ground truth, so success cannot be judged and is left out", seed)
    accelerator = start(compute, seed)
    used = {"seed": seed, "compute": compute, "classifier": config, "prior": prior}
    inputs = [CLIPS, TRUTH, MANIFEST, PRIOR] if config.vae_every else [CLIPS, TRUTH, MANIFEST]
    folder = scratch_dir("train_classifier", fingerprint(used, inputs, import_closure(Path(__file__), ROOT)))
    with runtime("train_classifier") as rates:
        device = accelerator.device
        model = StepClassifier(config.model, CLASSES).to(device)
        sets = [each for each in collect(TRAIN, truth, config, prior, folder, device) if each is not None]
        real, vae = collect(TEST, truth, config, prior, folder, device)
        work = train(accelerator, model, sets, config, seed, folder)
        with atomic_dir(OUT) as temporary:
            model.save(temporary, {"seed": seed, **asdict(config)})
        trained = load_classifier(OUT).to(device)
        figures, frames = judge(trained, real, vae, ClipStore(CLIPS).width, hold, seed)
        write_plots(work.history, frames)
        rates["frames_seen"] = config.optim.steps * config.optim.batch
    write_metrics("train_classifier", figures | {"train_frames": sum(map(len, sets))}, seed=seed)
    clear(folder)


if __name__ == "__main__":
    run(main)
