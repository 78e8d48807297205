"""Contact sheets: labelled rows of frames as one PNG, for the eyes of people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vw2.scratch import atomic_file

PAPER, INK, GAP = (255, 255, 255), (30, 30, 30), 4  # colours; pixels between pictures
SIDE = 128  # pixels of a frame's longer side on a sheet


def thumbnails(frames: Iterable[np.ndarray], count: int = 8, side: int = SIDE) -> np.ndarray:
    """Evenly spaced frames of a stream of unknown length, in one pass, at most 2 * count in memory, and those small.

    Args:
        frames: iterable of (H, W, 3) uint8.
        side: pixels; a frame whose longer side is longer is shrunk to it before it is kept.
    Returns: (at most count, h, w, 3) uint8, the first frame among them.
    Raises:  ValueError for an empty stream.
    """
    kept, stride = [], 1
    for number, frame in enumerate(frames):
        if number % stride == 0:
            kept.append(frame if max(frame.shape[:2]) <= side else _cell(frame, side))
            if len(kept) == 2 * count:
                kept, stride = kept[::2], stride * 2
    if not kept:
        raise ValueError("expected at least one frame, got none")
    picks = np.linspace(0, len(kept) - 1, min(count, len(kept))).round().astype(int)
    return np.stack([kept[pick] for pick in picks])


def _cell(frame: np.ndarray, side: int) -> np.ndarray:
    """A frame with its longer side at `side` pixels: enlarged without smoothing, shrunk by area."""
    rows, columns = frame.shape[:2]
    ratio = side / max(rows, columns)
    size = max(1, round(columns * ratio)), max(1, round(rows * ratio))
    return cv2.resize(frame, size, interpolation=cv2.INTER_NEAREST if ratio > 1 else cv2.INTER_AREA)


def contact_sheet(
    rows: Sequence[tuple[str, np.ndarray]], columns: int = 9, side: int = SIDE, title: str = ""
) -> Image.Image:
    """Lay out labelled rows of frames.

    Args:
        rows: (label, (T, H, W, 3) uint8) pairs; of more than `columns` frames evenly spaced ones are shown.
        columns: most frames in a row.
        side: pixels of a frame's longer side on the sheet.
        title: a line above all.
    Returns: an RGB picture; `.save(path)` or `write_sheet` makes it a PNG.
    Raises: ValueError without rows or for frames of another shape or dtype.
    """
    if not rows:
        raise ValueError("expected at least one row of frames, got none")
    lines = []
    for label, frames in rows:
        if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames):
            raise ValueError(f"row {label!r}: expected frames (T, H, W, 3) uint8, got {frames.shape} {frames.dtype}")
        picks = np.linspace(0, len(frames) - 1, min(columns, len(frames))).round().astype(int)
        lines.append((label, [_cell(frames[pick], side) for pick in picks]))
    font = ImageFont.load_default(size=14)
    text = 20  # pixels, height of a line of text
    width = max(len(cells) for _, cells in lines) * (side + GAP) + GAP
    width = max([width] + [int(font.getlength(label)) + 2 * GAP for label in [title, *(row[0] for row in lines)]])
    height = GAP + (text if title else 0) + sum(text + max(c.shape[0] for c in cells) + GAP for _, cells in lines)
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    top = GAP
    if title:
        draw.text((GAP, top), title, INK, font)
        top += text
    for label, cells in lines:
        draw.text((GAP, top), label, INK, font)
        top += text
        for column, cell in enumerate(cells):
            sheet.paste(Image.fromarray(cell), (GAP + column * (side + GAP), top))
        top += max(cell.shape[0] for cell in cells) + GAP
    return sheet


def write_sheet(
    path: Path, rows: Sequence[tuple[str, np.ndarray]], columns: int = 9, side: int = SIDE, title: str = ""
):
    """`contact_sheet` into a PNG file, written whole or not at all; 256 colours, a third of the size in Git."""
    picture = contact_sheet(rows, columns, side, title)
    with atomic_file(Path(path)) as temporary:
        picture.quantize(256, dither=Image.Dither.NONE).save(temporary, format="PNG", optimize=True)
