"""Where and how numbers are computed: threads, dtype, device, seeds. All can change results, so stages track it."""

import os
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from accelerate import Accelerator

from vw2.console import UserError, console


@dataclass(frozen=True)
class ComputeConfig:
    """Group `compute` of params.yaml."""

    threads: int = 2
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self):
        if self.threads < 1:
            raise ValueError(f"compute.threads must be at least 1, got {self.threads}; use the number of cores")


def start(config: ComputeConfig, seed: int, shared: bool = False) -> Accelerator:
    """Fix threads and determinism for this process and return the accelerator.

    Parameters made afterwards depend on `seed` alone. On CPU the same seed, threads and dtype give the same bits.

    Args:
        shared: several processes may share the training (vw2.training.parallel); the first alone is heard.
    Raises: UserError if several were launched and may not: each would train the same model and write the same files.
    """
    if not shared and (ranks := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        raise UserError(
            f"expected one process, got {ranks} (torchrun or accelerate launch); start this stage without it: only "
            "ingest, clip, warmup_dldm, train_dldm and train_plain_ldm share their work among several"
        )
    accelerator = Accelerator(mixed_precision="bf16" if config.dtype == "bfloat16" else "no")
    torch.set_num_threads(config.threads)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # a debugging aid that costs some 4 % of a step
    console.quiet = not accelerator.is_main_process
    return accelerator


def generator(seed: int, *key: int) -> torch.Generator:
    """A CPU generator that is a function of (seed, key) alone: what happens at step i does not depend on the past."""
    mixed = np.random.SeedSequence([seed, *key]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(mixed >> np.uint64(1)))
