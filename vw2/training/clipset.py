"""Clips in the form that dLDM training eats: shrunken videos in memory and, for the VDM, cached VAE latents."""

from pathlib import Path

import numpy as np
import torch

from vw2.console import track
from vw2.data.shards import ClipStore
from vw2.media.resize import resize_frames, to_model
from vw2.models.prior import VideoVAE
from vw2.scratch import atomic_file


class SmallClips:
    """All chosen clips at the LDM's input size, (clips, T, size, size, 3) uint8 in memory."""

    def __init__(self, store: ClipStore, rows: list[int], size: int):
        self.rows = rows
        shape = (len(rows), store.clip_frames, size, size, 3)
        self.frames = np.empty(shape, np.uint8)
        for i, row in enumerate(track(rows, "shrink clips")):
            self.frames[i] = resize_frames(store.frames(row), size, size, "stretch")

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, items: np.ndarray) -> torch.Tensor:
        """(B, 3, T, size, size) float in [-1, 1]."""
        return to_model(self.frames[items])


@torch.no_grad()
def cache_latents(store: ClipStore, rows: list[int], vae: VideoVAE, path: Path, batch: int = 32) -> torch.Tensor:
    """(clips, C, L, h, w) float32 latents of the chosen clips, kept at `path` so that a resumed run need not encode."""
    if not path.exists():
        parts = [
            vae.encode(to_model(store.batch(rows[i : i + batch])))
            for i in track(range(0, len(rows), batch), "encode clips with the VAE")
        ]
        with atomic_file(path) as temporary, temporary.open("wb") as stream:
            np.save(stream, torch.cat(parts).numpy())
    return torch.from_numpy(np.load(path))
