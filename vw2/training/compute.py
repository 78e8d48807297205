"""Where and how numbers are computed: threads, dtype, device, seeds. All can change results, so stages track it."""

import os
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from accelerate import Accelerator

from vw2.console import UserError


@dataclass(frozen=True)
class ComputeConfig:
    """Group `compute` of params.yaml."""

    threads: int = 2
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self):
        if self.threads < 1:
            raise ValueError(f"compute.threads must be at least 1, got {self.threads}; use the number of cores")


def start(config: ComputeConfig, seed: int) -> Accelerator:
    """Fix threads and determinism for this process and return the accelerator.

    Parameters made afterwards depend on `seed` alone. On CPU the same seed, threads and dtype give the same bits.

    Raises: UserError if several processes were launched: each would train the same model and write the same files.
    """
    if (ranks := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        raise UserError(
            f"expected one process, got {ranks} (torchrun or accelerate launch); start this stage without it: only "
            "ingest and clip share their work among several"
        )
    torch.set_num_threads(config.threads)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    return Accelerator(mixed_precision="bf16" if config.dtype == "bfloat16" else "no")


def generator(seed: int, *key: int) -> torch.Generator:
    """A CPU generator that is a function of (seed, key) alone: what happens at step i does not depend on the past."""
    mixed = np.random.SeedSequence([seed, *key]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(mixed >> np.uint64(1)))
