"""Files of the tokenizer: <folder>/tokenizer.safetensors and config.json."""

import json
from dataclasses import asdict
from pathlib import Path

from safetensors.torch import load_file, save_file

from vw2.console import UserError
from vw2.models.tokenizer import Tokenizer, TokenizerConfig
from vw2.params import build

WEIGHTS, CONFIG = "tokenizer.safetensors", "config.json"


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write weights and config into an existing folder (use `vw2.scratch.atomic_dir`)."""
    save_file({key: value.contiguous() for key, value in tokenizer.state_dict().items()}, folder / WEIGHTS)
    text = json.dumps(asdict(tokenizer.config), indent=2, sort_keys=True)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")


def read_config(file: Path) -> TokenizerConfig:
    """A config as JSON; keys that are not given keep the release's values.

    Raises: UserError if the file is missing, is no JSON, or a key or value is wrong.
    """
    try:
        given = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{file} does not exist; check the path") from None
    except ValueError as error:
        raise UserError(f"{file} is not JSON ({error}); mend it") from None
    if not isinstance(given, dict):
        raise UserError(f"expected {file} to hold a JSON object of tokenizer settings, got {given!r}; mend it")
    return build(TokenizerConfig, asdict(TokenizerConfig()) | given, "tokenizer")


def load_tokenizer(folder: Path) -> Tokenizer:
    """A tokenizer as saved, in eval mode."""
    tokenizer = Tokenizer(read_config(folder / CONFIG))
    tokenizer.load_state_dict(load_file(folder / WEIGHTS))
    return tokenizer.eval()
