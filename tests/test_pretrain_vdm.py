"""The VDM taught to read codes: the stage, what the joint stage takes over of it, what is refused."""

from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
import torch
from safetensors.torch import load_file
from test_pretrain_ldm import in_process
from tiny_models import tiny_config, tiny_prior
from tiny_stages import OPTIM, make_folder, write_params

from stages import pretrain_ldm, pretrain_vdm, train_dldm, warmup_dldm
from stages.pretrain_vdm import OUT
from vw2.console import UserError
from vw2.files import read_json
from vw2.models.adapt import AdaptConfig
from vw2.models.begin import VDM_PARTS, begin_joint, save_part
from vw2.models.dldm import DLDM
from vw2.models.ldm_files import save_ldm
from vw2.training.listen import PretrainVDMConfig, check_taught, from_codes_alone
from vw2.training.run import OptimConfig

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
    weights = {part: load_file(OUT / f"{part}.safetensors") for part in VDM_PARTS}
    assert {value.dtype for part in weights.values() for value in part.values()} == {torch.bfloat16}
    prior = load_file("data/prior/transformer.safetensors")
    moved = [key for key, value in weights["vdm"].items() if not torch.equal(value, prior[key])]
    assert len(moved) > len(prior) / 2
    after = load_file("data/pretrained/ldm.safetensors")
    assert all(torch.equal(value, after[key]) for key, value in ldm.items()), "the LDM stands still"
    figures = read_json(Path("metrics/pretrain_vdm.json"))
    assert {"before", "own", "rise_tokens"} <= set(figures["denoise"])
    assert {"psnr", "psnr_copy"} <= set(figures["render"])

    warmup_dldm.main(file)
    begun = {}
    real = train_dldm.train

    def spy(accelerator, dldm, *rest):
        begun.update({part: getattr(dldm, part).state_dict() for part in VDM_PARTS})
        begun["control"] = dldm.control.blocks["0"].state_dict()
        begun.update({key: {n: v.clone() for n, v in part.items()} for key, part in begun.items()})
        return real(accelerator, dldm, *rest)

    monkeypatch.setattr(train_dldm, "train", spy)
    train_dldm.main(file)
    for part in VDM_PARTS:
        assert all(torch.equal(begun[part][key], value.float()) for key, value in weights[part].items())
    first = "transformer.transformer_blocks.0."
    for key, value in begun["control"].items():  # the branch copies the VDM that was taught, not the prior's
        assert torch.equal(value, weights["vdm"][first + key].float())

    train_dldm.main(params(folder, pretrain_vdm=TAUGHT | {"use": False}))
    assert all(torch.equal(begun["vdm"][key], value.float()) for key, value in prior.items()), "the prior's own"


@pytest.mark.parametrize("train", ["random", "frozen", "lora", "full"])
def test_every_variant_begins_with_it_but_the_random_one(tmp_path, train):
    config = tiny_config(vdm=AdaptConfig(train=train, rank=2))
    tiny_prior().save(tmp_path / "prior", {})
    teacher = DLDM(tiny_config(), tiny_prior())
    save_ldm(teacher.ldm, tmp_path / "warm")
    with torch.no_grad():
        for part in VDM_PARTS:
            for value in getattr(teacher, part).parameters():
                value.add_(1)
            save_part(teacher, part, tmp_path, torch.bfloat16)
    dldm = begin_joint(config, tmp_path / "warm", tmp_path / "prior", tmp_path).dldm
    wanted = teacher.vdm.null.to(torch.bfloat16).float()
    assert torch.equal(dldm.vdm.null, wanted) == (train != "random")
    name = "transformer_blocks.1.ff.net.2.weight"  # no LoRA there, so of the same name in all of them
    wanted = teacher.vdm.transformer.state_dict()[name].to(torch.bfloat16).float()
    assert torch.equal(dldm.vdm.transformer.state_dict()[name], wanted) == (train != "random")


def test_what_does_not_fit_is_told_and_begins_at_random(tmp_path, capsys):
    tiny_prior().save(tmp_path / "prior", {})
    teacher = DLDM(tiny_config(), tiny_prior())
    for part in VDM_PARTS:
        save_part(teacher, part, tmp_path, torch.bfloat16)
    other = tiny_config(queries=3)
    save_ldm(DLDM(other, tiny_prior()).ldm, tmp_path / "warm")
    begin_joint(other, tmp_path / "warm", tmp_path / "prior", tmp_path)
    said = " ".join(capsys.readouterr().err.split())
    assert "1 weights of VDM and projection do not fit" in said and "which among them" in said


def test_another_teaching_and_another_back_end_are_refused(tmp_path):
    made = PretrainVDMConfig(True, 3, OptimConfig(steps=2, batch=2, lr=1e-3))
    (tmp_path / "record.json").write_text('{"clips": 3, "optim": {}}')
    with pytest.raises(UserError, match="made with pretrain_vdm.optim"):
        check_taught(tmp_path, made, "mini")
    with pytest.raises(UserError, match="pretrain_vdm.use goes with dldm.backend.kind mini.*got wan"):
        check_taught(tmp_path, made, "wan")
    with pytest.raises(ValueError, match="clips"):
        replace(made, clips=0)


def test_codes_alone_tell_what_moves():
    config = from_codes_alone(tiny_config())
    assert config.control.blocks == 0 and config.sampling_start == 1
    assert DLDM(config, tiny_prior()).control is None
