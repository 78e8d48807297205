"""Chained rollout: codes of a whole video and one first frame -> the video, clip by clip (VideoWorld 2, sec. 3.4).

Each clip starts from the last frame of the one before; so does its coarse video, or from its own last frame
(`dldm.chain`). The start noise of a clip is a function of (seed, row key, clip number), or of the seed alone, so that a
row's video does not depend on what is rendered beside it.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import torch

from vw2.console import progress
from vw2.data.codes import CodeStore
from vw2.evaluation.codes import random_codes, shuffle_steps
from vw2.guardrail import Guardrail
from vw2.media.encode import write_video
from vw2.media.resize import to_model, to_uint8
from vw2.models.ar import ARTransformer, word_ids
from vw2.models.layers import device_of
from vw2.models.ldm import LDM
from vw2.models.renderer import Renderer
from vw2.scratch import atomic_file
from vw2.streams import Stream
from vw2.training.compute import generator
from vw2.training.sequences import first_features

CONTROLS = ("ground_truth_codes", "shuffled_codes", "random_codes")


@dataclass(frozen=True)
class RolloutConfig:
    """Group `rollout` of params.yaml."""

    samples: int  # rollouts per test case
    temperature: float
    top_p: float
    batch: int  # videos rendered together
    max_cases: int | None  # most test cases; null = all
    same_noise: bool = False  # every clip of every video begins from the same noise (release)

    def __post_init__(self):
        for key in ("samples", "batch", "max_cases"):
            if (found := getattr(self, key)) is not None and found < 1:
                raise ValueError(f"rollout.{key} must be at least 1, got {found}; raise it")
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ValueError(
                f"rollout.temperature must be at least 0 and rollout.top_p lie in (0, 1], got {self.temperature} and "
                f"{self.top_p}; change them"
            )


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
def render_batch(
    renderer: Renderer,
    rows: Sequence[Row],
    seed: int,
    guard: Guardrail = Guardrail(),
    same_noise: bool = False,
    advance: Callable[[int], None] = lambda clips: None,
) -> list[np.ndarray]:
    """Render rows together; finished videos pass the guardrail.

    Args: advance: told how many clips were rendered, each time that some were (for a progress bar).
    Returns: the videos, each (clips (T - 1) + 1, H, W, 3) uint8: neighbouring clips share one frame.
    """
    device = device_of(renderer.ldm)
    frame = to_model(np.stack([row.first for row in rows])[:, None]).to(device)  # (B, 3, 1, H, W)
    coarse = list(frame)  # what the coarse decoder begins with, each (3, 1, ., .)
    parts: list[list[np.ndarray]] = [[row.first[None]] for row in rows]
    for clip in range(max(len(row.codes) for row in rows)):
        active = [i for i, row in enumerate(rows) if clip < len(row.codes)]
        index = torch.from_numpy(np.stack([rows[i].codes[clip] for i in active])).to(device)
        steps = index.shape[1]
        keys = [() if same_noise else (*rows[i].key, clip) for i in active]
        noise = torch.cat([renderer.noise(frame[:1], steps, generator(seed, Stream.ROLLOUT, *key)) for key in keys])
        begun = torch.stack([coarse[i] for i in active])
        video = renderer.render(frame[active], index, noise, begun)
        frame[active] = video[:, :, -1:]
        for i, end in zip(active, renderer.end(video, begun, index), strict=True):
            coarse[i] = end.clone()  # a view would keep the whole clip
        for i, frames in zip(active, to_uint8(video[:, :, 1:]), strict=True):
            parts[i].append(frames)
        advance(len(active))
    return [guard.frames(np.concatenate(part)) for part in parts]


def choose(videos: Sequence[str], told: dict[str, str], most: int | None) -> list[str]:
    """At most so many of the videos (None: all), in turns of every instruction, so that each task is among them.

    Args: told: video -> instruction.
    Returns: them in the order that they came in.
    """
    turn = Counter[str]()
    turns = {}
    for number, video in enumerate(videos):
        turns[video] = (turn[told[video]], number)
        turn[told[video]] += 1
    chosen = set(sorted(videos, key=turns.__getitem__)[:most])
    return [video for video in videos if video in chosen]


def sample_codes(
    ar: ARTransformer,
    ldm: LDM,
    firsts: list[np.ndarray],
    told: list[str],
    keys: list[str],
    config: RolloutConfig,
    seed: int,
) -> list[np.ndarray]:
    """Codes (clips, K, N) that the AR transformer samples for first frames (H, W, 3) uint8 and instructions."""
    frames = to_model(np.stack(firsts)[:, None]).to(device_of(ldm))
    features = torch.cat([first_features(ldm, part) for part in frames.split(64)])
    words = torch.tensor([word_ids(text, ar.inputs) for text in told], dtype=torch.int64, device=features.device)
    return ar.sample(words, features, keys, seed, config.temperature, config.top_p)


def plan(
    cases: list[str], written: list[np.ndarray], codes: CodeStore, firsts: dict, config: RolloutConfig, seed: int
) -> list[Row]:
    """All rows to render: samples of the AR transformer, then the controls."""
    rows = []
    n = config.samples
    for number, video in enumerate(cases):
        rng = np.random.default_rng([seed, number])
        own = written[number * n]  # the first sample
        chosen = {f"vw2/{video}_{s}": written[number * n + s] for s in range(n)}
        steps = shuffle_steps(own.reshape(-1, own.shape[-1]), rng).reshape(own.shape)
        wild = random_codes(own.shape, prod(codes.info.levels), rng)
        for name, each in zip(CONTROLS, (codes[video], steps, wild), strict=True):
            chosen[f"{name}/{video}_0"] = each
        rows += [Row(name, firsts[video], each, (number, i)) for i, (name, each) in enumerate(chosen.items())]
    return rows


def render_all(
    renderer: Renderer,
    rows: list[Row],
    fps: float,
    config: RolloutConfig,
    seed: int,
    folder: Path,
    guard: Guardrail = Guardrail(),
) -> None:
    """mp4s in `folder`; a batch all of whose files are there is not rendered again."""
    with progress(sum(len(row.codes) for row in rows), "render clips") as bar:
        for numbers in plan_batches(rows, config.batch):
            chosen = [rows[i] for i in numbers]
            targets = [folder / f"{row.name}.mp4" for row in chosen]
            if all(target.exists() for target in targets):
                bar.resume(sum(len(row.codes) for row in chosen))
                continue
            videos = render_batch(renderer, chosen, seed, guard, config.same_noise, bar.advance)
            for target, frames in zip(targets, videos, strict=True):
                target.parent.mkdir(parents=True, exist_ok=True)
                with atomic_file(target) as temporary:
                    write_video(temporary, frames, fps)
