"""Roll out: the AR transformer writes codes from one unseen first frame, the renderer draws them clip by clip.

In:  data/ar, data/dldm, data/prior, data/codes, data/clips, data/manifest.parquet; params seed, compute, rollout,
     ar.sources (test cases come from what the AR transformer was trained on).
     --variant plain_ldm: the same of data/plain_ldm.
Out: data/rollout/<name>/<video>_<sample>.mp4 for name vw2 (`rollout.samples` per test case) and, once per case, the
     controls ground_truth_codes (isolates the AR transformer), shuffled_codes (its codes, steps permuted within the
     video) and random_codes; data/rollout/rollouts.parquet; plots/rollout.png. A video that the guardrail of the back
     end refuses is left black, and named; column `refused` of the table says which.
--image X.jpg --instruction "fold a paper boat": roll out from a picture of your own, nothing else, into
     rollouts/X_fold-a-paper-boat_<sample>.mp4 and, as a sheet, rollouts/X_fold-a-paper-boat.png (with --variant
     plain_ldm X_plain_ldm_fold-...); here a refusal of the guardrail ends the run.
Time and memory at the committed sizes: 2 to 8 minutes on two cores, 3 GiB. Interrupted runs go on batch by batch.
Tiny run: python -m stages.preset smoke && dvc repro rollout
"""

import shutil
from dataclasses import asdict
from pathlib import Path

import polars as pl
import typer
from accelerate import Accelerator

from vw2 import params as parameters
from vw2.closure import import_closure
from vw2.console import UserError, console, run, say, table
from vw2.data import manifest
from vw2.data.codes import read_codes
from vw2.data.shards import ClipStore
from vw2.media.decode import read_video
from vw2.media.encode import write_preview
from vw2.media.sheet import write_sheet
from vw2.models.ar import ARTransformer, CodeShape, split_words, unheard
from vw2.models.ar_files import load_ar
from vw2.models.backends import guardrail_of
from vw2.models.renderer import Renderer, load_renderer
from vw2.models.timeline import STRIDE
from vw2.provenance import runtime
from vw2.rollout import (
    CONTROLS,
    RolloutConfig,
    Row,
    choose,
    number_of,
    picture_name,
    plan,
    read_picture,
    render_all,
    sample_codes,
)
from vw2.scratch import atomic_dir, atomic_file, clear, fingerprint, scratch_dir
from vw2.training.compute import ComputeConfig, start
from vw2.training.sequences import first_frames
from vw2.variant import Paths, Variant, paths

CLIPS = Path("data/clips")
MANIFEST = Path("data/manifest.parquet")
PRIOR = Path("data/prior")
ROOT = Path(__file__).parents[1]
INSTRUCTION = "fold a paper airplane"


def load_models(place: Paths, store: ClipStore, accelerator: Accelerator) -> tuple[Renderer, ARTransformer]:
    """Renderer and AR transformer. Raises: UserError if they were made for other codes."""
    renderer = load_renderer(place.dldm, PRIOR).place(accelerator.device, accelerator.autocast)
    ar = load_ar(place.ar).to(accelerator.device)
    ldm = renderer.ldm.config
    steps = (store.clip_frames - 1) // (ldm.stride or STRIDE)
    ar.shape.check(CodeShape(ldm.resolved(), steps, ldm.queries), str(place.ar), str(place.dldm))
    return renderer, ar


def from_image(
    image: Path,
    instruction: str,
    variant: Variant,
    config: RolloutConfig,
    compute: ComputeConfig,
    store: ClipStore,
    seed: int,
    accelerator: Accelerator,
) -> None:
    """Roll out from one picture into rollouts/, see `picture_name`."""
    first = read_picture(image, store.height, store.width, store.config["fit"])
    place, name, n = paths(variant), picture_name(image, variant, instruction), config.samples
    renderer, ar = load_models(place, store, accelerator)
    guard = guardrail_of(renderer.backend, accelerator.device)
    guard.instruction(instruction)
    if ar.inputs.words and not split_words(instruction):
        raise UserError(
            f"--instruction must hold a word, got {instruction!r}; say what is to be done, with some of "
            f"{', '.join(ar.inputs.words)}"
        )
    if lost := unheard(instruction, ar.inputs):
        known = f"it knows {', '.join(ar.inputs.words)}" if ar.inputs.words else "it was trained without a word"
        say(f"these words of --instruction tell the AR transformer nothing: {' '.join(lost)}; {known}")
    chosen = {"seed": seed, "rollout": asdict(config), "compute": asdict(compute), "instruction": instruction}
    inputs = [image, place.ar, place.dldm, CLIPS / "clips.json", *([PRIOR] if PRIOR.exists() else [])]
    code = import_closure(Path(__file__), ROOT)
    folder = scratch_dir(f"{place.metrics_prefix}rollout", fingerprint(chosen, inputs, code))
    keys = [f"{image.stem}/{s}" for s in range(n)]
    written = sample_codes(ar, renderer.ldm, [first] * n, [instruction] * n, keys, config, seed)
    rows = [Row(f"{name}_{s}", first, codes, (number_of(seed, f"{name}_{s}"),)) for s, codes in enumerate(written)]
    render_all(renderer, rows, store.fps, config, seed, folder, guard, strict=True)
    out = Path("rollouts")  # no out of the stage; Git ignores it
    sheet, targets = out / f"{name}.png", [out / f"{row.name}.mp4" for row in rows]
    again = " in place of earlier ones" if any(path.exists() for path in (sheet, *targets)) else ""
    videos = [read_video(folder / f"{row.name}.mp4") for row in rows]
    for target, frames in zip(targets, videos, strict=True):
        with atomic_file(target) as temporary:
            write_preview(temporary, frames, store.fps, scale=4)
    write_sheet(sheet, [(instruction, frames) for frames in videos])
    say(f"wrote {', '.join(map(str, targets))} and {sheet}, a sheet of them{again}")
    clear(folder)


def main(
    params: Path = typer.Option(Path("params.yaml"), help="Parameter file."),
    variant: Variant = typer.Option("vw2", help="VideoWorld 2, or the plain LDM."),
    image: Path = typer.Option(None, help="Roll out from this picture instead of the test cases."),
    instruction: str = typer.Option(None, help=f'What to do, with --image; "{INSTRUCTION}" if it is not given.'),
) -> None:
    """Write codes with the AR transformer and render them, with controls."""
    if instruction is not None and image is None:
        raise UserError("--instruction goes with --image, got no picture; give one, or leave the instruction out")
    values = parameters.load(params)
    seed = values["seed"]
    config = parameters.build(RolloutConfig, values["rollout"], "rollout")
    compute = parameters.build(ComputeConfig, values["compute"], "compute")
    accelerator = start(compute, seed)
    place, store = paths(variant), ClipStore(CLIPS)
    if image is not None:
        told = INSTRUCTION if instruction is None else instruction
        from_image(image, told, variant, config, compute, store, seed, accelerator)
        return
    stage = f"{place.metrics_prefix}rollout"
    table(stage, asdict(config))
    codes = read_codes(place.codes)
    inputs = [place.ar, place.dldm, place.codes, PRIOR, MANIFEST, CLIPS / "index.parquet", CLIPS / "clips.json"]
    chosen = {"seed": seed, "rollout": asdict(config), "compute": asdict(compute)}
    folder = scratch_dir(stage, fingerprint(chosen, inputs, import_closure(Path(__file__), ROOT)))
    told = dict(manifest.read(MANIFEST, store.videos()).select("id", "instruction").iter_rows())
    sources = parameters.leaf(values, "ar.sources", tuple[str, ...] | None)
    wanted = set(store.videos(source=store.sources(sources, "ar.sources")))
    cases = choose([video for video in codes.videos("test") if video in wanted], told, config.max_cases)
    if not cases:
        cases = choose([video for video in codes.videos("train") if video in wanted], told, config.max_cases or 8)
        console.print("no video of split test: rolling out from training videos instead", markup=False)
    with runtime(stage) as rates:
        renderer, ar = load_models(place, store, accelerator)
        guard = guardrail_of(renderer.backend, accelerator.device)
        for video in cases:
            guard.instruction(told[video])
        firsts = {video: first[0] for video, first in zip(cases, first_frames(store, cases), strict=True)}
        each = [video for video in cases for _ in range(config.samples)]
        keys = [f"{video}/{s}" for video in cases for s in range(config.samples)]
        written = sample_codes(ar, renderer.ldm, [firsts[v] for v in each], [told[v] for v in each], keys, config, seed)
        rows = plan(cases, written, codes, firsts, config, seed)
        refused = render_all(renderer, rows, store.fps, config, seed, folder, guard)
        rates["clips"] = sum(len(row.codes) for row in rows)
        records = []
        for row in rows:
            name, stem = row.name.split("/")
            video, sample = stem.rsplit("_", 1)
            length = len(row.codes) * (store.clip_frames - 1) + 1
            black = row.name in refused
            records.append((name, video, int(sample), f"{row.name}.mp4", len(row.codes), length, black))
        columns = {"name": str, "video": str, "sample": int, "path": str, "clips": int, "frames": int, "refused": bool}
        with atomic_dir(place.rollout) as temporary:
            for row in rows:
                (temporary / row.name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(folder / f"{row.name}.mp4", temporary / f"{row.name}.mp4")
            pl.DataFrame(records, schema=columns, orient="row").write_parquet(temporary / "rollouts.parquet")
        sheet = []
        for video in choose(cases, told, 6):
            sheet.append((f"{told[video]}: real", store.video(video)))
            for name in ("vw2", *CONTROLS):
                sheet.append((name.replace("_", " "), read_video(place.rollout / name / f"{video}_0.mp4")))
        write_sheet(place.plots / "rollout.png", sheet, columns=12, side=64)
    clear(folder)


if __name__ == "__main__":
    run(main)
