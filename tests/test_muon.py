"""Muon: updates with known singular values, which weights it takes, and that it learns."""

import torch
from torch import nn

from vw2.training.muon import Muon, matrices, orthogonal
from vw2.training.run import Group, OptimConfig, optimizers


def test_orthogonal_of_known_matrices():
    torch.manual_seed(0)
    for rows, columns in ((5, 5), (3, 9), (9, 3)):
        u, _, vt = torch.linalg.svd(torch.randn(rows, columns), full_matrices=False)
        given = u @ torch.diag(torch.linspace(0.2, 3, min(rows, columns))) @ vt
        both = orthogonal(torch.stack([given, -5 * given]))
        assert torch.allclose(both[1], -both[0], atol=1e-5), "of each by itself, whatever its length"
        found = u.T @ both[0] @ vt.T
        values = found.diag()
        assert 0.6 < values.min() and values.max() < 1.3
        assert torch.allclose(found, torch.diag(values), atol=1e-5)  # the same directions
    assert torch.equal(orthogonal(torch.zeros(1, 2, 3)), torch.zeros(1, 2, 3))


def test_first_step_is_the_learning_rate_along_the_gradient():
    weight = nn.Parameter(torch.eye(4))
    muon = Muon([weight], lr=0.1)
    weight.grad = torch.eye(4) * 7  # any length
    muon.step()
    moved = torch.eye(4) - weight.detach()
    assert torch.allclose(moved, torch.eye(4) * moved[0, 0]) and 0.06 < moved[0, 0] < 0.13


def test_matrices_of_one_shape_move_as_each_would_alone():
    def moved(*weights: nn.Parameter) -> list[torch.Tensor]:
        muon = Muon(weights, lr=0.1)
        for step in range(3):  # the momentum is each one's own
            for number, weight in enumerate(weights):
                draw = torch.Generator().manual_seed(10 * number + step)
                weight.grad = torch.randn(weight.shape, generator=draw)
            muon.step()
        return [weight.detach() for weight in weights]

    one, kernel = nn.Parameter(torch.zeros(4, 18)), nn.Parameter(torch.zeros(4, 2, 3, 3))
    both = moved(one, kernel)
    alone = moved(nn.Parameter(torch.zeros(4, 18)))[0]
    assert torch.allclose(both[0], alone, atol=1e-6) and alone.abs().min() > 0
    assert not torch.equal(both[1].flatten(1), both[0])


def test_kernels_move_as_matrices_and_decay():
    weight = nn.Parameter(torch.ones(4, 2, 3, 3))
    weight.grad = torch.zeros_like(weight)
    Muon([weight], lr=0.1, weight_decay=0.5).step()
    assert torch.allclose(weight, torch.full_like(weight, 0.95))  # no gradient: decay alone


def test_what_muon_takes():
    embedding, head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
    head.weight = embedding.weight
    body, frozen = nn.Conv2d(2, 3, 3), nn.Linear(2, 2).requires_grad_(False)
    model = nn.ModuleList([embedding, head, body, frozen, nn.GroupNorm(1, 3)])
    assert matrices([model]) == [body.weight]


def test_every_weight_has_one_optimizer_and_groups_stay_in_step():
    groups = [Group(nn.Linear(3, 3)), Group(nn.GroupNorm(1, 3))]  # the second has no matrix
    for muon, count in ((None, 1), (0.02, 2)):
        found = optimizers(groups, OptimConfig(steps=1, batch=1, lr=0.1, muon=muon))
        assert len(found) == count and all(len(one.param_groups) == len(groups) for one in found)
        taken = [id(p) for one in found for slot in one.param_groups for p in slot["params"]]
        assert sorted(taken) == sorted(id(p) for group in groups for p in group.module.parameters())


def test_muon_learns_what_adamw_learns_in_fewer_steps():
    def loss_after(muon: float | None) -> float:
        torch.manual_seed(0)
        x = torch.randn(256, 16) * torch.logspace(0, -2, 16)  # badly scaled inputs: a few directions rule the gradient
        y = x @ torch.diag(torch.logspace(0, 2, 16)) @ torch.randn(16, 16)
        model = nn.Linear(16, 16)
        found = optimizers([Group(model)], OptimConfig(steps=1, batch=1, lr=0.03, muon=muon))
        for _ in range(100):
            loss = ((model(x) - y) ** 2).mean()
            model.zero_grad()
            loss.backward()
            for one in found:
                one.step()
        return loss.item()

    assert loss_after(0.3) < loss_after(None)
