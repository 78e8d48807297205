"""A sheet of paper as two pictures: what is seen of it from above and from below.

Folding about a line turns one half-plane over onto the other. With the stack flattened into a top and a bottom
picture a fold is two reflections and two 'over' operations, whatever the number of layers below.

Units: sheet coordinates, x in [-0.375, 0.375], y in [-0.5, 0.5] for the flat sheet; angles in radians; pictures are
(RASTER, RASTER, 4) float32 with premultiplied alpha in [0, 1] and colours in [0, 255].
"""

from dataclasses import dataclass

import cv2
import numpy as np

RASTER = 112
EXTENT = 0.70  # the pictures cover [-EXTENT, EXTENT]^2
HALF_WIDTH, HALF_HEIGHT = 0.375, 0.5
LIFT = 0.45  # height of a standing flap, as a shift up the picture per unit of height


@dataclass(frozen=True)
class Fold:
    """Turn the side d(p) = normal . p - offset > 0 over the line d = 0."""

    normal: tuple[float, float]
    offset: float
    name: str = ""

    def distance(self, points: np.ndarray) -> np.ndarray:
        return points @ np.asarray(self.normal) - self.offset


def fold_through(a: tuple[float, float], b: tuple[float, float], moving: tuple[float, float], name: str = "") -> Fold:
    """The fold about the line through a and b that moves the side of the point `moving`."""
    direction = np.subtract(b, a)
    normal = np.array([-direction[1], direction[0]]) / np.linalg.norm(direction)
    offset = float(normal @ np.asarray(a))
    if normal @ np.asarray(moving) < offset:
        normal, offset = -normal, -offset
    return Fold((float(normal[0]), float(normal[1])), offset, name)


def _pixel_to_sheet() -> np.ndarray:
    """(3, 3) map from raster pixels (x, y, 1) to sheet coordinates."""
    step = 2 * EXTENT / RASTER
    return np.array([[step, 0, -EXTENT + step / 2], [0, step, -EXTENT + step / 2], [0, 0, 1]])


PIXEL_TO_SHEET = _pixel_to_sheet()
SHEET_TO_PIXEL = np.linalg.inv(PIXEL_TO_SHEET)
_rows, _cols = np.mgrid[0:RASTER, 0:RASTER]
GRID = np.stack([_cols, _rows], -1) * (2 * EXTENT / RASTER) - EXTENT + EXTENT / RASTER  # (RASTER, RASTER, 2) sheet


def flap_motion(fold: Fold, angle: float, up: np.ndarray) -> np.ndarray:
    """(3, 3) map of sheet points of the moving side when the flap stands at `angle` (0 flat, pi turned over).

    Args:
        up: (2,) the picture's upward direction in sheet coordinates; a standing flap leans that way by LIFT.
    """
    normal = np.asarray(fold.normal)
    shift = (np.cos(angle) - 1.0) * normal + np.sin(angle) * LIFT * up  # displacement per unit of distance
    matrix = np.eye(3)
    matrix[:2, :2] += np.outer(shift, normal)
    matrix[:2, 2] = -shift * fold.offset
    return matrix


def over(front: np.ndarray, back: np.ndarray) -> np.ndarray:
    """Premultiplied 'over'."""
    return front + back * (1.0 - front[..., 3:4])


class Sheet:
    """The flattened paper; `fold` changes it, `split` shows its two sides about a line."""

    def __init__(self, front: np.ndarray, back: np.ndarray, pattern: str, rng: np.random.Generator):
        soft = EXTENT / RASTER  # anti-aliased border
        inside = np.minimum(HALF_WIDTH - np.abs(GRID[..., 0]), HALF_HEIGHT - np.abs(GRID[..., 1]))
        alpha = np.clip(inside / (2 * soft) + 0.5, 0, 1)[..., None]
        ink = _pattern(pattern, rng)[..., None]
        top = front * (1 - 0.35 * ink)
        self.top = np.concatenate([top * alpha, alpha], -1).astype(np.float32)
        self.bottom = np.concatenate([np.broadcast_to(back, top.shape) * alpha, alpha], -1).astype(np.float32)

    def split(self, fold: Fold) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Top and bottom pictures of the fixed and of the moving side: (top_F, bottom_F, top_M, bottom_M)."""
        moving = np.clip(fold.distance(GRID) * RASTER / (2 * EXTENT) + 0.5, 0, 1)[..., None].astype(np.float32)
        return self.top * (1 - moving), self.bottom * (1 - moving), self.top * moving, self.bottom * moving

    def grasp(self, fold: Fold) -> np.ndarray:
        """(2,) the point of the moving side farthest from the line: where a hand takes hold."""
        distance = np.where(self.top[..., 3] > 0.5, fold.distance(GRID), -np.inf)
        far = distance > distance.max() - 0.02
        return GRID[far].mean(0) * 0.97 + 0.03 * np.asarray(fold.normal) * fold.offset

    def moving_area(self, fold: Fold) -> float:
        """Share of the visible paper on the moving side, in [0, 1]."""
        alpha = self.top[..., 3]
        return float(alpha[fold.distance(GRID) > 0].sum() / max(alpha.sum(), 1e-6))

    def fold(self, fold: Fold) -> None:
        top_f, bottom_f, top_m, bottom_m = self.split(fold)
        reflection = PIXEL_TO_SHEET.copy()
        mirror = np.eye(3)
        normal = np.asarray(fold.normal)
        mirror[:2, :2] -= 2 * np.outer(normal, normal)
        mirror[:2, 2] = 2 * fold.offset * normal
        matrix = (SHEET_TO_PIXEL @ mirror @ reflection)[:2]
        turn = lambda picture: cv2.warpAffine(picture, matrix, (RASTER, RASTER), flags=cv2.INTER_LINEAR)  # noqa: E731
        flap = turn(bottom_m)
        flap[..., :3] *= 0.94  # a raised layer catches the light differently, so folds of equal colours stay visible
        self.top = over(flap, top_f)
        self.bottom = over(bottom_f, turn(top_m))


def _pattern(kind: str, rng: np.random.Generator) -> np.ndarray:
    """(RASTER, RASTER) ink in [0, 1] printed on the front."""
    x, y = GRID[..., 0], GRID[..., 1]
    period = rng.uniform(0.10, 0.16)
    line = lambda v: (np.abs((v / period) % 1 - 0.5) < 0.12).astype(float)  # noqa: E731
    if kind == "ruled":
        return line(y)
    if kind == "dots":
        return ((((x / period) % 1 - 0.5) ** 2 + ((y / period) % 1 - 0.5) ** 2) < 0.06).astype(float)
    if kind == "grid":
        return np.maximum(line(x), line(y))
    if kind == "bordered":
        return (np.minimum(HALF_WIDTH - np.abs(x), HALF_HEIGHT - np.abs(y)) < 0.06).astype(float)
    return np.zeros_like(x)


def _mirrored(fold: Fold) -> Fold:
    return Fold((-fold.normal[0], fold.normal[1]), fold.offset, fold.name.replace("left", "right"))


_P1 = fold_through((0, -0.5), (-0.375, -0.125), (-0.375, -0.5), "left corner")
_P4 = fold_through((0, -0.2), (-0.375, 0.175), (-0.375, -0.2), "left shoulder")
_B2 = fold_through((0, 0), (-0.375, 0.375), (-0.375, 0), "left corner")
_B5 = fold_through((-0.16, 0), (-0.16, 1), (-1, 0), "left point")

# Key steps of the two paper tasks (our choice, after the common paper plane and boat). A step is a tuple of the folds
# that may be made at it: where there are two, either side may come first and the other follows.
KEY_STEPS: dict[str, tuple[tuple[Fold, ...], ...]] = {
    "paper_airplane": (
        (_P1, _mirrored(_P1)),
        (_P1, _mirrored(_P1)),
        (fold_through((-1, -0.2), (1, -0.2), (0, -1), "tip down"),),
        (_P4, _mirrored(_P4)),
        (_P4, _mirrored(_P4)),
        (fold_through((0, -1), (0, 1), (-1, 0), "in half"),),
        (fold_through((0.15, -1), (0.15, 1), (1, 0), "wing"),),
    ),
    "paper_boat": (
        (fold_through((-1, 0), (1, 0), (0, -1), "in half"),),
        (_B2, _mirrored(_B2)),
        (_B2, _mirrored(_B2)),
        (fold_through((-1, 0.36), (1, 0.36), (0, 1), "brim up"),),
        (_B5, _mirrored(_B5)),
        (_B5, _mirrored(_B5)),
        (fold_through((-1, 0.2), (1, 0.2), (0, 1), "bottom up"),),
    ),
}
