"""What was collected, at a glance: counts, histograms, and a chart like figures 9 and 10 of VideoWorld 2."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from vw2.data.manifest import Refused
from vw2.files import locate
from vw2.scratch import atomic_file

BARS = 24  # most tasks in the chart; the rest is one bar
KINDS = 12  # most rates, sizes and reasons counted one by one


def kind(reason: str) -> str:
    """What several reasons of a refusal have in common, as part of a metric's name: no figures, names or details."""
    general = re.sub(r"[\"'(:;,].*", "", reason)
    return "_".join(re.findall(r"[a-z]+", general.lower())[:6]) or "other"


def histogram(values: Iterable[str]) -> dict[str, int]:
    """How often each value comes, the most frequent first; rare ones together as `other`."""
    counts = sorted(Counter(values).items(), key=lambda pair: (-pair[1], pair[0]))
    rare = sum(count for _, count in counts[KINDS:])
    return dict(counts[:KINDS]) | ({"other": rare} if rare else {})


def summary(frame: pl.DataFrame, refused: Sequence[Refused]) -> dict[str, float]:
    """Numbers for metrics/ingest.json.

    Args:    frame: a manifest; refused: files that were not taken.
    Returns: videos, tasks, frames, hours, bytes, refused, and dotted counts split.*, refused_for.*, fps.*, size.*; of a
        mixture also videos_of.<source>, and share_of.<source>, how often training on all of it draws from the source.
    """
    values = {
        "videos": len(frame),
        "tasks": frame["task"].n_unique(),
        "frames": int(frame["frames"].sum()),
        "hours": float((frame["frames"] / frame["fps"]).sum() / 3600),
        "bytes": sum(locate(path).stat().st_size for path in frame["path"].unique()),
        "refused": len(refused),
    }
    groups = {"split": frame["split"], "refused_for": (kind(each.reason) for each in refused)}
    counts = {f"{group}.{name}": n for group, names in groups.items() for name, n in histogram(names).items()}
    return values | counts | taken(frame)


def taken(frame: pl.DataFrame) -> dict[str, int]:
    """How many videos of a manifest have which rate and size: dotted counts fps.*, size.*."""
    groups = {
        "fps": (f"{fps:.2f}".rstrip("0").rstrip(".").replace(".", "_") for fps in frame["fps"]),
        "size": (f"{width}x{height}" for width, height in frame.select("width", "height").iter_rows()),
    }
    counts = {f"{group}.{name}": n for group, names in groups.items() for name, n in histogram(names).items()}
    if frame["source"].n_unique() > 1:
        sources = frame.group_by("source").agg(pl.len().alias("videos"), pl.col("weight").first()).sort("source")
        counts |= {f"videos_of.{name}": n for name, n in sources.select("source", "videos").iter_rows()}
        shares = sources.select("source", pl.col("weight") / pl.col("weight").sum())
        counts |= {f"share_of.{name}": share for name, share in shares.iter_rows()}
    return counts


def write_chart(path: Path, frame: pl.DataFrame) -> None:
    """A PNG: how long the videos are (fig. 9), and how much of them each task is (fig. 10)."""
    from matplotlib.figure import Figure  # here, so that worker processes that count need not load it

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    seconds = (frame["frames"] / frame["fps"]).to_numpy()
    edges = np.histogram_bin_edges(seconds, bins=min(40, max(1, len(seconds))))
    splits = frame["split"].unique().sort().to_list()
    parts = [seconds[(frame["split"] == split).to_numpy()] for split in splits]
    left.hist(parts, bins=edges, stacked=True, label=splits)
    left.set(title=f"{len(frame)} videos, {seconds.sum() / 3600:.2f} hours", xlabel="seconds", ylabel="videos")
    left.legend(frameon=False)
    shares = frame["task"].value_counts().sort("count", "task", descending=[True, False])
    names, counts = shares["task"].to_list()[:BARS], shares["count"].to_list()[:BARS]
    if len(shares) > BARS:
        names, counts = [*names, "other"], [*counts, int(shares["count"][BARS:].sum())]
    right.barh(range(len(names)), [100 * count / len(frame) for count in counts])
    right.set(title="Share of each task", xlabel="percent of videos", yticks=range(len(names)))
    right.set_yticklabels(names, parse_math=False)  # a name may hold dollars
    right.invert_yaxis()
    with atomic_file(Path(path)) as temporary:
        figure.savefig(temporary, format="png", dpi=90, metadata={"Software": None})
