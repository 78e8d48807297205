"""Latent dynamics codes on disk: what `extract_codes` writes and everything after it reads.

codes.parquet   CODES: one row per code, sorted by video, clip, step, query
codes.json      levels of the quantiser, K steps of a clip, N queries of a step

Legend: K steps (transitions) of a clip, N queries.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import polars as pl

from vw2.console import UserError
from vw2.files import read_json, read_table, write_json

CODES = {
    "video": pl.String,
    "split": pl.String,
    "clip": pl.Int32,  # number within the video, from 0
    "step": pl.Int32,  # transition within the clip, from 0
    "query": pl.Int32,
    "code": pl.Int32,  # in [0, codebook)
}
ORDER = ["video", "clip", "step", "query"]


@dataclass(frozen=True)
class CodesInfo:
    """Facts of a codes folder, kept in codes.json."""

    levels: tuple[int, ...]  # of the quantiser; their product is the codebook
    steps: int  # K
    queries: int  # N


class CodeStore:
    """The codes of all videos.

    Attributes: frame (polars, columns of CODES), info (CodesInfo).
    """

    def __init__(self, frame: pl.DataFrame, info: CodesInfo) -> None:
        self.frame, self.info = frame, info
        shape = (-1, info.steps, info.queries)
        self._split = dict(frame.group_by("video", maintain_order=True).first().select("video", "split").iter_rows())
        parts = frame.partition_by("video", maintain_order=True, include_key=True)
        self._codes = {part["video"][0]: part["code"].to_numpy().astype(np.int64).reshape(shape) for part in parts}

    def videos(self, *splits: str) -> list[str]:
        """Ids of the videos of some splits (of all by default), sorted."""
        return [video for video, split in self._split.items() if not splits or split in splits]

    def __getitem__(self, video: str) -> np.ndarray:
        """(clips, K, N) int64 codes of a video. Raises: KeyError for an unknown id."""
        return self._codes[video]

    def __contains__(self, video: str) -> bool:
        return video in self._codes

    def stacked(self, videos: Collection[str]) -> np.ndarray:
        """(clips of all of them, K, N) int64."""
        return np.concatenate([self._codes[video] for video in videos])


def write_codes(folder: Path, clips: pl.DataFrame, codes: np.ndarray, info: CodesInfo) -> CodeStore:
    """Write codes.parquet and codes.json into an existing folder (use `vw2.scratch.atomic_dir`).

    Args:
        clips: columns video, split, clip, one row per clip in any order.
        codes: (clips, K, N) int in [0, codebook), in the same order.
        info: levels, K and N.
    Raises: ValueError if the shapes do not agree or a code lies outside the codebook.
    """
    codebook = math.prod(info.levels)
    if codes.shape != (len(clips), info.steps, info.queries):
        raise ValueError(f"expected codes ({len(clips)}, {info.steps}, {info.queries}), got {codes.shape}")
    if codes.size and not 0 <= codes.min() <= codes.max() < codebook:
        raise ValueError(f"expected codes in [0, {codebook}), got {codes.min()} to {codes.max()}")
    row, step, query = (axis.reshape(-1) for axis in np.indices(codes.shape))
    frame = clips.select("video", "split", "clip")[row].with_columns(step=step, query=query, code=codes.reshape(-1))
    frame = frame.select(pl.col(name).cast(kind) for name, kind in CODES.items()).sort(ORDER)
    frame.write_parquet(folder / "codes.parquet")
    write_json(folder / "codes.json", asdict(info))
    return CodeStore(frame, info)


def read_codes(folder: Path) -> CodeStore:
    """Read a folder written by `write_codes`.

    Raises: UserError if it is missing, written by another version, or incomplete.
    """
    for name in ("codes.parquet", "codes.json"):
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} does not exist; run `dvc repro extract_codes` first")
    facts = read_json(folder / "codes.json")
    info = CodesInfo(tuple(facts["levels"]), facts["steps"], facts["queries"])
    frame = read_table(folder / "codes.parquet")
    if dict(frame.schema) != CODES or len(frame) % (info.steps * info.queries):
        raise UserError(f"{folder}/codes.parquet was written by another version; run `dvc repro extract_codes` again")
    return CodeStore(frame, info)
