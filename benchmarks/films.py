"""Films to measure with: textured pictures that drift under a moving block, H.264 with B-frames as phones record."""

from __future__ import annotations

from pathlib import Path

import av
import cv2
import numpy as np

FPS = 30


def make_film(path: Path, width: int, height: int, frames: int, seed: int) -> Path:
    """Write one film of `frames` frames at 30 frames per second; the same seed gives the same pictures."""
    rng = np.random.default_rng(seed)
    margin = height // 4
    grain = rng.integers(0, 256, ((height + margin) // 8, (width + margin) // 8, 3), dtype=np.uint8)
    ground = cv2.resize(grain, (width + margin, height + margin), interpolation=cv2.INTER_CUBIC)
    ground = cv2.addWeighted(ground, 0.5, np.full_like(ground, rng.integers(0, 256, 3)), 0.5, 0)
    side, phase = height // 4, rng.uniform(0, 6.28)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.thread_count = 1
        for number in range(frames):
            top = round(margin / 2 * (1 + np.sin(number / 40 + phase)))
            left = round(margin / 2 * (1 + np.cos(number / 55 + phase)))
            picture = ground[top : top + height, left : left + width].copy()
            x = 2 * number % (width - side)
            picture[height // 2 : height // 2 + side, x : x + side] = (220, 60, number % 256)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path
