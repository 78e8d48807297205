"""What a trained LDM is asked: the probes look at the moment that a code speaks of, at any frame rate."""

from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from vw2.data.frame_rate import source_index
from vw2.training.judge import probe_figures

CLIP_FRAMES, STEPS, CLIPS, VIDEOS = 9, 2, 3, 12


@pytest.mark.parametrize("source_fps", [16.0, 32.0, 24.0])
def test_probes_read_the_truth_of_the_source_frame_that_is_shown(source_fps):
    fps, rng = 16.0, np.random.default_rng(0)
    names = [f"v{i}" for i in range(VIDEOS)]
    rows = [(video, clip, CLIP_FRAMES) for video in names for clip in range(CLIPS)]
    index = pl.DataFrame(rows, schema=["video", "clip", "valid"], orient="row")
    length = 1 + source_index(CLIPS * (CLIP_FRAMES - 1), source_fps, fps)
    actions = {video: rng.integers(0, 2, length) for video in names}  # another one in every source frame
    truth = pl.concat(
        pl.DataFrame({"video": video, "frame": np.arange(length), "action": each}) for video, each in actions.items()
    )
    manifest = pl.DataFrame({"id": names, "fps": source_fps, "environment": [f"a-{i % 2}-c" for i in range(VIDEOS)]})
    stride = (CLIP_FRAMES - 1) // STEPS
    shown = [[clip * (CLIP_FRAMES - 1) + k * stride + stride // 2 for k in range(STEPS)] for _, clip, _ in rows]
    codes = [
        [[actions[video][source_index(frame, source_fps, fps)]] for frame in frames]
        for (video, *_), frames in zip(rows, shown, strict=True)
    ]
    store = SimpleNamespace(index=index, clip_frames=CLIP_FRAMES, fps=fps)

    found = probe_figures(np.array(codes), store, range(len(rows)), truth, manifest, 0, (2,))

    assert found["action"]["value"] == 1.0 and found["action"]["n"] == VIDEOS
    assert found["action_chance"]["value"] < 0.75 and found["action_chance"]["n"] == VIDEOS
    assert found["appearance"]["value"] < 0.75
    few = slice(0, CLIPS)  # of one video: nothing to be told apart from others
    assert probe_figures(np.array(codes)[few], store, list(range(CLIPS)), truth, manifest, 0, (2,)) == {}
