"""Codes to and from the authors' file: a .pt with {stem of the video: (clips, K N) integers}, step-major (release).

Legend: K steps of a clip, N queries a step; the release has K N = 92.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl
import torch

from vw2.console import UserError
from vw2.data.codes import CodesInfo, CodeStore, write_codes
from vw2.interop.checkpoints import first_line
from vw2.scratch import atomic_dir, atomic_file


def export_codes(store: CodeStore, path: Path, *splits: str) -> None:
    """Write the codes of some splits (of all by default) as int32 tensors (clips, K N) by video id.

    Raises: UserError if there is no such video.
    """
    videos = store.videos(*splits)
    if not videos:
        raise UserError(f"there is no video of split {', '.join(splits)} to export codes of; choose another split")
    tree = {each: torch.from_numpy(store[each].astype(np.int32)).flatten(1) for each in videos}
    with atomic_file(path) as temporary:
        torch.save(tree, temporary)


def read_release_codes(path: Path, steps: int, queries: int, codebook: int) -> dict[str, np.ndarray]:
    """The authors' file -> (clips, K, N) int64 by stem; tensors and nested lists of integers of any width will do.

    Raises: UserError if the file is missing or broken, or holds anything else than such codes.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist; check the path")
    try:
        tree = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise UserError(
            f"{path} is no file of plain tensors ({first_line(error)}); expected a dictionary of code tensors"
        ) from None
    if not isinstance(tree, Mapping) or not tree:
        raise UserError(f"expected {path} to hold codes by video, got a {type(tree).__name__}; check the file")
    return {str(stem): _codes(value, f"{path}: {stem}", steps, queries, codebook) for stem, value in tree.items()}


def _codes(value: object, name: str, steps: int, queries: int, codebook: int) -> np.ndarray:
    """One video's codes, checked."""
    try:
        codes = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        raise UserError(f"{name}: expected integers (clips, {steps * queries}), got {type(value).__name__}") from None
    codes = codes[None] if codes.ndim == 1 else codes
    if codes.is_floating_point() or codes.ndim != 2 or codes.shape[1] != steps * queries or not len(codes):
        kind = f"{tuple(codes.shape)} {str(codes.dtype)[6:]}"
        raise UserError(f"{name}: expected integers (clips, {steps * queries}), got {kind}; change steps or queries")
    if not 0 <= codes.min() <= codes.max() < codebook:
        raise UserError(
            f"{name}: expected codes in [0, {codebook}), got {codes.min()} to {codes.max()}; change the levels"
        )
    return codes.numpy().astype(np.int64).reshape(-1, steps, queries)


def import_codes(path: Path, folder: Path, info: CodesInfo, split: str = "train") -> CodeStore:
    """The authors' file -> a codes folder like that of the stage extract_codes, all videos in one split."""
    codes = read_release_codes(path, info.steps, info.queries, math.prod(info.levels))
    rows = [(stem, split, clip) for stem, each in codes.items() for clip in range(len(each))]
    clips = pl.DataFrame(rows, schema=["video", "split", "clip"], orient="row")
    with atomic_dir(folder) as temporary:
        return write_codes(temporary, clips, np.concatenate(list(codes.values())), info)
