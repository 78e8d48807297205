"""DINOv2 of others: a repository of the Hugging Face hub, or a folder with config.json and safetensors.

transformers checks the types of a config itself; what it says of them becomes one sentence here.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import vw2.torchvision_ops  # noqa: F401  (must come before transformers)

import torch
from transformers import Dinov2Config, Dinov2Model

from vw2.console import UserError, unreadable
from vw2.files import locate

KEY = "classifier.model.backbone.weights"
PATCH = 14  # pixels per cell and side, of all that were published


@contextmanager
def reading(weights: str | Path) -> Iterator[None]:
    """Around the code that reads a DINOv2. Raises: UserError in one sentence."""
    advice = f"connect to the Hugging Face hub once, or set {KEY} to a folder with config.json and model.safetensors"
    if isinstance(weights, Path):
        advice = f"fetch its files again or change {KEY}"
    with unreadable(f"the Dinov2Model in {weights}", advice):
        yield


def check_config(config: Any) -> None:
    """Refuse a config.json of another network: transformers would only warn. Raises: ValueError naming the key."""
    if not isinstance(config, dict):
        raise ValueError(f"config.json: expected an object of settings, got {type(config).__name__}")
    for key, wanted in {"model_type": "dinov2", "patch_size": PATCH, "num_channels": 3}.items():
        if config.get(key, wanted) != wanted:
            raise ValueError(f"config.json.{key}: expected {wanted}, got {config[key]}")


@torch.no_grad()
def check_network(net: Dinov2Model) -> None:
    """Let a network see the smallest picture: some numbers of a config are looked at only then."""
    net(torch.zeros(1, 3, PATCH, PATCH))


def read_dinov2(weights: str, revision: str | None) -> Dinov2Model:
    """A pretrained DINOv2 in float32.

    Args: weights: hub id, or a local folder; revision: commit on the hub, not looked at for a folder.
    Raises: UserError if it cannot be had, is another network, or lacks weights, which transformers would draw.
    """
    if (folder := locate(weights)).is_dir():
        check_folder(weights)
        place, revision = folder, None
    else:
        place = weights
    with reading(place):
        check_config(Dinov2Config.get_config_dict(place, revision=revision)[0])
        net, found = Dinov2Model.from_pretrained(
            place,
            revision=revision,
            use_safetensors=True,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # told below, in one sentence
            output_loading_info=True,
        )
        lacking = sorted({*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])})
        if lacking:
            raise ValueError(f"{len(lacking)} weights are missing or of another shape, first {lacking[0]}")
        check_network(net)
    return net


def check_folder(weights: str) -> None:
    """Refuse a local folder that holds no DINOv2, as far as is to be seen without its weights; a hub id passes.

    Raises: UserError.
    """
    if not (folder := locate(weights)).is_dir():
        return
    with reading(folder), torch.device("meta"):
        check_config(json.loads((folder / "config.json").read_text(encoding="utf-8")))
        check_network(Dinov2Model(Dinov2Config.from_pretrained(folder)))
    if not any(folder.glob("*.safetensors")):
        raise UserError(f"expected *.safetensors files in {folder}, found none; change {KEY}")
