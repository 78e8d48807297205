"""Pretraining in rounds: one more round gives what all rounds at once give; a wrong number of rounds is refused."""

from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from tiny_stages import OPTIM, write_params

from stages import pretrain_ldm
from stages.pretrain_ldm import OUT, main
from vw2.console import UserError
from vw2.files import read_json
from vw2.params import load
from vw2.training.pretrain_ldm import LOG, WEIGHTS, PretrainLDMConfig, check_made
from vw2.training.run import OptimConfig


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VW2_SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.setattr("stages.pretrain_ldm.HELD_OUT", 4)
    monkeypatch.setattr("vw2.training.corpus.run_resumable", in_process)
    return tmp_path


def in_process(function, jobs, memory, workers):
    """A few clips are rendered sooner than a worker process has started."""
    yield from ((name, function(job)) for name, job in jobs.items())


def params(folder, rounds: int):
    craft = {"resolution": 32}
    pretrain = {"rounds": rounds, "clips": 3, "optim": OPTIM}
    return write_params(folder, {"craft": craft, "prior": {"frames": 9, "clips": 2}, "pretrain_ldm": pretrain})


def test_one_more_round_is_the_last_of_all(folder):
    main(params(folder, 2), one_more=False)
    whole = {name: (OUT / name).read_bytes() for name in (WEIGHTS, LOG)}
    assert pl.read_csv(OUT / LOG, separator="\t")["step"].to_list() == [2, 4]
    main(params(folder, 1), one_more=False)
    first = (OUT / WEIGHTS).read_bytes()
    assert first != whole[WEIGHTS]
    main(params(folder, 2), one_more=True)
    assert {name: (OUT / name).read_bytes() for name in whole} == whole

    with pytest.raises(UserError, match="expected pretrain_ldm.rounds 3, as .* is of one less, got 2"):
        main(params(folder, 2), one_more=True)
    assert (OUT / WEIGHTS).read_bytes() == whole[WEIGHTS]


def test_only_the_last_of_three_rounds_is_trained(folder, monkeypatch):
    main(params(folder, 2), one_more=False)
    trained = []
    real = pretrain_ldm.train_round
    monkeypatch.setattr(pretrain_ldm, "train_round", lambda *given: trained.append(given[-1]) or real(*given))
    main(params(folder, 3), one_more=True)
    assert trained == [2]
    made = PretrainLDMConfig(True, 3, 3, 0.5, OptimConfig(**load(folder / "params.yaml")["pretrain_ldm"]["optim"]))
    check_made(OUT, made)
    with pytest.raises(UserError, match="made with pretrain_ldm.colours 0.5, params.yaml says 0.1"):
        check_made(OUT, replace(made, colours=0.1))
    assert pl.read_csv(OUT / LOG, separator="\t")["step"].to_list() == [2, 4, 6]
    spent = read_json(Path("benchmarks/runtime/pretrain_ldm.json"))
    assert spent["steps"] == 2 and spent["seconds"] > 0, "of the one round"


@pytest.mark.parametrize(("key", "value"), [("rounds", 0), ("clips", 0), ("colours", 1.5)])
def test_settings_without_sense_are_refused(key, value):
    fine = {"use": True, "rounds": 1, "clips": 1, "colours": 0.5, "optim": OptimConfig(steps=1, batch=1, lr=1.0)}
    PretrainLDMConfig(**fine)
    with pytest.raises(ValueError, match=key):
        PretrainLDMConfig(**fine | {key: value})
