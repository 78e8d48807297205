"""One video on the bench: what was done in it, and how close it came to the real video of its test case.

A rollout is told from its test case by three questions. Success: which key steps, or which final state, does the
classifier see (vw2.evaluation.success)? Quality: how close are the pixels (vw2.evaluation.quality)? Pose: where a
rendered video keeps the time of the real one, how far are hand and flap from where they truly were?

Legend: F frames, H W pixels, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import polars as pl

from vw2.console import UserError
from vw2.data.frame_rate import source_index
from vw2.evaluation.quality import Perceptual, align, lpips_distance, video_quality
from vw2.evaluation.success import N_STEPS, Order, final_state, predict, step_targets, steps_reached
from vw2.media.decode import MediaError, read_video

HAND_SIDE = 64  # hand distances are given in pixels of a picture this wide, whatever the clips' size
UNCLEAR = "unclear"  # final state that does not hold


@dataclass(frozen=True)
class EvaluateConfig:
    """Group `evaluate` of params.yaml; the rules it sets are in vw2.evaluation.success."""

    hold: int = 3  # frames a class must last
    order: Order = "strict"  # a key step before its turn ends the count, or is overlooked
    threshold: float = 0.0
    lpips_every: int = 4  # every n-th frame is measured
    lpips_weights: Path | None = None

    def __post_init__(self) -> None:
        for key, value in (("hold", self.hold), ("lpips_every", self.lpips_every)):
            if value < 1:
                raise ValueError(f"evaluate.{key} must be at least 1, got {value}; raise it")
        if not 0 <= self.threshold < 1:
            raise ValueError(f"evaluate.threshold must lie in [0, 1), got {self.threshold}; 0 decides every frame")


class Classifier(Protocol):
    """What is asked of a step classifier (vw2.models.classifier.StepClassifier)."""

    names: Sequence[str]

    def predict(self, frames: np.ndarray) -> dict[str, np.ndarray]:
        """(F, H, W, 3) uint8 -> class (F, C) probabilities, hand (F, 2) x, y in [0, 1], angle (F,) degrees."""


@dataclass(frozen=True)
class Case:
    """A test case: the real video, and where hand and flap are in it (NaN: no hand in the picture, no flap turning)."""

    video: str
    task: str
    frames: np.ndarray  # (F, H, W, 3) uint8
    hand: np.ndarray  # (F, 2) x, y in [0, 1] of the picture
    angle: np.ndarray  # (F,) degrees in (0, 180)
    length: int  # frames of the whole clips that hold the video: as a rollout ends with a clip, what it should have


def make_case(
    video: str, task: str, frames: np.ndarray, length: int, truth: pl.DataFrame, source_fps: float, fps: float
) -> Case:
    """Join a real video, cut at `fps`, with its ground truth, one row per frame at `source_fps`.

    Args:
        frames: (F, H, W, 3) uint8.
        length: frames of the whole clips that hold it.
        truth: rows of this video from data/truth.parquet; none if there is no ground truth.
    """
    hand, angle = np.full((len(frames), 2), np.nan), np.full(len(frames), np.nan)
    truth = truth.sort("frame")
    seen = [source_index(j, source_fps, fps) for j in range(len(frames))]
    shown = [(j, number) for j, number in enumerate(seen) if number < len(truth)]
    if shown:
        here, there = map(list, zip(*shown, strict=True))
        visible = truth["hand_visible"].to_numpy()[there]
        hand[here] = np.where(visible[:, None], truth.select("hand_x", "hand_y").to_numpy()[there], np.nan)
        turned = truth["fold_angle"].to_numpy()[there]
        angle[here] = np.where(turned > 0, turned, np.nan)  # a flap is in the air at every angle but 0
    return Case(video, task, frames, hand, angle, length)


def look(classifier: Classifier, frames: np.ndarray) -> dict[str, np.ndarray]:
    """The classifier's view of a video; a still video is looked at once."""
    if len(frames) > 1 and (frames == frames[:1]).all():
        return {key: np.repeat(value, len(frames), 0) for key, value in classifier.predict(frames[:1]).items()}
    return classifier.predict(frames)


def outcome(
    pred: np.ndarray, task: str, names: Sequence[str], hold: int, order: Order = "strict"
) -> dict[str, int | bool | str]:
    """What was achieved: "done", "final" (state at the end) and, for a task with key steps, "steps" reached in order.

    Args:    pred: (F,) class per frame, F >= 1; task: as in the manifest; names: the C classes.
    Returns: "final" alone for a task that the classifier does not know.
    """
    last = int(pred[-1])
    clear = last >= 0 and final_state(pred, last, hold)
    found: dict[str, int | bool | str] = {"final": names[last] if clear else UNCLEAR}
    if f"{task}_1" in names:
        found["steps"] = steps_reached(pred, step_targets(task, names, N_STEPS), hold, order)
        found["done"] = found["steps"] == N_STEPS
    elif task in names:
        found["done"] = final_state(pred, list(names).index(task), hold)
    return found


def pose_error(found: dict[str, np.ndarray], case: Case) -> dict[str, float | int]:
    """Mean distance of hand and flap from the truth, over the frames after the first that have a truth.

    Returns: hand_px (pixels of a picture 64 wide), hand_frames, angle_degrees, angle_frames; a mean without any frame
             is left out.
    """
    end = min(len(found["angle"]), len(case.frames))
    hand = np.linalg.norm(found["hand"][1:end] - case.hand[1:end], axis=1) * HAND_SIDE
    angle = np.abs(found["angle"][1:end] - case.angle[1:end])
    errors: dict[str, float | int] = {}
    for mean, number, values in (("hand_px", "hand_frames", hand), ("angle_degrees", "angle_frames", angle)):
        known = values[np.isfinite(values)]
        errors[number] = len(known)
        if len(known):
            errors[mean] = float(known.mean())
    return errors


def undone(row: Mapping) -> dict[str, int | bool | str]:
    """The outcome of a video that the guardrail made black: nothing was done, whatever the classifier takes it for."""
    nothing = {"steps": 0, "done": False, "final": UNCLEAR}
    return {key: value for key, value in nothing.items() if key in row}


def quality_of(frames: np.ndarray, case: Case, perceptual: Perceptual | None, every: int) -> dict[str, float]:
    """psnr, ssim and, given a perceptual model, lpips or lpips_untrained over every n-th frame; {} of a lone frame."""
    if min(len(frames), len(case.frames)) < 2:
        return {}
    scores = video_quality(frames, case.frames)
    if perceptual is not None:
        name, model = perceptual
        a, b = align(frames, case.frames)
        scores[name] = float(lpips_distance(a[::every], b[::every], model).mean())
    return scores


def judge_video(
    frames: np.ndarray,
    case: Case,
    classifier: Classifier | None,
    config: EvaluateConfig,
    perceptual: Perceptual | None = None,
    timed: bool = False,
    refused: bool = False,
) -> dict:
    """All that is asked of one video; keys that do not apply are left out.

    Args:
        frames: (F, H, W, 3) uint8, the size of the case's; the case's own frames for the ceiling, without quality.
        classifier: None where there were no labels to train it on: quality alone.
        timed: the video keeps the real one's time, so that its pose can be held against the truth.
        refused: the guardrail left the video black: it counts as a failure.
    Returns: length, real_length, whole_length, refused; steps, done, final; psnr, ssim, lpips; hand_px, angle_degrees
        and their frames.
    """
    row: dict = {"length": len(frames), "real_length": len(case.frames), "whole_length": case.length}
    row["refused"] = refused
    if frames is not case.frames:
        row |= quality_of(frames, case, perceptual, config.lpips_every)
    if classifier is not None:
        found = look(classifier, frames)
        row |= outcome(
            predict(found["class"], config.threshold), case.task, classifier.names, config.hold, config.order
        )
        row |= undone(row) if refused else {}
        row |= pose_error(found, case) if timed else {}
    return row


def read_rollout(path: Path, like: np.ndarray) -> np.ndarray:
    """(F, H, W, 3) uint8. Raises: UserError if it is damaged or not of the size of the real video `like`."""
    try:
        frames = read_video(path)
    except MediaError as error:
        raise UserError(f"{path} {error}; run `dvc repro rollout` again") from error
    if frames.shape[1:] != like.shape[1:]:
        sizes = "x".join(map(str, frames.shape[2:0:-1])), "x".join(map(str, like.shape[2:0:-1]))
        raise UserError(f"{path} is {sizes[0]} but the clips are {sizes[1]}; run `dvc repro rollout` again")
    return frames
