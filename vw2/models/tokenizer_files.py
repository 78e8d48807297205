"""Files of the tokenizer: <folder>/tokenizer.safetensors and config.json."""

import json
from dataclasses import asdict
from pathlib import Path

from safetensors.torch import load_file, save_file

from vw2.models.settings import read_json, settings
from vw2.models.tokenizer import Tokenizer, TokenizerConfig

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
    return settings(read_json(file), TokenizerConfig(), "tokenizer")


def load_tokenizer(folder: Path) -> Tokenizer:
    """A tokenizer as saved, in eval mode."""
    tokenizer = Tokenizer(read_config(folder / CONFIG))
    tokenizer.load_state_dict(load_file(folder / WEIGHTS))
    return tokenizer.eval()
