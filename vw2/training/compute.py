"""Where and how numbers are computed: threads, dtype, device, seeds. All can change results, so stages track it."""

import ctypes
import os
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from accelerate import Accelerator

from vw2.console import UserError, console, say


@dataclass(frozen=True)
class ComputeConfig:
    """Group `compute` of params.yaml."""

    threads: int = 2
    dtype: Literal["auto", "float32", "bfloat16"] = "float32"  # auto becomes what this machine is for, see below

    def __post_init__(self):
        if self.threads < 1:
            raise ValueError(f"compute.threads must be at least 1, got {self.threads}; use the number of cores")
        if self.dtype == "auto":  # settled here, so that fingerprints of runs hold what is computed with
            object.__setattr__(self, "dtype", "bfloat16" if has_bfloat16() else "float32")


def has_bfloat16() -> bool:
    """Whether an NVIDIA GPU, else an x86 processor (avx512_bf16, amx_bf16), has instructions for bfloat16.

    Emulation is slow; other processors may have them too, which has not been measured.
    """
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    can = torch.cpu.get_capabilities()
    return bool(can.get("avx512_bf16") or can.get("amx_bf16"))


def keep_freed_memory() -> None:
    """Let the C library keep what is freed: the next step asks for as much again, and to get it from the system anew
    costs some 5 % of a step of the mini (docs/speed.md). Nothing happens where it is not glibc's."""
    trim_threshold, mmap_threshold = -1, -3  # names of parameters in malloc.h
    with suppress(OSError, AttributeError, TypeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(mmap_threshold, 2**30) or libc.mallopt(mmap_threshold, 2**25)  # the most that older ones allow


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
    keep_freed_memory()
    accelerator = Accelerator(
        cpu=torch.backends.mps.is_available(),  # Apple's GPUs have no float64, which sampling and scores ask for
        mixed_precision="bf16" if config.dtype == "bfloat16" else "no",
    )
    torch.set_num_threads(config.threads)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.allow_tf32 = False  # or float32 would be less than that in the convolutions of GPUs
    torch.utils.deterministic.fill_uninitialized_memory = False  # a debugging aid that costs some 4 % of a step
    console.quiet = not accelerator.is_main_process
    say(f"computing in {config.dtype} on {accelerator.device.type}, {config.threads} threads")
    return accelerator


def generator(seed: int, *key: int) -> torch.Generator:
    """A CPU generator that is a function of (seed, key) alone: what happens at step i does not depend on the past."""
    mixed = np.random.SeedSequence([seed, *key]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(mixed >> np.uint64(1)))
