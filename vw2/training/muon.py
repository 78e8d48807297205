"""Muon: momentum whose update of every weight matrix is made orthogonal (kellerjordan.github.io/posts/muon, 2024).

All directions of a matrix then learn at one speed, where Adam spends most of a step on a few. torch.optim.Muon takes
matrices alone and works in bfloat16, which most laptops only emulate; this one takes kernels of convolutions too, as
matrices (outputs, all else), and keeps their precision.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic that pulls singular values towards 1 (Jordan et al.)
MAPS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def newton_schulz(left: Tensor, inner: Tensor | None, steps: int) -> Tensor:
    """Steps of the quintic towards the orthogonal factor of X = `left`, or of an X whose X X^T is left inner left^T."""
    a, b, c = COEFFICIENTS
    for _ in range(steps):
        gram = left @ left.T if inner is None else left @ inner @ left.T
        polynomial = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        left = torch.addmm(left, polynomial, left, beta=a)
    return left


def orthogonal(matrix: Tensor, steps: int = 5) -> Tensor:
    """About U V^T of a matrix U S V^T, by Newton-Schulz iteration: singular values end between 0.7 and 1.2.

    A step multiplies from the left by a polynomial of X X^T. Where X is wide these small squares are multiplied with
    each other first and with X last: half of the work.

    Args:    matrix: (rows, columns).
    Returns: like `matrix`; zero for a zero matrix.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    rows, columns = x.shape
    if columns >= 2 * rows:
        x = newton_schulz(torch.eye(rows, dtype=x.dtype, device=x.device), x @ x.T, steps) @ x
    else:
        x = newton_schulz(x, None, steps)
    return x.T if tall else x


def matrices(modules: Iterable[nn.Module]) -> list[nn.Parameter]:
    """The trained weights of linear maps and convolutions, each once; what an embedding shares is not among them."""
    parts = [part for module in modules for part in module.modules()]
    embedded = {part.weight for part in parts if isinstance(part, nn.Embedding)}
    weights = dict.fromkeys(part.weight for part in parts if isinstance(part, MAPS))
    return [weight for weight in weights if weight.requires_grad and weight not in embedded]


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonal updates, decoupled weight decay.

    Args:
        parameters: weights of two dimensions or more.
        lr: size of an update: every singular value of a square matrix moves by about this much.
    """

    def __init__(self, parameters, lr: float, momentum: float = 0.95, weight_decay: float = 0.0):
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._move(weight, **{key: group[key] for key in ("lr", "momentum", "weight_decay")})

    def _move(self, weight: Tensor, lr: float, momentum: float, weight_decay: float) -> None:
        state = self.state[weight]
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        past = state["momentum"].mul_(momentum).add_(weight.grad)
        update = orthogonal((weight.grad + momentum * past).flatten(1))
        rows, columns = update.shape
        weight.mul_(1 - lr * weight_decay)
        weight.add_(update.view_as(weight), alpha=-lr * max(1, rows / columns) ** 0.5)
