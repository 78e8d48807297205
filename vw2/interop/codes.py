"""Codes to and from the authors' file: a .pt with {stem of the video: (clips, K N) integers}, step-major (release).

Legend: K steps of a clip, N queries a step; the release has K N = 92.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import Tensor

from vw2.console import UserError
from vw2.data.codes import CodesInfo, CodeStore, write_codes
from vw2.interop.plain import oddity, read_plain, reason, write_plain
from vw2.scratch import atomic_dir, atomic_file

WIDTHS = (8, 16, 32, 64)
INTEGERS = {getattr(torch, f"{sign}int{width}") for sign in ("", "u") for width in WIDTHS}


def export_codes(store: CodeStore, path: Path, *splits: str) -> None:
    """Write the codes of some splits (of all by default) as int32 tensors (clips, K N) by video id.

    Raises: UserError if there is no such video.
    """
    videos = store.videos(*splits)
    if not videos:
        raise UserError(f"there is no video of split {', '.join(splits)} to export codes of; choose another split")
    tree = {each: torch.from_numpy(store[each].astype(np.int32)).flatten(1) for each in videos}
    with atomic_file(path) as temporary:
        write_plain(tree, temporary)


def read_release_codes(path: Path, steps: int, queries: int, codebook: int) -> dict[str, np.ndarray]:
    """The authors' file -> (clips, K, N) int64 by stem; arrays, tensors and lists of any integers will do.

    Raises: UserError if the file is missing or broken, holds anything else than such codes, or a stem twice.
    """
    tree = read_plain(path, "codes", "expected a dictionary of integer tensors by video; download it again")
    if not isinstance(tree, Mapping) or not tree:
        raise UserError(f"expected {path} to hold codes by video, got a {type(tree).__name__}; check the file")
    codes = {}
    for stem, value in tree.items():
        if str(stem) in codes:
            raise UserError(f"expected one entry per video in {path}, got two named {stem}; rename one")
        codes[str(stem)] = _codes(value, f"{path}: {stem}", steps, queries, codebook)
    return codes


def _codes(value: object, name: str, steps: int, queries: int, codebook: int) -> np.ndarray:
    """One video's codes, checked."""
    wanted = f"{name}: expected integers (clips, {steps * queries})"
    try:
        codes = _integers(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{wanted}, got {reason(error)}; save them as an integer tensor") from None
    codes = codes[None] if codes.ndim == 1 else codes
    if codes.ndim != 2 or codes.shape[1] != steps * queries or not len(codes):
        raise UserError(f"{wanted}, got {codes.shape}; change steps or queries")
    if not 0 <= codes.min() <= codes.max() < codebook:
        raise UserError(
            f"{name}: expected codes in [0, {codebook}), got {codes.min()} to {codes.max()}; change the levels"
        )
    return codes.reshape(-1, steps, queries)


def _integers(value: object, depth: int = 2) -> np.ndarray:
    """A tensor, an array, or a list of these or of numbers -> int64.

    Args:
        depth: levels of lists that may be nested.
    Raises: TypeError or ValueError saying what it is instead.
    """
    if isinstance(value, Tensor):
        return _narrow(_dense(value))
    if isinstance(value, np.ndarray):
        return _narrow(value)
    if not isinstance(value, list | tuple) or not depth:
        raise TypeError(type(value).__name__)
    if all(isinstance(each, int | np.integer) for each in value):
        return _narrow(np.array(value))
    rows = [_integers(each, depth - 1) for each in value]
    if len({row.shape for row in rows}) > 1:
        raise ValueError("rows of unequal lengths")
    return np.stack(rows)


def _dense(tensor: Tensor) -> np.ndarray:
    """The values of a tensor of numbers, all of which are in its file."""
    dtype = str(tensor.dtype)[6:]
    if kind := oddity(tensor):
        raise TypeError(f"a {kind} tensor")
    if tensor.dtype not in INTEGERS:
        raise TypeError(f"{tuple(tensor.shape)} {dtype}")
    if tensor.numel() * tensor.itemsize > tensor.untyped_storage().nbytes():
        raise ValueError(f"{tuple(tensor.shape)} {dtype} made of fewer numbers")
    return tensor.numpy()


def _narrow(array: np.ndarray) -> np.ndarray:
    """Integers -> int64; what is beyond that becomes its largest, which no codebook reaches."""
    if array.dtype.kind not in "iu":
        raise TypeError(f"{array.shape} {array.dtype}")
    most = min(np.iinfo(np.int64).max, np.iinfo(array.dtype).max)
    return np.minimum(array, np.array(most, array.dtype)).astype(np.int64)


def import_codes(path: Path, folder: Path, info: CodesInfo, split: str = "train") -> CodeStore:
    """The authors' file -> a codes folder like that of the stage extract_codes, all videos in one split."""
    codes = read_release_codes(path, info.steps, info.queries, math.prod(info.levels))
    rows = [(stem, split, clip) for stem, each in codes.items() for clip in range(len(each))]
    clips = pl.DataFrame(rows, schema=["video", "split", "clip"], orient="row")
    with atomic_dir(folder) as temporary:
        return write_codes(temporary, clips, np.concatenate(list(codes.values())), info)
