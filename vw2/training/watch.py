"""The codes while they are trained: a run whose codes died stops then, not after its last step."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from vw2.data.shards import ClipStore
from vw2.evaluation.health import code_health, write_health
from vw2.models.ldm import LDM
from vw2.training.gates import GatesConfig, check_gates
from vw2.training.judge import code_figures, encode_rows

CLIPS = 256  # of those to judge at the end, so many are looked at in between

Look = Callable[[int], None]  # called with the number of steps made


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


def watch(ldm: LDM, store: ClipStore, rows: list[int], gates: GatesConfig, plot: Path, sheet: Path) -> Look:
    """A look at the codes of some clips every `gates.every` steps, by the gates of the end that ask for codes alone.

    Args:
        rows: clips; evenly spread ones of them are looked at.
        plot: picture of the entropies, written at every look; `sheet`: as in `check_gates`.
    """
    if not (gates.enabled and gates.every):
        return nothing
    chosen = rows[:: max(1, len(rows) // CLIPS)][:CLIPS]
    videos, levels = store.index[chosen]["video"].to_list(), ldm.config.resolved()

    def look(step: int) -> None:
        if step % gates.every:
            return
        with evaluating(ldm):
            codes = encode_rows(ldm, store, chosen)
        write_health(plot, code_health(codes, levels), gates.step_entropy_share, gates.digit_entropy_share)
        check_gates(code_figures(codes, levels, videos), gates, ldm.config.codebook, codes.shape, plot, sheet)

    return look
