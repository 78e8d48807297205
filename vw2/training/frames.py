"""Single frames of clips with their ground truth, at the classifier's size, in a memory-mapped file.

Frames can be taken as they are or as the video VAE gives them back, so that a classifier knows the look of what the
renderer makes. Legend: M frames, S side in pixels, T frames of a clip.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch

from vw2.console import UserError, track
from vw2.data.frame_rate import source_index
from vw2.data.shards import ClipStore
from vw2.media.resize import resize_frames, to_model, to_uint8
from vw2.models.classifier import FrameBatch, to_frames
from vw2.models.port import VideoVAE
from vw2.scratch import atomic_file

TRUTH_COLUMNS = ("step", "busy", "fold_angle", "hand_x", "hand_y", "hand_visible")


@dataclass(frozen=True)
class FrameSet:
    """Frames and one row of truth for each.

    rows: video, shown (number of the frame at the clip rate), split, task, environment, TRUTH_COLUMNS.
    """

    pixels: np.ndarray  # (M, S, S, 3) uint8
    rows: pl.DataFrame

    def __len__(self) -> int:
        return len(self.pixels)


def frame_rows(store: ClipStore, truth: pl.DataFrame, manifest: pl.DataFrame, splits: Sequence[str]) -> pl.DataFrame:
    """The truth of every real frame of the clips of some splits, in the order of the videos in the store.

    Sources without any truth (others of a mixture) are left out; where clips are cropped from pictures of another
    shape, nobody knows where the hand is.

    Args:
        truth: video, frame (of the source video) and TRUTH_COLUMNS.
        manifest: id, fps, environment, width, height.
    Returns: the `rows` of a FrameSet.
    Raises: UserError if a frame has no truth.
    """
    known = store.index.filter(pl.col("video").is_in(truth["video"].unique().implode()))["source"].unique().implode()
    clips = store.index.filter(pl.col("split").is_in(list(splits)) & pl.col("source").is_in(known))
    videos = clips.group_by("video", "split", "task", maintain_order=True).agg(
        frames=pl.col("valid").cast(pl.Int64).sum() - pl.len() + 1  # neighbouring clips share a frame
    )
    whole = pl.col("width") * store.height == pl.col("height") * store.width
    facts = manifest.select("environment", "fps", video="id", whole=whole)
    rows = videos.join(facts, on="video", how="left", maintain_order="left")
    rows = rows.with_columns(shown=pl.int_ranges("frames")).explode("shown").drop("frames")
    sources = [source_index(j, fps, store.fps) for j, fps in rows.select("shown", "fps").iter_rows()]
    rows = rows.with_columns(frame=pl.Series(sources, dtype=pl.Int64)).drop("fps")
    wanted = truth.select("video", pl.col("frame").cast(pl.Int64), *TRUTH_COLUMNS)
    rows = rows.join(wanted, on=["video", "frame"], how="left", maintain_order="left").drop("frame")
    hand = [pl.when("whole").then(name).alias(name) for name in ("hand_x", "hand_y", "hand_visible")]
    rows = rows.with_columns(hand).drop("whole")
    missing = rows.filter(pl.col("step").is_null())
    if len(missing):
        raise UserError(
            f"expected truth for every frame, but {len(missing)} have none, the first in video {missing['video'][0]}; "
            "run `dvc repro ingest` again"
        )
    return rows


def _write(path: Path, parts: Iterable[np.ndarray], count: int, size: int, title: str) -> np.ndarray:
    """Put (n, H, W, 3) parts, `count` frames in all, into one .npy file unless it is there; the memory map of it.

    Plain writes: pages of a memory map that is written would count as memory in use beside those that are read.
    """
    if not path.exists():
        with atomic_file(path) as temporary, temporary.open("wb") as out:
            header = {"descr": "|u1", "fortran_order": False, "shape": (count, size, size, 3)}
            np.lib.format.write_array_header_1_0(out, header)
            done = 0
            for part in track(parts, title):
                out.write(resize_frames(part, size, size, "stretch").tobytes())  # keeps x, y fractions
                done += len(part)
            assert done == count, f"expected {count} frames, got {done}"
    return np.load(path, mmap_mode="r")


def real_frames(store: ClipStore, rows: pl.DataFrame, size: int, path: Path) -> FrameSet:
    """All frames of `rows`, as they are in the clips.

    Args: size: S; path: .npy file to keep them in, left as it is if it exists.
    """
    videos = rows["video"].unique(maintain_order=True)
    return FrameSet(_write(path, (store.video(name) for name in videos), len(rows), size, "collect frames"), rows)


def vae_frames(
    store: ClipStore,
    rows: pl.DataFrame,
    vae: VideoVAE,
    every: int,
    size: int,
    path: Path,
    device: torch.device,
    batch: int = 8,
) -> FrameSet:
    """The real frames of every `every`-th clip, encoded and decoded by the VAE.

    Args: device: where the VAE is; batch: clips at a time; the others as in `real_frames`.
    """
    videos = rows["video"].unique()
    clips = store.index.with_row_index("clip_row").filter(pl.col("video").is_in(videos.implode())).gather_every(every)
    first = pl.col("clip").cast(pl.Int64) * (store.clip_frames - 1)
    keys = clips.select("video", shown=pl.int_ranges(first, first + pl.col("valid"))).explode("shown")
    taken = keys.join(rows, on=["video", "shown"], how="inner", maintain_order="left").select(rows.columns)

    def parts() -> Iterator[np.ndarray]:
        for piece in clips.iter_slices(batch):
            decoded = through_vae(vae, store.batch(piece["clip_row"].to_list()), device)
            yield np.concatenate([clip[:valid] for clip, valid in zip(decoded, piece["valid"], strict=True)])

    return FrameSet(_write(path, parts(), len(taken), size, "pass clips through the VAE"), taken)


@torch.inference_mode()
def through_vae(vae: VideoVAE, clips: np.ndarray, device: torch.device) -> np.ndarray:
    """(B, T, H, W, 3) uint8 encoded and decoded; T is filled up to 1 + 4m by the last frame and cut again.

    Args: device: where the VAE is.
    """
    missing = (1 - clips.shape[1]) % 4
    filled = np.concatenate([clips, np.repeat(clips[:, -1:], missing, axis=1)], axis=1)
    video = to_model(torch.from_numpy(filled).to(device))
    return to_uint8(vae.decode(vae.encode(video)))[:, : clips.shape[1]]


def make_batch(sets: Sequence[FrameSet], targets: Sequence[FrameBatch], picks: np.ndarray) -> FrameBatch:
    """Frames number `picks` of several sets laid end to end; `targets` are their `frame_targets`."""
    parts, begin = [], 0
    for frames, target in zip(sets, targets, strict=True):
        own = np.sort(picks[(picks >= begin) & (picks < begin + len(frames))]) - begin  # sorted: read in file order
        rest = [getattr(target, name)[own] for name in ("label", "hand", "visible", "angle")]
        parts.append((to_frames(frames.pixels[own]), *rest))
        begin += len(frames)
    return FrameBatch(*(torch.cat(values) for values in zip(*parts, strict=True)))


def frame_targets(rows: pl.DataFrame, labels: np.ndarray) -> FrameBatch:
    """What the classifier is to say about all rows, as tensors; `frames` is empty.

    The angle is known while a flap is in motion; at rest there is none.
    """
    columns = {name: torch.from_numpy(rows[name].cast(pl.Float32).to_numpy().copy()) for name in TRUTH_COLUMNS[2:]}
    angle = columns["fold_angle"] / 180
    return FrameBatch(
        frames=torch.zeros(0),
        label=torch.from_numpy(np.asarray(labels, np.int64)),
        hand=torch.stack([columns["hand_x"], columns["hand_y"]], 1),
        visible=columns["hand_visible"],
        angle=torch.where(angle > 0, angle, torch.nan),
    )
