"""Frame sizes and value ranges: uint8 THWC on the media side, float CTHW in [-1, 1] on the model side.

Legend: T frames, C channels, H W pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import cv2
import numpy as np

if TYPE_CHECKING:
    import torch

Fit = Literal["cover", "letterbox", "stretch"]

cv2.setNumThreads(1)  # worker processes are the parallelism; threads below them only get in each other's way


def _scale(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    """Antialiased scaling: shrink by area averaging, enlarge linearly, each axis on its own terms."""
    low = min(frame.shape[0], height), min(frame.shape[1], width)
    if low != frame.shape[:2]:
        frame = cv2.resize(frame, (low[1], low[0]), interpolation=cv2.INTER_AREA)
    if low != (height, width):
        frame = cv2.resize(frame, (width, height), interpolation=cv2.INTER_LINEAR)
    return frame


def window(shape: tuple[int, int], height: int, width: int, fit: Fit, sar: float) -> tuple[int, int]:
    """(rows, columns) that are used: of the source for cover and stretch, of the target for letterbox."""
    rows, columns = shape
    seen, target = columns * sar / rows, width / height  # aspect ratios as shown
    if fit == "stretch":
        return rows, columns
    if fit == "cover":
        return (
            min(rows, max(1, round(rows * seen / target))) if seen < target else rows,
            min(columns, max(1, round(columns * target / seen))) if seen > target else columns,
        )
    if fit == "letterbox":
        return (
            height if seen < target else max(1, min(height, round(width / seen))),
            width if seen > target else max(1, min(width, round(height * seen))),
        )
    raise ValueError(f"expected fit cover, letterbox or stretch, got {fit!r}")


def centre(frame: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """The middle (rows, columns) of a frame, a view."""
    top, left = (frame.shape[0] - rows) // 2, (frame.shape[1] - columns) // 2
    return frame[top : top + rows, left : left + columns]


def resize_frame(frame: np.ndarray, height: int, width: int, fit: Fit = "cover", sar: float = 1.0) -> np.ndarray:
    """Bring one frame to a size with square pixels (our choice; the authors' release stretches).

    Args:
        frame: (H, W, 3) uint8.
        height, width: target size, pixels.
        fit: cover fills the target and crops the centre; letterbox shows all and pads with black; stretch ignores
            the shape.
        sar: width / height of one source pixel.
    Returns: (height, width, 3) uint8; `frame` itself if it already fits.
    """
    if (*frame.shape[:2], sar) == (height, width, 1.0):
        return frame
    rows, columns = window(frame.shape[:2], height, width, fit, sar)
    if fit != "letterbox":
        return _scale(centre(frame, rows, columns), height, width)
    return boxed(_scale(frame, rows, columns), height, width)


def boxed(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    """A frame in the middle of a black one."""
    canvas = np.zeros((height, width, 3), np.uint8)
    centre(canvas, *frame.shape[:2])[:] = frame
    return canvas


def resize_frames(frames: np.ndarray, height: int, width: int, fit: Fit = "cover", sar: float = 1.0) -> np.ndarray:
    """`resize_frame` for (T, H, W, 3) uint8 frames; returns (T, height, width, 3)."""
    return np.stack([resize_frame(frame, height, width, fit, sar) for frame in frames])


def to_model(frames: np.ndarray | torch.Tensor) -> torch.Tensor:
    """uint8 frames -> what models take: x / 127.5 - 1.

    Args:    frames: (..., T, H, W, 3) uint8, numpy or torch (any device).
    Returns: (..., 3, T, H, W) float32 in [-1, 1] on the same device.
    Raises:  ValueError for another dtype or shape.
    """
    import torch  # here, so that decoding workers need not load it (2 s and 300 MB each)

    clip = frames if isinstance(frames, torch.Tensor) else torch.from_numpy(np.ascontiguousarray(frames))
    if clip.dtype != torch.uint8 or clip.ndim < 4 or clip.shape[-1] != 3:
        raise ValueError(f"expected frames (..., T, H, W, 3) uint8, got {tuple(clip.shape)} {clip.dtype}")
    return clip.movedim(-1, -4).contiguous().float().div_(127.5).sub_(1)  # (..., 3, T, H, W)


def to_uint8(video: torch.Tensor) -> np.ndarray:
    """What models give -> uint8 frames, clamped and rounded; the inverse of `to_model`.

    Args:    video: (..., 3, T, H, W) float in [-1, 1] (values outside are clamped).
    Returns: (..., T, H, W, 3) uint8 numpy array.
    Raises:  ValueError for another shape; nan would turn into any colour, so it is refused too.
    """
    if video.ndim < 4 or video.shape[-4] != 3 or not video.is_floating_point():
        raise ValueError(f"expected video (..., 3, T, H, W) float, got {tuple(video.shape)} {video.dtype}")
    scaled = video.detach().float().add(1).mul(127.5).round().clamp(0, 255)
    if not bool(scaled.isfinite().all()):
        raise ValueError("expected finite pixel values, got nan; the model that made them has diverged")
    return scaled.byte().movedim(-4, -1).contiguous().cpu().numpy()  # (..., T, H, W, 3)
