"""Import the authors' published files: checkpoints into our models, code files into our tables. Not a node of the DAG.

In:  a checkpoint (.pt read with weights_only, or .safetensors), or their file of codes.
Out: OUT/tokenizer/{tokenizer.safetensors,config.json} of a tokenizer; OUT/codes/{codes.parquet,codes.json} of codes.
The release's tokenizer has 142,588,036 parameters: about a minute and 2 GiB.

    python -m stages.import_release tokenizer VideoWorld2_dLDM_VAE.pt
    python -m stages.import_release codes VideoCraft-dLDM-codes.pt

Tiny run: python -m stages.import_release tokenizer FILE --config tiny.json, with settings that differ from the release.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import typer

from vw2.console import UserError, run, say
from vw2.data.codes import CodesInfo
from vw2.interop.checkpoints import import_weights, read_checkpoint
from vw2.interop.codes import import_codes
from vw2.interop.keys_tokenizer import TOKENIZER
from vw2.models.tokenizer import Tokenizer, TokenizerConfig
from vw2.models.tokenizer_files import read_config, save_tokenizer
from vw2.scratch import atomic_dir

FRAMES = 93  # of the release's clips


def tokenizer(file: Path, out: Path, config: TokenizerConfig, ema: bool, strict: bool) -> str:
    """Checkpoint of the dLDM tokenizer -> out/tokenizer. Returns what happened, in words."""
    model = Tokenizer(config)
    report = import_weights(model, read_checkpoint(file), TOKENIZER, ema, strict)
    with atomic_dir(out / "tokenizer") as temporary:
        save_tokenizer(model, temporary)
    return f"{report.sentence()}; {report.elsewhere} entries of {file} belong to others; wrote {out / 'tokenizer'}"


def codes(file: Path, out: Path, config: TokenizerConfig, ema: bool, strict: bool) -> str:
    """Their codes -> out/codes. Returns what happened, in words."""
    info = CodesInfo(config.resolved(), (FRAMES - 1) // config.time, config.queries)
    store = import_codes(file, out / "codes", info)
    return f"codes of {len(store.videos())} videos; wrote {out / 'codes'}"


KINDS: dict[str, Callable[[Path, Path, TokenizerConfig, bool, bool], str]] = {"tokenizer": tokenizer, "codes": codes}


def main(
    kind: str = typer.Argument(help=f"what the file holds: {', '.join(KINDS)}"),
    file: Path = typer.Argument(help="the authors' file"),
    out: Path = typer.Option(Path("data/release"), help="folder to write into"),
    config: Path = typer.Option(None, help="JSON of settings of the tokenizer that differ from the release"),
    view: str = typer.Option(None, help="what the queries see: adjacent (release) or prefix (paper)"),
    ema: bool = typer.Option(False, help="take the averaged weights"),
    strict: bool = typer.Option(True, help="refuse checkpoints with entries that the model does not have"),
) -> None:
    """Import a file of the authors' release of VideoWorld 2."""
    if kind not in KINDS:
        raise UserError(f"expected one of {', '.join(KINDS)}, got {kind}; say what the file holds")
    if view not in (None, "adjacent", "prefix"):
        raise UserError(f"expected --view adjacent or prefix, got {view}")
    settings = read_config(config) if config else TokenizerConfig()
    say(KINDS[kind](file, out, replace(settings, view=view or settings.view), ema, strict))


if __name__ == "__main__":
    run(main)
