"""Muon: momentum whose update of every weight matrix is made orthogonal (kellerjordan.github.io/posts/muon, 2024).

All directions of a matrix then learn at one speed, where Adam spends most of a step on a few. torch.optim.Muon takes
matrices alone and always works in bfloat16, which most laptops only emulate; this one takes kernels of convolutions
too, as matrices (outputs, all else), in the precision that it is told.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic that pulls singular values towards 1 (Jordan et al.)
MAPS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def polynomial(gram: Tensor) -> Tensor:
    """P = a + b G + c G^2 of G = X X^T, (n, rows, rows): P X is nearer to the orthogonal factor of X than X is."""
    a, b, c = COEFFICIENTS
    found = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
    found.diagonal(dim1=1, dim2=2).add_(a)
    return found


def newton_schulz(x: Tensor, steps: int) -> Tensor:
    """`steps` times X <- P X, of (n, rows, columns)."""
    for _ in range(steps):
        x = polynomial(x @ x.mT) @ x
    return x


def newton_schulz_wide(x: Tensor, steps: int) -> Tensor:
    """The same, the small polynomials multiplied with each other first and X last: half of the work where X is wide.

    Not for bfloat16: an eigenvalue of G that is rounded below zero grows from step to step, and X with it.
    """
    gram = x @ x.mT
    product = p = polynomial(gram)
    for _ in range(steps - 1):
        gram = p @ gram @ p  # of P X, as P is symmetric
        p = polynomial(gram)
        product = p @ product
    return product @ x


def orthogonal(given: Tensor, steps: int = 5, dtype: torch.dtype = torch.float32) -> Tensor:
    """About U V^T of every matrix U S V^T, by Newton-Schulz iteration: singular values end between 0.7 and 1.2.

    Args:
        given: (n, rows, columns).
        dtype: precision of the iteration, where it may be lower than float32.
    Returns: like `given`; zero for a zero matrix.
    """
    tall = given.shape[1] > given.shape[2]
    x = given.mT if tall else given
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    if x.shape[2] >= 2 * x.shape[1]:
        x = newton_schulz_wide(x, steps)
    else:
        x = newton_schulz(x.to(dtype), steps).to(given.dtype)
    return x.mT if tall else x


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
        dtype: what updates are made orthogonal in (wide ones in their own); weights and momentum keep their own.
    """

    def __init__(
        self,
        parameters,
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.dtype = dtype

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            alike: dict[tuple[int, int], list[nn.Parameter]] = {}  # small products are dear one by one
            for weight in group["params"]:
                if weight.grad is not None:
                    alike.setdefault(tuple(weight.flatten(1).shape), []).append(weight)
            for weights in alike.values():
                self._move(weights, **{key: group[key] for key in ("lr", "momentum", "weight_decay")})

    def _move(self, weights: list[nn.Parameter], lr: float, momentum: float, weight_decay: float) -> None:
        """One step of weights that are matrices of one shape."""
        pushed = []
        for weight in weights:
            state = self.state[weight]
            if not state:
                state["momentum"] = torch.zeros_like(weight)
            past = state["momentum"].mul_(momentum).add_(weight.grad)
            pushed.append((weight.grad + momentum * past).flatten(1))
        updates = orthogonal(torch.stack(pushed), dtype=self.dtype)
        rows, columns = updates.shape[1:]
        for weight, update in zip(weights, updates, strict=True):
            weight.mul_(1 - lr * weight_decay)
            weight.add_(update.view_as(weight), alpha=-lr * max(1, rows / columns) ** 0.5)
