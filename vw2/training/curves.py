"""Learning curves as DVC plots them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import polars as pl

from vw2.scratch import atomic_dir


def write_curves(history: Iterable[Mapping[str, float]], folder: Path) -> None:
    """One TSV (step, value) per series, in sub-folders where its name has slashes, as dvclive lays them out.

    They come from the history in the checkpoint, not from dvclive's own files: those get the steps between the last
    checkpoint and a crash twice, so an interrupted run would not end in the same bytes.

    Args:
        history: rows {"step": ..., "loss": ..., "train/recon": ...}, as in Run.history; a row may lack a series.
        folder: its place is taken whole.
    """
    rows = list(history)
    names = sorted({name for row in rows for name in row} - {"step"})
    with atomic_dir(folder) as temporary:
        for name in names:
            path = temporary / f"{name}.tsv"
            path.parent.mkdir(parents=True, exist_ok=True)
            series = [(row["step"], row[name]) for row in rows if name in row]
            frame = pl.DataFrame(series, schema=["step", path.stem], orient="row")
            frame.write_csv(path, separator="\t", float_precision=6, float_scientific=False)
