"""From one row per judged video to the figures of the benchmark, each with n and a 95 % interval by video.

Rows of VideoWorld 2 (or of the plain LDM) give `paper.*`, `blocks.*`, `quality.*`, `length.*`, `tasks.*` and `refused`
(how many videos the guardrail made black; they count as failures); those of a control the same below
`controls.<name>.`. All rollouts of a test case count; quality and pose are averaged over the
frames of a video, then over its rollouts, then over videos.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

from vw2.console import UserError
from vw2.evaluation.intervals import Estimate, bootstrap_mean, mean_by_video, success_interval
from vw2.evaluation.success import N_STEPS, conditional_success, mean_steps, survival
from vw2.files import read_table

COPY, CEILING = "copy_first_frame", "ground_truth"
CONTROLS = (CEILING, "ground_truth_codes", "shuffled_codes", "random_codes", COPY)
TIMED = (CEILING, "ground_truth_codes", COPY)  # these keep the time of the real video
BLOCKS = "block_"  # tasks judged by their final state: block_tower gives blocks.tower
ROLLOUTS = ("name", "video", "sample", "path", "refused")  # columns read of rollouts.parquet
RESULTS = {
    "name": pl.String,  # as in rollouts.parquet, or a control
    "video": pl.String,  # test case
    "sample": pl.Int32,  # rollout of the case, from 0
    "task": pl.String,
    "refused": pl.Boolean,  # by the guardrail: a black video, and nothing done
    "steps": pl.Int32,  # key steps reached in sequence; null for a task without
    "done": pl.Boolean,  # all steps, or the final state of a block task; null without labels
    "final": pl.String,  # what the classifier sees at the end
    "psnr": pl.Float64,  # dB
    "ssim": pl.Float64,
    "lpips": pl.Float64,
    "lpips_untrained": pl.Float64,
    "length": pl.Int32,  # frames
    "real_length": pl.Int32,
    "whole_length": pl.Int32,  # of the whole clips that hold the real video: a rollout ends with a clip
    "hand_px": pl.Float64,  # mean distance from the true hand, pixels of a picture 64 wide
    "hand_frames": pl.Int32,
    "angle_degrees": pl.Float64,  # mean distance from the true fold angle
    "angle_frames": pl.Int32,
}
Figures = dict[str, dict[str, float | int | None]]


def results_table(rows: Sequence[Mapping]) -> pl.DataFrame:
    """Judged videos as a table with the columns of RESULTS, sorted; what a row lacks is null."""
    return pl.DataFrame([dict(row) for row in rows], schema=RESULTS, orient="row").sort("name", "video", "sample")


def read_rollouts(folder: Path) -> pl.DataFrame:
    """The list of rollouts in a folder.

    Raises: UserError if it is missing or was written by another version.
    """
    path = Path(folder) / "rollouts.parquet"
    if not path.is_file():
        raise UserError(f"{path} does not exist; run `dvc repro rollout` first")
    frame = read_table(path)
    if missing := [name for name in ROLLOUTS if name not in frame.columns]:
        raise UserError(f"{path} lacks the column {missing[0]}; run `dvc repro rollout` again")
    return frame.select(ROLLOUTS)


def success_figures(part: pl.DataFrame) -> dict[str, Estimate]:
    """paper.step_1 ... paper.step_7, paper.mean_steps and blocks.<name> of the rows of one method."""
    found: dict[str, Estimate] = {}
    paper = part.filter(pl.col("steps").is_not_null())
    if len(paper):
        reached, videos = paper["steps"].to_numpy(), paper["video"].to_numpy()
        steps = survival(reached, videos, N_STEPS)
        found = {f"paper.step_{number}": step for number, step in enumerate(steps, 1)}
        found["paper.mean_steps"] = mean_steps(reached, videos, N_STEPS)
    blocks = part.filter(pl.col("steps").is_null() & pl.col("done").is_not_null())
    for task in sorted(blocks["task"].unique()):
        rows = blocks.filter(pl.col("task") == task)
        found[f"blocks.{task.removeprefix(BLOCKS)}"] = _rate(rows)
    return found


def own_figures(part: pl.DataFrame, seed: int) -> dict[str, Estimate]:
    """Further figures of the method itself: where the chain breaks, how each task fares, how long the videos are."""
    found: dict[str, Estimate] = {}
    paper = part.filter(pl.col("steps").is_not_null())
    if len(paper):
        links = conditional_success(paper["steps"].to_numpy(), paper["video"].to_numpy(), N_STEPS)
        found |= {f"paper.conditional.step_{k}": link for k, link in enumerate(links, 1) if link is not None}
    judged = part.filter(pl.col("done").is_not_null())
    for task in sorted(judged["task"].unique()):
        found[f"tasks.{task}"] = _rate(judged.filter(pl.col("task") == task))
    gap = (pl.col("length") - pl.col("whole_length")).abs()
    lengths = part.with_columns(pl.col("length", "real_length").cast(pl.Float64), gap=gap.cast(pl.Float64))
    for key, column in (("rollout", "length"), ("real", "real_length"), ("error", "gap")):
        found |= _means(lengths, {f"length.{key}": column}, seed)
    return found


def benchmark_figures(results: pl.DataFrame, seed: int) -> Figures:
    """All figures of a results table; what has no rows is left out.

    Raises: ValueError if rows of more than one method beside the controls are given.
    """
    names = results["name"].unique(maintain_order=True).to_list()
    if len(own := [name for name in names if name not in CONTROLS]) > 1:
        raise ValueError(f"expected rollouts of one method beside the controls, got {', '.join(own)}")
    found: Figures = {}
    for name in names:
        part = results.filter(pl.col("name") == name)
        measures = {f"quality.{key}": key for key in ("psnr", "ssim", "lpips", "lpips_untrained")}
        measures |= {f"pose.{key}": key for key in ("hand_px", "angle_degrees")}
        values = success_figures(part) | _means(part, measures, seed)
        prefix = f"controls.{name}." if name in CONTROLS else ""
        values |= {} if prefix else own_figures(part, seed)
        found |= {prefix + key: value.as_dict() for key, value in values.items()}
        if name not in (CEILING, COPY):  # these are not rendered
            count = int(part["refused"].sum())
            found[f"{prefix}refused"] = {"value": count, "low": None, "high": None, "n": len(part)}
    return found


def versus(results: pl.DataFrame, rival: pl.DataFrame, seed: int) -> Figures:
    """How far the rollouts of a method are above those of a rival on the same test cases, and how sure that is.

    What is hard about a case is hard for both, so differences by case tell more than two intervals side by side.

    Args: results, rival: results tables; their controls are left out, and test cases that only one of them has.
    Returns: mean differences of paper.step_*, blocks.* and quality.*, resampled by video; {} without a case in common.
    """
    keys = ("video", "task")
    both = _by_case(results).join(_by_case(rival), on=keys, suffix=" of the rival").sort(keys)
    found: Figures = {}
    for key in (column for column in both.columns if f"{column} of the rival" in both.columns):
        gaps = both.select("video", gap=pl.col(key) - pl.col(f"{key} of the rival")).drop_nulls()
        if len(gaps):
            found[key] = bootstrap_mean(gaps["gap"].to_numpy(), gaps["video"].to_numpy(), seed).as_dict()
    return found


def _by_case(results: pl.DataFrame) -> pl.DataFrame:
    """One row per test case: what its rollouts reach on average; null where a figure does not concern it."""
    own = results.filter(~pl.col("name").is_in(CONTROLS))
    parts = {f"paper.step_{k}": pl.col("steps") >= k for k in range(1, N_STEPS + 1)}
    ends = own.filter(pl.col("steps").is_null() & pl.col("done").is_not_null())["task"].unique().sort()
    parts |= {
        f"blocks.{task.removeprefix(BLOCKS)}": pl.when(pl.col("task") == task).then(pl.col("done")) for task in ends
    }
    parts |= {f"quality.{key}": pl.col(key) for key in ("psnr", "ssim", "lpips", "lpips_untrained")}
    means = (value.cast(pl.Float64).mean().alias(key) for key, value in parts.items())
    return own.group_by("video", "task").agg(*means)


def survival_rows(figures: Figures, own: str) -> list[dict[str, float | int | str | None]]:
    """Rows step, success, low, high, who for plots; `who` is `own` or a control."""
    rows = []
    for who, prefix in [(own, ""), *((name, f"controls.{name}.") for name in CONTROLS)]:
        for step in range(1, N_STEPS + 1):
            if figure := figures.get(f"{prefix}paper.step_{step}"):
                bounds = {key: figure[key] for key in ("low", "high")}
                rows.append({"step": step, "success": figure["value"], **bounds, "who": who})
    return rows


def _rate(rows: pl.DataFrame) -> Estimate:
    """Share of rollouts that are done."""
    return success_interval(rows["done"].to_numpy(), rows["video"].to_numpy())


def _means(part: pl.DataFrame, columns: Mapping[str, str], seed: int) -> dict[str, Estimate]:
    """Mean over videos of the given columns (key -> column), of those that have values."""
    found = {}
    for key, column in columns.items():
        known = part.filter(pl.col(column).is_not_null())
        if len(known):
            means = mean_by_video(known[column].to_numpy(), known["video"].to_numpy())
            found[key] = bootstrap_mean(*means, seed)
    return found
