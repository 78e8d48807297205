"""What a freshly trained (d)LDM is asked before it is let go on: renders, codes, probes. For the training stages."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch

from vw2.console import UserError, track
from vw2.data.shards import ClipStore
from vw2.evaluation.codes import code_report, digit_features, linear_probe
from vw2.evaluation.rendering import render_figures
from vw2.media.resize import to_model, to_uint8
from vw2.models.ldm import LDM
from vw2.training.compute import generator


@dataclass(frozen=True)
class GatesConfig:
    """Group `gates` of params.yaml: what a run must reach to go on."""

    entropy_share: float = 0.5  # least entropy of a code, as a share of log2(codebook)
    used_share: float = 0.1  # least share of the codebook in use
    margin_db: float = 0.5  # least PSNR advantage of a clip's own codes over another video's, moving pixels
    enabled: bool = True


@torch.no_grad()
def encode_rows(ldm: LDM, store: ClipStore, rows: list[int], batch: int = 32) -> np.ndarray:
    """(clips, K, N) int64 code indices of the chosen clips."""
    parts = [
        ldm.encode(to_model(store.batch(rows[i : i + batch]))).numpy()
        for i in track(range(0, len(rows), batch), "encode clips to codes")
    ]
    return np.concatenate(parts)


def code_figures(codes: np.ndarray, levels: tuple[int, ...]) -> dict[str, float]:
    """codes.entropy_bits, codes.used, ... of (clips, K, N) indices, pooled over slots."""
    report = code_report(codes.reshape(-1), levels)
    return {
        "codes.entropy_bits": report["entropy_bits"],
        "codes.used": report["used"],
        "codes.used_fraction": report["used_fraction"],
        "codes.perplexity": report["perplexity"],
    }


def pick_clips(
    store: ClipStore, split: str, per_video: int, seed: int, sources: Sequence[str] | None = None
) -> list[int]:
    """Rows of `per_video` whole clips of every video of a split (of some sources), drawn by (seed, video number)."""
    rows = []
    for number, video in enumerate(store.videos(split=split, **({"source": sources} if sources else {}))):
        whole = [r for r in store.select(split=split, video=video) if store.index["valid"][r] == store.clip_frames]
        if whole:
            rng = np.random.default_rng([seed, number])
            rows += sorted(rng.choice(whole, min(per_video, len(whole)), replace=False).tolist())
    return rows


@torch.no_grad()
def judge_rendering(renderer, store: ClipStore, rows: list[int], seed: int, prefix: str = "render", batch: int = 32):
    """Figures of vw2.evaluation.rendering for the chosen clips, and rows for a contact sheet."""
    real = [store.frames(row) for row in rows]
    videos = store.index[rows]["video"].to_list()
    codes = encode_rows(renderer.ldm, store, rows)

    def draw(numbers: np.ndarray, chosen: np.ndarray) -> list[np.ndarray]:
        out = []
        for i in track(range(0, len(numbers), batch), "render clips"):
            part = numbers[i : i + batch]
            first = to_model(np.stack([real[n][:1] for n in part]))
            index = torch.from_numpy(chosen[i : i + batch])
            steps = index.shape[1]
            noise = torch.cat([renderer.noise(first[:1], steps, generator(seed, 6, int(n))) for n in part])
            out += list(to_uint8(renderer.render(first, index, noise)))
        return out

    figures, own, other = render_figures(draw, real, codes, videos, seed, prefix)
    sheet = []
    for n in np.linspace(0, len(rows) - 1, min(6, len(rows))).astype(int):
        coarse = renderer.ldm.coarse(to_model(real[n][None, :1]), torch.from_numpy(codes[n : n + 1]))
        sheet += [
            (f"{videos[n]} real", real[n]),
            ("coarse", to_uint8(coarse[0])),
            ("own codes", own[n]),
            ("other codes", other[n]),
        ]
    return figures, sheet


def appearance_of(manifest: pl.DataFrame) -> dict[str, str]:
    """Video id -> what its table looks like: the texture, second part of a craft environment (family-texture-...)."""
    pairs = manifest.select("id", "environment").drop_nulls().iter_rows()
    return {video: (name.split("-") + [name])[1] for video, name in pairs}


def probe_figures(
    codes, store: ClipStore, rows: list[int], truth: pl.DataFrame, looks: dict, seed: int, levels
) -> dict:
    """Linear probes from a step's codes to the action in it and to what the video's table looks like (appearance)."""
    if truth.is_empty():
        return {}
    index = store.index[rows]
    stride = (store.clip_frames - 1) // codes.shape[1]
    steps = codes.shape[1]
    actions = dict(zip(zip(truth["video"], truth["frame"], strict=True), truth["action"], strict=True))
    features, labels, appearance, groups = [], [], [], []
    for i, (video, clip, valid) in enumerate(index.select("video", "clip", "valid").iter_rows()):
        for k in range(steps):
            frame = clip * (store.clip_frames - 1) + k * stride + stride // 2
            if (k + 1) * stride < valid and (video, frame) in actions:
                features.append(codes[i, k])
                labels.append(actions[video, frame])
                appearance.append(looks.get(video, ""))
                groups.append(video)
    if not features:  # no clip of the craft world among them
        return {}
    x = digit_features(np.stack(features), levels)
    action = linear_probe(x, np.array(labels), groups, seed)
    figures = {"action": action.score.as_dict(), "action_chance": action.chance}
    if len(set(appearance)) > 1:
        look = linear_probe(x, np.array(appearance), groups, seed)
        figures |= {"appearance": look.score.as_dict(), "appearance_chance": look.chance}
    return figures


def check_gates(figures: dict, gates: GatesConfig, codebook: int, plot: Path) -> None:
    """Stop a run whose codes are dead or not listened to (VideoWorld 2 needs both; thresholds are our choice).

    Raises: UserError naming the broken gate and the picture to look at.
    """
    if not gates.enabled:
        return
    need = gates.entropy_share * np.log2(codebook)
    if figures["codes.entropy_bits"] < need:
        raise UserError(
            f"the codes died: {figures['codes.entropy_bits']:.2f} bits of entropy, at least {need:.2f} expected "
            f"(gates.entropy_share); see {plot}, train longer or lower the learning rate of the encoder"
        )
    if figures["codes.used_fraction"] < gates.used_share:
        raise UserError(
            f"the codes died: {figures['codes.used_fraction']:.1%} of the codebook in use, at least "
            f"{gates.used_share:.0%} expected (gates.used_share); see {plot}, lower dldm.codebook or train longer"
        )
    if "render.psnr" in figures:
        margin = figures["render.psnr"]["value"] - figures["render.psnr_other_codes"]["value"]
        if margin < gates.margin_db:
            raise UserError(
                f"the codes are not listened to: a clip's own codes render it only {margin:.2f} dB better than another "
                f"video's, at least {gates.margin_db:g} expected (gates.margin_db); see {plot}, train longer"
            )
