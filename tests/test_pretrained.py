"""Weights that fit are taken over, others stay; the corpus is the same for any number of workers."""

import numpy as np
import torch
from safetensors.torch import save_file
from tiny_models import tiny_dldm, tiny_ldm

from vw2.models.pretrained import read_part, take_over
from vw2.models.renderer import save_dldm
from vw2.training.corpus import corpus
from vw2.worlds.craft import CraftConfig, render_prior_clip


def test_a_part_of_the_dldm_is_taken_over(tmp_path):
    dldm, _ = tiny_dldm()
    save_dldm(dldm, tmp_path)
    ldm = tiny_ldm()
    assert not torch.equal(ldm.encoder.conv_in.weight, dldm.ldm.encoder.conv_in.weight)
    assert take_over(ldm, read_part(tmp_path, "ldm")) == []
    for mine, theirs in zip(ldm.state_dict().values(), dldm.ldm.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)


def test_what_does_not_fit_stays(tmp_path):
    dldm, _ = tiny_dldm()
    save_dldm(dldm, tmp_path, torch.bfloat16)
    ldm = tiny_ldm(queries=3)  # the paper's ablation over N
    before = ldm.query.queries.clone()
    left = take_over(ldm, read_part(tmp_path, "ldm"))
    assert {"query.queries", "decoder.history.lift.0.weight"} <= set(left)
    assert torch.equal(ldm.query.queries, before), "stays as it was drawn"
    assert torch.allclose(ldm.encoder.conv_in.weight, dldm.ldm.encoder.conv_in.weight, rtol=1e-2)


def test_weights_of_other_names_are_passed_over(tmp_path):
    ldm = tiny_ldm()
    save_file({"ldm.nothing": torch.ones(1), "vdm.null": torch.ones(1)}, tmp_path / "dldm.safetensors")
    assert read_part(tmp_path, "ldm").keys() == {"nothing"}
    assert take_over(ldm, read_part(tmp_path, "ldm")) == sorted(ldm.state_dict())


def test_corpus(tmp_path):
    craft = CraftConfig(resolution=32)
    store = corpus(craft, 5, 3, 9, tmp_path, workers=1)
    assert len(store) == 3 and store.clip_frames == 9
    for row in range(3):
        assert np.array_equal(store.frames(row), render_prior_clip(craft, 5 + row, 9)), "clips from the fifth on"
    again = corpus(craft, 5, 3, 9, tmp_path, workers=1)
    assert np.array_equal(again.frames(2), store.frames(2)) and not (tmp_path / "raw").exists()
