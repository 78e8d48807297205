"""What the joint stage, and the teaching before it, begin with: an LDM, and the VDM of a back end."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn.functional import pad

from vw2.console import UserError, refusals
from vw2.files import locate, read_json
from vw2.models.adapt import start_vdm
from vw2.models.backends import load_backend
from vw2.models.dldm import DLDM
from vw2.models.dldm_config import DLDMConfig
from vw2.models.ldm import LDM, LDMConfig
from vw2.models.ldm_files import read_ldm_config
from vw2.models.pretrained import load_whole, read_safetensors, take_over, unused
from vw2.models.renderer import DLDMRenderer
from vw2.models.vdm_files import take_projection, take_vdm
from vw2.provenance import anew, check_record


def check_same_codes(warm: LDMConfig, wanted: LDMConfig, folder: Path) -> None:
    """Refuse a warm LDM whose weights fit but whose codes mean something else. Raises: UserError naming the key."""
    facts = lambda config: {  # noqa: E731
        "parts": config.parts,
        "levels": list(config.resolved()),
        "queries": config.queries,
        "size": list(config.sides),
        "shrink": config.shrink,
        "query_view": config.query_view if config.parts == "frames" else None,
        "lookups": config.lookups if config.parts == "frames" else None,
        "causal.view": config.causal.view if config.parts == "causal" else None,
        "causal.query_heads": config.causal.query_heads if config.parts == "causal" else None,
    }
    theirs, ours = facts(warm), facts(wanted)
    for key, value in ours.items():
        if theirs[key] != value:
            raise UserError(
                f"dldm.{key} is {value} but the LDM in {folder} was made with {theirs[key]}; put the key back, "
                "or make it anew (dvc repro; data/pretrained: python -m stages.pretrain_ldm)"
            )


def check_precision(config: DLDMConfig) -> None:
    """Refuse to train weights that are kept in bfloat16. Raises: ValueError."""
    learns = config.vdm.train in ("full", "random") or config.control.blocks
    if config.backend.dtype == "bfloat16" and learns:
        raise ValueError(
            "dldm.backend.dtype bfloat16 goes with dldm.vdm.train frozen or lora and dldm.control.blocks 0, as small "
            f"steps vanish in bfloat16 weights, got {config.vdm.train} and {config.control.blocks}; set it to float32 "
            "(compute.dtype bfloat16 computes in bfloat16 and keeps such weights), or change these"
        )


def check_files(config: DLDMConfig) -> None:
    """Refuse settings that name a file which is not there. Raises: UserError naming the key."""
    for key, file in config.files.items():
        if not file.is_file():
            raise UserError(f"{key}: {file} does not exist; change it, or set it to null")


def check_prior(saved: Path, asked: Mapping[str, Any]) -> None:
    """Refuse a mini prior that was made with other parameters. Raises: UserError naming the first one.

    Args:
        saved: what the stage pretrain_prior made; asked: the group `prior` of params.yaml.
    """
    check_record(read_json(saved / "config.json")["record"]["prior"], asked, "prior", anew("pretrain_prior"))


def take_ldm(ldm: LDM, folder: Path) -> None:
    """Give the LDM all the weights of one in a folder; only a connector may be left out, which the codes do not need.

    Raises: UserError if either has weights that the other lacks: a part of an LDM draws, but other things.
    """
    file = folder / "ldm.safetensors"
    left, more = take_over(ldm, file), [key for key in unused(ldm, file) if not key.startswith("connector.")]
    for names, where in ((left, f"are not in {folder}"), (more, f"of {folder} have no place there")):
        if names:
            raise UserError(
                f"{len(names)} weights of the LDM that the group dldm asks for {where}, {names[0]} among them; put the "
                "group back as it was, or make it anew (dvc repro; data/pretrained: python -m stages.pretrain_ldm)"
            )


def read_tokens(file: Path, most: int, width: int) -> Tensor:
    """The one tensor of a safetensors file, context tokens (n, width), filled up to `most` with zeros (release).

    Raises: UserError if the file cannot be read or holds anything else.
    """
    key = "dldm.guidance_against"
    weights = list(read_safetensors(file, key).values())
    shape = list(weights[0].shape) if weights else []
    if len(weights) != 1 or len(shape) != 2 or not 0 < shape[0] <= most or shape[1] != width:
        raise UserError(
            f"{file}: expected one tensor of 1 to {most} tokens by {width} numbers, got {len(weights)}, the first of "
            f"shape {shape}; change {key}"
        )
    return pad(weights[0], (0, 0, 0, most - shape[0]))


def begin_joint(config: DLDMConfig, warm: Path, prior_folder: Path, taught: Path | None = None) -> DLDMRenderer:
    """The dLDM with warm LDM and pretrained VDM (or a random one, `dldm.vdm.train`).

    Args:
        warm: folder of the LDM of the warm-up (or of its pretraining).
        prior_folder: of the mini prior.
        taught: folder of a VDM and a projection that have learned to read codes (vw2.models.vdm_files), to begin with
            instead; None: with the prior's own and a random one.
    Raises: UserError if the LDM that `config` asks for is another one, or the VDM that was taught, the control branch's
        weights or the tokens of `dldm.guidance_against` do not fit.
    """
    with refusals():
        check_precision(config)
    check_same_codes(read_ldm_config(warm), config, warm)  # before gigabytes are fetched
    prior = load_backend(config.backend, prior_folder)
    if taught is not None:
        take_vdm(prior.vdm, taught)
    start_vdm(prior, config.vdm)
    with refusals():  # settings that this VDM does not allow
        dldm = DLDM(config, prior)
    if taught is not None:
        take_projection(dldm.projection, taught)
    take_ldm(dldm.ldm, warm)
    if config.control.weights is not None:
        load_whole(dldm.control, locate(config.control.weights), "dldm.control.weights")
    if config.guidance_against is not None:
        given = dldm.against.tokens
        given.copy_(read_tokens(locate(config.guidance_against), *given.shape[1:]))
    return DLDMRenderer(dldm, prior)
