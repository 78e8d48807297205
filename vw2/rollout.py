"""Chained rollout: codes of a whole video and one first frame -> the video, clip by clip (VideoWorld 2, sec. 3.4).

Each clip starts from the last frame of the one before. The start noise of a clip is a function of (seed, row key,
clip number), so that a row's video does not depend on what is rendered beside it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from vw2.media.resize import to_model, to_uint8
from vw2.training.compute import generator


@dataclass(frozen=True)
class Row:
    """One video to render."""

    name: str
    first: np.ndarray  # (H, W, 3) uint8
    codes: np.ndarray  # (clips, K, N) int64
    key: tuple[int, ...]  # seeds the noise together with the run's seed


def plan_batches(rows: Sequence[Row], batch: int) -> list[list[int]]:
    """Row numbers in batches of like length, so that little is rendered in vain."""
    order = sorted(range(len(rows)), key=lambda i: (len(rows[i].codes), i))
    return [order[i : i + batch] for i in range(0, len(order), batch)]


@torch.no_grad()
def render_batch(renderer, rows: Sequence[Row], seed: int) -> Iterator[int | list[np.ndarray]]:
    """Render rows together.

    Yields: the number of rows rendered after each clip (for a progress bar), and last the videos, each
        (clips (T - 1) + 1, H, W, 3) uint8: neighbouring clips share one frame.
    """
    frame = to_model(np.stack([row.first for row in rows])[:, None])  # (B, 3, 1, H, W)
    parts: list[list[np.ndarray]] = [[row.first[None]] for row in rows]
    for clip in range(max(len(row.codes) for row in rows)):
        active = [i for i, row in enumerate(rows) if clip < len(row.codes)]
        index = torch.from_numpy(np.stack([rows[i].codes[clip] for i in active]))
        steps = index.shape[1]
        noise = torch.cat(
            [renderer.noise(frame[:1], steps, generator(seed, 8, *rows[i].key, clip)) for i in active]
        )
        video = renderer.render(frame[active], index, noise)
        frame[active] = video[:, :, -1:]
        for i, frames in zip(active, to_uint8(video[:, :, 1:]), strict=True):
            parts[i].append(frames)
        yield len(active)
    yield [np.concatenate(part) for part in parts]
