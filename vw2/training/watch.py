"""The codes while they are trained: a run whose codes died stops then, not after its last step."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from torch import nn

from vw2.data.shards import ClipStore
from vw2.evaluation.health import code_health, write_health
from vw2.models.ldm import LDM
from vw2.training.gates import GatesConfig, check_gates
from vw2.training.judge import code_figures, encode_rows, videos_of

CLIPS = 256  # looked at during training, of the clips that are judged at its end

Look = Callable[[int], None]  # called before each step with the number of steps made


def nothing(step: int) -> None:
    """Look at nothing."""


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode within it, every part as before behind it."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def watch(
    accelerator: Accelerator, ldm: LDM, store: ClipStore, rows: list[int], gates: GatesConfig, plot: Path, sheet: Path
) -> Look:
    """A look at the codes of some clips every `gates.every` steps, by the gates of the end that ask for codes alone.

    Process 0 alone looks. A run that was refused is looked at again when it is resumed, as it stands before its step.

    Args:
        rows: clips; evenly spread ones of them are looked at.
        plot: picture of the entropies, written at every look; `sheet`: as in `check_gates`.
    """
    if not (gates.enabled and gates.every and accelerator.is_main_process):
        return nothing
    chosen = [rows[i] for i in np.linspace(0, len(rows) - 1, min(CLIPS, len(rows))).astype(int)]
    videos, levels = videos_of(store, chosen), ldm.config.resolved()

    def look(step: int) -> None:
        if not step or step % gates.every:
            return
        with evaluating(ldm):
            codes = encode_rows(ldm, store, chosen)
        write_health(plot, code_health(codes, levels), gates.step_entropy_share, gates.digit_entropy_share)
        check_gates(code_figures(codes, levels, videos), gates, ldm.config.codebook, codes.shape, plot, sheet)

    return look
