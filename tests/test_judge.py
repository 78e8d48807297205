"""What is read from codes: the probes look at the moment that a code speaks of, at any frame rate."""

from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from vw2.data.frame_rate import source_index
from vw2.training.probes import code_changes

CLIP_FRAMES, STEPS, CLIPS, VIDEOS = 9, 2, 3, 12


@pytest.mark.parametrize("source_fps", [16.0, 32.0, 24.0])
def test_probes_read_the_truth_of_the_source_frame_that_is_shown(source_fps):
    """Codes that say what is done before a training, and what the video looks like after it."""
    fps, rng = 16.0, np.random.default_rng(0)
    names = [f"v{i}" for i in range(VIDEOS)]
    rows = [(video, clip, CLIP_FRAMES) for video in names for clip in range(CLIPS)]
    index = pl.DataFrame(rows, schema=["video", "clip", "valid"], orient="row")
    length = 1 + source_index(CLIPS * (CLIP_FRAMES - 1), source_fps, fps)
    actions = {video: rng.integers(0, 2, length) for video in names}  # another one in every source frame
    truth = pl.concat(
        pl.DataFrame({"video": video, "frame": np.arange(length), "action": each}) for video, each in actions.items()
    )
    manifest = pl.DataFrame({"id": names, "fps": source_fps, "task": "fold"})
    stride = (CLIP_FRAMES - 1) // STEPS
    shown = [[clip * (CLIP_FRAMES - 1) + k * stride + stride // 2 for k in range(STEPS)] for _, clip, _ in rows]
    dynamic = np.array(
        [
            [[actions[video][source_index(frame, source_fps, fps)]] for frame in frames]
            for (video, *_), frames in zip(rows, shown, strict=True)
        ]
    )
    bright = np.repeat(np.arange(VIDEOS) % 2, CLIPS)  # every second video is white
    static = np.repeat(bright, STEPS).reshape(-1, STEPS, 1)
    store = SimpleNamespace(
        index=index,
        clip_frames=CLIP_FRAMES,
        fps=fps,
        select=lambda video, clip: [names.index(video) * CLIPS + clip],
        frames=lambda row: np.full((CLIP_FRAMES, 16, 16, 3), 255 * bright[row], np.uint8),
    )

    def found(warm, joint, rows=range(len(rows)), truth=truth, manifest=manifest):
        figures = code_changes(warm, joint, store, rows, truth, manifest, 0, (2,))
        return {key: figure["value"] for key, figure in figures.items() if key.startswith("probe")}

    away, back = found(dynamic, static), found(static, dynamic)
    assert away["probe.warmup.action"] == 1.0 and away["probe.joint.action"] == back["probe.warmup.action"] < 0.75
    assert away["probe.joint.appearance"] == pytest.approx(1, abs=1e-3) and away["probe.warmup.appearance"] < 0.1
    assert away["probe.joint.action_chance"] < 0.75 and away["probe.joint.appearance_chance"] == 0
    for what in ("action", "appearance"):
        change = away[f"probe.joint.{what}"] - away[f"probe.warmup.{what}"]
        assert away[f"probe.change.{what}"] == pytest.approx(change)
        assert back[f"probe.change.{what}"] == pytest.approx(-change)
    own = found(dynamic, static, truth=truth.clear())
    assert {key.split(".")[-1] for key in own} == {"appearance", "appearance_chance"}, "it asks for no labels"
    assert own["probe.joint.appearance"] == pytest.approx(away["probe.joint.appearance"])
    others = pl.DataFrame({"video": ["elsewhere"], "frame": [0], "action": [1]}, schema=truth.schema)
    assert found(dynamic, static, truth=others) == own, "truth of other videos changes nothing"
    tasks = manifest.with_columns(
        task=pl.Series([f"task {i % 2}" for i in range(VIDEOS)])
    )  # white is one task's colour
    assert "probe.joint.appearance" not in found(dynamic, static, manifest=tasks), (
        "what a task looks like does not count"
    )
    few = range(CLIPS)  # of one video: nothing to be told apart from others
    assert found(dynamic[:CLIPS], static[:CLIPS], few) == {}
