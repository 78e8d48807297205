"""Judge the rollouts, and the controls beside them, on the unseen test videos.

In:  data/rollout (rollouts.parquet and its mp4s), data/clips (real videos of split test), data/manifest.parquet,
     data/truth.parquet, data/classifier; params groups seed, compute, evaluate.
     --variant plain_ldm: data/plain_ldm/rollout.
Out: metrics/evaluate.json (paper.step_1..7, blocks.*, quality.*, refused, and the same below controls.<name>),
     data/evaluate/results.parquet (one row per judged video), plots/survival.csv, plots/evaluate.png.
     --variant plain_ldm: metrics/plain_ldm/evaluate.json, data/plain_ldm/evaluate, plots/plain_ldm/....
Controls that need no model are made here: ground_truth (real videos, the ceiling) and copy_first_frame.
Time and memory at the committed sizes: 1 to 3 minutes on two cores, 2 GiB. Headline: paper.step_7 near that of the
control ground_truth_codes, far above shuffled_codes and copy_first_frame. Interrupted runs go on where they stopped.
Videos that the guardrail refused are black; they count as failures, and `refused` says how many they are.
Without labels (own videos) success is skipped (`skipped: 1`, in a mixture for these alone) and pixels are compared.
Tiny run: python -m stages.preset smoke && dvc repro evaluate
"""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import polars as pl
import typer

from vw2 import params as parameters
from vw2.closure import import_closure
from vw2.console import UserError, progress, run, say, table
from vw2.data import manifest
from vw2.data.shards import ClipStore
from vw2.evaluation import benchmark
from vw2.evaluation.benchmark import CEILING, COPY, TIMED
from vw2.evaluation.plots import write_plot
from vw2.evaluation.quality import Perceptual, lpips_model
from vw2.evaluation.videos import Case, EvaluateConfig, judge_video, make_case, read_rollout
from vw2.files import read_table
from vw2.models.classifier import StepClassifier, load_classifier
from vw2.provenance import runtime, write_metrics
from vw2.scratch import atomic_dir, atomic_file, clear, fingerprint, scratch_dir
from vw2.training.compute import ComputeConfig, start
from vw2.variant import Variant, paths

CLIPS = Path("data/clips")
MANIFEST = Path("data/manifest.parquet")
TRUTH = Path("data/truth.parquet")
CLASSIFIER = Path("data/classifier")
OUT = Path("data/evaluate")  # beside the rollouts of a variant
ROOT = Path(__file__).parents[1]
LPIPS_SIDE = 32  # pixels; AlexNet cannot look at less
Job = tuple[str, int, str | None, bool]  # name, sample, file (None for what needs none), refused by the guardrail


def list_work(rollouts: pl.DataFrame, store: ClipStore) -> dict[str, list[Job]]:
    """Video that was rolled out -> what is judged beside it.

    Claim and controls are of the same videos, also where `rollout.max_cases` or `ar.sources` left some out.
    """
    rolled = set(rollouts["video"])
    work = {video: [(CEILING, 0, None, False), (COPY, 0, None, False)] for video in store.videos() if video in rolled}
    for name, video, sample, path, refused in rollouts.sort("name", "video", "sample").iter_rows():
        if video in work:
            work[video].append((name, sample, path, refused))
    if lost := sorted(rolled - set(work)):
        say(f"{len(lost)} rollouts have no real video beside them ({lost[0]}, ...) and are not judged")
    return work


def judge_case(
    case: Case,
    work: list[Job],
    folder: Path,
    classifier: StepClassifier | None,
    perceptual: Perceptual | None,
    config: EvaluateConfig,
) -> list[dict]:
    """One row of results per video that is judged beside a case."""
    rows = []
    for name, sample, path, refused in work:
        frames = case.frames if name == CEILING else np.repeat(case.frames[:1], len(case.frames), 0)
        frames = frames if path is None else read_rollout(folder / path, case.frames)
        eye = None if name == CEILING else perceptual  # of the real video there is nothing to see
        row = judge_video(frames, case, classifier, config, eye, name in TIMED, refused)
        rows.append({"name": name, "video": case.video, "sample": sample, "task": case.task, **row})
    return rows


def main(
    params: Path = typer.Option(Path("params.yaml"), help="Parameter file."),
    variant: Variant = typer.Option("vw2", help="Whose rollouts: VideoWorld 2's, or the plain LDM's."),
) -> None:
    """Judge rollouts and controls: sequential success, final states, picture quality."""
    values = parameters.load(params)
    seed = values["seed"]
    config = parameters.build(EvaluateConfig, values["evaluate"], "evaluate")
    compute = parameters.build(ComputeConfig, values["compute"], "compute")
    place = paths(variant)
    stage, out = f"{place.metrics_prefix}evaluate", OUT if variant == "vw2" else place.rollout.with_name(OUT.name)
    device = start(compute, seed).device
    store = ClipStore(CLIPS)
    about = {row["id"]: row for row in manifest.read(MANIFEST, store.videos()).iter_rows(named=True)}
    work = list_work(benchmark.read_rollouts(place.rollout), store)
    classifier = load_classifier(CLASSIFIER)
    if classifier is None:
        say("skipped success: these videos have no labels, so there is no classifier to see what was done in them")
    else:
        classifier.to(device)
    truth = read_table(TRUTH)
    labelled = set(truth["video"]) if classifier is not None else set()
    if classifier is not None and (others := [video for video in work if video not in labelled]):
        say(f"skipped success of {len(others)} videos without labels ({others[0]}, ...): the classifier saw none such")
    try:
        big = min(store.height, store.width) >= LPIPS_SIDE
        perceptual = lpips_model(seed, config.lpips_weights) if big else None
        if perceptual:
            perceptual[1].to(device)
    except (FileNotFoundError, ValueError) as error:
        raise UserError(f"evaluate.lpips_weights {config.lpips_weights}: {error}") from error
    eye = perceptual[0] if perceptual else "none"
    chosen = {"seed": seed, "evaluate": asdict(config), "compute": asdict(compute), "lpips": eye}
    inputs = [CLIPS / "index.parquet", CLIPS / "clips.json", MANIFEST, TRUTH, CLASSIFIER, place.rollout]
    folder = scratch_dir(stage, fingerprint(chosen, inputs, import_closure(Path(__file__), ROOT)))
    videos = sum(map(len, work.values()))
    table(stage, {**asdict(config), "test cases": len(work), "videos": videos, "lpips": eye})

    def case_of(video: str) -> Case:
        row, frames = about[video], store.video(video)
        uncropped = row["width"] * store.height == row["height"] * store.width  # else the crop has moved the hand
        rows = truth.filter((pl.col("video") == video) & uncropped)
        return make_case(video, row["task"], frames, store.whole_length(video), rows, row["fps"], store.fps)

    rows: list[dict] = []
    with runtime(stage), progress(videos, "judge videos") as bar:
        for video, jobs in work.items():
            kept = folder / f"{video}.json"
            if not kept.exists():
                judge = classifier if video in labelled else None
                found = judge_case(case_of(video), jobs, place.rollout, judge, perceptual, config)
                with atomic_file(kept) as temporary:
                    temporary.write_text(json.dumps(found))
            rows += json.loads(kept.read_text())
            bar.advance(len(jobs))
        results = benchmark.results_table(rows)
        figures = benchmark.benchmark_figures(results, seed)
        survival = benchmark.survival_rows(figures, variant)
        with atomic_dir(out) as temporary:
            results.write_parquet(temporary / "results.parquet")
        columns = {"step": pl.Int64, "success": pl.Float64, "low": pl.Float64, "high": pl.Float64, "who": pl.String}
        with atomic_file(place.plots / "survival.csv") as temporary:
            pl.DataFrame(survival, schema=columns, orient="row").write_csv(temporary, float_precision=6)
        write_plot(place.plots / "evaluate.png", figures, variant)
    write_metrics(stage, figures | ({} if labelled & set(work) else {"skipped": 1}), seed=seed, n=len(work))
    head = {key: figure["value"] for key, figure in figures.items() if not key.startswith(("controls", "paper.cond"))}
    table("VideoWorld 2" if variant == "vw2" else "plain LDM", head)
    clear(folder)


if __name__ == "__main__":
    run(main)
