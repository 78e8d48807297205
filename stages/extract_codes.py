"""Encode every clip of every video to latent dynamics codes.

In:  data/clips, data/dldm (its LDM alone; for --variant plain_ldm: data/plain_ldm/dldm); params groups seed, compute.
Out: data/codes: codes.parquet (video, split, clip, step, query, code; sorted), codes.json (levels, K, N),
     report.parquet (one row per video: how it uses the codebook, digit by digit);
     metrics/extract_codes.json (entropy, use, perplexity of the codes of splits train and test).
     --variant plain_ldm: data/plain_ldm/codes and metrics/plain_ldm/extract_codes.json.
Time and memory at the committed sizes: half a minute to 2 on two cores, 5 GiB. Interrupted runs go on
where they stopped.
Always float32, so that codes do not hang on the dtype of training.
Headline: train.entropy_bits above half of log2(codebook), train.dead_digits 0.
Tiny run: python -m stages.preset smoke && dvc repro extract_codes
"""

import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import polars as pl
import torch
import typer

from vw2 import params as parameters
from vw2.closure import import_closure
from vw2.console import UserError, progress, run, table
from vw2.data.codes import CodesInfo, CodeStore, write_codes
from vw2.data.shards import ClipStore
from vw2.evaluation.codes import code_report, dead_digits
from vw2.media.resize import to_model
from vw2.models.layers import device_of
from vw2.models.ldm import LDM
from vw2.models.ldm_files import load_codec
from vw2.provenance import runtime, write_metrics
from vw2.scratch import atomic_dir, atomic_file, clear, fingerprint, scratch_dir
from vw2.training.compute import ComputeConfig, start
from vw2.variant import Variant, paths

CLIPS = Path("data/clips")
ROOT = Path(__file__).parents[1]
CHUNK = 512  # clips encoded between two checkpoints


@torch.no_grad()
def encode(ldm: LDM, store: ClipStore, folder: Path) -> np.ndarray:
    """(clips, K, N) int64 codes of all clips in the order of the index; finished chunks in `folder` are kept."""
    device, batch = device_of(ldm), store.at_once
    parts = []
    with progress(len(store), "encode clips") as bar:
        for begin in range(0, len(store), CHUNK):
            rows = range(begin, min(begin + CHUNK, len(store)))
            path = folder / f"codes-{begin:08d}.npy"
            if not path.exists():
                batches = (rows[i : i + batch] for i in range(0, len(rows), batch))
                codes = [ldm.encode(to_model(store.batch(each)).to(device)).cpu() for each in batches]
                with atomic_file(path) as temporary, temporary.open("wb") as stream:
                    np.save(stream, torch.cat(codes).numpy())
            parts.append(np.load(path))
            bar.advance(len(rows))
    return np.concatenate(parts)


def video_report(codes: CodeStore) -> pl.DataFrame:
    """One row per video: clips, codes, entropy_bits, perplexity, used, used_fraction, and lists over the digits."""
    rows = []
    for video, split in codes.frame.select("video", "split").unique(maintain_order=True).iter_rows():
        report = code_report(codes[video], codes.info.levels)
        rows.append(
            {
                "video": video,
                "split": split,
                "clips": len(codes[video]),
                "codes": report["n"],
                **{key: report[key] for key in ("entropy_bits", "perplexity", "used", "used_fraction")},
                "digit_used": [digit["used"] for digit in report["digits"]],
                "digit_entropy_bits": [digit["entropy_bits"] for digit in report["digits"]],
            }
        )
    return pl.DataFrame(rows)


def summary(codes: CodeStore) -> dict[str, dict[str, float]]:
    """Use of the codebook by all codes of a split, for splits train and test where present.

    As `codes.dead_digits` of the training stages, `dead_digits` counts those of each query.
    """
    values = {}
    for split in ("train", "test"):
        videos = codes.videos(split)
        if videos:
            chosen, levels = codes.stacked(videos), codes.info.levels
            report = code_report(chosen, levels) | {"dead_digits": int(dead_digits(chosen, levels).sum())}
            for key in ("entropy_bits", "used", "used_fraction", "perplexity", "dead_digits"):
                values[f"{split}.{key}"] = {"value": report[key], "n": report["n"]}
    return values


def main(
    params: Path = typer.Option(Path("params.yaml"), help="Parameter file."),
    variant: Variant = typer.Option("vw2", help="Whose codes: VideoWorld 2, or the plain LDM."),
) -> None:
    """Encode all clips to latent dynamics codes."""
    values = parameters.load(params)
    seed = values["seed"]
    compute = parameters.build(ComputeConfig, values["compute"], "compute")
    place = paths(variant)
    stage = f"{place.metrics_prefix}extract_codes"
    accelerator = start(compute, seed)
    store = ClipStore(CLIPS)
    if not len(store):
        raise UserError(f"{CLIPS} holds no clip; run `dvc repro clip` again")
    inputs = [CLIPS / "index.parquet", CLIPS / "clips.json", place.dldm]
    folder = scratch_dir(stage, fingerprint(asdict(compute), inputs, import_closure(Path(__file__), ROOT)))
    ldm = load_codec(place.dldm).to(accelerator.device)
    levels = ldm.config.resolved()
    table(stage, {"codebook": ldm.fsq.codebook, "levels": levels, "queries": ldm.config.queries, "clips": len(store)})
    begin = time.perf_counter()
    with runtime(stage) as rates:
        index = encode(ldm, store, folder)
        rates["clips_per_second"] = len(store) / (time.perf_counter() - begin)
        with atomic_dir(place.codes) as temporary:
            codes = write_codes(temporary, store.index, index, CodesInfo(levels, *index.shape[1:]))
            video_report(codes).write_parquet(temporary / "report.parquet")
    figures = summary(codes)
    write_metrics(stage, figures, seed=seed, n=index.size)
    table("codes", {key: figure["value"] for key, figure in figures.items()})
    clear(folder)


if __name__ == "__main__":
    run(main)
