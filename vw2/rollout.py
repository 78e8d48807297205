"""Chained rollout: codes of a whole video and one first frame -> the video, clip by clip (VideoWorld 2, sec. 3.4).

Each clip starts from the last frame of the one before; so does its coarse video, or from its own last frame
(`dldm.chain`). The start noise of a clip is a function of (seed, row key, clip number), or of the seed alone; the keys
and the codes of the controls are functions of seed and name. So a row's video does not depend on what is planned or
rendered beside it.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import torch

from vw2.console import UserError, progress, say
from vw2.data.codes import CodeStore
from vw2.evaluation.codes import random_codes, shuffle_steps
from vw2.guardrail import Guardrail
from vw2.media.decode import MediaError, read_image
from vw2.media.encode import write_video
from vw2.media.resize import Fit, resize_frame, to_model, to_uint8
from vw2.models.ar import ARTransformer, split_words, word_ids
from vw2.models.layers import device_of
from vw2.models.ldm import LDM
from vw2.models.nucleus import row_generator
from vw2.models.renderer import Renderer
from vw2.scratch import atomic_file
from vw2.streams import Stream
from vw2.training.compute import generator
from vw2.training.sequences import first_features

CONTROLS = ("ground_truth_codes", "shuffled_codes", "random_codes")
LONGEST = 150  # bytes of a name below rollouts/, so that with number and suffix it is a file name everywhere


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


Refused = Callable[[Row], None]  # told of a row whose video the guardrail refuses


def plan_batches(rows: Sequence[Row], batch: int) -> list[list[int]]:
    """Row numbers in batches of like length, so that little is rendered in vain."""
    order = sorted(range(len(rows)), key=lambda i: (len(rows[i].codes), i))
    return [order[i : i + batch] for i in range(0, len(order), batch)]


def passed(guard: Guardrail, row: Row, frames: np.ndarray, refused: Refused | None) -> np.ndarray:
    """What the guardrail makes of a video (frames, H, W, 3) uint8; black if it refuses it and somebody is told of that.

    Raises: UserError if it is refused and nobody is.
    """
    try:
        return guard.frames(frames)
    except UserError:
        if refused is None:
            raise
    refused(row)
    return np.zeros_like(frames)


@torch.no_grad()
def render_batch(
    renderer: Renderer,
    rows: Sequence[Row],
    seed: int,
    guard: Guardrail = Guardrail(),
    same_noise: bool = False,
    advance: Callable[[int], None] = lambda clips: None,
    refused: Refused | None = None,
) -> list[np.ndarray]:
    """Render rows together; finished videos pass the guardrail.

    Args:
        advance: told how many clips were rendered, each time that some were (for a progress bar).
        refused: told of each row whose video is refused, which is then black; None: a refusal ends it all.
    Returns: the videos, each (clips (T - 1) + 1, H, W, 3) uint8: neighbouring clips share one frame.
    Raises: UserError if a video is refused and `refused` is None.
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
    return [passed(guard, row, np.concatenate(part), refused) for row, part in zip(rows, parts, strict=True)]


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


def number_of(seed: int, name: str) -> int:
    """63 bits that seed and name alone decide: what is keyed by them does not change with a place in a list."""
    return row_generator(seed, name).initial_seed()


def plan(
    cases: list[str], written: list[np.ndarray], codes: CodeStore, firsts: dict, config: RolloutConfig, seed: int
) -> list[Row]:
    """All rows to render: samples of the AR transformer, then the controls."""
    rows = []
    n = config.samples
    for number, video in enumerate(cases):
        rng = np.random.default_rng(number_of(seed, video))
        own = written[number * n]  # the first sample
        chosen = {f"vw2/{video}_{s}": written[number * n + s] for s in range(n)}
        steps = shuffle_steps(own.reshape(-1, own.shape[-1]), rng).reshape(own.shape)
        wild = random_codes(own.shape, prod(codes.info.levels), rng)
        for name, each in zip(CONTROLS, (codes[video], steps, wild), strict=True):
            chosen[f"{name}/{video}_0"] = each
        rows += [Row(name, firsts[video], each, (number_of(seed, name),)) for name, each in chosen.items()]
    return rows


def read_picture(path: Path, height: int, width: int, fit: Fit) -> np.ndarray:
    """A picture of the user's own as a first frame (height, width, 3) uint8. Raises: UserError if it is none."""
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist"
        raise UserError(f"{path} {found}; give the path of a picture with --image")
    try:
        return resize_frame(read_image(path), height, width, fit)
    except MediaError as error:
        raise UserError(f"{path} {error}; give another picture with --image") from error


def picture_name(picture: Path, variant: str, instruction: str) -> str:
    """What is made of a picture is called <stem>_<words>, with the variant between them unless it is vw2.

    The words are those that the AR transformer reads, so that one name is not given to two instructions.
    """
    parts = [picture.stem, "" if variant == "vw2" else variant, "-".join(split_words(instruction))]
    name = "_".join(part for part in parts if part)
    if len(name.encode()) > LONGEST:  # characters of up to 4 bytes
        return f"{name[: LONGEST // 4]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return name


def render_all(
    renderer: Renderer,
    rows: list[Row],
    fps: float,
    config: RolloutConfig,
    seed: int,
    folder: Path,
    guard: Guardrail = Guardrail(),
    strict: bool = False,
) -> set[str]:
    """mp4s in `folder`; a batch all of whose files are there is not rendered again.

    Args: strict: a video that the guardrail refuses ends it all; else it is black, and a note names it.
    Returns: names of the rows that the guardrail refuses.
    Raises: UserError if it is strict and a video is refused.
    """

    def mark(row: Row) -> Path:
        return folder / f"{row.name}.refused"  # beside the video, for a run that goes on after this one

    def refuse(row: Row) -> None:
        mark(row).parent.mkdir(parents=True, exist_ok=True)
        mark(row).touch()

    refused = None if strict else refuse
    with progress(sum(len(row.codes) for row in rows), "render clips") as bar:
        for numbers in plan_batches(rows, config.batch):
            chosen = [rows[i] for i in numbers]
            targets = [folder / f"{row.name}.mp4" for row in chosen]
            if all(target.exists() for target in targets):
                bar.resume(sum(len(row.codes) for row in chosen))
                continue
            videos = render_batch(renderer, chosen, seed, guard, config.same_noise, bar.advance, refused)
            for target, frames in zip(targets, videos, strict=True):
                target.parent.mkdir(parents=True, exist_ok=True)
                with atomic_file(target) as temporary:
                    write_video(temporary, frames, fps)
    if black := [row.name for row in rows if mark(row).exists()]:
        count = f"{len(black)} of {len(rows)} videos"
        say(f"the guardrail refuses {count} as unsafe; they are left black: {', '.join(black)}")
    return set(black)
