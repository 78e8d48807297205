"""High dynamic range video, as phones record it, shown as ordinary video.

PQ and HLG (ITU-R BT.2100) spread light over the code values quite unlike BT.709: taken for it, pictures are flat and
grey. What stands for a white page, 203 cd/m2 or 75 % of HLG (ITU-R BT.2408, sec. 2), becomes white here; what is
brighter, lamps and glints, is clipped to it (our choice).
"""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np

PQ, HLG = 16, 18  # transfer characteristics (ITU-T H.273)
WHITE = 203.0  # cd/m2

# Linear light in the primaries of BT.2020 -> in those of BT.709 (ITU-R BT.2407); its rows sum to 1.
TO_709 = np.float32([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]])
TO_709 /= TO_709.sum(1, keepdims=True)
STEPS = 4096  # of the table from light to code values


def _pq_light(signal: np.ndarray) -> np.ndarray:
    """PQ signal in [0, 1] -> light of the display, 1 at reference white (BT.2100, table 4)."""
    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
    power = signal ** (1 / m2)
    return 10000 / WHITE * (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1)


def _hlg_light(signal: np.ndarray) -> np.ndarray:
    """HLG signal in [0, 1] -> light of the scene, 1 at reference white (BT.2100, table 5)."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073

    def light(x):
        return np.where(x <= 0.5, x**2 / 3, (np.exp((x - c) / a) + b) / 12)

    return light(signal) / light(np.float64(0.75))


def _display_signal(light: np.ndarray) -> np.ndarray:
    """Light of the display in [0, 1] -> signal (ITU-R BT.1886)."""
    return light ** (1 / 2.4)


def _scene_signal(light: np.ndarray) -> np.ndarray:
    """Light of the scene in [0, 1] -> signal (ITU-R BT.709, item 1.2)."""
    return np.where(light < 0.018, 4.5 * light, 1.099 * light**0.45 - 0.099)


@cache
def _tables(transfer: int) -> tuple[np.ndarray, np.ndarray]:
    """Light of each code value, (256,) float32, and code value of each step of light, (STEPS,) uint8.

    PQ describes what a display shows, HLG what a camera sees: each is met by BT.709's own account of the same.
    """
    to_light, to_signal = {PQ: (_pq_light, _display_signal), HLG: (_hlg_light, _scene_signal)}[transfer]
    # Steps of the root of light, since the eye tells dark ones apart best.
    steps = (np.arange(STEPS) / (STEPS - 1)) ** 2
    light = to_light(np.arange(256) / 255).astype(np.float32)
    return light, np.rint(255 * to_signal(steps)).astype(np.uint8)


def ordinary(pixels: np.ndarray, transfer: int) -> np.ndarray:
    """Pixels of PQ or HLG video in the primaries of BT.2020 -> as BT.709.

    Args:    pixels: (H, W, 3) uint8 RGB; transfer: PQ or HLG.
    Returns: (H, W, 3) uint8 RGB.
    """
    light, codes = _tables(transfer)
    shown = cv2.transform(cv2.LUT(np.ascontiguousarray(pixels), light), TO_709)
    np.sqrt(np.clip(shown, 0, 1, out=shown), out=shown)
    shown *= STEPS - 1
    return codes[np.rint(shown, out=shown).astype(np.uint16)]
