"""Camera and painter: puts table, clutter, paper, blocks and hands into one picture.

Everything is painted at twice the wanted resolution and averaged down. Units: table coordinates (see appearance.py);
pictures uint8 RGB (H, W, 3).
"""

from dataclasses import dataclass, field

import cv2
import numpy as np

from vw2.worlds.appearance import TABLE_EXTENT, TABLE_PIXELS, Appearance
from vw2.worlds.paper import PIXEL_TO_SHEET, Fold, Sheet, flap_motion

SUPERSAMPLE = 2
SHIFT = 4  # fractional bits of cv2's polygon corners
ANCHORS = {"left": np.array([-1.15, 1.25]), "right": np.array([1.15, 1.25])}  # where the arms come from
SLAB = 0.05  # visible thickness of a block, table units


@dataclass
class Pose:
    """Where the sheet lies on the table."""

    centre: np.ndarray
    angle: float
    scale: float

    def matrix(self) -> np.ndarray:
        """(3, 3) sheet -> table."""
        c, s = np.cos(self.angle) * self.scale, np.sin(self.angle) * self.scale
        return np.array([[c, -s, self.centre[0]], [s, c, self.centre[1]], [0, 0, 1]])


@dataclass
class Nuisance:
    """What moves in one frame and does not matter. All zero at `craft.nuisance` 0."""

    shift: np.ndarray = field(default_factory=lambda: np.zeros(2))  # camera, fraction of the picture
    roll: float = 0.0  # camera, radians
    light: float = 1.0  # overall brightness factor
    slide: float = 0.0  # phase of the light gradient, radians
    shadow: np.ndarray | None = None  # (2,) centre of a passing shadow, picture fraction
    cloth: np.ndarray = field(default_factory=lambda: np.zeros(2))  # shift of the table cloth, table units
    nudges: list[np.ndarray] = field(default_factory=list)  # clutter displacement, table units


def camera_matrix(look: Appearance, nuisance: Nuisance, size: int) -> np.ndarray:
    """(3, 3) table -> supersampled pixels: roll, zoom, tilt, then the hand-held shift."""
    roll = look.roll + nuisance.roll
    c, s = np.cos(roll) * look.zoom, np.sin(roll) * look.zoom
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    tilt = np.array([[1, 0, 0], [0, 1 - look.tilt, 0], [0, -look.tilt, 1]])
    half = size / 2
    screen = np.array(
        [[half, 0, half + nuisance.shift[0] * size], [0, half, half + nuisance.shift[1] * size], [0, 0, 1]]
    )
    return screen @ tilt @ turn


def project(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(P, 2) points through a (3, 3) homography."""
    homogeneous = np.concatenate([points, np.ones((len(points), 1))], 1) @ matrix.T
    return homogeneous[:, :2] / homogeneous[:, 2:]


def light_field(look: Appearance, nuisance: Nuisance, size: int) -> np.ndarray:
    """(size, size, 1) brightness factor: a gradient from one side and perhaps a soft shadow."""
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    angle = look.light_angle + nuisance.slide
    field_ = 1.0 + look.light_strength * (np.cos(angle) * axis[None, :] + np.sin(angle) * axis[:, None])
    if nuisance.shadow is not None:
        x = np.exp(-((axis / 2 + 0.5 - nuisance.shadow[0]) ** 2) / 0.05)
        y = np.exp(-((axis / 2 + 0.5 - nuisance.shadow[1]) ** 2) / 0.05)
        field_ = field_ * (1 - 0.3 * y[:, None] * x[None, :])
    return (field_ * nuisance.light)[..., None].astype(np.float32)


class Painter:
    """Paints one frame; `finish` gives the picture."""

    def __init__(self, look: Appearance, nuisance: Nuisance, resolution: int):
        self.look, self.nuisance, self.resolution = look, nuisance, resolution
        self.size = resolution * SUPERSAMPLE
        self.camera = camera_matrix(look, nuisance, self.size)
        texture = np.eye(3)
        texture[:2, 2] = -TABLE_EXTENT + nuisance.cloth
        texture[0, 0] = texture[1, 1] = 2 * TABLE_EXTENT / TABLE_PIXELS
        self.canvas = cv2.warpPerspective(
            look.table, self.camera @ texture, (self.size,) * 2, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
        )
        for item, nudge in zip(look.clutter, nuisance.nudges or [np.zeros(2)] * len(look.clutter), strict=True):
            self.polygon(item.shape + item.position + nudge, item.colour)

    def polygon(self, points: np.ndarray, colour: np.ndarray) -> None:
        corners = np.round(project(self.camera, points) * 2**SHIFT).astype(np.int32)
        cv2.fillPoly(self.canvas, [corners], [float(c) for c in np.clip(colour, 0, 255)], cv2.LINE_AA, SHIFT)

    def line(self, a: np.ndarray, b: np.ndarray, colour: np.ndarray, width: float) -> None:
        ends = np.round(project(self.camera, np.stack([a, b])) * 2**SHIFT).astype(int)
        thickness = max(1, round(width * self.size / 2))
        tint = [float(c) for c in np.clip(colour, 0, 255)]
        cv2.line(self.canvas, ends[0].tolist(), ends[1].tolist(), tint, thickness, cv2.LINE_AA, SHIFT)

    def picture(self, layer: np.ndarray, to_table: np.ndarray, brightness: float = 1.0) -> None:
        """Lay a premultiplied sheet picture onto the canvas through sheet -> table."""
        rows, cols = np.flatnonzero(layer[..., 3].any(1)), np.flatnonzero(layer[..., 3].any(0))
        if not len(rows):
            return
        matrix = self.camera @ to_table @ PIXEL_TO_SHEET
        if abs(np.linalg.det(matrix[:2, :2])) < 1e-2:
            return  # the flap stands edge on
        box = np.array([[x, y] for x in (cols[0] - 1, cols[-1] + 1) for y in (rows[0] - 1, rows[-1] + 1)], float)
        corners = project(matrix, box)
        x0, y0 = np.clip(np.floor(corners.min(0)).astype(int) - 1, 0, self.size)
        x1, y1 = np.clip(np.ceil(corners.max(0)).astype(int) + 2, 0, self.size)
        if x1 <= x0 or y1 <= y0:
            return
        window = np.array([[1, 0, -x0], [0, 1, -y0], [0, 0, 1]]) @ matrix  # only the part of the canvas that changes
        seen = cv2.warpPerspective(layer, window, (int(x1 - x0), int(y1 - y0)), flags=cv2.INTER_LINEAR)
        mixed = seen[..., :3] * brightness + self.canvas[y0:y1, x0:x1] * (1 - seen[..., 3:])
        self.canvas[y0:y1, x0:x1] = np.clip(mixed, 0, 255).astype(np.uint8)

    def sheet(self, sheet: Sheet, pose: Pose, fold: Fold | None = None, angle: float = 0.0) -> None:
        to_table = pose.matrix()
        if fold is None or angle <= 0:
            self.picture(sheet.top, to_table)
            return
        top_f, bottom_f, top_m, bottom_m = sheet.split(fold)
        self.picture(top_f, to_table)
        motion = flap_motion(fold, angle, picture_up(pose))
        self.picture(top_m if angle < np.pi / 2 else bottom_m, to_table @ motion, 1.0 - 0.25 * np.sin(angle))

    def block(self, centre: np.ndarray, size: tuple[float, float], colour: np.ndarray, height: float = 0.0) -> None:
        half = np.array(size) / 2
        corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * half
        lifted = centre + np.array([0, -height])
        if height > 0:
            self.polygon(corners * 0.95 + centre + np.array([0.03, 0.05]), np.zeros(3) + 40)
        self.polygon(corners + lifted + np.array([0, SLAB]), colour * 0.55)
        self.polygon(corners + lifted, colour)

    def hand(self, tip: np.ndarray, side: str) -> None:
        """An arm from the side of the table to the finger tips at `tip`; none once they are beyond its anchor."""
        away = ANCHORS[side] - tip
        if away @ ANCHORS[side] < 0:
            return
        along = away / max(np.linalg.norm(away), 1e-6)
        across = np.array([-along[1], along[0]]) * (1 if side == "left" else -1)
        wrist, palm = tip + 0.26 * along, tip + 0.15 * along
        self.line(wrist, tip + 2.5 * along, self.look.sleeve, 0.21)
        self.line(wrist, palm, self.look.skin, 0.17)
        for spread, reach in ((-0.06, 0.02), (0.0, 0.0), (0.06, 0.02)):
            self.line(
                palm + spread * across, tip + (spread * across * 0.8) + reach * along, self.look.skin * 0.96, 0.06
            )
        self.line(palm + 0.06 * across, tip + 0.11 * across + 0.06 * along, self.look.skin * 0.9, 0.06)

    def finish(self) -> np.ndarray:
        small = cv2.resize(self.canvas, (self.resolution,) * 2, interpolation=cv2.INTER_AREA).astype(np.float32)
        return np.clip(small * light_field(self.look, self.nuisance, self.resolution) + 0.5, 0, 255).astype(np.uint8)


def picture_up(pose: Pose) -> np.ndarray:
    """(2,) the picture's upward direction in sheet coordinates."""
    return np.array([-np.sin(pose.angle), -np.cos(pose.angle)])
