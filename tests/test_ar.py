"""The AR transformer at a tiny size on random codes."""

import dataclasses
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vw2.console import UserError
from vw2.models import attend
from vw2.models.ar import PAD, UNKNOWN, ARBatch, ARConfig, ARInputs, ARTransformer, CodeShape, unheard, word_ids
from vw2.models.ar_files import load_ar, save_ar
from vw2.models.fsq import resolve_levels
from vw2.models.nucleus import pick, pick_or_end
from vw2.training import ar as ar_training
from vw2.training.compute import generator
from vw2.training.run import OptimConfig
from vw2.training.sequences import hide_words, swapped

CONFIG = ARConfig(width=32, layers=2, heads=2, dropout=0.0, max_clips=4, unknown=0.0)
SHAPE = CodeShape(levels=(8,), steps=2, queries=3)
INPUTS = ARInputs(channels=5, size=(2, 2), words=("boat", "fold", "tower"), length=3)


def tiny(shape: CodeShape = SHAPE, config: ARConfig = CONFIG, seed: int = 0) -> ARTransformer:
    torch.manual_seed(seed)
    model = ARTransformer(config, shape, INPUTS).eval()
    with torch.no_grad():  # at its small initial size everything is nearly equally likely
        for parameter in (model.out, model.out_digits, model.digits, model.first.weight):
            parameter.mul_(20)
    return model


def batch_of(lengths: list[int], shape: CodeShape = SHAPE, seed: int = 1) -> ARBatch:
    rng = generator(seed)
    size = (len(lengths), max(lengths), shape.steps, shape.queries)
    return ARBatch(
        torch.randint(0, 5, (len(lengths), INPUTS.length), generator=rng),
        torch.randn(len(lengths), INPUTS.channels, *INPUTS.size, generator=rng),
        torch.randint(0, shape.codebook, size, generator=rng),
        torch.tensor(lengths),
    )


@pytest.mark.parametrize("codebook", [8, 1000, 4096, 64000])
def test_vocabulary_follows_the_codebook(codebook):
    shape = CodeShape(resolve_levels(codebook, None), steps=1, queries=1)
    logits, targets, _, is_end = tiny(shape).predict(batch_of([1, 2], shape))
    assert logits.shape == (2, 3, codebook + 1) and targets[is_end].tolist() == [codebook] * 2


@pytest.mark.parametrize("most, way", [(attend.MOST, "eager"), (1, "sdpa")])
def test_training_in_bfloat16_on_a_cpu_multiplies_matrices(monkeypatch, tmp_path, most, way):
    """Where all weights of an attention fit into memory; the loss is nearly the same."""
    model, batch, autocast = tiny(), batch_of([2, 3, 4]), partial(torch.autocast, "cpu", torch.bfloat16)
    accelerator = SimpleNamespace(autocast=autocast, device=torch.device("cpu"))
    monkeypatch.setattr(attend, "MOST", most)
    monkeypatch.setattr(ar_training, "Run", lambda *_: [])  # no step
    exact = model(batch)[0]
    ar_training.train(accelerator, model, None, OptimConfig(1, 3, 1e-3), 0, tmp_path)
    assert model.body.config._attn_implementation == way
    with autocast():
        assert float(model(batch)[0].detach()) == pytest.approx(float(exact.detach()), rel=0.01)


def test_loss_is_finite_and_padding_does_not_count():
    model, batch = tiny(), batch_of([2, 3, 4])
    loss, logs = model(batch)
    assert loss.ndim == 0 and torch.isfinite(loss) and set(logs) == {"train/bits", "train/accuracy"}
    batch.codes[0, 2:] = 7 - batch.codes[0, 2:]
    assert torch.equal(model(batch)[0], loss)
    scores = model.score(batch)
    assert scores.is_code.sum(1).tolist() == [12, 18, 24]
    assert scores.is_end.nonzero().tolist() == [[0, 12], [1, 18]]  # the third is as long as a video may be
    assert scores.bits[scores.is_code | scores.is_end].mean() == pytest.approx(float(logs["train/bits"]), rel=1e-4)


def test_end_stands_only_where_a_later_clip_would_begin():
    logits = tiny().predict(batch_of([3, 3]))[0]
    may_end = torch.isfinite(logits[..., -1])
    assert may_end[0].nonzero()[:, 0].tolist() == [6, 12, 18] and torch.equal(may_end[0], may_end[1])
    assert torch.isfinite(logits[..., :-1]).all()


def test_changing_a_code_leaves_the_past_alone():
    model, batch = tiny(), batch_of([3, 3])
    before = model.predict(batch)[0]
    for place in range(18):
        codes = batch.codes.clone().flatten(1)
        codes[:, place] = (codes[:, place] + 1) % 8
        after = model.predict(dataclasses.replace(batch, codes=codes.view_as(batch.codes)))[0]
        assert torch.equal(after[:, : place + 1], before[:, : place + 1])
        assert not torch.equal(after[:, place + 1], before[:, place + 1])


def test_instruction_and_first_frame_are_heard():
    model, batch = tiny(), batch_of([2])
    loss = model(batch)[0]
    assert model(dataclasses.replace(batch, words=(batch.words + 1) % 5))[0] != loss
    assert model(dataclasses.replace(batch, first=-batch.first))[0] != loss


def test_overfits_one_batch():
    model, batch = tiny().train(), batch_of([1, 2, 2])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(80):
        loss, logs = model(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.1 and float(logs["train/accuracy"]) == 1.0
    written = model.eval().sample(batch.words, batch.first, ["a", "b", "c"], seed=0, temperature=0)
    assert [len(each) for each in written] == [1, 2, 2]
    for got, codes in zip(written, batch.codes.numpy(), strict=True):
        assert np.array_equal(got, codes[: len(got)])


def test_cached_sampling_is_the_full_forward():
    model, batch = tiny(), batch_of([1] * 4)
    written = model.sample(batch.words, batch.first, list("abcd"), seed=0, temperature=0)
    assert len({each.tobytes() for each in written}) > 1
    full = tiny().double()
    for row, got in enumerate(written):
        assert got.dtype == np.int64 and got.shape[1:] == (2, 3) and 1 <= len(got) <= CONFIG.max_clips
        codes = torch.from_numpy(got)[None]
        one = slice(row, row + 1)
        logits = full.predict(ARBatch(batch.words[one], batch.first[one].double(), codes, torch.tensor([len(got)])))[0]
        best = logits[0].argmax(-1)
        assert torch.equal(best[:-1], codes.flatten())
        assert len(got) == CONFIG.max_clips or best[-1] == SHAPE.codebook


@pytest.mark.filterwarnings("error:.*past_key_values:FutureWarning")
def test_the_cache_goes_by_the_name_that_llama_takes():
    """transformers warns of a name that it will drop; another one would be passed over, and the cache with it."""
    batch = batch_of([1] * 2)
    assert len(tiny().sample(batch.words, batch.first, ["a", "b"], seed=0)) == 2


def test_rows_do_not_depend_on_the_rows_beside_them():
    model, batch = tiny(), batch_of([1] * 6)
    keys = [f"video/{i}" for i in range(6)]

    def write(chosen: list[int], **options) -> list[np.ndarray]:
        return model.sample(
            batch.words[chosen], batch.first[chosen], [keys[r] for r in chosen], 3, top_p=0.9, **options
        )

    together = write(list(range(6)))
    assert len({len(each) for each in together}) > 1, "this seed should give videos of unequal length"
    for rows, options in (([4], {}), ([5, 2, 4], {}), (list(range(6)), {"rows": 4})):
        for row, got in zip(rows, write(rows, **options), strict=True):
            assert np.array_equal(got, together[row])
    other = model.sample(batch.words, batch.first, keys, 4, top_p=0.9)
    assert any(not np.array_equal(a, b) for a, b in zip(together, other, strict=True))
    assert all(len(each) <= 2 for each in write(list(range(6)), max_clips=2))
    assert model.out.dtype == torch.float32  # the float64 copy is another model


def test_pick():
    logits = torch.tensor([0.5, 0.3, 0.2]).double().log().expand(4, 3)
    draws = torch.tensor([0.0, 0.49, 0.51, 0.999]).double()
    assert pick(logits, draws, 1.0, 1.0).tolist() == [0, 0, 1, 2]
    assert pick(logits, draws, 1.0, 0.6).tolist() == [0, 0, 0, 1]  # 0.5 and 0.3 are kept: 5/8 and 3/8
    assert pick(logits, draws, 1.0, 1e-9).tolist() == [0] * 4
    assert pick(logits, draws, 0.0, 1.0).tolist() == [0] * 4
    forbidden = torch.tensor([[0.0, -torch.inf]]).double()
    assert pick(forbidden, torch.tensor([1 - 2**-53]).double(), 1.0, 1.0).tolist() == [0]


def test_end_is_chosen_apart():
    """Four codes of 0.15 and END of 0.4, the likeliest token: yet the video goes on more often than not."""
    logits = torch.tensor([0.15] * 4 + [0.4]).double().log().expand(5, 5)
    draws = torch.tensor([0.0, 0.39, 0.41, 0.56, 0.99]).double()
    assert pick_or_end(logits, draws, 1.0, 1.0).tolist() == [4, 4, 0, 1, 3]
    assert pick_or_end(logits, draws, 0.0, 1.0).tolist() == [0] * 5
    low = 1 / (1 + 1.5**5)  # odds of 2 to 3, sharpened by a temperature of 0.2: 0.116 of END
    edges = torch.tensor([low - 1e-6, low + 1e-6]).double()
    assert pick_or_end(logits[:2], edges, 0.2, 1.0).tolist() == [4, 0]
    forbidden = torch.tensor([[0.0, 0.0, -torch.inf]]).double()
    assert pick_or_end(forbidden, torch.zeros(1).double(), 0.2, 1.0).tolist() == [0]


def test_words():
    assert word_ids("Fold a BOAT", INPUTS) == [3, UNKNOWN, 2]
    assert word_ids("tower", INPUTS) == [4, PAD, PAD] and word_ids("", INPUTS) == [PAD] * 3
    assert word_ids("fold, fold; fold. fold", INPUTS) == [3] * 3
    assert unheard("Fold a BOAT", INPUTS) == ["a"] and unheard("fold, fold; fold. fold", INPUTS) == ["fold"]
    assert unheard("tower", dataclasses.replace(INPUTS, words=(), length=0)) == ["tower"]
    ids = torch.tensor([[2, 3, PAD, UNKNOWN]]).repeat(100, 1)
    hidden = hide_words(ids, 0.5, generator(0))
    assert torch.equal(hidden[:, 2:], ids[:, 2:]) and 50 < int((hidden[:, :2] == UNKNOWN).sum()) < 150
    assert swapped(["b", "a", "b"]) == ["a", "b", "a"] and swapped(["a", "a"]) is None


def test_files(tmp_path):
    model, batch = tiny(), batch_of([2, 1])
    save_ar(model, tmp_path)
    loaded = load_ar(tmp_path)
    assert torch.equal(loaded(batch)[0], model(batch)[0]) and loaded.inputs == INPUTS and loaded.shape == SHAPE
    with pytest.raises(UserError, match="dvc repro train_ar"):
        load_ar(tmp_path / "nothing")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="another version"):
        load_ar(tmp_path)


def test_other_codes_are_refused():
    SHAPE.check(SHAPE, "data/ar", "data/dldm")
    with pytest.raises(UserError, match=r"dldm.codebook is 8 in data/ar but 1000 in data/dldm"):
        SHAPE.check(dataclasses.replace(SHAPE, levels=(8, 5, 5, 5)), "data/ar", "data/dldm")
    with pytest.raises(UserError, match="dldm.queries"):
        SHAPE.check(dataclasses.replace(SHAPE, queries=1), "data/ar", "data/dldm")
    with pytest.raises(ValueError, match="ar.model.width"):
        ARConfig(width=30, heads=4)
