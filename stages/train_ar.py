"""Train the AR transformer: first frame and instruction -> the codes of a whole video (next-token cross-entropy).

In:  data/codes, data/manifest.parquet (instructions), data/clips (first frames), data/dldm (the features
     of its LDM); split train of the sources named (ar.sources) only. Params groups seed, compute, ar.
     --variant plain_ldm: data/plain_ldm/{codes,dldm}.
Out: data/ar/{ar.safetensors,config.json}, plots/train_ar (one TSV per series), metrics/train_ar.json: bits per code and
     accuracy on split test, the same with swapped instructions, and what a table of code frequencies foretells.
     --variant plain_ldm: data/plain_ldm/ar, plots/plain_ldm/train_ar, metrics/plain_ldm/train_ar.json.
Time and memory at the committed sizes: 4 to 8 minutes on two cores, 2 GiB. Headline: test.bits well below
control.unigram_bits. Interrupted runs go on where they stopped.
Tiny run: python -m stages.preset smoke && dvc repro train_ar
"""

from dataclasses import asdict
from pathlib import Path

import torch
import typer

from vw2 import params as parameters
from vw2.closure import import_closure
from vw2.console import UserError, console, run, say, table
from vw2.data import manifest
from vw2.data.codes import CodeStore, read_codes
from vw2.data.shards import ClipStore
from vw2.evaluation.prediction import Figures, predict_figures, unigram_figures
from vw2.models.ar import ARInputs, ARTransformer, CodeShape, split_words
from vw2.models.ar_files import save_ar
from vw2.models.ldm import LDM
from vw2.models.ldm_files import load_codec
from vw2.provenance import runtime, write_metrics
from vw2.scratch import atomic_dir, clear, fingerprint, scratch_dir
from vw2.training.ar import TrainARConfig, train
from vw2.training.compute import ComputeConfig, start
from vw2.training.curves import write_curves
from vw2.training.sequences import Sequences, score, swapped
from vw2.variant import Variant, paths

CLIPS = Path("data/clips")
MANIFEST = Path("data/manifest.parquet")
ROOT = Path(__file__).parents[1]


def code_shape(codes: CodeStore, ldm: LDM, here: Path, there: Path) -> CodeShape:
    """What the codes look like. Raises: UserError if they are not of this LDM."""
    shape = CodeShape(codes.info.levels, codes.info.steps, codes.info.queries)
    shape.check(CodeShape(ldm.config.resolved(), shape.steps, ldm.config.queries), str(here), str(there))
    return shape


def inputs_of(data: Sequences) -> ARInputs:
    """The closed vocabulary and the sizes of the inputs of the training videos."""
    words = [split_words(instruction) for instruction in data.instructions]
    vocabulary = tuple(sorted({word for each in words for word in each}))
    return ARInputs(data.first.shape[1], tuple(data.first.shape[2:]), vocabulary, max(map(len, words)))


def judge(model: ARTransformer, data: Sequences, test: Sequences | None, codes: CodeStore, seed: int) -> Figures:
    """Figures of split test with its controls, and of the training videos (how much is learned by heart)."""
    groups = {"train": predict_figures(score(model, data), seed)}
    if test is not None:
        groups["test"] = predict_figures(score(model, test), seed)
        groups["control"] = unigram_figures(codes, data.videos, test.videos, seed, model.config.max_clips)
        other = swapped(test.instructions)
        if other:
            found = predict_figures(score(model, test, other), seed)
            groups["swapped"] = {key: found[key] for key in ("bits", "accuracy")}
    return {f"{group}.{key}": value for group, figures in groups.items() for key, value in figures.items()}


def main(
    params: Path = typer.Option(Path("params.yaml"), help="Parameter file."),
    variant: Variant = typer.Option("vw2", help="Whose codes: VideoWorld 2, or the plain LDM."),
) -> None:
    """Train the AR transformer that writes code sequences."""
    values = parameters.load(params)
    seed = values["seed"]
    config = parameters.build(TrainARConfig, values["ar"], "ar")
    compute = parameters.build(ComputeConfig, values["compute"], "compute")
    place = paths(variant)
    stage = f"{place.metrics_prefix}train_ar"
    accelerator = start(compute, seed)
    codes, store = read_codes(place.codes), ClipStore(CLIPS)
    wanted = set(store.videos(source=store.sources(config.sources, "ar.sources")))
    told = dict(manifest.read(MANIFEST, store.videos()).select("id", "instruction").iter_rows())
    chosen = {"seed": seed, "ar": asdict(config), "compute": asdict(compute)}
    inputs = [MANIFEST, CLIPS / "index.parquet", CLIPS / "clips.json", place.dldm, place.codes]
    folder = scratch_dir(stage, fingerprint(chosen, inputs, import_closure(Path(__file__), ROOT)))
    ldm = load_codec(place.dldm).to(accelerator.device)
    shape = code_shape(codes, ldm, place.codes, place.dldm)

    def gather(split: str) -> Sequences | None:
        lost = [video for video in codes.videos(split) if video not in told]
        if lost:
            raise UserError(f"{place.codes} has the video {lost[0]}, which {MANIFEST} lacks; run `dvc repro` first")
        videos = [video for video in codes.videos(split) if video in wanted]
        instructions = [told[video] for video in videos]
        return Sequences(videos, instructions, codes, store, ldm, config.model.max_clips) if videos else None

    data, test = gather("train"), gather("test")
    if data is None:
        raise UserError(f"{place.codes} holds no video of split train of ar.sources; give some videos that split")
    most = config.model.max_clips
    if long := sum(len(codes[video]) > most for video in data.videos):
        say(f"{long} of {len(data)} videos have more than {most} clips (ar.model.max_clips) and are cut there")
    torch.manual_seed(seed)
    model = ARTransformer(config.model, shape, inputs_of(data)).to(accelerator.device)
    weights = sum(p.numel() for p in model.parameters())
    longest = model.prefix_length + max(map(len, data.codes)) * shape.per_clip
    derived = {"codebook": shape.codebook, "words": len(model.inputs.words), "longest": longest, "weights": weights}
    table(stage, asdict(config) | derived | {"videos": len(data)})
    with runtime(stage):
        work = train(accelerator, model, data, config.optim, seed, folder)
        figures = judge(model, data, test, codes, seed)
        if test is None:
            console.print("no video of split test: the AR transformer is not judged", markup=False)
        with atomic_dir(place.ar) as temporary:
            save_ar(model, temporary)
        write_curves(work.history, place.plots / "train_ar")
    write_metrics(stage, figures, seed=seed, n=len(data))
    clear(folder)


if __name__ == "__main__":
    run(main)
