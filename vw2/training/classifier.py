"""Training of the step classifier, and its judgement, on frames as they are and as the VAE gives them back."""

from dataclasses import dataclass
from pathlib import Path

import polars as pl
from accelerate import Accelerator

from vw2.data.sampler import batch_indices
from vw2.evaluation.labels import label_rows
from vw2.evaluation.step_report import Figures, ceilings, confusion, frame_figures
from vw2.models.classifier import ClassifierConfig, StepClassifier
from vw2.streams import Stream
from vw2.training.augment import AugmentConfig, augment
from vw2.training.compute import generator
from vw2.training.frames import FrameSet, frame_targets, make_batch
from vw2.training.run import Group, OptimConfig, Run


@dataclass(frozen=True)
class TrainConfig:
    """Group `classifier` of params.yaml."""

    vae_every: int  # every n-th clip is also seen through the VAE; 0 = none
    optim: OptimConfig
    augment: AugmentConfig
    model: ClassifierConfig

    def __post_init__(self):
        if self.vae_every < 0:
            raise ValueError(f"classifier.vae_every must be at least 0, got {self.vae_every}; raise it")


def train(
    accelerator: Accelerator,
    model: StepClassifier,
    sets: list[FrameSet],
    config: TrainConfig,
    seed: int,
    work: Path,
) -> Run:
    """All steps, resumed from work/run; a step's frames are a function of (seed, step).

    Args: sets: frames with their truth, drawn from as if they were one.
    """
    targets = [frame_targets(each.rows, label_rows(each.rows)) for each in sets]
    total = sum(map(len, sets))
    loop = Run(accelerator, [Group(model)], config.optim, work / "run", "train the classifier")
    model.train()
    for step in loop:
        batch = make_batch(sets, targets, batch_indices(seed, step, config.optim.batch, total))
        batch = augment(batch, config.augment, generator(seed, Stream.AUGMENT, step))
        with accelerator.autocast():
            loss, logs = model(batch.to(accelerator.device))
        loop.update(loss, logs)
    return loop


def judge(
    model: StepClassifier, real: FrameSet, vae: FrameSet | None, side: int, hold: int, seed: int
) -> tuple[Figures, pl.DataFrame]:
    """All figures of a classifier on frames it has not seen.

    Args:
        real: all frames of whole videos; vae: some of them as the VAE gives them back, or None.
        side: of the clips' pictures, pixels; hold: see `ceilings`.
    Returns: those of `frame_figures`, `ceiling.*`, with vae also accuracy_vae, hand_error_vae and angle_error_vae;
        and the table of `confusion`.
    """
    said, labels = model.predict(real.pixels), label_rows(real.rows)
    classes = said["class"].argmax(1)
    figures = frame_figures(said, labels, real.rows, side, seed)
    figures |= {f"ceiling.{key}": value for key, value in ceilings(classes, real.rows, hold).items()}
    if vae is not None:
        passed = frame_figures(model.predict(vae.pixels), label_rows(vae.rows), vae.rows, side, seed)
        names = ("accuracy", "hand_error", "angle_error")
        figures |= {f"{name}_vae": passed[name] for name in names if name in passed}
    return figures, confusion(labels, classes)
