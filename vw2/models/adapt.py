"""What of the VDM learns in the joint stage (VideoWorld 2, ablation of the VDM): random, frozen, lora, full."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from vw2.models.port import VideoPrior

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")  # what LoRA adapts in every block (release)


@dataclass(frozen=True)
class AdaptConfig:
    """Group `dldm.vdm` of params.yaml."""

    train: Literal["random", "frozen", "lora", "full"] = "full"
    rank: int = 16  # of the LoRA matrices
    alpha: float = 16.0  # their factor is alpha / rank
    checkpointing: bool = False  # compute the blocks again in the backward pass rather than keep what they computed

    def __post_init__(self):
        if self.rank < 1 or self.alpha <= 0:
            raise ValueError(
                f"dldm.vdm.rank must be at least 1 and dldm.vdm.alpha above 0, got {self.rank} and {self.alpha}"
            )


def start_vdm(prior: VideoPrior, config: AdaptConfig) -> None:
    """Take the pretrained weights away again if the VDM is to learn from random ones; else nothing happens."""
    if config.train == "random":
        prior.vdm.load_state_dict(prior.vdm.fresh().state_dict())


def adapt_vdm(vdm: nn.Module, config: AdaptConfig) -> None:
    """Fix which parameters of the VDM learn; `lora` puts matrices into its attention that change nothing at first.

    With `checkpointing` the blocks, and the copies of them that the control branch runs, are computed again in the
    backward pass: more time, far less memory, the same numbers.
    """
    ADAPTERS[config.train](vdm, config)
    if config.checkpointing:
        vdm.transformer.enable_gradient_checkpointing()


def _all(vdm: nn.Module, config: AdaptConfig) -> None:
    vdm.requires_grad_(True)


def _none(vdm: nn.Module, config: AdaptConfig) -> None:
    vdm.requires_grad_(False)


def _lora(vdm: nn.Module, config: AdaptConfig) -> None:
    """Low-rank matrices on queries, keys, values and outputs of every attention (peft); all else stands still.

    They are kept in float32 whatever the VDM's precision is (peft would take that): small steps vanish in bfloat16.
    """
    import vw2.torchvision_ops  # noqa: F401  (must come before peft, which imports transformers)

    # isort: split
    from peft import LoraConfig, inject_adapter_in_model

    vdm.requires_grad_(False)
    inject_adapter_in_model(
        LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=list(ATTENTION), lora_dropout=0.0), vdm
    )
    for parameter in vdm.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def merged(vdm: nn.Module) -> dict[str, Tensor]:
    """The weights of the VDM under their plain names; what LoRA adds is added to the VDM's own for good."""
    import vw2.torchvision_ops  # noqa: F401  (as above)

    # isort: split
    from peft.tuners.tuners_utils import BaseTunerLayer

    for layer in vdm.modules():
        if isinstance(layer, BaseTunerLayer) and not layer.merged:
            layer.merge()
    return {key.replace(".base_layer.", "."): value for key, value in vdm.state_dict().items() if ".lora_" not in key}


ADAPTERS: dict[str, Callable[[nn.Module, AdaptConfig], None]] = {
    "random": _all,
    "frozen": _none,
    "lora": _lora,
    "full": _all,
}
