"""Interrupted and resumed == uninterrupted, bit for bit; other parameters never find an old run."""

import pytest
import torch

from vw2.console import UserError
from vw2.scratch import fingerprint, scratch_dir
from vw2.training.compute import ComputeConfig, generator, start
from vw2.training.curves import write_curves
from vw2.training.run import Group, OptimConfig, Run

CONFIG = OptimConfig(steps=10, batch=4, lr=0.01, warmup=2, weight_decay=0.1, save_every=4)


class Crash(Exception):
    pass


class Line(torch.nn.Module):
    """A linear model with dropout, so that a step depends on random numbers, and a running statistic."""

    def __init__(self):
        super().__init__()
        self.map, self.norm = torch.nn.Linear(3, 1), torch.nn.BatchNorm1d(3, affine=False)

    def forward(self, x):
        return self.map(torch.nn.functional.dropout(self.norm(x), 0.3))


def train(folder, crash_at: int | None = None, config: OptimConfig = CONFIG) -> tuple[Line, Run, list[int]]:
    """The loop of a stage: all that is drawn in a step is a function of (seed, step)."""
    accelerator = start(ComputeConfig(threads=1), seed=0)
    model, seen = Line(), []
    run = Run(accelerator, [Group(model)], config, folder, "train", log_every=2)
    for step in run:
        seen.append(step)
        if step == crash_at:
            raise Crash
        x = torch.randn(config.batch, 3, generator=generator(0, 1, step))
        torch.manual_seed(generator(0, 2, step).initial_seed())
        loss = ((model(x) - x.sum(1, keepdim=True)) ** 2).mean()
        run.update(loss, {"train/first": x[0, 0]})
    return model, run, seen


def tsv(folder) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.tsv"))}


@pytest.fixture(autouse=True)
def outside_the_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.delenv("VW2_SCRATCH", raising=False)


def test_resumed_run_equals_straight_run(tmp_path):
    straight, run, seen = train(tmp_path / "straight")
    assert seen == list(range(10))
    with pytest.raises(Crash):
        train(tmp_path / "broken", crash_at=7)
    resumed, again, seen = train(tmp_path / "broken")
    assert seen == list(range(4, 10)), "goes on at the last checkpoint"
    for key, value in straight.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], value), key
    assert again.averages == run.averages and again.history == run.history
    assert [row["step"] for row in run.history] == [2, 4, 6, 8, 10]
    for mine, other in zip(run.optimizers, again.optimizers, strict=True):
        left, right = mine.state_dict()["state"], other.state_dict()["state"]
        assert all(torch.equal(left[i][key], right[i][key]) for i in left for key in left[i])
    write_curves(run.history, tmp_path / "plots" / "straight")
    write_curves(again.history, tmp_path / "plots" / "broken")
    curves = tsv(tmp_path / "plots" / "straight")
    assert set(curves) == {"loss.tsv", "gradient_norm.tsv", "train/first.tsv"}
    assert curves == tsv(tmp_path / "plots" / "broken")
    assert curves["loss.tsv"].splitlines()[0] == b"step\tloss" and len(curves["loss.tsv"].splitlines()) == 6


@pytest.mark.parametrize("left", ["", "{", None])
def test_half_a_log_keeps_nothing_from_going_on(tmp_path, left):
    """A full disk, or a kill while it is written; curves are drawn from the checkpoint."""
    straight, run, _ = train(tmp_path / "straight")
    with pytest.raises(Crash):
        train(tmp_path / "broken", crash_at=7)
    log = tmp_path / "broken" / "log" / "metrics.json"
    log.unlink() if left is None else log.write_text(left)
    resumed, again, seen = train(tmp_path / "broken")
    assert seen == list(range(4, 10)) and again.history == run.history
    assert torch.equal(resumed.map.weight, straight.map.weight)


class Cliff(torch.autograd.Function):
    """The identity; its gradient is nan."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * torch.nan


@pytest.mark.parametrize("clipped", [True, False])
def test_a_gradient_that_is_no_number_never_reaches_weights_or_checkpoint(tmp_path, clipped):
    def attempt(bad: int) -> tuple[Line, Run]:
        model, other = Line(), torch.nn.Linear(1, 1)
        groups = [Group(model, clipped=clipped), Group(other)]
        run = Run(start(ComputeConfig(threads=1), seed=0), groups, CONFIG, tmp_path, "train")
        for step in run:
            x = model(torch.ones(4, 3))
            loss = (Cliff.apply(x) if step == bad else x).square().mean() + other(torch.ones(1, 1)).square().sum()
            try:
                run.update(loss, {})
            except UserError as error:
                assert str(error) == f"train: the gradient became nan at step {bad}; lower the learning rate"
                break
        return model, run

    model, run = attempt(bad=7)
    assert run.step == 7 and model.map.weight.isfinite().all()
    _, again = attempt(bad=99)
    assert again.step == CONFIG.steps, "it went on from the checkpoint of step 4"


def test_checkpoints_leave_out_what_is_frozen(tmp_path):
    model = Line()
    model.map.weight.requires_grad_(False)
    run = Run(start(ComputeConfig(threads=1), seed=0), [Group(model)], CONFIG, tmp_path, "train")
    run.save()
    (kept,) = torch.load(run.checkpoint, weights_only=True)["modules"]
    assert set(kept) == set(model.state_dict()) - {"map.weight"}, "buffers and what is trained stay"
    kept = model.map.bias.clone()
    model.map.bias.data += 1
    again = Run(start(ComputeConfig(threads=1), seed=0), [Group(model)], CONFIG, tmp_path, "train")
    assert torch.equal(again.modules[0].map.bias, kept)


def test_crash_before_the_first_checkpoint_and_twice(tmp_path):
    straight = train(tmp_path / "straight")[0]
    for crash_at in (2, 5, 9):
        with pytest.raises(Crash):
            train(tmp_path / "broken", crash_at)
    resumed, _, seen = train(tmp_path / "broken")
    assert seen == [8, 9] and torch.equal(resumed.map.weight, straight.map.weight)


def test_finished_run_does_not_train_again(tmp_path):
    first = train(tmp_path / "run")[0]
    second, _, seen = train(tmp_path / "run")
    assert seen == [] and torch.equal(first.map.weight, second.map.weight)


def test_other_parameters_begin_at_zero(tmp_path):
    def folder(config: OptimConfig):
        return scratch_dir("train", fingerprint({"optim": config}, [], []))

    other = OptimConfig(steps=10, batch=4, lr=0.02, warmup=2, weight_decay=0.1, save_every=4)
    with pytest.raises(Crash):
        train(folder(CONFIG), crash_at=5)
    assert folder(CONFIG) != folder(other) and (folder(CONFIG) / "checkpoint.pt").exists()
    assert train(folder(other), config=other)[2][0] == 0
    assert train(folder(CONFIG))[2][0] == 4
