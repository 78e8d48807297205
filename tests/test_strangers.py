"""Model folders of strangers: a config.json that cannot be ends in one sentence, in `stages.check` and in loading."""

import json
import shutil
import sys
from pathlib import Path

import vw2.torchvision_ops  # noqa: F401

import pytest
import torch
from diffusers import AutoencoderKLWan, CosmosTransformer3DModel, WanTransformer3DModel
from safetensors.torch import load_file, save_file
from test_backends import save, tiny
from tiny_stages import link_frozen
from transformers import Dinov2Config, Dinov2Model

from stages import check
from vw2.console import UserError, run, unreadable
from vw2.models.backends import BACKENDS, BackendConfig, load_backend, sketch
from vw2.models.classifier import BackboneConfig, ClassifierConfig, StepClassifier
from vw2.models.dinov2 import check_folder
from vw2.models.hub import check_types
from vw2.patch import patch

ROOT = Path(__file__).parents[1]
CLASSES = {
    ("wan", "vae"): AutoencoderKLWan,
    ("wan", "transformer"): WanTransformer3DModel,
    ("cosmos", "vae"): AutoencoderKLWan,
    ("cosmos", "transformer"): CosmosTransformer3DModel,
}
GONE = object()  # no such key
VAE = [
    ("z_dim", "6", "z_dim: expected an integer, got the string '6'"),
    ("dim_mult", 4, "dim_mult: expected a list of integers, got 4"),
    ("dim_mult", [], r"\(\w+Error: "),
    ("patch_size", "2", "patch_size: expected an integer or null, got the string '2'"),
    ("patch_size", 3, r"in_channels and out_channels 3 patch_size\^2"),
    ("temperal_downsample", {}, "temperal_downsample: expected a list of true or false, got a group of keys"),
    ("temperal_downsample", [True, True, True], "expected a VAE with 4 frames per latent frame"),
    ("latents_mean", None, "latents_mean: expected a list of numbers, got null"),
    ("latents_mean", GONE, r"expected latents_mean of z_dim, \d, numbers, got 16"),
    ("latents_std", ["a"], r"latents_std\[0\]: expected a number, got the string 'a'"),
    ("latents_std", 0.5, "latents_std: expected a list of numbers, got 0.5"),
    ("scale_factor_spatial", None, "scale_factor_spatial of at least 1, got None"),
    ("is_residual", "false", "is_residual: expected true or false"),
]
WRONG = {
    ("wan", "vae"): VAE,
    ("cosmos", "vae"): VAE,
    ("wan", "transformer"): [
        ("patch_size", 2, "patch_size: expected a list of integers, got 2"),
        ("patch_size", [], r"patch_size \(1, p, p\), got \(\)"),
        ("patch_size", [1, 2], r"patch_size \(1, p, p\), got \(1, 2\)"),
        ("patch_size", [1, 0, 0], r"patch_size \(1, p, p\), got \(1, 0, 0\)"),
        ("num_layers", "2", "num_layers: expected an integer, got the string '2'"),
        ("num_attention_heads", 0, "ZeroDivisionError"),
        ("attention_head_dim", [12], r"attention_head_dim: expected an integer, got the list \[12\]"),
        ("eps", "1e-6", "eps: expected a number, got the string '1e-6'"),
        ("rope_max_seq_len", None, "rope_max_seq_len: expected an integer, got null"),
        ("_use_default_values", 3, "TypeError"),
    ],
    ("cosmos", "transformer"): [
        ("patch_size", 2, "patch_size: expected a list of integers, got 2"),
        ("max_size", [8], "max_size: expected 3 items, got 1"),
        ("rope_scale", 1.0, "rope_scale: expected a list of numbers, got 1.0"),
        ("mlp_ratio", "4", "mlp_ratio: expected a number, got the string '4'"),
        ("num_attention_heads", {"a": 2}, "num_attention_heads: expected an integer, got a group of keys"),
        ("concat_padding_mask", 1, "concat_padding_mask: expected true or false, got 1"),
        ("in_channels", GONE, "with in_channels 5, got 16"),
    ],
}
BROKEN = ["[]", "3", "null", "{", "", "[" * 10**5]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, Path]:
    """Whole folders by kind."""
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in ("wan", "cosmos", "dinov2")}
    for kind in ("wan", "cosmos"):
        save(tiny(kind), kind, folders[kind])
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    torch.manual_seed(1)
    Dinov2Model(Dinov2Config(**sizes)).save_pretrained(folders["dinov2"])
    return folders


@pytest.fixture
def folder(made, tmp_path):
    """A function that copies the folder of a kind."""
    return lambda kind: Path(shutil.copytree(made[kind], tmp_path / kind))


def change(file: Path, key: str, value) -> None:
    config = json.loads(file.read_text()) | {key: value}
    file.write_text(json.dumps({name: each for name, each in config.items() if each is not GONE}))


def refused(read, *told: str) -> None:
    """Reading ends in one sentence that tells all this."""
    with pytest.raises(UserError) as error:
        read()
    assert "\n" not in str(error.value)
    for each in told:
        assert error.match(each)


def both(kind: str, folder: Path, part: str, told: str) -> None:
    """Refused before its weights are read, and in loading, where weights of other shapes may be told first."""
    config = BackendConfig(kind=kind, weights=str(folder))
    where = f"{CLASSES[kind, part].__name__}.* in {folder / part}"
    refused(lambda: sketch(config, folder), where, told, "change dldm.backend.weights")
    told += f"|expected shape|the files in {folder / part} lack"
    refused(lambda: load_backend(config, folder), str(folder / part), told, "change dldm.backend.weights")


@pytest.mark.parametrize(
    ("kind", "part", "key", "value", "told"), [(*place, *case) for place, cases in WRONG.items() for case in cases]
)
def test_values_that_cannot_be(folder, kind, part, key, value, told):
    place = folder(kind)
    change(place / part / "config.json", key, value)
    both(kind, place, part, told)


@pytest.mark.parametrize("text", BROKEN, ids=lambda text: text[:4])
@pytest.mark.parametrize(("kind", "part"), CLASSES)
def test_no_config_at_all(folder, kind, part, text):
    place = folder(kind)
    (place / part / "config.json").write_text(text)
    both(kind, place, part, "found a broken config.json")


@pytest.mark.parametrize("kind", ["wan", "cosmos"])
def test_published_networks_have_the_types_of_their_signatures(kind):
    with torch.device("meta"):
        pair = BACKENDS[kind].random(BackendConfig(kind, "folder"))
    for net in (pair.vae.net, pair.vdm.transformer):
        check_types(type(net), json.loads(net.to_json_string()))


DINO = [  # key, value, what must be told of it: the words are those of transformers, where they are not ours
    ("hidden_size", "16", "hidden_size"),
    ("num_attention_heads", 0, ""),
    ("num_attention_heads", -1, ""),
    ("layer_norm_eps", None, "layer_norm_eps"),
    ("image_size", {"height": 28}, "image_size"),
    ("hidden_act", "swish?", ""),
    ("patch_size", [14, 14], r"config.json.patch_size: expected 14, got \[14, 14\]"),
    ("model_type", "dinov2_with_registers", "config.json.model_type: expected dinov2, got dinov2_with_registers"),
]


def judge(folder: Path) -> StepClassifier:
    """As the stage train_classifier makes it."""
    return StepClassifier(ClassifierConfig(BackboneConfig("dinov2", weights=str(folder)), size=28), ("a", "b"))


@pytest.mark.parametrize(("key", "value", "told"), DINO)
def test_values_of_dinov2_that_cannot_be(folder, key, value, told):
    place = folder("dinov2")
    check_folder(str(place))
    change(place / "config.json", key, value)
    for read in (check_folder, judge):
        refused(lambda read=read: read(str(place)), f"the Dinov2Model in {place} could not", told, "backbone.weights")


@pytest.mark.parametrize("text", BROKEN, ids=lambda text: text[:4])
def test_no_config_of_dinov2_at_all(folder, text):
    place = folder("dinov2")
    (place / "config.json").write_text(text)
    for read in (check_folder, judge):
        refused(lambda read=read: read(str(place)), f"the Dinov2Model in {place} could not", "backbone.weights")


def test_weights_of_dinov2_that_are_not_there_are_not_drawn(folder):
    place = folder("dinov2")
    file = place / "model.safetensors"
    weights = load_file(file)
    change(place / "config.json", "num_hidden_layers", 2)
    refused(lambda: judge(place), r"18 weights are missing or of another shape, first encoder.layer.1")
    change(place / "config.json", "num_hidden_layers", 1)
    change(place / "config.json", "mlp_ratio", 2)
    refused(lambda: judge(place), r"3 weights are missing or of another shape, first encoder.layer.0.mlp")
    change(place / "config.json", "mlp_ratio", 4)
    save_file({name: value for name, value in weights.items() if "norm1" not in name}, file)
    refused(lambda: judge(place), r"2 weights are missing or of another shape, first encoder.layer.0.norm1")
    file.unlink()
    refused(lambda: check_folder(str(place)), r"expected \*.safetensors files in .*, found none; change classifier")


def test_dinov2_from_nowhere():
    refused(lambda: judge(Path("no/such/folder")), "the Dinov2Model in no/such/folder could not", "connect to the Hug")


def test_dinov2_is_read_in_float32(folder):
    place = folder("dinov2")
    change(place / "config.json", "dtype", "bfloat16")
    assert {p.dtype for p in judge(place).parameters()} == {torch.float32}


def test_memory_and_bugs_are_not_blamed_on_the_folder():
    with pytest.raises(MemoryError), unreadable("it", "change it"):
        raise MemoryError
    with pytest.raises(KeyError), unreadable("it", "change it", ValueError):
        raise KeyError("bug")


@pytest.fixture
def checked(tmp_path, monkeypatch, capsys):
    """A function that runs `python -m stages.check` with changes to params.yaml: (exit code, what it says)."""
    link_frozen(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VW2_DEBUG", raising=False)
    monkeypatch.setattr(sys, "argv", ["check"])

    def check_with(tree: dict) -> tuple[int, str]:
        text = (ROOT / "params.yaml").read_text()
        Path("params.yaml").write_text(patch(text, tree, "the test", "params.yaml")[0])
        with pytest.raises(SystemExit) as left:
            run(check.main)
        return left.value.code, capsys.readouterr().err

    return check_with


def backend(kind: str, place: Path) -> dict:
    return {
        "dldm": {"backend": {"kind": kind, "weights": str(place), "guardrail": False}},
        "pretrain_vdm": {"use": False},
    }


@pytest.mark.parametrize(
    ("kind", "part", "key", "value", "told"),
    [
        ("wan", "transformer", "patch_size", 2, "config.json.patch_size: expected a list of integers, got 2"),
        ("wan", "vae", "patch_size", "2", "config.json.patch_size: expected an integer or null"),
        ("cosmos", "transformer", "max_size", "x", "config.json.max_size: expected a list of integers"),
        ("cosmos", "vae", "latents_std", None, "config.json.latents_std: expected a list of numbers, got null"),
        ("dinov2", ".", "hidden_size", "16", "hidden_size"),
    ],
)
def test_the_stage_check_ends_in_a_sentence(folder, checked, kind, part, key, value, told):
    place = folder(kind)
    backbone = {"kind": "dinov2", "weights": str(place)}
    tree = {"classifier": {"model": {"backbone": backbone, "size": 28}}} if kind == "dinov2" else backend(kind, place)
    change(place / part / "config.json", key, value)
    code, said = checked(tree)
    errors = [line for line in said.splitlines() if line.startswith("error:")]
    assert code == 1 and len(errors) == 1 and told in errors[0] and str(place) in errors[0]
    assert "Traceback" not in said


def test_the_stage_check_lets_a_good_dinov2_pass(folder, checked):
    backbone = {"kind": "dinov2", "weights": str(folder("dinov2"))}
    code, said = checked({"classifier": {"model": {"backbone": backbone, "size": 28}}})
    assert code == 0 and json.loads(check.OUT.read_text()) == {"checked": True}, said
