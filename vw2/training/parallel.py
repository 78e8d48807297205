"""Data-parallel training: processes that `torchrun` or `accelerate launch` starts train one model (accelerate).

Each walks along videos of its own with its part of a step's clips; before the step gradients are averaged, so that all
keep the same weights. They are averaged by hand: a wrapper around the model averages only what passes through its own
forward. Process 0 alone logs, saves and judges. One process does nothing of this.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import typer
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from vw2.console import UserError
from vw2.data.shards import ClipStore
from vw2.data.walks import Walks

BUCKET = 2**26  # numbers that are averaged at once, at most: 256 MiB of float32


def shared_walks(
    accelerator: Accelerator, store: ClipStore, rows: Sequence[int], seed: int, batch: int, key: str
) -> Walks:
    """The walks of this process, which together give `batch` clips a step.

    Raises: UserError naming the parameter `key` if the processes cannot share them evenly.
    """
    ranks = accelerator.num_processes
    if batch % ranks:
        raise UserError(f"{key} must be a multiple of the {ranks} processes that share it, got {batch}; change it")
    return Walks(store, rows, seed, batch // ranks, accelerator.process_index, ranks)


def rank_key(accelerator: Accelerator) -> tuple[int, ...]:
    """What the key of a generator ends with, so that processes draw different numbers; nothing in the first one."""
    return (accelerator.process_index,) if accelerator.process_index else ()


def buckets(tensors: Iterable[Tensor], size: int = BUCKET) -> Iterator[list[Tensor]]:
    """Tensors of one dtype in a row, together of at most `size` numbers (or a single one)."""
    bucket: list[Tensor] = []
    held = 0
    for tensor in tensors:
        if bucket and (held + tensor.numel() > size or bucket[0].dtype != tensor.dtype):
            yield bucket
            bucket, held = [], 0
        bucket.append(tensor)
        held += tensor.numel()
    if bucket:
        yield bucket


@torch.no_grad()
def average(accelerator: Accelerator, tensors: Iterable[Tensor]) -> None:
    """Give tensors, in place, their means over the processes."""
    if accelerator.num_processes == 1:
        return
    for bucket in buckets(tensors):
        flat = accelerator.reduce(torch.cat([each.flatten() for each in bucket]), "mean")
        for each, mean in zip(bucket, flat.split([each.numel() for each in bucket]), strict=True):
            each.copy_(mean.view_as(each))


def of_all(accelerator: Accelerator, mine: Any) -> list[Any]:
    """What each process has, in the order of their numbers."""
    return [mine] if accelerator.num_processes == 1 else gather_object([mine])


def mean_of_all(accelerator: Accelerator, mine: dict[str, float]) -> dict[str, float]:
    """Means over the processes of numbers that each of them has."""
    each = of_all(accelerator, mine)
    return {key: sum(one[key] for one in each) / len(each) for key in mine}


def leave_to_first(accelerator: Accelerator) -> None:
    """After a training: process 0 goes on alone, as if it had always been; the others end well."""
    if accelerator.num_processes == 1:
        return
    accelerator.wait_for_everyone()
    accelerator.end_training()
    if not accelerator.is_main_process:
        raise typer.Exit
