"""The benchmark on videos that a fake classifier can read exactly: figures known in closed form, and the stage."""

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
import typer
from typer.testing import CliRunner

from stages import compare as compare_stage
from stages import evaluate as evaluate_stage
from stages import report as report_stage
from vw2.console import UserError, _guard
from vw2.data import manifest
from vw2.data.manifest import Entry
from vw2.data.shards import ClipStore, write_shards
from vw2.evaluation import benchmark, report
from vw2.evaluation.claims import CLAIMS
from vw2.evaluation.labels import CLASSES
from vw2.evaluation.plots import write_plot
from vw2.evaluation.quality import MAX_PSNR
from vw2.evaluation.videos import EvaluateConfig, judge_video, make_case, outcome, quality_of
from vw2.media.encode import write_video
from vw2.models.classifier import ClassifierConfig, StepClassifier

PAPER = [f"paper_{kind}_{step}" for kind in ("airplane", "boat") for step in range(1, 8)]
NAMES = ["paper_0", *PAPER, "blocks_open", "block_tower", "block_horse", "block_person", "failed"]
GREY = 10  # grey levels between two classes: survives H.264
CONFIG = EvaluateConfig(hold=2)
LENGTH = 33  # frames of the whole clips that hold a case
SIDE = 16


class Reader:
    """A classifier that reads the class from the grey of a frame, and puts hand and flap at fixed places."""

    names = NAMES

    def to(self, device):
        return self

    def predict(self, frames):
        number = np.clip((frames.mean((1, 2, 3)) / GREY).round().astype(int), 0, len(NAMES) - 1)
        count = len(frames)
        return {
            "class": np.eye(len(NAMES))[number],
            "hand": np.full((count, 2), 0.5, np.float32),
            "visible": np.ones(count),
            "angle": np.full(count, 90.0, np.float32),
        }


def video(*names: str, each: int = 4) -> np.ndarray:
    """Frames showing one class after the other, `each` frames long, with a little texture."""
    grey = np.repeat([NAMES.index(name) * GREY for name in names], each)
    frames = np.broadcast_to(grey[:, None, None, None], (len(grey), SIDE, SIDE, 3)).astype(np.int16)
    return np.clip(frames + np.indices((SIDE, SIDE)).sum(0)[..., None] % 2, 0, 255).astype(np.uint8)


def folding(task: str, steps: int = 7) -> np.ndarray:
    return video("paper_0", *(f"{task}_{step}" for step in range(1, steps + 1)))


def no_truth() -> pl.DataFrame:
    columns = {"frame": pl.Int32, "hand_x": pl.Float32, "hand_y": pl.Float32, "hand_visible": pl.Boolean}
    return pl.DataFrame(schema={"video": pl.String, **columns, "fold_angle": pl.Float32})


def truth_of(*videos: str) -> pl.DataFrame:
    """One frame of each, without a hand: the videos have labels."""
    rows = [{"video": v, "frame": 0, "hand_x": 0, "hand_y": 0, "hand_visible": False, "fold_angle": 0} for v in videos]
    return pl.DataFrame(rows, schema=no_truth().schema)


def case(task: str, frames: np.ndarray, truth: pl.DataFrame | None = None):
    return make_case("v", task, frames, LENGTH, no_truth() if truth is None else truth, 16.0, 16.0)


def judge(frames, task="paper_boat", real=None, **options):
    return judge_video(frames, case(task, folding(task) if real is None else real), Reader(), CONFIG, **options)


def test_equal_video_gets_what_the_real_one_gets():
    real = folding("paper_boat")
    ceiling = judge_video(real, a_case := case("paper_boat", real), Reader(), CONFIG)
    copy = judge_video(real.copy(), a_case, Reader(), CONFIG)
    assert (copy["psnr"], copy["ssim"]) == (MAX_PSNR, pytest.approx(1))
    assert "psnr" not in ceiling
    assert {key: copy[key] for key in ceiling} == ceiling
    assert (ceiling["steps"], ceiling["done"], ceiling["final"]) == (7, True, "paper_boat_7")


def test_first_frame_repeated_does_nothing():
    still = np.repeat(folding("paper_boat")[:1], 32, 0)
    row = judge(still)
    assert (row["steps"], row["done"], row["final"]) == (0, False, "paper_0")
    tower = judge(still, "block_tower", video("blocks_open", "block_tower"))
    assert tower["done"] is False and "steps" not in tower


def test_outcome_of_each_kind_of_task():
    def of(task, *names):
        return outcome(np.array([NAMES.index(name) for name in names]), task, NAMES, 2)

    assert of("block_tower", "blocks_open", "block_tower", "block_tower") == {"final": "block_tower", "done": True}
    assert of("block_horse", "block_tower", "block_tower") == {"final": "block_tower", "done": False}
    assert of("block_horse", "block_tower", "block_horse") == {"final": "unclear", "done": False}
    assert of("knead dough", "failed") == {"final": "failed"}
    assert of("paper_boat", *["paper_boat_2"] * 2)["steps"] == 0  # without the first step the second does not count


def test_a_refused_video_is_a_failure_whatever_is_seen_in_it():
    """What the classifier makes of black frames may be the very thing that was asked for."""
    for task, names in (("paper_boat", PAPER[7:]), ("block_tower", ["block_tower"])):
        frames = video(*names)
        row, passed = (judge(frames, task, frames, refused=refused) for refused in (True, False))
        assert (passed["done"], passed["refused"]) == (True, False)
        changed = {"done": False, "final": "unclear", "refused": True} | ({"steps": 0} if "steps" in passed else {})
        assert row == passed | changed
    own = judge_video(frames, case("block_tower", frames), None, CONFIG, refused=True)
    assert own["refused"] and {"steps", "done", "final"}.isdisjoint(own), "without labels it is counted alone"


def test_lengths_and_lone_frames():
    row = judge(folding("paper_boat")[:9])
    assert (row["length"], row["real_length"], row["whole_length"], row["psnr"]) == (9, 32, LENGTH, MAX_PSNR)
    assert "psnr" not in judge(folding("paper_boat")[:1])
    alone = judge_video(folding("paper_boat"), case("paper_boat", folding("paper_boat")), None, CONFIG)
    assert {"steps", "done", "final"}.isdisjoint(alone)


def test_lpips_looks_at_every_nth_frame():
    class Distance(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.seen = torch.nn.Parameter(torch.zeros(1)), 0

        def forward(self, a, b):
            self.seen += len(a)
            return (a - b).abs().mean((1, 2, 3))

    real = np.zeros((10, 32, 32, 3), np.uint8)
    rendered = np.concatenate([real[:1], np.full((9, 32, 32, 3), 255, np.uint8)])
    scores = quality_of(rendered, case("paper_boat", real), ("lpips", model := Distance()), every=4)
    assert scores["lpips"] == pytest.approx(2) and model.seen == 3


def test_real_classifier_fits():
    torch.manual_seed(0)
    real = folding("paper_boat")
    row = judge_video(real, case("paper_boat", real), StepClassifier(ClassifierConfig(), CLASSES), CONFIG, timed=True)
    assert row["steps"] in range(8) and row["final"] in (*CLASSES, "unclear") and row["hand_frames"] == 0
    assert set(CLASSES) == set(NAMES)


def test_pose_error_counts_frames_with_a_truth():
    truth = pl.DataFrame(
        {
            "frame": range(4),
            "hand_x": [0.5, 0.5, 0.5 + 3 / 64, np.nan],
            "hand_y": [0.5, 0.5, 0.5 + 4 / 64, np.nan],
            "hand_visible": [True, True, True, False],
            "fold_angle": [10.0, 0.0, 60.0, 120.0],
        }
    )
    frames = video("paper_0")
    row = judge_video(frames.copy(), case("paper_boat", frames, truth), Reader(), CONFIG, timed=True)
    assert (row["hand_frames"], row["angle_frames"]) == (2, 2)  # the given first frame does not count
    assert row["hand_px"] == pytest.approx((0 + 5) / 2, abs=1e-4)
    assert row["angle_degrees"] == pytest.approx(30)


def test_truth_follows_the_frame_rate():
    truth = pl.DataFrame(
        {
            "frame": range(8),
            "hand_x": np.arange(8) / 8,
            "hand_y": np.zeros(8),
            "hand_visible": [True] * 8,
            "fold_angle": np.arange(8.0),
        }
    )
    half = make_case("v", "paper_boat", video("paper_0"), LENGTH, truth, 16.0, 8.0)
    np.testing.assert_allclose(half.hand[:, 0], [0, 0.25, 0.5, 0.75])
    np.testing.assert_allclose(half.angle, [np.nan, 2, 4, 6])


def rows_of(name: str, steps: dict[str, list[int]], **extra) -> list[dict]:
    return [
        {"name": name, "video": v, "sample": i, "task": "paper_boat", "steps": s, "done": s == 7, "length": 20}
        | {"real_length": 30, "whole_length": 32, "psnr": 20.0 + s, "ssim": 0.5, "lpips_untrained": 0.1}
        | extra
        for v, reached in steps.items()
        for i, s in enumerate(reached)
    ]


def test_figures_in_closed_form():
    blocks = [
        {"name": "vw2", "video": f"b{i}", "sample": 0, "task": "block_tower", "done": i < 3, "length": 9}
        | {"real_length": 9, "whole_length": 9, "psnr": 20.0}
        for i in range(4)
    ]
    rows = rows_of("vw2", {"a": [7, 7, 7], "b": [1, 1, 1], "c": [0, 0, 3]}) + blocks
    rows += rows_of("copy_first_frame", {"a": [0], "b": [0], "c": [0]}, hand_px=4.0, hand_frames=3, angle_frames=0)
    rows += rows_of("random_codes", {"a": [0], "b": [0]}, refused=True)
    rows[0]["refused"] = True
    figures = benchmark.benchmark_figures(benchmark.results_table(rows), seed=0)
    value = {key: figure["value"] for key, figure in figures.items()}
    assert value["paper.step_1"] == pytest.approx(7 / 9)
    assert value["paper.step_7"] == pytest.approx(3 / 9)
    assert value["paper.mean_steps"] == pytest.approx(27 / 9)
    assert value["paper.conditional.step_2"] == pytest.approx(4 / 7)
    assert value["blocks.tower"] == value["tasks.block_tower"] == 0.75
    assert value["tasks.paper_boat"] == pytest.approx(1 / 3)
    assert value["quality.psnr"] == pytest.approx((27 + 21 + 21 + 4 * 20) / 7)  # rollouts first, then videos
    assert value["quality.lpips_untrained"] == pytest.approx(0.1) and "quality.lpips" not in value
    assert value["length.error"] == pytest.approx((3 * 12 + 4 * 0) / 7)
    assert all(value[f"controls.copy_first_frame.paper.step_{step}"] == 0 for step in range(1, 8))
    assert value["controls.copy_first_frame.pose.hand_px"] == 4
    assert not any("angle" in key or "controls.copy_first_frame.length" in key for key in value)
    counts = {key: (figure["value"], figure["n"]) for key, figure in figures.items() if "refused" in key}
    assert counts == {"refused": (1, 13), "controls.random_codes.refused": (2, 2)}, "of the rendered videos"
    step = figures["paper.step_1"]
    assert step["n"] == 3 and step["low"] < step["value"] < step["high"]  # by video, not by rollout
    assert figures["controls.copy_first_frame.paper.step_3"]["high"] > 0.3  # none of three videos proves little


def test_two_methods_are_compared_case_by_case():
    def block(name: str, video: str, task: str, done: bool) -> dict:
        return {"name": name, "video": video, "sample": 0, "task": task, "done": done, "psnr": 20.0}

    own = rows_of("plain_ldm", {"a": [7, 1], "b": [3], "c": [0]}) + rows_of("copy_first_frame", {"a": [0]})
    own += [block("plain_ldm", "t", "block_tower", True), block("plain_ldm", "h", "block_horse", False)]
    rival = rows_of("vw2", {"a": [7, 7], "b": [0], "d": [7]}) + [block("vw2", "t", "block_tower", False)]
    gaps = benchmark.versus(benchmark.results_table(own), benchmark.results_table(rival), 0)
    assert {key: gap["n"] for key, gap in gaps.items() if key.startswith("paper")} == {
        f"paper.step_{k}": 2 for k in range(1, 8)
    }, "of a and b alone"
    value = {key: gap["value"] for key, gap in gaps.items()}
    assert value["paper.step_1"] == (0 + 1) / 2 and value["paper.step_2"] == (-1 / 2 + 1) / 2
    assert value["paper.step_7"] == (-1 / 2 + 0) / 2
    assert gaps["blocks.tower"] == {"value": 1.0, "low": None, "high": None, "n": 1} and "blocks.horse" not in gaps
    assert value["quality.psnr"] == pytest.approx(((24 - 27) + (23 - 20) + 0) / 3)
    alone = rows_of("vw2", {"x": [7]})
    assert benchmark.versus(benchmark.results_table(own), benchmark.results_table(alone), 0) == {}


def test_figures_of_two_methods_are_refused():
    rows = rows_of("vw2", {"a": [1]}) + rows_of("plain_ldm", {"a": [1]})
    with pytest.raises(ValueError, match="one method"):
        benchmark.benchmark_figures(benchmark.results_table(rows), 0)


def test_plot_is_the_same_every_time_and_needs_no_labels(tmp_path):
    rows = rows_of("vw2", {"a": [7], "b": [1]}) + rows_of("ground_truth", {"a": [7], "b": [7]})
    figures = benchmark.benchmark_figures(benchmark.results_table(rows), 0)
    survival = benchmark.survival_rows(figures, "vw2")
    assert [row["who"] for row in survival] == ["vw2"] * 7 + ["ground_truth"] * 7
    for name, given in {"one": figures, "two": figures, "none": {}}.items():
        write_plot(tmp_path / f"{name}.png", given, "vw2")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


@pytest.mark.parametrize("bad", [{"hold": 0}, {"threshold": 1.0}, {"lpips_every": 0}])
def test_config_is_checked(bad):
    with pytest.raises(ValueError, match=f"evaluate.{next(iter(bad))} must"):
        EvaluateConfig(**bad)


# The stage

REAL = {"test_0": ("paper_boat", folding("paper_boat")), "test_1": ("block_tower", video("blocks_open", "block_tower"))}
PARAMS = """\
seed: 0
compute: {threads: 1, dtype: float32}
evaluate: {hold: 2, order: strict, threshold: 0.0, lpips_every: 4, lpips_weights: null}
"""


def write_world(root: Path) -> None:
    """Clips, manifest, truth and rollouts of two test videos and one training video below `root`."""
    (root / "params.yaml").write_text(PARAMS)
    videos = REAL | {"train_0": ("paper_boat", folding("paper_boat"))}
    raw, entries = [], []
    (root / "data" / "clips").mkdir(parents=True)
    for name, (task, frames) in videos.items():
        (root / f"{name}.raw").write_bytes(frames.tobytes())
        split = name.split("_")[0]
        raw.append((name, split, task, root / f"{name}.raw", len(frames)))
        size = {"fps": 16.0, "frames": len(frames), "width": SIDE, "height": SIDE}
        about = {"source": "craft", "path": f"{name}.mp4", "environment": "x", "instruction": "fold"}
        entries.append(Entry(id=name, split=split, task=task, codec="h264", hash=name, licence="x", **about, **size))
    write_shards(root / "data" / "clips", raw, {"frames": 5, "fps": 16.0, "height": SIDE, "width": SIDE})
    manifest.write(root / "data" / "manifest.parquet", manifest.build(entries))
    truth_of(*videos).write_parquet(root / "data" / "truth.parquet")
    rows = []
    for name, frames in {
        "vw2": folding("paper_boat", 3),
        "ground_truth_codes": folding("paper_boat"),
        "shuffled_codes": folding("paper_boat")[::-1],
        "random_codes": video("failed"),
    }.items():
        for id, (task, _) in REAL.items():
            path = root / "data" / "rollout" / name / f"{id}_0.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            tower = REAL["test_1"][1]
            write_video(path, frames if task == "paper_boat" else tower, 16.0)
            place = {"name": name, "video": id, "sample": 0, "path": f"{name}/{id}_0.mp4"}
            rows.append({**place, "clips": 1, "frames": 1, "refused": False})
    rows.append({**rows[0], "video": "a_still"})
    pl.DataFrame(rows).write_parquet(root / "data" / "rollout" / "rollouts.parquet")
    (root / "data" / "classifier").mkdir()
    (root / "data" / "classifier" / "config.json").write_text("{}")


@pytest.fixture
def evaluate(tmp_path, monkeypatch):
    """A function that runs the stage in a folder of its own; call it with a classifier or None."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VW2_SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.delenv("DVC_ROOT", raising=False)
    write_world(tmp_path)

    def run(classifier, *options: str) -> str:
        monkeypatch.setattr(evaluate_stage, "load_classifier", lambda folder: classifier)
        app = typer.Typer()
        app.command()(_guard(evaluate_stage.main))
        result = CliRunner().invoke(app, options)
        if result.exit_code:
            assert result.exit_code == 1, result.output
            return " ".join(result.output.split())
        return ""

    return run


def test_stage_keeps_the_contract(evaluate, tmp_path):
    assert evaluate(Reader()) == ""
    found = json.loads((tmp_path / "metrics" / "evaluate.json").read_text())
    steps = {f"step_{step}" for step in range(1, 8)}
    assert steps < set(found["paper"]) and found["blocks"] == {"tower": 1.0}
    assert set(found["controls"]) == set(benchmark.CONTROLS)
    for name, control in found["controls"].items():
        assert steps < set(control["paper"]) and set(control["blocks"]) == {"tower"}, name
        assert ("quality" in control) == (name != "ground_truth")
    assert (found["paper"]["step_3"], found["paper"]["step_4"], found["paper"]["mean_steps"]) == (1, 0, 3)
    assert found["controls"]["ground_truth"]["paper"]["step_7"] == 1
    assert found["controls"]["ground_truth_codes"]["paper"] == found["controls"]["ground_truth"]["paper"]
    assert found["controls"]["ground_truth_codes"]["quality"]["psnr"] > 40
    assert found["controls"]["shuffled_codes"]["paper"]["step_2"] == 0
    assert found["controls"]["copy_first_frame"]["paper"]["step_1"] == 0
    assert {"psnr", "ssim"} == set(found["quality"])  # 16 pixels are too few for LPIPS
    assert "skipped" not in found and found["n"] == 2 and found["seed"] == 0 and found["refused"] == 0
    detail = json.loads((tmp_path / "metrics" / "detail" / "evaluate.json").read_text())
    assert detail["paper"]["step_3"]["n"] == 1 and detail["quality"]["psnr"]["n"] == 2
    results = pl.read_parquet(tmp_path / "data" / "evaluate" / "results.parquet")
    assert dict(results.schema) == benchmark.RESULTS and len(results) == 2 * 6
    survival = pl.read_csv(tmp_path / "plots" / "survival.csv")
    assert survival.columns == ["step", "success", "low", "high", "who"] and len(survival) == 6 * 7
    assert (tmp_path / "plots" / "evaluate.png").is_file()
    first = (tmp_path / "data" / "evaluate" / "results.parquet").read_bytes()
    assert evaluate(Reader()) == "" and first == (tmp_path / "data" / "evaluate" / "results.parquet").read_bytes()


def test_the_plain_ldm_is_compared_with_videoworld_2(evaluate, tmp_path):
    assert evaluate(Reader()) == ""
    with pytest.raises(UserError, match="data/plain_ldm/evaluate/results.parquet does not exist"):
        compare_stage.main(Path("params.yaml"))
    shutil.copytree(tmp_path / "data" / "rollout", tmp_path / "data" / "plain_ldm" / "rollout")
    assert evaluate(Reader(), "--variant", "plain_ldm") == ""
    compare_stage.main(Path("params.yaml"))
    detail = json.loads((tmp_path / "metrics" / "detail" / "plain_ldm" / "compare.json").read_text())
    assert detail["paper"]["step_3"] == {"value": 0.0, "low": None, "high": None, "n": 1}
    assert detail["quality"]["psnr"] == {"value": 0.0, "low": 0.0, "high": 0.0, "n": 2}, "the same videos"


def test_stage_counts_refused_videos_as_failures(evaluate, tmp_path):
    path = tmp_path / "data" / "rollout" / "rollouts.parquet"
    tower = (pl.col("video") == "test_1") & pl.col("name").is_in(["vw2", "random_codes"])
    rollouts = pl.read_parquet(path)
    rollouts.with_columns(refused=tower).write_parquet(path)
    assert evaluate(Reader()) == ""
    found = json.loads((tmp_path / "metrics" / "evaluate.json").read_text())
    controls = {name: control.get("refused") for name, control in found["controls"].items()}
    assert (found["refused"], found["blocks"]["tower"], found["paper"]["step_3"]) == (1, 0, 1)
    assert controls == {"ground_truth": None, "copy_first_frame": None} | {
        f"{name}_codes": int(name == "random") for name in ("ground_truth", "shuffled", "random")
    }
    results = pl.read_parquet(tmp_path / "data" / "evaluate" / "results.parquet")
    assert results.filter("refused").select("name", "video").rows() == [("random_codes", "test_1"), ("vw2", "test_1")]
    rollouts.drop("refused").write_parquet(path)
    assert "lacks the column refused; run `dvc repro rollout` again" in evaluate(Reader())


def test_stage_without_labels_compares_pixels(evaluate, tmp_path):
    assert evaluate(None) == ""
    found = json.loads((tmp_path / "metrics" / "evaluate.json").read_text())
    assert found["skipped"] == 1 and "paper" not in found and "blocks" not in found
    assert found["quality"]["psnr"] > 0 and set(found["controls"]) == set(benchmark.CONTROLS) - {"ground_truth"}
    assert len(pl.read_csv(tmp_path / "plots" / "survival.csv")) == 0


def test_stage_judges_labelled_videos_alone(evaluate, tmp_path):
    """In a mixture others may bear the name of a task; the classifier saw none such."""
    truth_of("train_0", "test_0").write_parquet(tmp_path / "data" / "truth.parquet")
    assert evaluate(Reader()) == ""
    found = json.loads((tmp_path / "metrics" / "evaluate.json").read_text())
    assert found["paper"]["step_3"] == 1 and "blocks" not in found and "skipped" not in found
    assert "blocks" not in found["controls"]["ground_truth"]
    results = pl.read_parquet(tmp_path / "data" / "evaluate" / "results.parquet").filter(pl.col("video") == "test_1")
    assert len(results) == 6 and results["final"].null_count() == results["done"].null_count() == 6
    assert results["psnr"].drop_nulls().len() == 5, "all but the real one are compared with it"


def test_stage_says_what_is_missing(evaluate, tmp_path):
    clips = tmp_path / "data" / "rollout" / "vw2" / "test_0_0.mp4"
    clips.write_bytes(b"not a video")
    assert "test_0_0.mp4" in (said := evaluate(Reader())) and "dvc repro rollout" in said
    clips.unlink()
    assert "test_0_0.mp4 does not exist" in evaluate(Reader())
    (tmp_path / "data" / "rollout" / "rollouts.parquet").unlink()
    assert "run `dvc repro rollout` first" in evaluate(Reader())
    (tmp_path / "data" / "clips" / "index.parquet").unlink()
    assert "run `dvc repro clip` first" in evaluate(Reader())
    assert not (tmp_path / "metrics").exists() and not (tmp_path / "data" / "evaluate").exists()


def test_stage_goes_on_where_it_stopped(evaluate):
    class Counting(Reader):
        def __init__(self, stop: int | None = None):
            self.calls, self.stop = 0, stop

        def predict(self, frames):
            if self.calls == self.stop:
                raise MemoryError
            self.calls += 1
            return super().predict(frames)

    each = 6  # videos judged per test case: the real one, the still one, four rendered ones
    assert "memory ran out" in evaluate(Counting(stop=each))
    rest = Counting()
    assert evaluate(rest) == "" and rest.calls == each


def test_rollouts_of_training_videos_get_their_controls(tmp_path):
    """Where there is no test split, stages.rollout takes training videos."""
    write_world(tmp_path)
    rollouts = pl.DataFrame({"name": ["vw2"], "video": ["train_0"], "sample": [0], "path": ["x"], "refused": [False]})
    work = evaluate_stage.list_work(rollouts, ClipStore(tmp_path / "data" / "clips"))
    assert [name for name, *_ in work["train_0"]] == ["ground_truth", "copy_first_frame", "vw2"]
    assert list(work) == ["train_0"], "controls are of the videos that were rolled out, no others"


# The report


def test_report_shows_what_there_is(evaluate, tmp_path):
    stage = report_stage
    with pytest.raises(UserError, match="dvc repro evaluate"):
        stage.main("vw2")
    assert evaluate(Reader()) == ""
    stage.main("vw2")
    page = (tmp_path / "report" / "index.html").read_text()
    assert "all seven key steps" in page and "ground truth codes 100.0 %" in page and "train_dldm" not in page
    assert page.count("data:image/png;base64,") == 2  # evaluate.png, failures.png
    first = (tmp_path / "plots" / "failures.png").read_bytes()
    stage.main("vw2")
    assert page == (tmp_path / "report" / "index.html").read_text()
    assert first == (tmp_path / "plots" / "failures.png").read_bytes()
    assert evaluate(None) == ""
    stage.main("vw2")
    page = (tmp_path / "report" / "index.html").read_text()
    assert "have no labels" in page and "key steps" not in page and "PSNR" in page


def test_report_refuses_a_rollout_that_is_no_video_of_the_clips_size(evaluate, tmp_path):
    assert evaluate(Reader()) == ""
    worst = tmp_path / "data" / "rollout" / "vw2" / "test_0_0.mp4"
    write_video(worst, np.zeros((3, SIDE, 2 * SIDE, 3), np.uint8), 16.0)
    with pytest.raises(UserError, match="test_0_0.mp4 is 32x16 but the clips are 16x16; run `dvc repro rollout` again"):
        report_stage.main("vw2")
    worst.write_bytes(b"not a video")
    with pytest.raises(UserError, match="test_0_0.mp4 .*; run `dvc repro rollout` again"):
        report_stage.main("vw2")


def test_worst_rollouts_come_first():
    rows = rows_of("vw2", {"a": [7, 2], "b": [1, 7], "c": [7]}) + rows_of("random_codes", {"a": [0]})
    found = report.worst(benchmark.results_table(rows), benchmark.CONTROLS, 2)
    assert found.select("video", "sample").rows() == [("b", 0), ("a", 1)]
    row = found.row(0, named=True)
    assert report.verdict(row) == "paper_boat: b, rollout 1, 1 of 7 steps, not done, 21.0 dB"
    assert "rollout 1, refused by the guardrail, 1 of 7 steps" in report.verdict(row | {"refused": True})


def test_headline_shows_intervals_and_rival():
    leaf = {"value": 0.5, "low": 0.25, "high": 0.75, "n": 60}
    details = {
        "evaluate:paper.step_7": leaf,
        "evaluate:controls.ground_truth.paper.step_7": leaf | {"value": 1.0, "low": None},
    }
    rival = ("other", {"evaluate:paper.step_7": leaf | {"value": 0.6, "low": None}})
    [row] = report.headline(details, rival)
    assert row[1:] == ["50.0 % [25.0, 75.0]", "60", "other 60.0 %; ground truth 100.0 %"]
    details["compare:paper.step_7"] = {"value": -0.1, "low": -0.2, "high": 0.0, "n": 60}
    [row] = report.headline(details, rival)
    assert row[3] == "other 60.0 %; difference by test case -10.0 points [-20.0, 0.0]; ground truth 100.0 %"
    assert report.show({"value": 8.25, "low": None, "high": None, "n": 3}, "bits") == "8.25 bits"
    assert report.show({"value": 640, "low": None, "high": None, "n": None}) == "640"


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.key)
def test_claims_are_well_formed(claim):
    assert claim.unit in {"", *report.UNITS}
    assert all(key.split(":")[0] in report_stage.STAGES for key in (claim.key, *(key for _, key in claim.beside)))


def test_intervals_of_another_run_are_not_shown(tmp_path):
    (tmp_path / "detail").mkdir()
    (tmp_path / "evaluate.json").write_text('{"quality": {"psnr": 20.5, "ssim": 0.7}, "seed": 0}')
    leaf = '{"value": %s, "low": 0.1, "high": 0.9, "n": 3}'
    (tmp_path / "detail" / "evaluate.json").write_text(f'{{"quality": {{"psnr": {leaf % 21}, "ssim": {leaf % 0.7}}}}}')
    found = report.read_details(tmp_path, ("evaluate", "rollout"))
    assert set(found) == {"evaluate:quality.psnr", "evaluate:quality.ssim"}
    assert found["evaluate:quality.psnr"]["low"] is None and found["evaluate:quality.ssim"]["n"] == 3
