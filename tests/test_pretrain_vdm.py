"""The VDM taught to read codes: the stage, what the joint stage takes over of it, what is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_pretrain_ldm import in_process
from tiny_models import tiny_config, tiny_prior
from tiny_stages import OPTIM, make_folder, write_params

from stages import pretrain_ldm, pretrain_vdm, train_dldm, warmup_dldm
from stages.preset import read
from stages.pretrain_vdm import OUT
from vw2 import params as parameters
from vw2.console import UserError
from vw2.files import read_json
from vw2.models.adapt import AdaptConfig
from vw2.models.begin import begin_joint
from vw2.models.dldm import DLDM
from vw2.models.dldm_config import DLDMConfig
from vw2.models.ldm_files import save_ldm
from vw2.models.pretrained import take_over
from vw2.models.vdm_files import save_taught
from vw2.training.fit import fit
from vw2.training.pretrain_vdm import PretrainVDMConfig, check_taught, from_codes_alone
from vw2.training.run import OptimConfig

ROOT = Path(__file__).parents[1]
PARTS = ("vdm", "projection")
PRIOR, PRETRAINED = Path("data/prior"), Path("data/pretrained")
TAUGHT = {"use": True, "clips": 3, "optim": OPTIM}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VW2_SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.setattr("stages.pretrain_ldm.HELD_OUT", 4)
    monkeypatch.setattr("stages.pretrain_vdm.HELD_OUT", 4)
    monkeypatch.setattr("vw2.training.corpus.run_resumable", in_process)
    make_folder(tmp_path, frames=9)
    return tmp_path


def params(folder, **changes):
    craft, rounds = {"resolution": 32}, {"use": True, "rounds": 1, "clips": 3, "optim": OPTIM}
    return write_params(folder, {"craft": craft, "pretrain_ldm": rounds, "pretrain_vdm": TAUGHT} | changes)


def test_joint_stage_begins_with_the_vdm_that_was_taught(folder, monkeypatch):
    file = params(folder)
    pretrain_ldm.main(file, one_more=False)
    ldm = load_file("data/pretrained/ldm.safetensors")
    pretrain_vdm.main(file)
    assert pl.read_csv(OUT / "training.tsv", separator="\t")["step"].to_list() == [2]
    weights = {part: load_file(OUT / f"{part}.safetensors") for part in PARTS}
    assert {value.dtype for part in weights.values() for value in part.values()} == {torch.bfloat16}
    prior = load_file("data/prior/transformer.safetensors")
    moved = [key for key, value in weights["vdm"].items() if not torch.equal(value, prior[key])]
    assert len(moved) > len(prior) / 2
    after = load_file("data/pretrained/ldm.safetensors")
    assert all(torch.equal(value, after[key]) for key, value in ldm.items()), "the LDM stands still"
    figures = read_json(Path("metrics/pretrain_vdm.json"))
    assert {"before", "own", "rise_tokens"} <= set(figures["denoise"])
    assert {"psnr", "psnr_copy"} <= set(figures["render"])
    spent = read_json(Path("benchmarks/runtime/pretrain_vdm.json"))
    assert spent["steps"] == 2 and spent["seconds"] > 0

    warmup_dldm.main(file)
    begun = {}
    real = train_dldm.train

    def spy(accelerator, dldm, *rest):
        begun.update({part: getattr(dldm, part).state_dict() for part in PARTS})
        begun["control"] = dldm.control.blocks["0"].state_dict()
        begun.update({key: {n: v.clone() for n, v in part.items()} for key, part in begun.items()})
        return real(accelerator, dldm, *rest)

    monkeypatch.setattr(train_dldm, "train", spy)
    train_dldm.main(file)
    for part in PARTS:
        assert all(torch.equal(begun[part][key], value.float()) for key, value in weights[part].items())
    first = "transformer.transformer_blocks.0."
    for key, value in begun["control"].items():  # the branch copies the VDM that was taught, not the prior's
        assert torch.equal(value, weights["vdm"][first + key].float())

    train_dldm.main(params(folder, dldm={"vdm": {"train": "random"}}))
    assert not any(
        torch.equal(begun["vdm"][key], value.float()) for key, value in weights["vdm"].items() if "ff" in key
    )
    train_dldm.main(params(folder, pretrain_vdm=TAUGHT | {"use": False}))
    assert all(torch.equal(begun["vdm"][key], value.float()) for key, value in prior.items()), "the prior's own"


def test_a_teaching_that_was_interrupted_goes_on_bit_for_bit(folder, monkeypatch):
    file = params(folder)
    pretrain_ldm.main(file, one_more=False)
    pretrain_vdm.main(file)
    straight = {part: (OUT / f"{part}.safetensors").read_bytes() for part in PARTS}
    shutil.rmtree(OUT)
    real, steps = DLDM.denoising, []

    def broken(self, clean, known, hint, codes, rng):
        steps.append(rng.initial_seed())
        if len(steps) == 2:
            raise KeyboardInterrupt
        return real(self, clean, known, hint, codes, rng)

    with monkeypatch.context() as patch:
        patch.setattr(DLDM, "denoising", broken)
        patch.setattr(pretrain_vdm, "judge_denoising", lambda *_: {"denoise.own": 0.0})
        with pytest.raises(KeyboardInterrupt):
            pretrain_vdm.main(file)
        assert not OUT.exists(), "nothing half-written"
        patch.setattr(DLDM, "denoising", lambda self, *rest: steps.append(rest[-1].initial_seed()) or real(self, *rest))
        patch.setattr(pretrain_vdm, "judge_denoising", lambda *_: dict.fromkeys(pretrain_vdm.FIGURES, 0.0))
        pretrain_vdm.main(file)
    assert len(steps) == 3 and steps[1] == steps[2], "the second step again, the first one not"
    assert {part: (OUT / f"{part}.safetensors").read_bytes() for part in PARTS} == straight


@pytest.fixture
def teacher(tmp_path):
    """A dLDM whose VDM and projection differ from every fresh one, saved beside the prior and the LDM it came from."""
    tiny_prior().save(tmp_path / "prior", {})
    found = DLDM(tiny_config(), tiny_prior())
    save_ldm(found.ldm, tmp_path / "warm")
    with torch.no_grad():
        for part in PARTS:
            for value in getattr(found, part).parameters():
                value.add_(1)
    save_taught(found, tmp_path)
    return found


@pytest.mark.parametrize("train", ["frozen", "lora", "full"])
def test_every_pretrained_variant_begins_with_it(tmp_path, teacher, train):
    config = tiny_config(vdm=AdaptConfig(train=train, rank=2))
    dldm = begin_joint(config, tmp_path / "warm", tmp_path / "prior", tmp_path).dldm
    assert torch.equal(dldm.vdm.null, teacher.vdm.null.to(torch.bfloat16).float())
    name = "transformer_blocks.1.ff.net.2.weight"  # no LoRA there, so of the same name in all of them
    wanted = teacher.vdm.transformer.state_dict()[name].to(torch.bfloat16).float()
    assert torch.equal(dldm.vdm.transformer.state_dict()[name], wanted)


def test_a_projection_that_fits_in_part_is_told(tmp_path, teacher, capsys):
    other = tiny_config(queries=3)
    save_ldm(DLDM(other, tiny_prior()).ldm, tmp_path / "warm")
    begin_joint(other, tmp_path / "warm", tmp_path / "prior", tmp_path)
    said = " ".join(capsys.readouterr().err.split())
    assert "begin at random: 1 weights, projection." in said and "which among them" in said


def test_a_vdm_of_another_size_is_refused(tmp_path, teacher):
    weights = load_file(tmp_path / "vdm.safetensors")
    weights.pop("null")
    save_file(weights, tmp_path / "vdm.safetensors")
    with pytest.raises(UserError, match="1 weights of the VDM are not in .*, null among them.*pretrain_vdm.use"):
        begin_joint(tiny_config(), tmp_path / "warm", tmp_path / "prior", tmp_path)


def test_a_vdm_taught_otherwise_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder, names in ((PRIOR, ("transformer", "vae")), (PRETRAINED, ("ldm",))):
        folder.mkdir(parents=True)
        for name in names:
            (folder / f"{name}.safetensors").write_text(name)
    config, dldm = PretrainVDMConfig(True, 3, OptimConfig(steps=2, batch=2, lr=1e-3)), tiny_config()
    (tmp_path / "record.json").write_text(json.dumps(config.record(PRIOR, PRETRAINED)))
    check = lambda config, dldm, begun=True: check_taught(tmp_path, config, dldm, begun, PRIOR, PRETRAINED)  # noqa: E731
    check(config, dldm)
    check(replace(config, use=False), dldm)
    with pytest.raises(UserError, match="made with pretrain_vdm.clips 3, params.yaml says 4"):
        check(replace(config, clips=4), dldm)
    with pytest.raises(UserError, match="dldm.backend.kind mini.*got wan and 0; set pretrain_vdm.use to false"):
        check(config, replace(dldm, backend=replace(dldm.backend, kind="wan", weights="x")))
    with pytest.raises(UserError, match="got mini and 8; set"):
        check(config, replace(dldm, parts="causal", causal=replace(dldm.causal, connector=8)))
    with pytest.raises(UserError, match="pretrain_ldm.use false"):
        check(config, dldm, begun=False)
    (PRETRAINED / "ldm.safetensors").write_text("another round")
    with pytest.raises(UserError, match="taught with another data/pretrained/ldm.safetensors; bring that back"):
        check(config, dldm)
    with pytest.raises(ValueError, match="clips"):
        replace(config, clips=0)


def test_committed_weights_are_those_that_params_yaml_asks_for(monkeypatch):
    monkeypatch.chdir(ROOT)
    values = parameters.load(ROOT / "params.yaml")
    config = parameters.build(PretrainVDMConfig, values["pretrain_vdm"], "pretrain_vdm")
    dldm = fit(parameters.build(DLDMConfig, values["dldm"], "dldm"), values["clip"]["frames"])
    check_taught(OUT, config, dldm, values["pretrain_ldm"]["use"], PRIOR, PRETRAINED)
    begun = begin_joint(dldm, PRETRAINED, PRIOR, OUT).dldm
    assert take_over(begun.vdm, OUT / "vdm.safetensors") == []
    assert take_over(begun.projection, OUT / "projection.safetensors") == []
    assert sum(file.stat().st_size for file in OUT.glob("*.safetensors")) < 20e6


@pytest.mark.parametrize("preset", ["smoke", "paper", "release", "wan"])
def test_presets_begin_with_the_vdm_of_their_back_end(preset):
    changed = read(preset, ROOT / "presets")
    assert not changed["pretrain_vdm"]["use"]
    if preset != "smoke":
        assert changed["dldm"]["control"]["dropout"] == 0 and changed["gates"]["token_margin"] == 0.001


@pytest.mark.parametrize("train", ["random", "frozen", "lora", "full"])
def test_codes_alone_tell_what_moves(train):
    config = from_codes_alone(tiny_config(vdm=AdaptConfig(train=train)))
    assert config.vdm.train == "full"
    assert config.control.blocks == 0 and config.sampling_start == 1
    assert DLDM(config, tiny_prior()).control is None
