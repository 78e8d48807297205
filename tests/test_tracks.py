"""Tracks of robot episodes: what tables of numbers are taken, and that a refused episode leaves nothing."""

import numpy as np
import polars as pl
import pytest
from numbered import numbered_frame

from vw2.data.sources.base import TRACKS, write_track
from vw2.data.sources.episodes import Facts, Limits, Track, store
from vw2.media.decode import MediaError


def test_tracks_hold_finite_numbers_or_none(tmp_path):
    def leave(**columns):
        columns = {"frame": range(3), "action": [[]] * 3, "state": [[]] * 3, "instruction": [None] * 3} | columns
        write_track(tmp_path, "a", pl.DataFrame(columns))
        return pl.read_parquet(tmp_path / "tracks/a.parquet")

    table = leave()  # nothing but lists without numbers
    assert dict(table.schema) == TRACKS and table["video"].to_list() == ["a"] * 3
    assert leave(action=[[1.0, 2.0], [], [0.0, 3e38]])["action"].to_list()[:2] == [[1.0, 2.0], []]
    (tmp_path / "tracks/a.parquet").unlink()
    for wrong in (None, [None], [float("nan")], [1.0, float("inf")], [1e39]):  # the last is infinite as float32
        with pytest.raises(MediaError, match=r"holds no finite state \(nan, infinity, null\) in frame 1"):
            leave(state=[[0.0], wrong, [float("nan")]])
    assert not list((tmp_path / "tracks").iterdir())


def test_a_refused_episode_leaves_neither_video_nor_track(tmp_path):
    facts = Facts("a", "rlds", None, "unknown", "t", "t", "unknown", 10.0)
    limits = Limits(2, 8192, 60.0)

    def leave(action, state):
        numbers = Track(np.asarray(action, np.float32), np.asarray(state, np.float32), ["fold"] * 3)
        return store(tmp_path, facts, 3, map(numbered_frame, range(3)), lambda: numbers, limits)

    with pytest.raises(MediaError, match="holds no finite action"):
        leave([[0], [np.nan], [0]], np.zeros((3, 0)))
    with pytest.raises(ValueError, match="expected 3 frames"):
        leave([[0], [0]], np.zeros((3, 0)))
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]
    assert leave([[0], [1], [2]], np.zeros((3, 0))).frames == 3
    assert pl.read_parquet(tmp_path / "tracks/a.parquet")["action"].to_list() == [[0], [1], [2]]
