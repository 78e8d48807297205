"""Works that take turns in one run, so that a busy machine slows all alike."""

import time
from collections.abc import Callable, Mapping


def least(work: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Least processor seconds of each over so many turns, which other programs on the machine disturb little."""
    best = dict.fromkeys(work, float("inf"))
    for _ in range(rounds):
        for name, once in work.items():
            begin = time.process_time()
            once()
            best[name] = min(best[name], time.process_time() - begin)
    return best
