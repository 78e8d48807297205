"""Clips in the form that dLDM training eats: shrunken videos in memory and, for the VDM, cached VAE latents."""

from pathlib import Path

import numpy as np
import torch

from vw2.console import UserError, track
from vw2.data.sampler import mixture
from vw2.data.shards import ClipStore
from vw2.media.resize import resize_frames, to_model
from vw2.models.ldm import LDMConfig
from vw2.models.prior import VideoVAE
from vw2.models.timeline import encode_windows
from vw2.scratch import atomic_file


def fit(config: LDMConfig, frames: int):
    """The config for clips of T frames, its reconstruction loss at hand.

    Raises: UserError if clips and config contradict each other or weights of the loss are missing.
    """
    try:
        config.loss().ready()
        return config.for_clips(frames)
    except ValueError as error:
        raise UserError(str(error)) from error


class SmallClips:
    """All chosen clips in memory, uint8: (clips, T, size, size, 3) at the LDM's size; first and last frames whole.

    Attribute `mixture`: which of them make up the batch of a step.
    """

    def __init__(self, store: ClipStore, rows: list[int], size: int):
        self.rows = rows
        self.mixture = mixture(store.index["source"][rows].to_list(), store.weights)
        shape = (len(rows), store.clip_frames, size, size, 3)
        self.frames = np.empty(shape, np.uint8)
        self.first_last = np.empty((len(rows), 2, store.height, store.width, 3), np.uint8)
        for i, row in enumerate(track(rows, "shrink clips")):
            frames = store.frames(row)
            self.frames[i] = resize_frames(frames, size, size, "stretch")
            self.first_last[i] = frames[[0, -1]]

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, items: np.ndarray) -> torch.Tensor:
        """(B, 3, T, size, size) float in [-1, 1]."""
        return to_model(self.frames[items])

    def ends(self, items: np.ndarray) -> torch.Tensor:
        """(B, 3, 2, H, W) float in [-1, 1], first and last frames."""
        return to_model(self.first_last[items])


@torch.no_grad()
def cache_latents(
    store: ClipStore, rows: list[int], vae: VideoVAE, window: int, path: Path, batch: int = 32
) -> torch.Tensor:
    """(clips, C, L, h, w) float32 latents of the chosen clips, kept at `path` so that a resumed run need not encode.

    Args: window: most frames of a VDM window; those of longer clips lie end to end (`encode_windows`).
    """
    if not path.exists():
        parts = [
            encode_windows(vae, to_model(store.batch(rows[i : i + batch])), window)
            for i in track(range(0, len(rows), batch), "encode clips with the VAE")
        ]
        with atomic_file(path) as temporary, temporary.open("wb") as stream:
            np.save(stream, torch.cat(parts).numpy())
    return torch.from_numpy(np.load(path))
