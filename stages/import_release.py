"""Import the authors' published files: checkpoints into our models, code files into our tables. Not a node of the DAG.

In:  a checkpoint (.pt read with weights_only, or .safetensors), or their file of codes.
Out: OUT/tokenizer/{ldm.safetensors,config.json} of a tokenizer, an LDM as the stages read it;
     OUT/codes/{codes.parquet,codes.json} of codes.
The release's tokenizer has 142,588,036 parameters: about a minute and 2 GiB.

    python -m stages.import_release tokenizer VideoWorld2_dLDM_VAE.pt
    python -m stages.import_release codes VideoCraft-dLDM-codes.pt

To go on with an imported LDM put it in the place of the warm-up's (the preset first, so that nothing is made anew):

    python -m stages.preset release
    cp data/release/tokenizer/* data/warmup && dvc commit --force warmup_dldm && dvc repro train_dldm

For codes from it alone copy it to data/plain_ldm/dldm: python -m stages.extract_codes --variant plain_ldm.

Tiny run: python -m stages.import_release tokenizer FILE --config tiny.json, with settings of the group dldm that differ
from the release, say {"causal": {"channels": 8}}.
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
from vw2.models.ldm import LDM, LDMConfig
from vw2.models.renderer import save_ldm
from vw2.models.settings import read_json, settings
from vw2.scratch import atomic_dir

FRAMES = 93  # of the release's clips
# the LDM of presets/release.yaml
RELEASE = LDMConfig(
    parts="causal", size=(240, 416), reconstruction_loss="l1_vgg", pixel_motion_weight=0.0, drawn_share=0.0
)


def tokenizer(file: Path, out: Path, config: LDMConfig, ema: bool, strict: bool) -> str:
    """Checkpoint of the dLDM tokenizer -> out/tokenizer. Returns what happened, in words."""
    model = LDM(config)
    report = import_weights(model, read_checkpoint(file), TOKENIZER, ema, strict)
    with atomic_dir(out / "tokenizer") as temporary:
        save_ldm(model, temporary)
    return f"{report.sentence()}; {report.elsewhere} entries of {file} belong to others; wrote {out / 'tokenizer'}"


def codes(file: Path, out: Path, config: LDMConfig, ema: bool, strict: bool) -> str:
    """Their codes -> out/codes. Returns what happened, in words."""
    info = CodesInfo(config.resolved(), (FRAMES - 1) // config.causal.time, config.queries)
    store = import_codes(file, out / "codes", info)
    return f"codes of {len(store.videos())} videos; wrote {out / 'codes'}"


KINDS: dict[str, Callable[[Path, Path, LDMConfig, bool, bool], str]] = {"tokenizer": tokenizer, "codes": codes}


def main(
    kind: str = typer.Argument(help=f"what the file holds: {', '.join(KINDS)}"),
    file: Path = typer.Argument(help="the authors' file"),
    out: Path = typer.Option(Path("data/release"), help="folder to write into"),
    config: Path = typer.Option(None, help="JSON of settings of the group dldm that differ from the release"),
    view: str = typer.Option(None, help="what the queries see: adjacent (release) or prefix (paper)"),
    ema: bool = typer.Option(False, help="take the averaged weights"),
    strict: bool = typer.Option(True, help="refuse checkpoints with entries that the model does not have"),
) -> None:
    """Import a file of the authors' release of VideoWorld 2."""
    if kind not in KINDS:
        raise UserError(f"expected one of {', '.join(KINDS)}, got {kind}; say what the file holds")
    if view not in (None, "adjacent", "prefix"):
        raise UserError(f"expected --view adjacent or prefix, got {view}")
    chosen = settings(read_json(config), RELEASE, "dldm") if config else RELEASE
    causal = replace(chosen.causal, view=view or chosen.causal.view)
    say(KINDS[kind](file, out, replace(chosen, causal=causal), ema, strict))


if __name__ == "__main__":
    run(main)
