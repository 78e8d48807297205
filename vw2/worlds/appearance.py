"""What a scene looks like, drawn apart from what happens in it.

Train and test appearances come from disjoint families: other table textures, other sheet patterns, other hue bands for
everything coloured, other skin tones, other camera tilts. Nothing here knows of tasks.

Units: table coordinates, x right and y towards the viewer, the visible square being about [-1, 1]^2; colours are RGB
floats in [0, 255].
"""

import colorsys
from dataclasses import dataclass, field
from typing import Literal

import cv2
import numpy as np

Family = Literal["train", "test"]

TABLE_FAMILIES = {
    "train": ("plain", "wood", "checks", "speckle", "blotches"),
    "test": ("weave", "tiles", "diagonal"),
}
SHEET_FAMILIES = {"train": ("plain", "ruled", "dots"), "test": ("grid", "bordered")}
SKIN_TONES = {
    "train": ((255, 219, 180), (234, 190, 150), (198, 145, 105), (141, 90, 60), (90, 56, 38)),
    "test": ((245, 205, 165), (172, 118, 82), (66, 42, 32)),
}
TILTS = {"train": (0.00, 0.10), "test": (0.11, 0.14)}
HUE_BANDS = 12  # hue circle in twelfths: every third band belongs to the test families alone
TABLE_PIXELS = 192  # side of the table texture, which covers [-TABLE_EXTENT, TABLE_EXTENT]^2
TABLE_EXTENT = 1.5


@dataclass
class Clutter:
    """A bystander object on the table: a convex polygon around `position`."""

    shape: np.ndarray  # (P, 2) table units, relative to position
    position: np.ndarray  # (2,)
    colour: np.ndarray


@dataclass
class Appearance:
    """All that is seen and does not matter."""

    family: Family
    environment: str
    table: np.ndarray  # (TABLE_PIXELS, TABLE_PIXELS, 3) uint8
    sheet_pattern: str
    sheet_front: np.ndarray
    sheet_back: np.ndarray
    skin: np.ndarray
    sleeve: np.ndarray
    blocks: np.ndarray  # (6, 3) colours
    tilt: float
    zoom: float
    roll: float  # radians
    light_angle: float
    light_strength: float
    clutter: list[Clutter] = field(default_factory=list)


def hue(rng: np.random.Generator, family: Family) -> float:
    """A hue in [0, 1) from the bands of the family (our choice)."""
    bands = [b for b in range(HUE_BANDS) if (b % 3 == 1) == (family == "test")]
    return (bands[rng.integers(len(bands))] + rng.uniform(0.1, 0.9)) / HUE_BANDS


def colour(
    rng: np.random.Generator, family: Family, saturation: tuple[float, float], value: tuple[float, float]
) -> np.ndarray:
    """A colour (3,) in [0, 255] of a hue of the family; saturation and value: lowest and highest, in [0, 1]."""
    rgb = colorsys.hsv_to_rgb(hue(rng, family), rng.uniform(*saturation), rng.uniform(*value))
    return np.array(rgb) * 255.0


def _noise(rng: np.random.Generator, cells: int) -> np.ndarray:
    """Smooth noise in [-1, 1] with about `cells` bumps a side."""
    coarse = rng.uniform(-1, 1, (cells + 3, cells + 3)).astype(np.float32)
    return cv2.resize(coarse, (TABLE_PIXELS, TABLE_PIXELS), interpolation=cv2.INTER_CUBIC)


def table_texture(rng: np.random.Generator, kind: str, base: np.ndarray, other: np.ndarray) -> np.ndarray:
    """A (TABLE_PIXELS, TABLE_PIXELS, 3) uint8 picture of the table top."""
    y, x = np.mgrid[0:TABLE_PIXELS, 0:TABLE_PIXELS].astype(np.float32) / TABLE_PIXELS
    period = rng.uniform(0.10, 0.2)
    phase = rng.uniform(0, 1)
    if kind == "plain":
        mix = 0.15 * _noise(rng, 4)
    elif kind == "wood":
        mix = 0.5 * np.sin(2 * np.pi * (y / period + phase + 0.35 * _noise(rng, 3)))
    elif kind == "checks":
        mix = 0.6 * np.sign(np.sin(2 * np.pi * (x / period + phase)) * np.sin(2 * np.pi * (y / period + phase)))
    elif kind == "speckle":
        mix = 1.2 * _noise(rng, 48)
    elif kind == "blotches":
        mix = 1.2 * _noise(rng, 9)
    elif kind == "weave":
        mix = 0.5 * (np.sin(2 * np.pi * x / (period / 2)) + np.sin(2 * np.pi * y / (period / 2)))
    elif kind == "tiles":
        mix = np.where((((x / period + phase) % 1) < 0.12) | (((y / period + phase) % 1) < 0.12), 1.0, 0.1)
    else:  # diagonal
        mix = 0.6 * np.sign(np.sin(2 * np.pi * ((x + y) / period + phase)))
    mix = np.clip(0.5 + 0.5 * mix, 0, 1)[..., None]
    picture = base * (1 - mix) + other * mix + 6.0 * _noise(rng, 90)[..., None]
    return np.clip(picture, 0, 255).astype(np.uint8)


def draw_appearance(rng: np.random.Generator, family: Family, clutter: int) -> Appearance:
    """Draw one appearance of a family.

    Args:
        rng: source of randomness; the result depends on nothing else.
        family: which of the two disjoint sets of families.
        clutter: number of bystander objects.
    """
    kind = str(rng.choice(TABLE_FAMILIES[family]))
    pattern = str(rng.choice(SHEET_FAMILIES[family]))
    base = colour(rng, family, (0.15, 0.6), (0.25, 0.75))
    table = table_texture(rng, kind, base, np.clip(base + rng.uniform(-55, 55) + rng.uniform(-15, 15, 3), 0, 255))
    front = colour(rng, family, (0.0, 0.7), (0.8, 1.0))
    back = colour(rng, family, (0.3, 0.9), (0.5, 1.0))
    while np.abs(front - back).sum() < 150 or np.abs(back - base).sum() < 120 or np.abs(front - base).sum() < 120:
        front = colour(rng, family, (0.0, 0.7), (0.8, 1.0))
        back = colour(rng, family, (0.3, 0.9), (0.4, 1.0))
    skin = np.array(SKIN_TONES[family][rng.integers(len(SKIN_TONES[family]))], float) + rng.uniform(-8, 8, 3)
    sleeve = colour(rng, family, (0.2, 0.9), (0.15, 0.9))
    blocks = np.stack([colour(rng, family, (0.5, 1.0), (0.55, 1.0)) for _ in range(6)])
    tilt = rng.uniform(*TILTS[family])
    objects = []
    for _ in range(clutter):
        corners = rng.integers(3, 7)
        angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
        shape = np.stack([np.cos(angles), np.sin(angles)], 1) * rng.uniform(0.06, 0.14)
        side = rng.choice([-1, 1], 2) * np.array([rng.uniform(0.78, 1.0), rng.uniform(0.78, 1.0)])
        objects.append(Clutter(shape, side, colour(rng, family, (0.2, 1.0), (0.2, 1.0))))
    return Appearance(
        family=family,
        environment=f"{family}-{kind}-{pattern}-{int(tilt * 50):d}",
        table=table,
        sheet_pattern=pattern,
        sheet_front=front,
        sheet_back=back,
        skin=np.clip(skin, 0, 255),
        sleeve=sleeve,
        blocks=blocks,
        tilt=float(tilt),
        zoom=float(rng.uniform(0.92, 1.05)),
        roll=float(rng.uniform(-0.08, 0.08)),
        light_angle=float(rng.uniform(0, 2 * np.pi)),
        light_strength=float(rng.uniform(0.0, 0.15)),
        clutter=objects,
    )
