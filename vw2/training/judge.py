"""What a freshly trained (d)LDM is asked before it is let go on: renders and codes. For the training stages."""

from collections.abc import Sequence
from contextlib import nullcontext

import numpy as np
import torch

from vw2.console import say, track
from vw2.data.shards import ClipStore
from vw2.evaluation.codes import code_report
from vw2.evaluation.health import code_health, motion_energy, motion_share
from vw2.evaluation.intervals import bootstrap_mean, bootstrap_ratio
from vw2.evaluation.rendering import FEW, comparable, other_clip, render_figures
from vw2.media.resize import to_model, to_uint8
from vw2.models.dldm import DLDM
from vw2.models.layers import device_of
from vw2.models.ldm import LDM
from vw2.models.port import VideoVAE
from vw2.models.renderer import Autocast, Renderer
from vw2.models.timeline import fill
from vw2.streams import Stream
from vw2.training.compute import generator

# Videos that are looked at, at most: more than the mini has, and what takes it seconds takes hours at true size.
ENCODED = 5000
RENDERED = 128


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
    store: ClipStore, split: str, per_video: int, seed: int, sources: Sequence[str] | None = None, most: int = ENCODED
) -> list[int]:
    """Rows of `per_video` whole clips of every video of a split (of some sources), drawn by (seed, video number).

    Of a video that is too short for a whole clip, the first one, with its padded tail. Of more than `most` videos,
    so many that are evenly spread.
    """
    rows = []
    videos = store.videos(split=split, **({"source": sources} if sources else {}))
    for number in np.unique(np.linspace(0, len(videos) - 1, min(most, len(videos))).astype(int)).tolist():
        clips = store.select(split=split, video=videos[number])
        whole = [r for r in clips if store.index["valid"][r] == store.clip_frames] or clips[:1]
        rng = np.random.default_rng([seed, number])
        rows += sorted(rng.choice(whole, min(per_video, len(whole)), replace=False).tolist())
    return rows


def pick_unseen(store: ClipStore, seed: int, sources: Sequence[str] | None, otherwise: list[int]) -> list[int]:
    """Rows of clips to render: two a video of split probe (craft at nuisance 0), where there is none of split test, and
    where there is neither some of the training clips `otherwise`. Of a single video so many that they are comparable.
    """
    for split in ("probe", "test"):
        rows = pick_clips(store, split, 2, seed, sources, RENDERED)
        if rows and not comparable(videos_of(store, rows)):
            rows = pick_clips(store, split, FEW, seed, sources)
            if not comparable(videos_of(store, rows)):
                say(f"only {len(rows)} clips of one video of split {split}: their codes are not compared with others'")
        if rows:
            return rows
    say("no unseen video: the clips that are rendered to judge the model are of training videos")
    return otherwise[:32]


def pick_shaken(store: ClipStore, seed: int, sources: Sequence[str] | None) -> list[int]:
    """Rows of clips at default nuisance to render: one a video of split test."""
    return pick_clips(store, "test", 1, seed, sources, RENDERED)


@torch.no_grad()
def judge_rendering(renderer: Renderer, store: ClipStore, rows: list[int], seed: int, prefix: str = "render"):
    """Figures of vw2.evaluation.rendering for the chosen clips, and rows for a contact sheet."""
    device, videos = device_of(renderer.ldm), videos_of(store, rows)
    codes = encode_rows(renderer.ldm, store, rows)
    shown = np.linspace(0, len(rows) - 1, min(6, len(rows))).astype(int).tolist()
    real = lambda number: store.frames(rows[number])  # noqa: E731

    def draw(numbers: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        first = to_model(np.stack([real(n)[:1] for n in numbers])).to(device)
        index = torch.from_numpy(chosen).to(device)
        streams = (generator(seed, Stream.JUDGE_RENDERING, int(n)) for n in numbers)
        noise = torch.cat([renderer.noise(first[:1], index.shape[1], rng) for rng in streams])
        return to_uint8(renderer.render(first, index, noise))

    figures, own, other = render_figures(draw, real, codes, videos, seed, prefix, store.at_once, shown)
    if not figures:
        say(f"no {prefix}.* figures: nothing moves in the {len(rows)} clips that are judged")
    sheet = []
    for n in shown:
        index = torch.from_numpy(codes[n : n + 1]).to(device)
        coarse = renderer.ldm.coarse(to_model(real(n)[None, :1]).to(device), index)
        sheet += [
            (f"{videos[n]} real", real(n)),
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
    energies, batch = [], store.at_once
    for i in track(range(0, len(rows), batch), "draw coarse videos"):
        real = store.batch(rows[i : i + batch])
        video = to_model(real).to(device_of(ldm))
        drawn = to_uint8(ldm.coarse(video[:, :, :1], ldm.encode(video)))
        energies += [motion_energy(a, b) for a, b in zip(drawn, real, strict=True)]
    share = motion_share(energies, videos_of(store, rows), seed)
    return {} if share is None else {"coarse.motion_share": share.as_dict()}


@torch.no_grad()
def judge_denoising(
    dldm: DLDM, vae: VideoVAE, store: ClipStore, rows: list[int], seed: int, autocast: Autocast = nullcontext
) -> dict[str, dict]:
    """The denoising loss of the chosen clips with their own codes and with another clip's, at the same noise.

    Args: autocast: the precision of the VDM, as accelerate gives it; codes and coarse videos are of full precision.
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
                with autocast():
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
