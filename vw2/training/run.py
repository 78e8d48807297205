"""What all training loops share: schedule, update, log, checkpoint, resume. The loop itself is its user's.

run = Run(...)
for step in run:                      # begins where the last checkpoint ended
    loss, logs = model(batch(step))   # everything drawn from (seed, step)
    run.update(loss, logs)

or, where a batch is too large to go through the model at once:

for step in run:
    for part in parts(batch(step)):
        loss, logs = model(part)
        run.add(loss, logs, len(part) / batch_size)
    run.finish()
"""

import json
import math
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from dvclive import Live
from torch.nn.utils import get_total_norm

from vw2.console import UserError, progress
from vw2.scratch import atomic_file
from vw2.training.muon import Muon, matrices
from vw2.training.parallel import average, mean_of_all, of_all

LOWER = "lower the learning rate"  # and run again: another rate is another training, from the beginning


@dataclass(frozen=True)
class OptimConfig:
    """AdamW, or Muon beside it, with linear warm-up and decay to zero (VideoWorld 2, table 4: WarmupDecayLR)."""

    steps: int
    batch: int
    lr: float
    muon: float | None = None  # peak learning rate of Muon for matrices and kernels; None: AdamW for all (paper)
    warmup: int = 0
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.99)
    clip: float | None = 1.0  # largest gradient norm (our choice); None: any
    save_every: int = 200  # steps between checkpoints

    def __post_init__(self):
        for key in ("steps", "batch", "save_every"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} must be at least 1, got {getattr(self, key)}; raise it")
        if not (self.lr > 0 and (self.clip is None or self.clip > 0) and self.weight_decay >= 0):
            got = f"{self.lr}, {self.clip} and {self.weight_decay}"
            raise ValueError(f"lr and clip must be above 0 and weight_decay at least 0, got {got}; change them")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must lie in [0, 1), got {list(self.betas)}; change them")
        if self.muon is not None and self.muon <= 0:
            raise ValueError(f"muon must be a learning rate above 0 or null, got {self.muon}; change it")
        if not 0 <= self.warmup < max(self.steps, 1):
            raise ValueError(f"warmup must lie in [0, steps), got {self.warmup} of {self.steps}; lower it")

    def factor(self, step: int) -> float:
        """On the learning rates, at a 0-based step."""
        return warmup_decay(step, self.warmup, self.steps)


@dataclass(frozen=True)
class LongOptimConfig(OptimConfig):
    """And what long trainings of large models ask for."""

    decay_steps: int | None = None  # step at which the decay ends, beyond the last one too; None: steps (paper)
    last_factor: float = 0.0  # share of the peak at which it ends
    micro_batch: int | None = None  # clips that go through the model at once; None: all of a step

    def __post_init__(self):
        super().__post_init__()
        if self.decay_steps is not None and self.decay_steps <= self.warmup:
            raise ValueError(f"decay_steps must be above warmup or null, got {self.decay_steps}; raise it")
        if not 0 <= self.last_factor <= 1:
            raise ValueError(f"last_factor must lie in [0, 1], got {self.last_factor}; change it")
        if self.micro_batch is not None and self.micro_batch < 1:
            raise ValueError(f"micro_batch must be at least 1 or null, got {self.micro_batch}; raise it")

    def factor(self, step: int) -> float:
        return warmup_decay(step, self.warmup, self.decay_steps or self.steps, self.last_factor)


def warmup_decay(step: int, warmup: int, steps: int, last: float = 0.0) -> float:
    """Learning-rate factor of a 0-based step: linear up, linear down to `last` (VideoWorld 2, table 4: 0)."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return last + (1 - last) * max(0.0, (steps - step) / max(1, steps - warmup))


@dataclass(frozen=True)
class Group:
    """A module that a run trains and keeps in its checkpoint."""

    module: torch.nn.Module
    factor: float = 1.0  # on the learning rate
    begin: int = 0  # first step at which it may move
    clipped: bool = True  # its gradient counts in the norm that `clip` limits
    own: bool = False  # its state differs from process to process


def optimizers(groups: list[Group], config: OptimConfig, precision: str = "no") -> list[torch.optim.Optimizer]:
    """AdamW, and Muon for matrices and kernels where it has a learning rate; each with one slot per group.

    Args: precision: accelerate's mixed precision, in which Muon computes.
    """
    moved = [matrices([group.module]) if config.muon is not None else [] for group in groups]
    rest = [
        [p for p in group.module.parameters() if p.requires_grad and not any(p is one for one in taken)]
        for group, taken in zip(groups, moved, strict=True)
    ]
    slots = [{"params": parameters} for parameters in rest]
    found = [torch.optim.AdamW(slots, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True)]
    if config.muon is not None:
        slots = [{"params": weights} for weights in moved]
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        found.append(Muon(slots, config.muon, weight_decay=config.weight_decay, dtype=dtype))
    return found


def kept(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What a checkpoint holds of a module: not its frozen weights, which are those of the files that it began with."""
    frozen = {name for name, weight in module.named_parameters(remove_duplicate=False) if not weight.requires_grad}
    return {name: value for name, value in module.state_dict().items() if name not in frozen}


class Run:
    """One training run: owns the optimiser, the log and the checkpoint; the caller owns model, data and loss.

    Args:
        groups: what is trained; a module without parameters (say running statistics) is only kept.
        folder: scratch directory that belongs to exactly this run (see vw2.scratch.fingerprint).
    """

    def __init__(
        self,
        accelerator: Accelerator,
        groups: list[Group],
        config: OptimConfig,
        folder: Path,
        title: str,
        log_every: int = 20,
    ):
        self.accelerator, self.config, self.title, self.log_every = accelerator, config, title, log_every
        self.modules = [group.module for group in groups]
        self.own = [number for number, group in enumerate(groups) if group.own]
        self.groups = [group for group in groups if any(p.requires_grad for p in group.module.parameters())]
        self.parameters = [p for group in self.groups for p in group.module.parameters() if p.requires_grad]
        clipped = [group.module for group in self.groups if group.clipped]
        self.clipped = [p for module in clipped for p in module.parameters() if p.requires_grad]
        self.unclipped = [p for p in self.parameters if not any(p is one for one in self.clipped)]
        self.optimizers = optimizers(self.groups, config, accelerator.mixed_precision)
        self.checkpoint = folder / "checkpoint.pt"
        self.logs = folder / "log"
        self.history: list[dict[str, float]] = []
        self.step = 0
        self.sums: dict[str, float] = {}  # of the step that is being added up
        self.averages: dict[str, float] = {}
        if self.checkpoint.exists():
            self._load()
        if len(steps := set(of_all(accelerator, self.step))) > 1:
            raise UserError(
                f"expected all processes to go on at one step of {title}, got {sorted(steps)}; let them share the disk "
                f"of {folder}, or remove it"
            )

    def __iter__(self) -> Iterator[int]:
        with (
            self._live() as self.live,
            progress(self.config.steps, self.title) as self.bar,
        ):
            if self.live is not None:
                self.live.step = self.step
            if self.step:
                self.bar.resume(self.step)
            while self.step < self.config.steps:
                yield self.step

    def _live(self) -> AbstractContextManager:
        """The log, or None where process 0 keeps it."""
        if not self.accelerator.is_main_process:
            return nullcontext()
        begun = self.step > 0
        try:
            json.loads((self.logs / "metrics.json").read_bytes())
        except (OSError, ValueError):  # a full disk or a kill may have left half a file; nothing is made from this log
            shutil.rmtree(self.logs, ignore_errors=True)
            begun = False
        return Live(str(self.logs), resume=begun, save_dvc_exp=False, dvcyaml=None)

    def update(self, loss: torch.Tensor, logs: dict[str, float | torch.Tensor]) -> None:
        """A whole step: backward, clip, step, schedule, log, checkpoint."""
        self.add(loss, logs)
        self.finish()

    def add(self, loss: torch.Tensor, logs: dict[str, float | torch.Tensor], share: float = 1.0) -> None:
        """Backward of some of a step's clips, which are so large a share of it."""
        if not torch.isfinite(loss):
            raise UserError(f"{self.title}: the loss became {float(loss)} at step {self.step}; {LOWER}")
        if not self.sums:
            for optimizer in self.optimizers:
                optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(loss * share)
        for key, value in {"loss": loss.detach(), **logs}.items():
            self.sums[key] = self.sums.get(key, 0.0) + share * float(value)

    def finish(self) -> None:
        """Clip, step, schedule, log, checkpoint, once all of a step's clips are added."""
        factor = self.config.factor(self.step)
        for optimizer in self.optimizers:
            for slot, group in zip(optimizer.param_groups, self.groups, strict=True):
                slot["lr"] = optimizer.defaults["lr"] * factor * group.factor if self.step >= group.begin else 0.0
        average(self.accelerator, [p.grad for p in self.parameters if p.grad is not None])
        norm = float(self.accelerator.clip_grad_norm_(self.clipped, self.config.clip or math.inf))
        rest = float(get_total_norm([p.grad for p in self.unclipped if p.grad is not None]))
        if not math.isfinite(norm + rest):  # before it gets into the weights, and with them into a checkpoint
            raise UserError(f"{self.title}: the gradient became {norm + rest} at step {self.step}; {LOWER}")
        for optimizer in self.optimizers:
            optimizer.step()
        self._log(mean_of_all(self.accelerator, self.sums) | {"gradient_norm": norm})
        self.sums = {}
        self.step += 1
        self.bar.advance(1, loss=self.averages["loss"])
        if self.step % self.config.save_every == 0 or self.step == self.config.steps:
            self.save()

    def _log(self, logs: dict[str, float]) -> None:
        """Exponential averages of every logged number, written each `log_every` steps and after the last."""
        keep = 1 - 1 / self.log_every
        for key, value in logs.items():
            if math.isfinite(value):
                self.averages[key] = keep * self.averages[key] + (1 - keep) * value if key in self.averages else value
        if (self.step + 1) % self.log_every == 0 or self.step + 1 == self.config.steps:
            if self.live is not None:
                self.live.step = self.step + 1
                for key, value in self.averages.items():
                    self.live.log_metric(key, value, timestamp=False)
                self.live.make_summary()
            self.history.append({"step": self.step + 1, **self.averages})

    def save(self) -> None:
        """All that a resumed run needs: step, weights, optimiser, averages, log; draws come from (seed, step)."""
        state = {
            "step": self.step,
            "modules": [kept(module) for module in self.modules],
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "averages": self.averages,
            "history": self.history,
        }
        # process 0 writes for all; beside its own states those that others have to themselves
        states = {number: self.modules[number].state_dict() for number in self.own}
        states = {number: {key: value.cpu() for key, value in each.items()} for number, each in states.items()}
        own = of_all(self.accelerator, states)
        if not self.accelerator.is_main_process:
            return
        if own[1:]:
            state["others"] = own[1:]
        with atomic_file(self.checkpoint) as temporary:
            with temporary.open("wb") as stream:  # torch's own writer hides that the disk is full
                torch.save(state, stream)

    def _load(self) -> None:
        state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        others = [{}, *state.get("others", [])]
        for number, weights in enumerate(state["modules"]):
            module, own = self.modules[number], others[self.accelerator.process_index].get(number, weights)
            module.load_state_dict(module.state_dict() | own)
        for optimizer, states in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(states)
        self.step, self.averages, self.history = state["step"], state["averages"], state["history"]
