"""What a training did to the codes: how many it changed, and what linear probes read from them before and after.

Two probes, of one code step each: the action that is done at that moment, and the appearance of its video, which is
how the first frame's colours, before anything was done, differ from those of other videos of its task (papers are
bright, so colours alone would tell the task). Codes of dynamics tell the one and not the other (VideoWorld 2, sec. 3).
Appearance needs no labels (our choice: 4 x 4 places, whose colours hold table, material, light and what lies where).

Legend: K steps of a clip, N queries, M steps of all clips.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from vw2.data.frame_rate import source_index
from vw2.data.shards import ClipStore
from vw2.evaluation.codes import (
    Probe,
    changed_fraction,
    digit_features,
    linear_probe,
    linear_probe_r2,
    probe_change,
)
from vw2.media.resize import resize_frame
from vw2.training.judge import code_figures, videos_of

PLACES = 4  # a side


@dataclass(frozen=True)
class Rows:
    """What the probes ask of M steps; `action` is None where there is no truth."""

    clip: np.ndarray  # (M,) number of the clip among those judged
    step: np.ndarray  # (M,)
    video: np.ndarray  # (M,)
    appearance: np.ndarray  # (M, 3 PLACES^2) in [-1, 1]
    action: np.ndarray | None  # (M,) names


def first_colours(store: ClipStore, video: str) -> np.ndarray:
    """(3 PLACES^2,) in [0, 1]: mean colours of the video's first frame at PLACES x PLACES places."""
    first = store.frames(store.select(video=video, clip=0)[0])[0]
    return resize_frame(first, PLACES, PLACES, "stretch").reshape(-1) / 255.0


def probe_rows(store: ClipStore, rows: Sequence[int], steps: int, truth: pl.DataFrame, manifest: pl.DataFrame) -> Rows:
    """The steps of the chosen clips that are not padding, those with a known action alone where any is known."""
    fps, task = (dict(manifest.select("id", key).iter_rows()) for key in ("fps", "task"))
    chosen = set(videos_of(store, list(rows)))
    known = [] if truth.is_empty() else truth.select("video", "frame", "action").iter_rows()
    actions = {(video, frame): action for video, frame, action in known if video in chosen}
    stride = (store.clip_frames - 1) // steps
    found = []
    for number, (video, clip, valid) in enumerate(store.index[rows].select("video", "clip", "valid").iter_rows()):
        for k in range(steps):
            shown = clip * (store.clip_frames - 1) + k * stride + stride // 2
            frame = source_index(shown, fps.get(video) or store.fps, store.fps)
            if (k + 1) * stride < valid and (not actions or (video, frame) in actions):
                found.append((number, k, video, actions.get((video, frame))))
    clips, ks, videos, done = map(np.array, zip(*found, strict=True)) if found else [np.zeros(0, int)] * 4
    looks = {video: first_colours(store, video) for video in dict.fromkeys(videos.tolist())}
    alike = defaultdict(list)
    for video, look in looks.items():
        alike[task[video]].append(look)
    usual = {name: np.mean(each, 0) for name, each in alike.items()}
    appearance = np.array([looks[video] - usual[task[video]] for video in videos.tolist()])
    return Rows(clips, ks, videos, appearance, done if actions else None)


def probe(codes: np.ndarray, rows: Rows, levels: Sequence[int], seed: int) -> dict[str, Probe]:
    """Name -> probe of (clips, K, N) codes; none of a single video, or of what never varies."""
    probes: dict[str, Probe] = {}
    if len(set(rows.video.tolist())) < 2:
        return probes
    x = digit_features(codes[rows.clip, rows.step], levels)
    if rows.action is not None and len(set(rows.action.tolist())) > 1:
        probes["action"] = linear_probe(x, rows.action, rows.video, seed)
    if (rows.appearance != rows.appearance[0]).any():
        probes["appearance"] = linear_probe_r2(x, rows.appearance, rows.video, seed)
    return probes


def code_changes(
    warm: np.ndarray,
    joint: np.ndarray,
    store: ClipStore,
    rows: Sequence[int],
    truth: pl.DataFrame,
    manifest: pl.DataFrame,
    seed: int,
    levels: Sequence[int],
) -> dict[str, dict]:
    """What a training did to the codes of the chosen clips.

    Args:
        warm, joint: (clips, K, N) codes before and after.
        rows: of the store, one a clip.
        truth: video, frame, action; may be empty.
    Returns: `code_figures` of those after, codes.changed_fraction; probe.warmup.*, probe.joint.* (share of actions that
        are told right, R2 of appearance) with what guessing gives (*_chance), and probe.change.*, their differences.
    """
    videos = videos_of(store, list(rows))
    figures = code_figures(joint, levels, videos)
    figures["codes.changed_fraction"] = changed_fraction(warm, joint, videos, seed).as_dict()
    asked = probe_rows(store, rows, joint.shape[1], truth, manifest)
    before, after = (probe(codes, asked, levels, seed) for codes in (warm, joint))
    for stage, probes in (("warmup", before), ("joint", after)):
        for name, each in probes.items():
            figures[f"probe.{stage}.{name}"] = each.score.as_dict()
            figures[f"probe.{stage}.{name}_chance"] = {"value": each.chance, "n": each.score.n}
    for name in after:
        figures[f"probe.change.{name}"] = probe_change(before[name], after[name], asked.video, seed).as_dict()
    return figures
