"""The craft world: the five Video-CraftBench tasks rendered with ground truth (our miniature of the paper's benchmark).

`render_video(config, split, index)` is a pure function of its arguments: the same bytes on every call. Dynamics,
appearance and nuisance are drawn from three independent streams, so what is done in a video is the same at every
nuisance level; how much clutter lies about is part of the appearance, which is another at each.
Splits: train and fail use the train appearance families; test and probe (nuisance 0) use the test families.
"""

from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from vw2.worlds.appearance import Appearance, Family, draw_appearance
from vw2.worlds.paper import Sheet
from vw2.worlds.scene import Nuisance, Painter, camera_matrix, project
from vw2.worlds.script import (
    ACTIONS,
    BLOCK_TASKS,
    INSTRUCTIONS,
    PAPER_TASKS,
    TASKS,
    FrameState,
    block_script,
    paper_script,
    purposeless_script,
)

SPLITS = ("train", "test", "probe", "fail", "prior")
DYNAMICS, LOOK, NUISANCE = 0, 1, 2
LEAST_LONGEST = 113  # frames: the longest scripts seen, of 147, are then played a third faster, not more
TRUTH_SCHEMA = {
    "frame": pl.Int32,
    "step": pl.Int32,
    "busy": pl.Boolean,
    "fold_angle": pl.Float32,
    "hand_x": pl.Float32,
    "hand_y": pl.Float32,
    "hand_visible": pl.Boolean,
    "action": pl.Int32,
}


@dataclass(frozen=True)
class CraftConfig:
    """Size and difficulty of the craft world (our choice)."""

    seed: int = 0
    resolution: int = 64  # pixels, side of the square picture
    fps: float = 16.0
    nuisance: int = 2  # 0 to 3
    paper_frames: tuple[int, int] = (113, 145)  # shortest and longest paper video, frames
    train_videos: int = 400
    fail_videos: int = 80
    test_paper: int = 60
    test_blocks: int = 60
    probe_videos: int = 40

    def __post_init__(self):
        if self.nuisance not in range(4):
            raise ValueError(f"craft.nuisance must be 0, 1, 2 or 3, got {self.nuisance}; lower it to at most 3")
        if self.resolution % 16 or self.resolution < 32:
            raise ValueError(f"craft.resolution must be a multiple of 16 from 32 on, got {self.resolution}")
        if len(self.paper_frames) != 2 or not 4 <= self.paper_frames[0] <= self.paper_frames[1]:
            got = list(self.paper_frames)
            raise ValueError(f"craft.paper_frames must be shortest, at least 4, and longest, got {got}; change it")
        if self.paper_frames[1] < LEAST_LONGEST:
            raise ValueError(
                f"craft.paper_frames allows at most {self.paper_frames[1]} frames, but seven folds take up to some 147 "
                f"and are played faster down to {LEAST_LONGEST}; raise its second number to at least {LEAST_LONGEST}"
            )
        if self.fps <= 0:
            raise ValueError(f"craft.fps must be above 0, got {self.fps}; raise it")
        for key in ("train_videos", "fail_videos", "test_paper", "test_blocks", "probe_videos"):
            if getattr(self, key) < 0:
                raise ValueError(f"craft.{key} must be at least 0, got {getattr(self, key)}; raise it")


@dataclass(frozen=True)
class CraftVideo:
    """A rendered video with its ground truth."""

    frames: np.ndarray  # (F, H, W, 3) uint8
    fps: float
    task: str
    instruction: str
    environment: str
    split: str
    truth: pl.DataFrame  # TRUTH_SCHEMA, one row per frame


def plan(config: CraftConfig) -> list[tuple[str, int]]:
    """All (split, index) pairs of the world, in order."""
    counts = {
        "train": config.train_videos,
        "fail": config.fail_videos,
        "test": config.test_paper + config.test_blocks,
        "probe": config.probe_videos,
    }
    return [(split, i) for split, count in counts.items() for i in range(count)]


def task_of(config: CraftConfig, split: str, index: int) -> str:
    """Paper and block videos in turn in train, two to one in fail and probe; the split test has counts of its own."""
    if split == "test":
        if index < config.test_paper:
            return PAPER_TASKS[index % 2]
        return tuple(BLOCK_TASKS)[(index - config.test_paper) % 3]
    if split == "train":
        kind = tuple(BLOCK_TASKS) if index % 2 else PAPER_TASKS
        return kind[index // 2 % len(kind)]
    cycle = ("paper_airplane", "paper_boat", "block_tower", "paper_airplane", "paper_boat", "block_horse") + (
        "paper_airplane",
        "paper_boat",
        "block_person",
    )
    return cycle[index % len(cycle)]


def _stream(config: CraftConfig, split: str, index: int, which: int) -> np.random.Generator:
    return np.random.default_rng([config.seed, SPLITS.index(split), index, which])


def _nuisance_track(rng: np.random.Generator, level: int, frames: int, clutter: int) -> list[Nuisance]:
    """Camera drift and shake, light, shadow, cloth and nudges, smooth in time; level 0 is perfectly still."""
    if level == 0:
        return [Nuisance(nudges=[np.zeros(2)] * clutter)] * frames
    time = np.arange(frames) / 16.0  # seconds at the default rate
    wave = lambda rate: np.sin(2 * np.pi * (rate * rng.uniform(0.5, 1.5) * time + rng.uniform()))  # noqa: E731
    drift = np.stack([wave(0.15), wave(0.15)], 1) * 0.006 * level
    shake = np.stack([wave(1.3) + rng.normal(0, 0.35, frames), wave(1.1) + rng.normal(0, 0.35, frames)], 1) * 0.002
    roll = wave(0.2) * 0.006 * level
    light = 1 + wave(0.5) * 0.015 * level + rng.normal(0, 0.004 * level, frames)
    slide = wave(0.1) * 0.4 * level
    cloth = np.stack([wave(0.08), wave(0.08)], 1) * 0.008 * level
    passing = rng.uniform(0, frames) if rng.random() < 0.2 * level else None
    entry, course = rng.uniform(0.2, 0.8), rng.choice([-1, 1]) * 0.04
    nudges = np.zeros((frames, clutter, 2))
    for item in range(clutter):
        if rng.random() < 0.25 * level:
            at = int(rng.integers(0, frames))
            nudges[at:, item] += rng.normal(0, 0.05, 2)
    track = []
    for i in range(frames):
        shadow = None if passing is None else np.array([0.5 + course * (i - passing), entry])
        track.append(
            Nuisance(drift[i] + shake[i] * level, roll[i], light[i], slide[i], shadow, cloth[i], list(nudges[i]))
        )
    return track


def paint(state: FrameState, look: Appearance, nuisance: Nuisance, resolution: int) -> np.ndarray:
    """One frame, (resolution, resolution, 3) uint8 RGB."""
    painter = Painter(look, nuisance, resolution)
    if state.sheet is not None:
        painter.sheet(state.sheet, state.pose, state.fold, state.angle)
    for centre, size, colour, height in sorted(state.blocks, key=lambda block: block[3]):
        painter.block(np.array(centre), size, look.blocks[colour % len(look.blocks)], height)
    for tip, side in state.hands:
        painter.hand(np.array(tip), side)
    return painter.finish()


def _truth(states: list[FrameState], look: Appearance, track: list[Nuisance]) -> pl.DataFrame:
    rows = []
    for i, state in enumerate(states):
        x, y = np.nan, np.nan
        if state.hands:
            x, y = project(camera_matrix(look, track[i], 1), np.array(state.hands[0][0])[None])[0]
        seen = bool(state.hands) and 0 <= x <= 1 and 0 <= y <= 1
        angle = float(np.degrees(state.angle))
        rows.append((i, state.step, state.busy, angle, float(x), float(y), seen, ACTIONS.index(state.action)))
    return pl.DataFrame(rows, schema=TRUTH_SCHEMA, orient="row")


def _rest(states: list[FrameState], frames: int) -> list[FrameState]:
    """Hold the last state, hands away, until the video has `frames` frames."""
    calm = replace(states[-1], hands=(), action="idle", busy=False, fold=None, angle=0.0)
    return states + [calm] * max(0, frames - len(states))


def render_video(config: CraftConfig, split: str, index: int) -> CraftVideo:
    """Render one video of the world.

    Args:
        config: the world.
        split: train, test, probe or fail.
        index: number of the video within its split.
    Returns: CraftVideo with uint8 frames (F, resolution, resolution, 3).
    """
    if split not in SPLITS[:4]:
        raise ValueError(f"split must be one of {SPLITS[:4]}, got {split!r}")
    family: Family = "test" if split in ("test", "probe") else "train"
    dynamics = _stream(config, split, index, DYNAMICS)
    look = draw_appearance(_stream(config, split, index, LOOK), family, clutter=config.nuisance)
    task = task_of(config, split, index)
    failed = split == "fail"
    if task in PAPER_TASKS:
        sheet = Sheet(look.sheet_front, look.sheet_back, look.sheet_pattern, _stream(config, split, index, LOOK))
        states = paper_script(dynamics, task, sheet, failed, config.paper_frames[1] - 2)
        states = _rest(states, max(config.paper_frames[0], len(states) + int(dynamics.integers(2, 6))))
        states = states[: config.paper_frames[1]]  # of the rest alone
    else:
        states = block_script(dynamics, task, failed)
        states = _rest(states, len(states) + int(dynamics.integers(3, 8)))
    level = 0 if split == "probe" else config.nuisance
    rng = _stream(config, split, index, NUISANCE)
    track = _nuisance_track(rng, level, len(states), len(look.clutter))
    frames = np.stack([paint(s, look, n, config.resolution) for s, n in zip(states, track, strict=True)])
    truth = _truth(states, look, track)
    return CraftVideo(frames, config.fps, task, INSTRUCTIONS[task], look.environment, split, truth)


def render_prior_clip(config: CraftConfig, index: int, frames: int) -> np.ndarray:
    """A clip of the prior's corpus: train appearance at any nuisance level, purposeless folds and moves.

    Returns: (frames, resolution, resolution, 3) uint8.
    """
    rng = _stream(config, "prior", index, LOOK)
    level = int(rng.integers(0, 4))
    look = draw_appearance(rng, "train", clutter=int(rng.integers(0, 4)))
    dynamics = _stream(config, "prior", index, DYNAMICS)
    sheet = Sheet(look.sheet_front, look.sheet_back, look.sheet_pattern, rng)
    states = purposeless_script(dynamics, sheet, frames)
    track = _nuisance_track(_stream(config, "prior", index, NUISANCE), level, frames, len(look.clutter))
    return np.stack([paint(s, look, n, config.resolution) for s, n in zip(states, track, strict=True)])


__all__ = ["TASKS", "CraftConfig", "CraftVideo", "plan", "render_prior_clip", "render_video", "task_of"]
