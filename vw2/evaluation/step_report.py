"""How good is the step classifier itself? Its own accuracy, and what it says of real demonstrations (the ceiling).

Legend: M frames, C classes. Rows are those of vw2.training.frames.FrameSet, one a frame, with its truth.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from vw2.evaluation.intervals import bootstrap_mean, success_interval
from vw2.evaluation.labels import CLASSES, IGNORED
from vw2.evaluation.success import (
    N_STEPS,
    accuracy,
    expected_calibration_error,
    final_state,
    predict,
    step_targets,
    steps_reached,
    survival,
)
from vw2.worlds.paper import KEY_STEPS
from vw2.worlds.script import BLOCK_TASKS

Figures = dict[str, dict[str, float | int | None]]


def frame_figures(said: dict[str, np.ndarray], labels: np.ndarray, rows: pl.DataFrame, side: int, seed: int) -> Figures:
    """Accuracy of single frames at rest and errors of hand and angle, all with intervals by video.

    Args:
        said: what `StepClassifier.predict` returned for the M frames.
        labels: (M,) classes, IGNORED where a frame has none.
        rows: truth of the frames.
        side: of the picture in pixels, the unit of the hand's error.
    Returns: accuracy, chance (always the most frequent class), ece, environment.<name>, task.<name>,
        sensitivity.<class> (share of its frames that are found), specificity.<class> (share of the others' frames that
        are left alone), hand_error (pixels), hand_visible (share right), angle_error (degrees, while a flap moves).
    Raises: ValueError if no frame has a class.
    """
    known = labels != IGNORED
    if not known.any():
        raise ValueError("expected frames with a class, got none; the test split needs videos with truth")
    probabilities, videos = said["class"][known], rows["video"].to_numpy()
    classes, right = predict(probabilities), labels[known]
    figures = {"accuracy": accuracy(classes, right, videos[known])}
    most = np.bincount(right).argmax()
    figures["chance"] = accuracy(np.full_like(right, most), right, videos[known])
    for group in ("environment", "task"):
        names = rows[group].to_numpy()[known]
        for name in np.unique(names):
            own = names == name
            figures[f"{group}.{name}"] = accuracy(classes[own], right[own], videos[known][own])
    for number, name in enumerate(CLASSES):
        own, said_so = right == number, classes == number
        for key, hits, among in (("sensitivity", said_so, own), ("specificity", ~said_so, ~own)):
            if own.any() and among.any():
                figures[f"{key}.{name}"] = success_interval(hits[among], videos[known][among])
    told = rows["hand_visible"].is_not_null().to_numpy()  # a crop may have moved the hands: then nobody knows
    visible = rows["hand_visible"].fill_null(False).to_numpy()
    if told.any():
        right_hand = (said["visible"] > 0.5) == visible
        figures["hand_visible"] = success_interval(right_hand[told], videos[told])
    if visible.any():
        true = rows.select("hand_x", "hand_y").to_numpy()[visible]
        distance = np.linalg.norm(said["hand"][visible] - true, axis=1) * side
        figures["hand_error"] = bootstrap_mean(distance, videos[visible], seed)
    angle = rows["fold_angle"].to_numpy()
    if (angle > 0).any():
        turning = angle > 0
        error = np.abs(said["angle"] - angle)[turning]
        figures["angle_error"] = bootstrap_mean(error, videos[turning], seed)
    error = expected_calibration_error(probabilities, right)
    ece = {"value": error, "low": None, "high": None, "n": figures["accuracy"].n}
    return {name: estimate.as_dict() for name, estimate in figures.items()} | {"ece": ece}


def ceilings(classes: np.ndarray, rows: pl.DataFrame, hold: int) -> Figures:
    """What share of real demonstrations passes the rule in time (vw2.evaluation.success), steps in strict order?

    Args:    classes: (M,) predicted, of whole videos in order; hold: frames, that of evaluate.
    Returns: paper.step_1 ... paper.step_7 and blocks.tower|horse|person, as far as the rows hold such tasks.
    """
    reached: dict[str, int] = {}
    built: dict[str, dict[str, bool]] = {}
    numbered = rows.with_columns(said=pl.Series(classes, dtype=pl.Int64))
    for (video, task), own in numbered.group_by("video", "task", maintain_order=True):
        said = own.sort("shown")["said"].to_numpy()
        if task in KEY_STEPS:
            reached[video] = steps_reached(said, step_targets(task, CLASSES, N_STEPS), hold)
        elif task in BLOCK_TASKS:
            built.setdefault(task, {})[video] = final_state(said, CLASSES.index(task), hold)
    figures = {}
    if reached:
        steps = survival(list(reached.values()), list(reached), N_STEPS)
        figures |= {f"paper.step_{k}": each.as_dict() for k, each in enumerate(steps, 1)}
    for task, videos in sorted(built.items()):
        rate = success_interval(list(videos.values()), list(videos))
        figures[f"blocks.{task.removeprefix('block_')}"] = rate.as_dict()
    return figures


def confusion(labels: np.ndarray, classes: np.ndarray) -> pl.DataFrame:
    """One row (actual, predicted) per frame with a class: what DVC's `confusion` plot template counts."""
    known = labels != IGNORED
    names = np.array(CLASSES)
    return pl.DataFrame(
        {"actual": names[labels[known]], "predicted": names[classes[known]]},
        schema={"actual": pl.String, "predicted": pl.String},
    )
