"""The authors' DiT and control branch as files that a dLDM can begin with.

Out: FOLDER/transformer in diffusers' layout, for `dldm.backend.weights` (the user puts the published VAE beside it, as
FOLDER/vae), and FOLDER/control.safetensors, for `dldm.control.weights`.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from vw2.console import UserError, refusals
from vw2.interop.checkpoints import as_dtype, import_models, put
from vw2.interop.keys_dit import CONTROL, DIT, EMA, PLAIN, Parts, buffers, to_release
from vw2.interop.report import KeyReport
from vw2.models.adapt import merged
from vw2.models.control import ControlBranch, ControlConfig
from vw2.models.cosmos import CosmosConfig, CosmosVDM
from vw2.models.dldm import DLDM
from vw2.models.pretrained import save_weights

RELEASE_CONTROL = ControlConfig(blocks=3, weight=0.5, hint="mlp", own_time=True)
BRANCH = "control.safetensors"


@dataclass(frozen=True)
class DiTConfig:
    """Sizes of the two networks; the defaults are the release's."""

    vdm: CosmosConfig = field(default_factory=CosmosConfig)
    control: ControlConfig = RELEASE_CONTROL

    def __post_init__(self):
        if not self.vdm.tokens or (self.control.hint, self.control.own_time) != ("mlp", True):
            raise ValueError("the authors' networks have vdm.tokens above 0, control.hint mlp, control.own_time true")


def import_dit(
    weights: Mapping[str, Tensor], config: DiTConfig, ema: bool = False, strict: bool = True
) -> tuple[CosmosVDM, ControlBranch | None, list[KeyReport]]:
    """The networks of a checkpoint, which keep its tensors and their dtype, and how they fit.

    Args:
        weights: where both networks share one name space, `vw2.interop.keys_dit.apart` first.
        ema, strict: as in vw2.interop.checkpoints.import_weights.
    Returns: VDM; control branch, None if the checkpoint has none (a dLDM then begins its own as copies of the VDM's
        blocks, as the authors' code does); one report for each.
    Raises: UserError with the sentence of all reports if they do not fit.
    """
    with torch.device("meta"):
        vdm = CosmosVDM(config.vdm)
        with refusals():  # settings that this VDM does not allow
            control = ControlBranch(config.control, vdm) if any(PLAIN[1][:-1] in key for key in weights) else None
    models = {DIT: vdm} | ({} if control is None else {CONTROL: control})
    return vdm, control, import_models(weights, models, ema, strict)


def without_lora(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint without the LoRA layers that the authors' warm-up puts into the DiT and does not train (sec. 2.4).

    Raises: UserError if one of them does change the DiT, or a layer is there both adapted and plain and they differ.
    """
    found: dict[str, Tensor] = {}
    for key, value in weights.items():
        if ".lora_B." in key and value.any():
            raise UserError(f"{key} belongs to a LoRA that changes the DiT; merge it (peft: merge_and_unload) and save")
        if ".lora_" not in key:
            put(found, key.replace(".base_layer.", "."), value, key)
    return found


def export_dit(dldm: DLDM, ema: bool = False, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """VDM and control branch under the authors' names, with the buffers that their networks keep beside the weights.

    LoRA is merged into the weights that it adapts. Without a control branch (`dldm.control.blocks` 0) the VDM alone.

    Args:
        ema: use the names of averaged weights.
        dtype: of the weights, None: as they are. The buffers stay float32: rounded positions would turn the rotary
            frequencies of a network that keeps them so.
    Raises: ValueError if their networks have no place for a weight, UserError if they have no such branch.
    """
    config, numbers = dldm.config, dldm.config.control.numbers
    kind = (config.backend.kind, config.control.hint, config.control.own_time)
    if kind[0] != "cosmos" or numbers and kind[1:] != ("mlp", True):
        raise UserError(
            "expected a dLDM with dldm.backend.kind cosmos, dldm.control.hint mlp and dldm.control.own_time true, "
            f"got {', '.join(map(str, kind))}; begin with `python -m stages.preset release`"
        )
    sizes = dldm.vdm.config
    kept = buffers(sizes.head_width, sizes.max_size[0], max(sizes.max_size[1:]))
    prefixes = (EMA if ema else PLAIN)[: 2 if numbers else 1]
    rest = {prefix + key: value for prefix in prefixes for key, value in kept.items()}
    control = dldm.control.state_dict() if numbers else {}
    return to_release(Parts(as_dtype(merged(dldm.vdm), dtype), as_dtype(control, dtype), rest), ema)


def write_dit(folder: Path, vdm: CosmosVDM, control: ControlBranch | None) -> None:
    """Write both into an existing folder (use `vw2.scratch.atomic_dir`).

    Raises: UserError for a setting that whoever reads the folder would not hear of.
    """
    heard = CosmosConfig.of(vdm.transformer, tokens=vdm.config.tokens)  # which is set by dldm.backend.tokens
    for name, got in asdict(vdm.config).items():
        if got != (kept := getattr(heard, name)):
            raise UserError(f"a folder of diffusers cannot say that vdm.{name} is {got}; leave it at {kept}")
    vdm.transformer.save_pretrained(folder / "transformer", safe_serialization=True)
    if control is not None:
        save_weights(control, folder / BRANCH)


def told(reports: list[KeyReport], entries: int) -> str:
    """The reports in one sentence; `entries`: of the checkpoint."""
    others = entries - sum(entries - report.elsewhere for report in reports)
    return f"{'; '.join(report.sentence() for report in reports)}; {others} entries belong to others"
