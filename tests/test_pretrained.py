"""Weights that fit are taken over, others stay; the corpus is the same for any number of workers."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny_models import causal_ldm, tiny_ldm

from vw2.console import UserError
from vw2.models.begin import check_same_codes, take_ldm
from vw2.models.ldm_files import save_ldm
from vw2.models.pretrained import take_over
from vw2.training.corpus import corpus
from vw2.worlds.craft import CraftConfig, render_prior_clip


def test_weights_are_taken_over(tmp_path):
    torch.manual_seed(5)
    theirs = tiny_ldm()
    torch.nn.init.normal_(theirs.encoder.conv_in.weight)
    save_ldm(theirs, tmp_path)
    mine = tiny_ldm()
    assert take_over(mine, tmp_path / "ldm.safetensors") == []
    for one, two in zip(mine.state_dict().values(), theirs.state_dict().values(), strict=True):
        assert torch.equal(one, two)


def test_what_does_not_fit_stays(tmp_path):
    theirs, mine = tiny_ldm(), tiny_ldm(queries=3)  # the paper's ablation over N
    torch.nn.init.normal_(theirs.encoder.conv_in.weight)
    save_ldm(theirs, tmp_path, torch.bfloat16)
    before = mine.query.queries.clone()
    left = take_over(mine, tmp_path / "ldm.safetensors")
    assert {"query.queries", "decoder.history.lift.0.weight"} <= set(left)
    assert torch.equal(mine.query.queries, before), "stays as it was drawn"
    assert torch.allclose(mine.encoder.conv_in.weight, theirs.encoder.conv_in.weight, rtol=1e-2)


def test_weights_of_other_names_are_passed_over(tmp_path):
    ldm = tiny_ldm()
    save_file({"nothing": torch.ones(1)}, tmp_path / "other.safetensors")
    assert take_over(ldm, tmp_path / "other.safetensors") == sorted(ldm.state_dict())


def test_corpus(tmp_path):
    craft = CraftConfig(resolution=32)
    store = corpus(craft, 5, 3, 9, tmp_path, workers=1)
    assert len(store) == 3 and store.clip_frames == 9
    for row in range(3):
        assert np.array_equal(store.frames(row), render_prior_clip(craft, 5 + row, 9)), "clips from the fifth on"
    again = corpus(craft, 5, 3, 9, tmp_path, workers=1)
    assert np.array_equal(again.frames(2), store.frames(2)) and not (tmp_path / "raw").exists()


def test_a_warm_ldm_of_other_codes_is_refused(tmp_path):
    # every weight would fit
    for theirs, ours, key in (
        (tiny_ldm(levels=(8, 5, 5, 5)), tiny_ldm(levels=(5, 8, 5, 5)), "levels"),
        (tiny_ldm(query_view="features"), tiny_ldm(), "query_view"),
        (tiny_ldm(shrink="bilinear"), tiny_ldm(), "shrink"),
        (tiny_ldm(lookups=2), tiny_ldm(lookups=0), "lookups"),
        (causal_ldm(view="adjacent"), causal_ldm(view="prefix"), "causal.view"),
        (causal_ldm(query_heads=1), causal_ldm(query_heads=2), "causal.query_heads"),
    ):
        check_same_codes(ours.config, ours.config, tmp_path)
        with pytest.raises(UserError, match=f"dldm.{key} is "):
            check_same_codes(theirs.config, ours.config, tmp_path)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (lambda: causal_ldm(query_layers=2), lambda: causal_ldm(query_layers=1)),
        (lambda: causal_ldm(blocks=2), lambda: causal_ldm(blocks=1)),
        (lambda: tiny_ldm(decoder_blocks=2), lambda: tiny_ldm(decoder_blocks=1)),
    ],
    ids=["Q-former", "trunk", "frames"],
)
def test_a_warm_ldm_is_taken_whole_or_not_at_all(tmp_path, theirs, ours):
    for saved, wanted, told in ((theirs(), ours(), "have no place there"), (ours(), theirs(), "are not in")):
        save_ldm(saved, tmp_path)
        with pytest.raises(UserError, match=told):
            take_ldm(wanted, tmp_path)
        take_ldm(type(saved)(saved.config), tmp_path)


def test_a_connector_may_be_left_out(tmp_path):
    save_ldm(causal_ldm(connector=10), tmp_path)
    take_ldm(causal_ldm(connector=0), tmp_path)


def test_a_checkpoint_on_a_full_disk_says_so():
    with pytest.raises(OSError, match="No space left"), open("/dev/full", "wb") as stream:  # as Run.save writes it
        torch.save(torch.zeros(10**6), stream)
