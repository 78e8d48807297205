"""What was collected, in figures known beforehand."""

import polars as pl
import pytest

from vw2.data import overview
from vw2.data.manifest import Refused


def frame(path) -> pl.DataFrame:
    rows = [
        ("train", "fold", 10.0, 100, 64, 48),
        ("train", "fold", 10.0, 50, 64, 48),
        ("test", "cut", 29.97, 30, 32, 32),
    ]
    table = pl.DataFrame(rows, schema=["split", "task", "fps", "frames", "width", "height"], orient="row")
    return table.with_columns(path=pl.lit(str(path)), source=pl.lit("folder"), weight=pl.lit(1.0))


def test_summary(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"12345")
    refused = [Refused("b", "is too short: 3 frames, 17 needed"), Refused("c", "is too short: 9 frames, 17 needed")]
    figures = overview.summary(frame(tmp_path / "a.mp4"), refused)
    assert figures.pop("hours") == pytest.approx((15 + 30 / 29.97) / 3600)
    assert figures == {
        "videos": 3, "tasks": 2, "frames": 180, "bytes": 5, "refused": 2, "split.train": 2, "split.test": 1,
        "refused_for.is_too_short": 2, "fps.10": 2, "fps.29_97": 1, "size.64x48": 2, "size.32x32": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    "reason, kind",
    [
        ("is not a video (no stream)", "is_not_a_video"),
        ("needs more than 4 GiB to decode", "needs_more_than_gib_to_decode"),
        ("9999", "other"),
    ],
)
def test_kinds_of_reasons(reason, kind):
    assert overview.kind(reason) == kind


def test_rare_values_are_counted_together():
    values = [f"v{i:02}" for i in range(20)] + ["v19"]
    counts = overview.histogram(values)
    assert list(counts)[0] == "v19" and counts["other"] == 20 - overview.KINDS and sum(counts.values()) == 21


def test_a_task_may_be_named_by_prices(tmp_path):
    priced = frame("a.mp4").with_columns(task=pl.lit("cost_$1_vs_$2"))
    overview.write_chart(tmp_path / "chart.png", priced)
    assert (tmp_path / "chart.png").stat().st_size > 1000


def test_chart_is_the_same_for_the_same_videos(tmp_path):
    for name in ("one.png", "two.png"):
        overview.write_chart(tmp_path / name, frame("a.mp4"))
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
