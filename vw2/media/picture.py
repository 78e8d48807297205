"""A decoded picture whose pixels are made when they are asked for, at the size that is needed.

Most frames of a 30 fps video are dropped on the way to 16 fps, and most pixels on the way to a small clip. So a picture
stays as the decoder left it until then, and is shrunk straight from the decoder's planes: half the work of making it
RGB first.
"""

from __future__ import annotations

from functools import cache

import av
import numpy as np
from av.sidedata.sidedata import Type
from av.video.reformatter import Interpolation, VideoReformatter

from vw2.media.hdr import HLG, PQ, ordinary
from vw2.media.resize import Fit, boxed, centre, resize_frame, window

# Area averaging; colour at full resolution (swscale would halve it for small pictures); same bytes on every processor.
SHRINK = Interpolation.AREA | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND | Interpolation.BITEXACT

MOST = 64  # times that swscale can shrink (its filters have up to 256 taps); beyond lie thumbnails of 8k video


class MediaError(Exception):
    """A file that cannot be used; the message is the reason, `frames` how many came out before."""

    def __init__(self, reason: str, frames: int = 0) -> None:
        super().__init__(reason)
        self.frames = frames


def quarter_turns(frame: av.VideoFrame) -> int:
    """Quarter turns counter-clockwise that the display matrix asks for, 0 to 3; 0 for a broken matrix."""
    return round(frame.rotation / 90) % 4 if abs(frame.rotation) <= 360 else 0


def mirrored(frame: av.VideoFrame) -> bool:
    """Does the display matrix mirror, as selfies are? Then the picture is flipped top to bottom before it is turned."""
    try:
        data = frame.side_data[Type.DISPLAYMATRIX]
    except KeyError:
        return False
    if abs(frame.rotation) > 360:
        return False
    a, b, _, c, d, *_ = np.frombuffer(data, np.int32, 9).tolist()  # 16.16; (x, y) shows at (ax + cy, bx + dy)
    return a * d < b * c


@cache
def _has_alpha(pixels: str) -> bool:
    """Does a pixel format know transparency?"""
    return any(component.is_alpha for component in av.VideoFormat(pixels).components)


class Picture:
    """One picture of a video, turned and mirrored as the metadata ask."""

    def __init__(self, frame: av.VideoFrame, number: int, scaler: VideoReformatter, mirror: bool = False) -> None:
        """Args: number: frames before this one, for errors; scaler: the file's own, which keeps its tables;
        mirror: `mirrored`, asked once for a file since asking takes as long as shrinking a small picture.
        """
        self._frame, self._number, self._scaler, self._mirror = frame, number, scaler, mirror

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width), pixels."""
        size = self._frame.height, self._frame.width
        return size[::-1] if quarter_turns(self._frame) % 2 else size

    def rgb(self) -> np.ndarray:
        """(H, W, 3) uint8 RGB; transparency lies on white, as browsers show it. Raises: MediaError."""
        if not self._transparent():
            return self._turned(self._convert("rgb24"))
        rgba = self._convert("rgba")
        colour, alpha = rgba[..., :3], rgba[..., 3:].astype(np.uint16)
        if alpha.min() < 255:
            colour = ((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
        return self._turned(colour)

    def shrunk(self, height: int, width: int) -> np.ndarray | None:
        """(height, width, 3) uint8 RGB by area averaging of the whole picture; None where only `rgb` will do.

        Raises: MediaError.
        """
        ratios = self.shape[0] / height, self.shape[1] / width
        if min(ratios) < 1 or max(ratios) == 1 or max(ratios) > MOST or self._transparent():
            return None
        size = (width, height) if quarter_turns(self._frame) % 2 else (height, width)
        return self._turned(self._convert("rgb24", height=size[0], width=size[1], interpolation=SHRINK))

    def _transparent(self) -> bool:
        return _has_alpha(self._frame.format.name)

    def _turned(self, pixels: np.ndarray) -> np.ndarray:
        turns = quarter_turns(self._frame)
        if self._mirror:
            pixels = pixels[::-1]
        return np.ascontiguousarray(np.rot90(pixels, turns) if turns else pixels)

    def _convert(self, pixels: str, **size: int) -> np.ndarray:
        """The picture in another pixel format (RGB first) and size, not turned."""
        try:
            # PyAV would forget the range of full-range video unless it is told again.
            told = {"format": pixels, "src_color_range": self._frame.color_range, "threads": 1}
            picture = self._scaler.reformat(self._frame, **told, **size).to_ndarray()
        except (av.FFmpegError, ValueError, MemoryError) as error:
            what = f"has pixels in a format that cannot be converted ({self._frame.format.name})"
            raise MediaError(what, self._number) from error
        if self._frame.color_trc in (PQ, HLG):
            picture[..., :3] = ordinary(picture[..., :3], self._frame.color_trc)
        return picture


def resize_picture(picture: Picture, height: int, width: int, fit: Fit = "cover", sar: float = 1.0) -> np.ndarray:
    """As `resize_frame`, several times as fast where a picture only shrinks.

    The whole picture is scaled, then cropped: so the crop of `cover` lies on whole pixels of the target, up to half a
    pixel beside that of `resize_frame`.
    """
    rows, columns = window(picture.shape, height, width, fit, sar)
    whole = rows, columns
    if fit != "letterbox":
        whole = round(picture.shape[0] * height / rows), round(picture.shape[1] * width / columns)
    small = picture.shrunk(*whole)
    if small is None:
        return resize_frame(picture.rgb(), height, width, fit, sar)
    return boxed(small, height, width) if fit == "letterbox" else centre(small, height, width)
