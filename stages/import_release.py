"""Import the authors' published files: checkpoints into our models, code files into our tables. Not a node of the DAG.

In:  a checkpoint (.pt read with weights_only, or .safetensors), or their file of codes.
Out: OUT/tokenizer/{ldm.safetensors,config.json} of a tokenizer, an LDM as the stages read it; OUT/dit/transformer/ (in
     diffusers' layout) and OUT/dit/control.safetensors of a DiT and its control branch; OUT/codes/codes.{parquet,json}.
Tokenizer: 142,588,036 parameters, a minute, 2 GiB. DiT and branch: 2,196,907,862, memory of the file (bfloat16: 4 GiB).

    python -m stages.import_release tokenizer VideoWorld2_dLDM_VAE.pt
    python -m stages.import_release dit VideoWorld2_DiT.pt
    python -m stages.import_release codes VideoCraft-dLDM-codes.pt

A dLDM begins with the DiT by the preset `release` and dldm.backend.weights: OUT/dit (the folder vae/ of the published
Cosmos-Predict2 goes beside transformer/) and dldm.control.weights: OUT/dit/control.safetensors.

To go on with an imported LDM put it in the place of the warm-up's, when the clips for it are there:

    python -m stages.preset release    # then set ingest.source and ingest.path to your videos
    dvc repro clip
    mkdir -p data/warmup && cp data/release/tokenizer/* data/warmup
    dvc commit --force warmup_dldm && dvc repro train_dldm

For codes from it alone copy it to data/plain_ldm/dldm: python -m stages.extract_codes --variant plain_ldm.

Tiny run: python -m stages.import_release tokenizer FILE --config tiny.json, with settings of the group dldm that differ
from the release, say {"causal": {"channels": 8}}.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import typer

from vw2.console import UserError, run, say
from vw2.data.codes import CodesInfo
from vw2.files import read_json
from vw2.interop.checkpoints import import_weights, read_checkpoint
from vw2.interop.codes import import_codes
from vw2.interop.dit import BRANCH, DiTConfig, import_dit, told, without_lora, write_dit
from vw2.interop.keys_dit import apart
from vw2.interop.keys_tokenizer import TOKENIZER
from vw2.interop.report import Misfit
from vw2.models.ldm import LDM, LDMConfig
from vw2.models.ldm_files import save_ldm
from vw2.models.settings import settings
from vw2.models.timeline import PAIR
from vw2.scratch import atomic_dir

RELEASE = LDMConfig(  # of presets/release.yaml
    parts="causal",
    size=(240, 416),
    shrink="bilinear",
    reconstruction_loss="l1_vgg",
    pixel_motion_weight=0.0,
    drawn_share=0.0,
)


@dataclass(frozen=True)
class Options:
    """What the command was told beside the file."""

    config: Path | None = None
    view: str | None = None
    ema: bool = False
    strict: bool = True
    frames: int = 93  # of the clips that codes are of (release)

    def given(self) -> dict:
        """What the file `config` says."""
        return read_json(self.config) if self.config else {}

    def ldm(self) -> LDMConfig:
        """The release's LDM but for what is given of the group dldm."""
        chosen = settings(self.given(), RELEASE, "dldm")
        return replace(chosen, causal=replace(chosen.causal, view=self.view or chosen.causal.view))

    def dit(self) -> DiTConfig:
        """The release's DiT and control branch but for what is given in the groups vdm and control."""
        return settings(self.given(), DiTConfig(), "dit")


def tokenizer(file: Path, out: Path, options: Options) -> str:
    """Checkpoint of the dLDM tokenizer -> out/tokenizer. Returns what happened, in words."""
    model = LDM(options.ldm())
    report = import_weights(model, read_checkpoint(file), TOKENIZER, options.ema, options.strict)
    with atomic_dir(out / "tokenizer") as temporary:
        save_ldm(model, temporary)
    return f"{report.sentence()}; {report.elsewhere} entries of {file} belong to others; wrote {out / 'tokenizer'}"


def dit(file: Path, out: Path, options: Options) -> str:
    """Checkpoint of DiT and control branch, or of a DiT alone -> out/dit. Returns what happened, in words."""
    config = options.dit()
    weights = apart(without_lora(read_checkpoint(file)), config.control.numbers)
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
    config = options.ldm()
    time = 1 if options.frames == PAIR else config.causal.time
    steps, rest = divmod(options.frames - 1, time)
    if rest or steps < 1:
        raise UserError(f"expected --frames {PAIR} or 1 more than a multiple of {time}, got {options.frames}; fix it")
    info = CodesInfo(config.resolved(), steps, config.queries)
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
    frames: int = typer.Option(Options.frames, help="of a clip whose codes the file holds: 2, 9, 49, 93, 177, ..."),
    strict: bool = typer.Option(True, help="refuse checkpoints with entries that the model does not have"),
    every: bool = typer.Option(False, help="of a checkpoint that does not fit, list every name that does not"),
) -> None:
    """Import a file of the authors' release of VideoWorld 2."""
    if kind not in KINDS:
        raise UserError(f"expected one of {', '.join(KINDS)}, got {kind}; say what the file holds")
    if view not in (None, "adjacent", "prefix"):
        raise UserError(f"expected --view adjacent or prefix, got {view}")
    if kind != "tokenizer" and view or kind != "codes" and frames != Options.frames:
        raise UserError(f"expected --view with a tokenizer and --frames with codes, got {kind}; leave it out")
    if kind == "codes" and (ema or every or not strict):
        raise UserError("expected --ema, --every and --no-strict with weights, got codes; leave it out")
    try:
        say(KINDS[kind](file, out, Options(config, view, ema, strict, frames)))
    except Misfit as misfit:
        for line in (line for report in misfit.reports if every for line in report.lines()):
            say(line)
        raise


if __name__ == "__main__":
    run(main)
