"""Files of the AR transformer: ar.safetensors (float32) and config.json (its three configs, vocabulary included)."""

from dataclasses import asdict
from pathlib import Path

from vw2.console import UserError
from vw2.files import read_json, write_json
from vw2.models.ar import ARConfig, ARInputs, ARTransformer, CodeShape
from vw2.models.pretrained import read_weights, save_weights
from vw2.params import build


def save_ar(model: ARTransformer, folder: Path) -> None:
    """Write weights and config.json into an existing folder (use `vw2.scratch.atomic_dir`)."""
    save_weights(model, folder / "ar.safetensors")
    facts = {"model": asdict(model.config), "codes": asdict(model.shape), "inputs": asdict(model.inputs)}
    facts["codebook"] = model.shape.codebook
    write_json(folder / "config.json", facts)


def load_ar(folder: Path) -> ARTransformer:
    """The AR transformer of a folder, in eval mode.

    Raises: UserError if it is missing or was written by another version.
    """
    for name in ("ar.safetensors", "config.json"):
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} does not exist; run `dvc repro train_ar` first")
    facts = read_json(folder / "config.json")
    weights = read_weights(folder / "ar.safetensors")
    try:
        config = build(ARConfig, facts["model"], "ar.model")
        model = ARTransformer(
            config, build(CodeShape, facts["codes"], "codes"), build(ARInputs, facts["inputs"], "inputs")
        )
        model.load_state_dict(weights)
    except (KeyError, RuntimeError, UserError) as error:
        raise UserError(f"{folder} was written by another version; run `dvc repro train_ar` again") from error
    return model.eval()
