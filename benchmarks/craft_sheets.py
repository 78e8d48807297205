"""Draw the contact sheets of docs/craft_world.md: `python -m benchmarks.craft_sheets`. Takes half a minute."""

from dataclasses import replace
from pathlib import Path

from vw2.media.sheet import write_sheet
from vw2.worlds.craft import CraftConfig, render_video, task_of
from vw2.worlds.script import TASKS

OUT = Path("docs/craft")


def first_of(config: CraftConfig, split: str, task: str) -> int:
    """Number of the first video of a task in a split."""
    return next(i for i in range(1000) if task_of(config, split, i) == task)


def main() -> None:
    world = CraftConfig()
    for task in TASKS:
        rows = []
        for split, nuisance in (("train", 0), ("train", 2), ("test", 2), ("test", 3), ("fail", 2)):
            video = render_video(replace(world, nuisance=nuisance), split, first_of(world, split, task))
            rows.append((f"{split}, nuisance {nuisance}: {video.environment}", video.frames))
        write_sheet(OUT / f"{task}.png", rows, columns=12, side=96, title=video.instruction)


if __name__ == "__main__":
    main()
