"""Weights of others: a folder in diffusers' layout, or a repository of the Hugging Face hub at a pinned commit.

Only config.json and safetensors files are fetched and read; nothing is unpickled and no code of a repository is run.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import make_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import vw2.torchvision_ops  # noqa: F401  (must come before diffusers)

import torch
from accelerate import init_empty_weights
from diffusers import ModelMixin
from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
from safetensors import safe_open

from vw2.console import UserError, unreadable
from vw2.files import locate
from vw2.params import build

COMMIT = re.compile("[0-9a-f]{40}")
FILES = ("config.json", "*.safetensors", "*.safetensors.index.json")
KEYS = "dldm.backend.weights"

Model = TypeVar("Model", bound=ModelMixin)


def fetch(weights: str, revision: str | None, parts: Iterable[str], outlines: Iterable[str] = ()) -> Path:
    """The folder that holds the weights; those of the hub are fetched once, into its own cache.

    Args:
        weights: a local folder, or a hub id such as Wan-AI/Wan2.2-TI2V-5B-Diffusers.
        revision: commit on the hub, 40 hexadecimal digits; not looked at for a folder.
        parts: subfolders that are needed, such as vae; outlines: those of which config.json is.
    Raises: UserError if it is neither, the commit is not pinned, or the hub cannot be reached or refuses.
    """
    if (folder := locate(weights)).is_dir():
        return folder
    if not COMMIT.fullmatch(revision or ""):
        raise UserError(
            f"{weights} is no folder, and as an id on the Hugging Face hub it needs a commit in dldm.backend.revision, "
            f"40 hexadecimal digits, got {revision}; copy one from https://huggingface.co/{weights}/commits/main"
        )
    page = f"https://huggingface.co/{weights}"
    try:
        patterns = [f"{part}/{file}" for part in parts for file in FILES]
        patterns += [f"{part}/{FILES[0]}" for part in outlines]
        return Path(snapshot_download(weights, revision=revision, allow_patterns=patterns))
    except GatedRepoError:
        problem = f"asks you to accept its licence at {page} and to log in with `hf auth login`"
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError):
        problem = f"is not on the Hugging Face hub at commit {revision}; correct {KEYS} or dldm.backend.revision"
    except OSError:
        problem = f"could not be fetched; connect to the Hugging Face hub once, or set {KEYS} to a local folder"
    raise UserError(f"{weights} {problem}")


def expect(kind: type[ModelMixin], folder: Path) -> None:
    """Check that `folder` speaks of a diffusers model of this class. Raises: UserError saying what is there instead."""
    found = "no config.json"
    if (folder / "config.json").is_file():
        try:
            found = json.loads((folder / "config.json").read_text()).get("_class_name", "another config.json")
        except (ValueError, AttributeError, RecursionError):
            found = "a broken config.json"
    if found != kind.__name__:
        raise UserError(
            f"expected the {kind.__name__} of diffusers in {folder}, found {found}; change {KEYS} or dldm.backend.kind"
        )


def expect_weights(folder: Path) -> None:
    """Raise UserError unless `folder` holds safetensors."""
    if not any(folder.glob("*.safetensors")):
        raise UserError(f"expected *.safetensors files in {folder}, found none; other formats are not read")


@contextmanager
def reading(kind: type[ModelMixin], folder: Path, errors: type[Exception] = ValueError) -> Iterator[None]:
    """Around the code that makes something of the diffusers model of this class in `folder`.

    Args: errors: what is the folder's fault: what our own classes say of a network, or whatever diffusers raises.
    Raises: UserError if the folder holds another class, or one of `errors`, in one sentence.
    """
    expect(kind, folder)
    with unreadable(f"the {kind.__name__} in {folder}", f"fetch its files again or change {KEYS}", errors):
        yield


def check_types(kind: type[ModelMixin], config: Mapping[str, Any]) -> None:
    """Check the values of a config.json against the types in the signature of its class: diffusers does not, and takes
    some on which it stumbles only when it computes.

    Raises: ValueError naming the key.
    """
    hints = get_type_hints(kind.__init__)
    known = {key: value for key, value in config.items() if key in hints}
    try:
        build(make_dataclass("Typed", [(key, hints[key]) for key in known]), known, "config.json")
    except UserError as error:
        raise ValueError(str(error).partition("; change")[0]) from error


def complete(model: ModelMixin, folder: Path) -> None:
    """Check that the files of `folder` hold the weights of `model`, all and no others: diffusers draws what is missing.

    Raises: UserError with the numbers of both.
    """
    held = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as weights:
            held |= set(weights.keys())
    wanted = set(model.state_dict())
    if held != wanted:
        raise UserError(
            f"the files in {folder} lack {len(wanted - held)} weights of their {type(model).__name__} and hold "
            f"{len(held - wanted)} others, first {min(held ^ wanted)}; fetch them again or change {KEYS}"
        )


def outline(kind: type[Model], folder: Path, torch_dtype: torch.dtype | None = None, **options) -> Model:
    """The network that a folder holds, with its sizes and none of its numbers; to be made on the meta device.

    Args: torch_dtype: not looked at; options: beside those of its config.json.
    Raises: as `read`, of what is to be seen without the numbers.
    """
    with reading(kind, folder, Exception):
        config = kind.load_config(folder)
        check_types(kind, config)
        return kind.from_config(config, **options)


def hollow(kind: type[Model], folder: Path, **options) -> Model:
    """As `outline`, with real buffers; the weights are still to be put in, by load_state_dict(..., assign=True)."""
    with init_empty_weights(include_buffers=False):
        return outline(kind, folder, **options)


def read(kind: type[Model], folder: Path, **options) -> Model:
    """A pretrained diffusers model; `options` are those of from_pretrained: torch_dtype, ...

    Raises: UserError if the folder holds another class, broken files or other weights.
    """
    with reading(kind, folder, Exception):
        expect_weights(folder)
        check_types(kind, kind.load_config(folder))
        model = kind.from_pretrained(folder, use_safetensors=True, local_files_only=True, **options)
        complete(model, folder)
    return model
