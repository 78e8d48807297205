"""Write our models and codes as the authors' files, for their code to read. Not a node of the DAG.

In:  a folder of ours: of an LDM with the release's parts (data/warmup, data/dldm, data/release/tokenizer), of a dLDM on
     Cosmos with the release's control branch or none (data/dldm), or of codes (data/codes).
Out: one file: .pt (which weights_only reads) or .safetensors of weights, under the names of the authors' checkpoints;
     .pt of codes, int32 (clips, codes of a clip) by video id.

    python -m stages.export_release tokenizer data/dldm VideoWorld2_dLDM_VAE.pt
    python -m stages.export_release dit data/dldm VideoWorld2_DiT.pt
    python -m stages.export_release codes data/codes codes.pt

The inverse of stages.import_release: the weights of a float32 file come out again bit for bit, and those of a bfloat16
file with --dtype bfloat16 (our folders hold its values in float32, which the default writes). Weights of more digits
are rounded by --dtype bfloat16, and by dldm.backend.dtype bfloat16 before that. The tokenizer's constants and the DiT's
counters and position buffers are made anew.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import typer

from vw2.console import UserError, refusals, run, say
from vw2.data.codes import read_codes
from vw2.interop.checkpoints import export_weights, write_checkpoint
from vw2.interop.codes import export_codes
from vw2.interop.dit import export_dit
from vw2.interop.keys_tokenizer import TOKENIZER
from vw2.models.backends import DTYPES
from vw2.models.ldm_files import load_codec
from vw2.models.renderer import load_dldm

PRIOR = Path("data/prior")


@dataclass(frozen=True)
class Options:
    """What the command was told beside folder and file."""

    prefix: str = TOKENIZER.prefixes[0]  # what stands before the tokenizer's names in the authors' file
    ema: bool = False  # under the names of averaged weights
    dtype: str = "float32"  # of the floating weights, a key of DTYPES


def tokenizer(folder: Path, file: Path, options: Options) -> str:
    """The LDM of a folder -> the authors' tokenizer. Returns what happened, in words."""
    ldm = load_codec(folder)
    if ldm.config.parts != "causal" or ldm.connector is None:
        raise UserError(
            f"expected an LDM with the release's parts and connector in {folder}, got dldm.parts {ldm.config.parts} "
            f"and dldm.causal.connector {ldm.config.causal.connector}; begin with `python -m stages.preset release`"
        )
    weights = export_weights(ldm, TOKENIZER, DTYPES[options.dtype])
    write_checkpoint(file, weights, f"{options.prefix[:-1]}_ema." if options.ema else options.prefix)
    return f"wrote {len(weights)} entries of the tokenizer in {folder} to {file}"


def dit(folder: Path, file: Path, options: Options) -> str:
    """VDM and control branch, if any, of a dLDM's folder -> the authors' file. Returns what happened, in words."""
    if not (folder / "dldm.safetensors").is_file():
        raise UserError(f"{folder} holds no dLDM; give the folder that stages.train_dldm writes (data/dldm)")
    dldm = load_dldm(folder, PRIOR).dldm
    with refusals():
        weights = export_dit(dldm, options.ema, DTYPES[options.dtype])
    write_checkpoint(file, weights)
    return f"wrote {len(weights)} entries of DiT and control branch in {folder} to {file}"


def codes(folder: Path, file: Path, options: Options) -> str:
    """Codes of all videos of a folder -> the authors' file. Returns what happened, in words."""
    store = read_codes(folder)
    export_codes(store, file)
    return f"wrote the codes of {len(store.videos())} videos to {file}"


KINDS: dict[str, Callable[[Path, Path, Options], str]] = {"tokenizer": tokenizer, "dit": dit, "codes": codes}


def main(
    kind: str = typer.Argument(help=f"what to write: {', '.join(KINDS)}"),
    folder: Path = typer.Argument(help="our folder"),
    file: Path = typer.Argument(help="the file to write, .pt or .safetensors"),
    prefix: str = typer.Option(Options.prefix, help=f"before the tokenizer's names: {' or '.join(TOKENIZER.prefixes)}"),
    ema: bool = typer.Option(False, help="write under the names of averaged weights"),
    dtype: str = typer.Option(Options.dtype, help="of the weights: float32, or bfloat16 at half the size"),
) -> None:
    """Write a model or codes as a file of the authors' release of VideoWorld 2."""
    if kind not in KINDS:
        raise UserError(f"expected one of {', '.join(KINDS)}, got {kind}; say what to write")
    if kind != "tokenizer" and prefix != Options.prefix or kind == "codes" and (ema or dtype != Options.dtype):
        raise UserError(f"expected --prefix with a tokenizer, --ema and --dtype with weights, got {kind}; leave it out")
    if prefix not in TOKENIZER.prefixes:
        raise UserError(f"expected --prefix {' or '.join(TOKENIZER.prefixes)}, got {prefix}; change it")
    if dtype not in DTYPES:
        raise UserError(f"expected --dtype {' or '.join(DTYPES)}, got {dtype}; change it")
    say(KINDS[kind](folder, file, Options(prefix, ema, dtype)))


if __name__ == "__main__":
    run(main)
