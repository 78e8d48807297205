"""What a freshly trained (d)LDM is asked before it is let go on: renders, codes, probes. For the training stages."""

from collections.abc import Sequence

import numpy as np
import polars as pl
import torch

from vw2.console import say, track
from vw2.data.frame_rate import source_index
from vw2.data.shards import ClipStore
from vw2.evaluation.codes import changed_fraction, code_report, digit_features, linear_probe
from vw2.evaluation.health import code_health, motion_share
from vw2.evaluation.intervals import bootstrap_mean, bootstrap_ratio
from vw2.evaluation.rendering import FEW, comparable, other_clip, render_figures
from vw2.media.resize import to_model, to_uint8
from vw2.models.dldm import DLDM
from vw2.models.layers import device_of
from vw2.models.ldm import LDM
from vw2.models.port import VideoVAE
from vw2.models.renderer import Renderer
from vw2.models.timeline import fill
from vw2.streams import Stream
from vw2.training.compute import generator


@torch.no_grad()
def encode_rows(ldm: LDM, store: ClipStore, rows: list[int]) -> np.ndarray:
    """(clips, K, N) int64 code indices of the chosen clips."""
    device, batch = device_of(ldm), store.at_once
    parts = [
        ldm.encode(to_model(store.batch(rows[i : i + batch])).to(device)).cpu().numpy()
        for i in track(range(0, len(rows), batch), "encode clips to codes")
    ]
    return np.concatenate(parts)


def code_figures(codes: np.ndarray, levels: tuple[int, ...], videos: Sequence[str]) -> dict[str, dict]:
    """codes.entropy_bits, codes.used, ... of (clips, K, N) indices pooled over slots, and those of `code_health`.

    Args: videos: the video of each clip; n counts them.
    """
    report = code_report(codes.reshape(-1), levels)
    found = {f"codes.{key}": report[key] for key in ("entropy_bits", "used", "used_fraction", "perplexity")}
    found |= code_health(codes, levels).figures()
    return {key: {"value": value, "n": len(set(videos))} for key, value in found.items()}


def videos_of(store: ClipStore, rows: list[int]) -> list[str]:
    """The video of each of the chosen clips."""
    return store.index[rows]["video"].to_list()


def pick_clips(
    store: ClipStore, split: str, per_video: int, seed: int, sources: Sequence[str] | None = None
) -> list[int]:
    """Rows of `per_video` whole clips of every video of a split (of some sources), drawn by (seed, video number).

    Of a video that is too short for a whole clip, the first one, with its padded tail.
    """
    rows = []
    for number, video in enumerate(store.videos(split=split, **({"source": sources} if sources else {}))):
        clips = store.select(split=split, video=video)
        whole = [r for r in clips if store.index["valid"][r] == store.clip_frames] or clips[:1]
        rng = np.random.default_rng([seed, number])
        rows += sorted(rng.choice(whole, min(per_video, len(whole)), replace=False).tolist())
    return rows


def pick_unseen(store: ClipStore, seed: int, sources: Sequence[str] | None, otherwise: list[int]) -> list[int]:
    """Rows of clips to render: two a video of split probe (craft at nuisance 0), where there is none of split test, and
    where there is neither some of the training clips `otherwise`. Of a single video so many that they are comparable.
    """
    for split in ("probe", "test"):
        rows = pick_clips(store, split, 2, seed, sources)
        if rows and not comparable(videos_of(store, rows)):
            rows = pick_clips(store, split, FEW, seed, sources)
            if not comparable(videos_of(store, rows)):
                say(f"only {len(rows)} clips of one video of split {split}: their codes are not compared with others'")
        if rows:
            return rows
    return otherwise[:32]


@torch.no_grad()
def judge_rendering(renderer: Renderer, store: ClipStore, rows: list[int], seed: int, prefix: str = "render"):
    """Figures of vw2.evaluation.rendering for the chosen clips, and rows for a contact sheet."""
    real, device, batch = [store.frames(row) for row in rows], device_of(renderer.ldm), store.at_once
    videos = videos_of(store, rows)
    codes = encode_rows(renderer.ldm, store, rows)

    def draw(numbers: np.ndarray, chosen: np.ndarray) -> list[np.ndarray]:
        out = []
        for i in track(range(0, len(numbers), batch), "render clips"):
            part = numbers[i : i + batch]
            first = to_model(np.stack([real[n][:1] for n in part])).to(device)
            index = torch.from_numpy(chosen[i : i + batch]).to(device)
            steps = index.shape[1]
            streams = (generator(seed, Stream.JUDGE_RENDERING, int(n)) for n in part)
            noise = torch.cat([renderer.noise(first[:1], steps, rng) for rng in streams])
            out += list(to_uint8(renderer.render(first, index, noise)))
        return out

    figures, own, other = render_figures(draw, real, codes, videos, seed, prefix)
    if not figures:
        say(f"no {prefix}.* figures: nothing moves in the {len(rows)} clips that are judged")
    sheet = []
    for n in np.linspace(0, len(rows) - 1, min(6, len(rows))).astype(int):
        index = torch.from_numpy(codes[n : n + 1]).to(device)
        coarse = renderer.ldm.coarse(to_model(real[n][None, :1]).to(device), index)
        sheet += [
            (f"{videos[n]} real", real[n]),
            ("coarse", to_uint8(coarse[0])),
            ("own codes", own[n]),
        ]
        sheet += [("other codes", other[n])] if comparable(videos) else []
    return figures, sheet


@torch.no_grad()
def judge_coarse(ldm: LDM, store: ClipStore, rows: list[int], seed: int) -> dict[str, dict]:
    """coarse.motion_share of the chosen clips: how much the coarse video of their own codes moves.

    Nothing where the clips themselves stand still.
    """
    drawn, real, batch = [], [store.frames(row) for row in rows], store.at_once
    for i in track(range(0, len(rows), batch), "draw coarse videos"):
        video = to_model(np.stack(real[i : i + batch])).to(device_of(ldm))
        drawn += list(to_uint8(ldm.coarse(video[:, :, :1], ldm.encode(video))))
    videos = videos_of(store, rows)
    share = motion_share(drawn, real, videos, seed)
    return {} if share is None else {"coarse.motion_share": share.as_dict()}


@torch.no_grad()
def judge_denoising(dldm: DLDM, vae: VideoVAE, store: ClipStore, rows: list[int], seed: int) -> dict[str, dict]:
    """The denoising loss of the chosen clips with their own codes and with another clip's, at the same noise.

    Returns: with intervals by video, denoise.own; denoise.other_codes (code tokens and the coarse video drawn from
        them are another's);
        denoise.other_tokens (the coarse video stays: what is heard through cross-attention alone); denoise.rise and
        denoise.rise_tokens, how much higher each of these is than denoise.own, as a share of it. denoise.unsteered,
        denoise.unsteered_other and denoise.rise_unsteered: the same of the tokens where the control branch is silent,
        so that they alone say what moves. Where clips are not `comparable`, denoise.own alone.
    """
    device = device_of(dldm.ldm)
    index = torch.from_numpy(encode_rows(dldm.ldm, store, rows)).to(device)
    codes = dldm.ldm.fsq.to_codes(index)
    videos = videos_of(store, rows)
    swapped = other_clip(videos)
    ways = {  # name -> whose coarse video, whose tokens
        "own": ("own", "own"),
        "other_codes": ("other", "other"),
        "other_tokens": ("own", "other"),
        "unsteered": (None, "own"),
        "unsteered_other": (None, "other"),
    }
    losses = {name: np.zeros(len(rows)) for name in ways}
    for n in track(range(len(rows)), "denoise clips"):
        whose = {"own": [n], "other": [swapped[n]]}
        video = to_model(store.batch([rows[n]])).to(device)
        drawn = {name: dldm.ldm.coarse(video[:, :, :1], index[pick]) for name, pick in whose.items()}
        for part in dldm.windows(index.shape[1]):
            clean = vae.encode(fill(video[:, :, part.frames]))
            first = clean[:, :, :1]
            hints = {name: dldm.sees(vae, fill(clip[:, :, part.frames]), first) for name, clip in drawn.items()}
            for name, (hint, tokens) in ways.items():
                rng = generator(seed, Stream.JUDGE_DENOISING, n, part.number)
                silent = torch.tensor([hint is None], device=device)
                told = codes[whose[tokens]][:, part.steps]
                loss = dldm.denoising(clean, first, hints[hint or "own"], told, rng, silent)
                losses[name][n] += float(loss) * (part.end - part.begin) / index.shape[1]
    if not comparable(videos):
        return {"denoise.own": bootstrap_mean(losses["own"], videos, seed).as_dict()}
    figures = {f"denoise.{name}": bootstrap_mean(each, videos, seed) for name, each in losses.items()}
    for name, own, other in (
        ("rise", "own", "other_codes"),
        ("rise_tokens", "own", "other_tokens"),
        ("rise_unsteered", "unsteered", "unsteered_other"),
    ):
        figures[f"denoise.{name}"] = bootstrap_ratio(losses[other] - losses[own], losses[own], videos, seed)
    return {key: figure.as_dict() for key, figure in figures.items()}


def code_changes(
    warm: np.ndarray,
    joint: np.ndarray,
    store: ClipStore,
    rows: list[int],
    truth: pl.DataFrame,
    manifest: pl.DataFrame,
    seed: int,
    levels: Sequence[int],
) -> dict[str, dict]:
    """What a training did to the codes of the chosen clips.

    Args: warm, joint: (clips, K, N) codes before and after; the others as in `probe_figures`.
    Returns: `code_figures` of those after, codes.changed_fraction, and probes before (probe.warmup.*) and after
        (probe.joint.*).
    """
    videos = videos_of(store, rows)
    figures = code_figures(joint, levels, videos)
    figures["codes.changed_fraction"] = changed_fraction(warm, joint, videos, seed).as_dict()
    for name, codes in (("warmup", warm), ("joint", joint)):
        found = probe_figures(codes, store, rows, truth, manifest, seed, levels)
        figures |= {f"probe.{name}.{key}": value for key, value in found.items()}
    return figures


def appearance_of(manifest: pl.DataFrame) -> dict[str, str]:
    """Video id -> what its table looks like: the texture, second part of a craft environment (family-texture-...)."""
    pairs = manifest.select("id", "environment").drop_nulls().iter_rows()
    return {video: (name.split("-") + [name])[1] for video, name in pairs}


def probe_figures(
    codes: np.ndarray,
    store: ClipStore,
    rows: list[int],
    truth: pl.DataFrame,
    manifest: pl.DataFrame,
    seed: int,
    levels: Sequence[int],
) -> dict:
    """Linear probes from a step's codes to the action in it and to what the video's table looks like (appearance)."""
    looks, fps = appearance_of(manifest), dict(manifest.select("id", "fps").iter_rows())
    if truth.is_empty():
        return {}
    index = store.index[rows]
    stride = (store.clip_frames - 1) // codes.shape[1]
    steps = codes.shape[1]
    actions = dict(zip(zip(truth["video"], truth["frame"], strict=True), truth["action"], strict=True))
    features, labels, appearance, groups = [], [], [], []
    for i, (video, clip, valid) in enumerate(index.select("video", "clip", "valid").iter_rows()):
        for k in range(steps):
            shown = clip * (store.clip_frames - 1) + k * stride + stride // 2
            frame = source_index(shown, fps.get(video) or store.fps, store.fps)
            if (k + 1) * stride < valid and (video, frame) in actions:
                features.append(codes[i, k])
                labels.append(actions[video, frame])
                appearance.append(looks.get(video, ""))
                groups.append(video)
    if len(set(groups)) < 2 or len(set(labels)) < 2:  # no clip of the craft world, or nothing to tell apart
        return {}
    x = digit_features(np.stack(features), levels)
    action = linear_probe(x, np.array(labels), groups, seed)
    figures = {"action": action.score.as_dict(), "action_chance": {"value": action.chance, "n": action.score.n}}
    if len(set(appearance)) > 1:
        look = linear_probe(x, np.array(appearance), groups, seed)
        figures |= {"appearance": look.score.as_dict(), "appearance_chance": {"value": look.chance, "n": look.score.n}}
    return figures
