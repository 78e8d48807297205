"""What long trainings of large models ask for: a decay beyond the last step, micro-batches, clipping of one part."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_models import FRAMES, SIDE, tiny_dldm, tiny_ldm

from vw2.console import UserError
from vw2.data.walks import Walked
from vw2.training.carried import Carried
from vw2.training.compute import ComputeConfig, start
from vw2.training.joint import JointConfig
from vw2.training.joint import train as train_dldm
from vw2.training.run import Group, LongOptimConfig, OptimConfig, Run
from vw2.training.warmup import train as train_ldm
from vw2.training.watch import nothing

BASE = {"steps": 10, "batch": 6, "lr": 0.1}


@pytest.fixture(autouse=True)
def outside_the_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def begin(model: torch.nn.Module, groups: list[Group] | None = None, folder: str = "run", **changes) -> Run:
    config = LongOptimConfig(**BASE | changes)
    return Run(start(ComputeConfig(threads=1), 0), groups or [Group(model)], config, Path(folder), "train", log_every=1)


def test_schedules_in_closed_form():
    for config in (OptimConfig(**BASE, warmup=3), LongOptimConfig(**BASE, warmup=3)):  # table 4: up, then down to 0
        assert [config.factor(step) for step in (0, 1, 2, 3)] == [1 / 4, 2 / 4, 3 / 4, 1]
        assert config.factor(9) == pytest.approx(1 / 7) and config.factor(10) == 0
    release = LongOptimConfig(400_000, 1, 1.0, warmup=2000, decay_steps=400_000, last_factor=0.5)
    assert release.factor(2000) == 1 and release.factor(400_000) == release.factor(500_000) == 0.5
    assert release.factor(201_000) == pytest.approx(0.75)
    short = LongOptimConfig(30_000, 1, 1.0, warmup=2000, decay_steps=400_000, last_factor=0.5)
    assert [short.factor(s) for s in (0, 1000, 29_999)] == [release.factor(s) for s in (0, 1000, 29_999)]


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"decay_steps": 2, "warmup": 2}, "decay_steps must be above warmup or null, got 2"),
        ({"last_factor": 1.5}, r"last_factor must lie in \[0, 1\], got 1.5"),
        ({"micro_batch": 0}, "micro_batch must be at least 1 or null, got 0"),
        ({"steps": 0}, "steps must be at least 1"),
    ],
)
def test_impossible_settings_end_in_a_sentence(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        LongOptimConfig(**BASE | changes)


def test_micro_batches_make_the_step_of_the_whole_batch():
    torch.manual_seed(0)
    x, results = torch.randn(6, 3), {}
    for size in (6, 4, 1):  # 4: parts of unlike size
        torch.manual_seed(1)
        model = torch.nn.Linear(3, 1).double()
        run = begin(model, folder=f"run_{size}")
        for _ in run:
            for part in x.double().split(size):
                loss = (model(part) ** 2).mean()
                run.add(loss, {"train/first": part[0, 0]}, len(part) / len(x))
            run.finish()
        firsts = sum(float(part[0, 0]) * len(part) / 6 for part in x.split(size))
        assert run.history[-1]["train/first"] == pytest.approx(firsts), "logs are means over the clips"
        results[size] = model.weight.detach().clone(), run.history[-1]["loss"]
    for size in (4, 1):
        torch.testing.assert_close(results[size], results[6], rtol=1e-12, atol=1e-12)


def test_one_part_of_a_step_is_the_step_to_the_last_bit():
    weights = []
    for whole in (True, False):
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 1)
        run = begin(model, folder=f"run_{whole}")
        for step in run:
            loss = (model(torch.full((4, 3), step + 0.1)) ** 2).mean()
            if whole:
                run.update(loss, {})
            else:
                run.add(loss, {})
                run.finish()
        weights.append(model.weight.detach().clone())
    assert torch.equal(*weights)


def test_a_step_is_cut_into_parts():
    frames = np.arange(5).reshape(5, 1, 1, 1, 1)
    walked = Walked(frames, np.arange(5) > 2, slice(10, 15), [(i, 0) for i in range(10, 15)])
    parts = list(walked.parts(2))
    assert [share for _, share in parts] == [0.4, 0.4, 0.2]
    assert np.array_equal(np.concatenate([part.frames for part, _ in parts]), frames)
    assert np.array_equal(np.concatenate([part.follows for part, _ in parts]), walked.follows)
    assert [part.walkers for part, _ in parts] == [slice(10, 12), slice(12, 14), slice(14, 15)]
    assert sum((part.keys for part, _ in parts), []) == walked.keys
    ((whole, share),) = walked.parts(None)
    assert share == 1 and whole.walkers == walked.walkers and len(list(walked.parts(99))) == 1


def test_who_begins_with_what_was_drawn_does_not_depend_on_the_parts():
    class Store:
        height = width = 2

    class Some:
        walkers, batch, store, rank, ranks = 20, 5, Store, 0, 1

    carried, video = Carried(Some, 0.5, 0), torch.ones(5, 3, 1, 2, 2)
    walked = Walked(np.zeros((5, 1)), np.full(5, True), slice(10, 15), [(0, 0)] * 5)
    for step in range(8):
        whole, at = carried.first(walked, video, step), 0
        for part, _ in walked.parts(2):
            rows = slice(at, at + len(part.frames))
            assert torch.equal(carried.first(part, video[rows], step), whole[rows])
            at = rows.stop
    assert 0 < sum(float(carried.first(walked, video, step).mean()) for step in range(8)) < 8, "some do, some do not"


@pytest.mark.parametrize("alone", [False, True])
def test_the_gradient_of_one_part_is_clipped(alone):
    """Gradients 3 and 4, of norm 5, clipped to 1: 0.6 and 0.8 together; 1 where the second alone is clipped."""
    parts = [torch.nn.Linear(1, 1, bias=False) for _ in range(2)]
    run = begin(torch.nn.ModuleList(parts), [Group(parts[0], clipped=not alone), Group(parts[1])], clip=1.0)
    loss = 3 * parts[0].weight.sum() + 4 * parts[1].weight.sum()
    for _ in run:
        run.update(loss, {})
        break
    found = [float(part.weight.grad) for part in parts]
    assert found == pytest.approx([3.0, 1.0] if alone else [0.6, 0.8], rel=1e-5)
    assert run.averages["gradient_norm"] == pytest.approx(4.0 if alone else 5.0)


class TwoClips:
    """Walks whose every step is the same two clips."""

    walkers = batch = 2
    rank, ranks = 0, 1
    store = SimpleNamespace(height=SIDE, width=SIDE)

    def __getitem__(self, step: int) -> Walked:
        frames = np.random.default_rng(0).integers(0, 256, (2, FRAMES, SIDE, SIDE, 3), np.uint8)
        return Walked(frames, np.full(2, False), slice(0, 2), [(0, 0), (1, 0)])


def joint_gradients(alone: bool, clip: float | None, folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Part -> name -> the gradient by which one joint step moves a tiny dLDM."""
    dldm, prior = tiny_dldm()
    config = JointConfig(LongOptimConfig(1, 2, 1e-3, clip=clip), alone, encoder_factor=1.0, listen_steps=0)
    train_dldm(start(ComputeConfig(threads=1), 0), dldm, prior.vae, TwoClips(), config, 0, folder, nothing)
    parts = {name: getattr(dldm.ldm, name) for name in ("encoder", "query", "decoder")}
    parts |= {name: getattr(dldm, name) for name in ("projection", "control", "vdm")}
    return {
        part: {name: p.grad for name, p in module.named_parameters() if p.requires_grad}
        for part, module in parts.items()
    }


def norm(*parts: dict[str, torch.Tensor]) -> float:
    return float(torch.cat([gradient.flatten() for part in parts for gradient in part.values()]).norm())


@pytest.mark.parametrize("alone", [False, True])
def test_the_joint_stage_clips_the_vdm_alone_where_it_is_asked_to(alone, tmp_path):
    """Release: the gradient of the DiT is clipped, that of nothing else; paper: one norm of all."""
    free = joint_gradients(alone, None, tmp_path / "free")
    norms = {part: norm(gradients) for part, gradients in free.items()}
    most = 0.1 * min(norms.values())
    assert most > 0, "every part learns, and would be clipped by itself"
    clipped = joint_gradients(alone, most, tmp_path / "clipped")
    together = norms["vdm"] if alone else norm(*free.values())
    for part, gradients in free.items():
        factor = 1.0 if alone and part != "vdm" else most / together
        for name, gradient in gradients.items():
            found = clipped[part][name]
            torch.testing.assert_close(found, factor * gradient, rtol=1e-4, atol=1e-12, msg=f"{part} {name}")


def test_a_gradient_that_nobody_clips():
    model = torch.nn.Linear(1, 1, bias=False)
    run = begin(model, clip=None)
    for _ in run:
        run.update(1e6 * model.weight.sum(), {})
        break
    assert float(model.weight.grad) == 1e6 and run.averages["gradient_norm"] == pytest.approx(1e6)


def test_micro_batches_of_parts_that_look_at_a_whole_batch_are_refused(tmp_path):
    for size, processes in ((2, 1), (None, 2)):
        some = SimpleNamespace(num_processes=processes)
        with pytest.raises(UserError, match=f"go with dldm.parts causal.* got {size} and {processes}; set it to null"):
            train_ldm(some, tiny_ldm(), None, OptimConfig(**BASE), 0, tmp_path, "train", size)
