"""Which class a frame of the craft world belongs to: the classifier's names and the labelling rule.

The rule is fixed beforehand (our choice; the paper does not tell how frames at a step's boundary were labelled):

- A frame in which a flap or a block is in motion (truth column `busy`) has no class. It is used neither to train the
  class head nor to measure accuracy.
- Every other frame has one, also while a hand approaches, holds or leaves and hides part of the scene. The class is
  what has been completed by then:
    step -1 (a wrong step was made, or one was left out)       failed
    paper, step 0                                              paper_0 (a flat sheet does not tell what it will become)
    paper, step k from 1 on                                    <task>_k, such as paper_boat_3
    blocks, not all of them placed                             blocks_open
    blocks, all placed                                         the task: block_tower, block_horse, block_person

Nothing else is looked at: not the split, not the frames before or after.
"""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import ArrayLike

from vw2.worlds.paper import KEY_STEPS
from vw2.worlds.script import BLOCK_TASKS

IGNORED = -1  # label of a frame without a class
FLAT, OPEN, FAILED = "paper_0", "blocks_open", "failed"
CLASSES: tuple[str, ...] = (
    FLAT,
    *(f"{task}_{step + 1}" for task, steps in KEY_STEPS.items() for step in range(len(steps))),
    OPEN,
    *BLOCK_TASKS,
    FAILED,
)


def class_name(task: str, step: int) -> str:
    """Name of the class of a frame at rest (rule in the module docstring).

    Args:    task: of the craft world; step: key steps or blocks completed, -1 after a mistake.
    Raises:  ValueError for a task or step the world does not have.
    """
    total = len(KEY_STEPS.get(task) or BLOCK_TASKS.get(task) or ())
    if not total or not -1 <= step <= total:
        known = ", ".join([*KEY_STEPS, *BLOCK_TASKS])
        raise ValueError(f"expected a task of {known} and a step from -1 to {total}, got {task!r} and {step}")
    if step == -1:
        return FAILED
    if task in BLOCK_TASKS:
        return task if step == total else OPEN
    return f"{task}_{step}" if step else FLAT


def label_frames(task: ArrayLike, step: ArrayLike, busy: ArrayLike) -> np.ndarray:
    """Class number of every frame, IGNORED (-1) where it has none (rule in the module docstring).

    Args:    task: (M,) str; step: (M,) int; busy: (M,) bool, all of the ground truth.
    Returns: (M,) int64, numbers into CLASSES.
    Raises:  ValueError for a task or step the world does not have, or unequal lengths.
    """
    task, step, busy = np.asarray(task, dtype=str), np.asarray(step, np.int64), np.asarray(busy, bool)
    if not task.shape == step.shape == busy.shape or task.ndim != 1:
        raise ValueError(
            f"expected task, step and busy of one shape (M,), got {task.shape}, {step.shape}, {busy.shape}"
        )
    if not len(task):
        return np.zeros(0, np.int64)
    states = np.stack([np.unique(task, return_inverse=True)[1], step], 1)
    _, first, where = np.unique(states, axis=0, return_index=True, return_inverse=True)
    numbers = [CLASSES.index(class_name(str(task[i]), int(step[i]))) for i in first]
    return np.where(busy, IGNORED, np.array(numbers, np.int64)[where.reshape(-1)])


def label_rows(rows: pl.DataFrame) -> np.ndarray:
    """`label_frames` of a table with the columns task, step and busy."""
    return label_frames(rows["task"].to_numpy(), rows["step"].to_numpy(), rows["busy"].to_numpy())
