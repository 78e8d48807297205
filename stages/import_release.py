"""Import the authors' published files: checkpoints into our models, code files into our tables. Not a node of the DAG.

In:  a checkpoint (.pt read with weights_only, or .safetensors), or their file of codes.
Out: OUT/tokenizer/{tokenizer.safetensors,config.json} of a tokenizer; OUT/dit/transformer/ (in diffusers' layout) and
     OUT/dit/control.safetensors of a DiT with its control branch; OUT/codes/{codes.parquet,codes.json} of codes.
The release's tokenizer has 142,588,036 parameters: about a minute and 2 GiB. DiT and control branch have 2,196,907,862:
memory for the file once, as it is kept (bfloat16: 4 GiB).

    python -m stages.import_release tokenizer VideoWorld2_dLDM_VAE.pt
    python -m stages.import_release dit VideoWorld2_DiT.pt
    python -m stages.import_release codes VideoCraft-dLDM-codes.pt

A dLDM begins with the DiT by the preset `release` and dldm.backend.weights: OUT/dit (the folder vae/ of the published
Cosmos-Predict2 goes beside transformer/) and dldm.control.weights: OUT/dit/control.safetensors.

Tiny run: python -m stages.import_release tokenizer FILE --config tiny.json, with settings that differ from the release.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import typer

from vw2.console import UserError, run, say
from vw2.data.codes import CodesInfo
from vw2.interop.checkpoints import import_weights, read_checkpoint
from vw2.interop.codes import import_codes
from vw2.interop.dit import BRANCH, DiTConfig, import_dit, told, write_dit
from vw2.interop.keys_tokenizer import TOKENIZER
from vw2.models.settings import read_json, settings
from vw2.models.tokenizer import Tokenizer, TokenizerConfig
from vw2.models.tokenizer_files import read_config, save_tokenizer
from vw2.scratch import atomic_dir

FRAMES = 93  # of the release's clips


@dataclass(frozen=True)
class Options:
    """What the command was told beside the file."""

    config: Path | None = None
    view: str | None = None
    ema: bool = False
    strict: bool = True

    def tokenizer(self) -> TokenizerConfig:
        """The release's tokenizer but for what is given."""
        chosen = read_config(self.config) if self.config else TokenizerConfig()
        return replace(chosen, view=self.view or chosen.view)

    def dit(self) -> DiTConfig:
        """The release's DiT and control branch but for what is given in the groups vdm and control."""
        return settings(read_json(self.config) if self.config else {}, DiTConfig(), "dit")


def tokenizer(file: Path, out: Path, options: Options) -> str:
    """Checkpoint of the dLDM tokenizer -> out/tokenizer. Returns what happened, in words."""
    model = Tokenizer(options.tokenizer())
    report = import_weights(model, read_checkpoint(file), TOKENIZER, options.ema, options.strict)
    with atomic_dir(out / "tokenizer") as temporary:
        save_tokenizer(model, temporary)
    return f"{report.sentence()}; {report.elsewhere} entries of {file} belong to others; wrote {out / 'tokenizer'}"


def dit(file: Path, out: Path, options: Options) -> str:
    """Checkpoint of DiT and control branch, or of a DiT alone -> out/dit. Returns what happened, in words."""
    config, weights = options.dit(), read_checkpoint(file)
    vdm, control, reports = import_dit(weights, config, options.ema, options.strict)
    with atomic_dir(out / "dit") as temporary:
        write_dit(temporary, vdm, control)
    branch = f"dldm.control.weights to {out / 'dit' / BRANCH}" if control else "no more: it has no control branch"
    return (
        f"{told(reports, len(weights))}; wrote {out / 'dit'}; put the published vae/ into it, and to begin a dLDM with "
        f"it set dldm.backend.weights to {out / 'dit'} and {branch}"
    )


def codes(file: Path, out: Path, options: Options) -> str:
    """Their codes -> out/codes. Returns what happened, in words."""
    config = options.tokenizer()
    info = CodesInfo(config.resolved(), (FRAMES - 1) // config.time, config.queries)
    store = import_codes(file, out / "codes", info)
    return f"codes of {len(store.videos())} videos; wrote {out / 'codes'}"


KINDS: dict[str, Callable[[Path, Path, Options], str]] = {"tokenizer": tokenizer, "dit": dit, "codes": codes}


def main(
    kind: str = typer.Argument(help=f"what the file holds: {', '.join(KINDS)}"),
    file: Path = typer.Argument(help="the authors' file"),
    out: Path = typer.Option(Path("data/release"), help="folder to write into"),
    config: Path = typer.Option(None, help="JSON of settings of the model that differ from the release"),
    view: str = typer.Option(None, help="what the tokenizer's queries see: adjacent (release) or prefix (paper)"),
    ema: bool = typer.Option(False, help="take the averaged weights"),
    strict: bool = typer.Option(True, help="refuse checkpoints with entries that the model does not have"),
) -> None:
    """Import a file of the authors' release of VideoWorld 2."""
    if kind not in KINDS:
        raise UserError(f"expected one of {', '.join(KINDS)}, got {kind}; say what the file holds")
    if view not in (None, "adjacent", "prefix"):
        raise UserError(f"expected --view adjacent or prefix, got {view}")
    say(KINDS[kind](file, out, Options(config, view, ema, strict)))


if __name__ == "__main__":
    run(main)
