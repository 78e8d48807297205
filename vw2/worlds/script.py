"""What happens in a scene: a script is a list of frame states with their ground truth; it knows nothing of looks.

Timing, pauses, order where the task allows it, the hand used, hesitations, speed and the phase are random, so that
the first frame does not foretell the clip. Units: frames, table coordinates, radians.
"""

import copy
from dataclasses import dataclass, field

import numpy as np

from vw2.worlds.paper import KEY_STEPS, Fold, Sheet, flap_motion
from vw2.worlds.scene import ANCHORS, Pose, picture_up, project

PAPER_TASKS = tuple(KEY_STEPS)
# goal of each block task: (size, goal centre, home row) per block, in the order of placing (our choice)
BLOCK_TASKS: dict[str, tuple[tuple[tuple[float, float], tuple[float, float], float], ...]] = {
    "block_tower": (
        ((0.46, 0.22), (0.0, 0.42), 0.45),
        ((0.38, 0.22), (0.0, 0.18), 0.05),
        ((0.30, 0.22), (0.0, -0.06), -0.3),
        ((0.22, 0.22), (0.0, -0.30), -0.65),
    ),
    "block_horse": (
        ((0.14, 0.30), (-0.19, 0.34), 0.45),
        ((0.14, 0.30), (0.19, 0.34), 0.05),
        ((0.54, 0.24), (0.0, 0.06), -0.3),
        ((0.24, 0.24), (0.30, -0.20), -0.65),
    ),
    "block_person": (
        ((0.14, 0.30), (-0.09, 0.42), 0.45),
        ((0.14, 0.30), (0.09, 0.42), 0.05),
        ((0.36, 0.34), (0.0, 0.08), -0.3),
        ((0.24, 0.24), (0.0, -0.23), -0.65),
    ),
}
TASKS = PAPER_TASKS + tuple(BLOCK_TASKS)
INSTRUCTIONS = {
    "paper_airplane": "fold a paper airplane",
    "paper_boat": "fold a paper boat",
    "block_tower": "build a tower from blocks",
    "block_horse": "build a horse from blocks",
    "block_person": "build a person from blocks",
}
ACTIONS = (
    "idle",
    "approach left hand",
    "approach right hand",
    "retreat left hand",
    "retreat right hand",
    "hold",
    "carry",
    *(f"{task} fold {k + 1}" for task in PAPER_TASKS for k in range(len(KEY_STEPS[task]))),
    "free fold",
)


@dataclass(frozen=True)
class FrameState:
    """One frame: all that is painted, and what is true of it."""

    sheet: Sheet | None
    pose: Pose
    fold: Fold | None
    angle: float
    blocks: tuple[tuple[tuple[float, float], tuple[float, float], int, float], ...]  # (centre, size, colour, height)
    hands: tuple[tuple[tuple[float, float], str], ...]
    step: int
    busy: bool
    action: str


@dataclass
class Script:
    """Writes frame states one after the other; `rng` is the stream of the dynamics."""

    rng: np.random.Generator
    pose: Pose
    sheet: Sheet | None = None
    blocks: list = field(default_factory=list)
    states: list[FrameState] = field(default_factory=list)
    step: int = 0
    hand: tuple[np.ndarray, str] | None = None  # where the working hand is, if it is in the picture

    def emit(self, action: str, busy: bool = False, fold: Fold | None = None, angle: float = 0.0) -> None:
        hands = () if self.hand is None else ((tuple(self.hand[0]), self.hand[1]),)
        blocks = tuple(copy.deepcopy(self.blocks))
        self.states.append(FrameState(self.sheet, self.pose, fold, angle, blocks, hands, self.step, busy, action))

    def pace(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high + 1))

    def idle(self, frames: int) -> None:
        for _ in range(frames):
            self.emit("idle")

    def reach(self, goal: np.ndarray, side: str) -> None:
        """Bring the hand of a side to `goal` along a bent path; from outside if it is not in the picture."""
        if self.hand is not None and self.hand[1] != side:
            self.retreat()
        start = ANCHORS[side] * 1.1 if self.hand is None else self.hand[0]
        bend = self.rng.normal(0, 0.08, 2)
        frames = self.pace(3, 5)
        for i in range(1, frames + 1):
            u = ease(i / frames)
            self.hand = (start * (1 - u) + goal * u + bend * 4 * u * (1 - u), side)
            self.emit(f"approach {side} hand")

    def retreat(self) -> None:
        if self.hand is None:
            return
        start, side = self.hand
        frames = self.pace(3, 4)
        for i in range(1, frames + 1):
            u = ease(i / frames)
            self.hand = (start * (1 - u) + ANCHORS[side] * 1.1 * u, side)
            self.emit(f"retreat {side} hand")
        self.hand = None

    def make_fold(self, fold: Fold, action: str, hesitate: float = 0.15) -> None:
        """One hand takes the flap, turns it over and presses it down."""
        grasp = self.sheet.grasp(fold)
        to_table = self.pose.matrix()
        where = lambda matrix: project(to_table @ matrix, grasp[None])[0]  # noqa: E731
        side = "left" if self.rng.random() < (0.8 if where(np.eye(3))[0] < self.pose.centre[0] else 0.2) else "right"
        self.reach(where(np.eye(3)), side)
        up = picture_up(self.pose)
        frames = self.pace(6, 9)
        pause_at = self.pace(2, frames - 2) if self.rng.random() < hesitate else -1
        for i in range(1, frames):
            angle = np.pi * ease(i / frames)
            self.hand = (where(flap_motion(fold, angle, up)), side)
            repeats = 1 + (self.pace(1, 4) if i == pause_at else 0)
            for _ in range(repeats):
                self.emit(action, busy=True, fold=fold, angle=angle)
        self.hand = (where(flap_motion(fold, np.pi, up)), side)
        self.sheet = copy.copy(self.sheet)
        self.sheet.fold(fold)

    def carry(self, index: int, goal: np.ndarray) -> None:
        """One hand takes block `index`, carries it to `goal` and lets go."""
        centre, size, colour, _ = self.blocks[index]
        side = "left" if centre[0] < 0 else "right"
        start = np.array(centre)
        self.reach(start, side)
        frames = self.pace(6, 9)
        bend = self.rng.normal(0, 0.05, 2)
        for i in range(1, frames + 1):
            u = ease(i / frames)
            place = start * (1 - u) + goal * u + bend * 4 * u * (1 - u)
            height = 0.10 * np.sin(np.pi * u)
            self.blocks[index] = (tuple(place), size, colour, float(height))
            self.hand = (place + np.array([0, -height]), side)
            self.emit("carry", busy=True)
        self.blocks[index] = (tuple(goal), size, colour, 0.0)


def ease(u: float) -> float:
    """Smooth start and stop."""
    return u * u * (3 - 2 * u)


def mistake(rng: np.random.Generator, steps: int, pairs: set[int]) -> tuple[int, bool]:
    """The step that goes wrong in a failed demonstration, and whether it is forgotten (else done wrongly).

    Args:
        pairs: steps that may change places with the next one. Of such a pair the second is forgotten, as without the
            first the second looks like a good first.
    """
    wrong, forgets = int(rng.integers(steps)), bool(rng.random() < 0.4)
    return (wrong + 1 if forgets and wrong in pairs else wrong), forgets


def random_pose(rng: np.random.Generator) -> Pose:
    """Where a sheet lies, how it is turned, and its size."""
    return Pose(rng.uniform(-0.07, 0.07, 2), float(rng.normal(0, 0.06)), float(rng.uniform(1.4, 1.55)))


def paper_script(rng: np.random.Generator, task: str, sheet: Sheet, failed: bool, longest: int) -> list[FrameState]:
    """A whole folding video: seven key steps, or in a failed one a missing or a wrong fold somewhere.

    Args:
        longest: most frames; a longer script is shortened by `shorten`, so that all folds are in it.
    """
    script = Script(rng, random_pose(rng), sheet)
    script.idle(script.pace(1, 8))
    steps = KEY_STEPS[task]
    pairs = {k for k in range(len(steps) - 1) if len(steps[k]) == 2 and steps[k] == steps[k + 1]}
    wrong, forgets = mistake(rng, len(steps), pairs) if failed else (-1, False)
    first_side = 0
    spoiled = False
    for k, choices in enumerate(steps):
        fold = choices[0]
        if len(choices) == 2:  # either side first, the other one next
            opens = k == 0 or len(steps[k - 1]) == 1 or steps[k - 1] != choices
            first_side = int(rng.integers(2)) if opens else 1 - first_side
            fold = choices[first_side]
        if k == wrong:
            spoiled = True
            if forgets:
                continue
            fold = Fold(fold.normal, fold.offset + float(rng.choice([-1, 1]) * rng.uniform(0.06, 0.12)), fold.name)
            tilt = rng.choice([-1, 1]) * rng.uniform(0.25, 0.5)
            c, s = np.cos(tilt), np.sin(tilt)
            normal = (c * fold.normal[0] - s * fold.normal[1], s * fold.normal[0] + c * fold.normal[1])
            fold = Fold(normal, fold.offset, fold.name)
        if script.sheet.moving_area(fold) < 0.02:
            continue
        script.make_fold(fold, f"{task} fold {k + 1}")
        script.step = -1 if spoiled else k + 1
        for _ in range(script.pace(1, 2)):
            script.emit("hold")
        if rng.random() < 0.6:
            script.retreat()
            script.idle(script.pace(0, 3))
    script.retreat()
    return shorten(script.states, longest)


def shorten(states: list[FrameState], longest: int) -> list[FrameState]:
    """At most `longest` states with all that is done: rest at the end is cut off, else everything is played faster."""
    if not any(state.busy for state in states[longest - 1 :]):
        return states[:longest]
    taken = np.linspace(0, len(states) - 1, longest).round().astype(int)  # evenly
    return [states[i] for i in taken]


def block_script(rng: np.random.Generator, task: str, failed: bool) -> list[FrameState]:
    """A whole building video: four blocks from the sides to their goals."""
    script = Script(rng, random_pose(rng))
    parts = BLOCK_TASKS[task]
    shift = script.pose.centre
    for i, (size, _, row) in enumerate(parts):
        side = float(rng.choice([-1, 1]))
        home = (side * rng.uniform(0.62, 0.72), row + rng.uniform(-0.05, 0.05))
        script.blocks.append((home, size, i, 0.0))
    script.idle(script.pace(1, 8))
    order = list(range(len(parts)))
    if task != "block_tower" and rng.random() < 0.5:
        order[0], order[1] = order[1], order[0]  # the two legs
    wrong, forgets = mistake(rng, len(parts), {0} if task != "block_tower" else set()) if failed else (-1, False)
    spoiled = False
    for done, i in enumerate(order):
        goal = np.array(parts[i][1]) + shift
        if done == wrong:
            spoiled = True
            if forgets:
                continue
            goal = goal + rng.choice([-1, 1], 2) * rng.uniform(0.15, 0.3, 2)
        script.carry(i, goal)
        script.step = -1 if spoiled else done + 1
        script.emit("hold")
        if rng.random() < 0.5:
            script.retreat()
            script.idle(script.pace(0, 3))
    script.retreat()
    return script.states


def purposeless_script(rng: np.random.Generator, sheet: Sheet, frames: int) -> list[FrameState]:
    """Random folds or moves without a task, starting in a random state: the prior's corpus."""
    script = Script(rng, random_pose(rng))
    if rng.random() < 0.7:
        script.sheet = sheet
        for _ in range(int(rng.integers(0, 6))):
            script.sheet.fold(random_fold(rng, script.sheet))
    else:
        for i in range(int(rng.integers(2, 5))):
            centre = (float(rng.uniform(-0.75, 0.75)), float(rng.uniform(-0.7, 0.6)))
            script.blocks.append((centre, tuple(rng.uniform(0.14, 0.5, 2)), i, 0.0))
    script.idle(script.pace(0, 4))
    while len(script.states) < 2 * frames:
        if script.sheet is not None:
            script.make_fold(random_fold(rng, script.sheet), "free fold", hesitate=0.3)
            script.emit("hold")
        else:
            script.carry(int(rng.integers(len(script.blocks))), rng.uniform(-0.6, 0.6, 2))
        if rng.random() < 0.6:
            script.retreat()
            script.idle(script.pace(0, 3))
    start = int(rng.integers(0, len(script.states) - frames + 1))
    return script.states[start : start + frames]


def random_fold(rng: np.random.Generator, sheet: Sheet) -> Fold:
    """A fold about a random line that turns over 4 to 50 % of the visible paper."""
    while True:
        angle = rng.uniform(0, 2 * np.pi)
        fold = Fold((float(np.cos(angle)), float(np.sin(angle))), float(rng.uniform(-0.15, 0.45)), "free")
        if 0.04 < sheet.moving_area(fold) < 0.5:
            return fold
