"""Is a latent dynamics model alive? Entropy of its codes by step and by digit, and motion of its coarse video.

Pooled over steps and queries, codes look alive even if one step says nothing or one digit of one query never moves.

Legend: K steps, N queries, G code digits, T frames, H W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from vw2.evaluation.codes import code_digits, dead_digits, entropy_bits
from vw2.evaluation.intervals import Estimate, bootstrap_ratio
from vw2.evaluation.quality import align, moving_mask
from vw2.scratch import atomic_file


@dataclass(frozen=True)
class CodeHealth:
    """What `code_health` finds."""

    steps: np.ndarray  # (K,) entropy in bits of the codes of a step, its queries and all clips pooled
    digits: np.ndarray  # (N, G) entropy of a digit of a query, as a share of log2 of its levels
    dead: np.ndarray  # (N, G) bool: one level in use
    codebook: int
    clips: int

    def figures(self) -> dict[str, float]:
        """codes.step_entropy_bits.k0..., codes.digit_entropy_share.g0... (weakest query), codes.dead_digits."""
        steps = {f"codes.step_entropy_bits.k{k}": float(bits) for k, bits in enumerate(self.steps)}
        digits = {f"codes.digit_entropy_share.g{g}": float(share) for g, share in enumerate(self.digits.min(0))}
        return steps | digits | {"codes.dead_digits": int(self.dead.sum())}


def code_health(codes: np.ndarray, levels: tuple[int, ...]) -> CodeHealth:
    """Entropy of codes step by step and digit by digit (plug-in estimates, see `entropy_bits`).

    Args: codes: (clips, K, N) int in [0, prod(levels)), clips > 0; levels: G ints.
    """
    digits, size = code_digits(codes, levels), int(np.prod(levels))  # (clips, K, N, G)
    steps = [entropy_bits(codes[:, k], size) for k in range(codes.shape[1])]
    slots = [[digits[:, :, n, g] for g in range(len(levels))] for n in range(codes.shape[2])]
    share = [[entropy_bits(slot, levels[g]) / np.log2(levels[g]) for g, slot in enumerate(query)] for query in slots]
    return CodeHealth(np.array(steps), np.array(share), dead_digits(codes, levels), size, len(codes))


def motion_energy(drawn: np.ndarray, real: np.ndarray) -> tuple[float, float]:
    """Squared change since the first frame, summed over the pixels that move in the real clip (our choice).

    Args: drawn, real: (T, H, W, 3) uint8; what one has more of frames is left out.
    Returns: of the drawn clip and of the real one, on the [0, 1] scale.
    """
    drawn, real = align(drawn, real, given=0)
    mask = moving_mask(real)
    change = lambda clip: (((clip / 255.0 - clip[:1] / 255.0) ** 2).mean(-1) * mask).sum()  # noqa: E731
    return float(change(drawn)), float(change(real))


def motion_share(energies: Sequence[tuple[float, float]], videos: list[str], seed: int) -> Estimate | None:
    """Motion energy of drawn clips as a share of the real ones', by video: 0 = a still picture, 1 = as much motion.

    Args: energies: of each clip the drawn and the real one's, as `motion_energy` gives them; videos: of each clip.
    Returns: None if nothing moves in the real clips.
    """
    if not any(moved for _, moved in energies):
        return None
    return bootstrap_ratio(*zip(*energies, strict=True), videos, seed)


def write_health(path: Path, health: CodeHealth, step_share: float, digit_share: float) -> None:
    """Draw both entropies into a PNG, each with its gate; the same bytes for the same figures.

    Args: step_share, digit_share: least shares of log2(codebook), or of the codes seen of a step if fewer, and of
        log2(levels).
    """
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    most = np.log2(health.codebook)
    left.bar(range(len(health.steps)), health.steps, color="#56B4E9")
    queries, digits = health.digits.shape
    left.axhline(step_share * min(most, np.log2(health.clips * queries)), color="#D55E00", label="gate")
    left.set(title="Entropy of the codes of a step", xlabel="step", ylabel="bits", ylim=(0, most * 1.02))
    left.legend(loc="lower right")
    image = right.imshow(health.digits, vmin=0, vmax=1, aspect="auto", cmap="viridis")
    for n in range(queries):
        for g in range(digits):
            broken = health.dead[n, g] or health.digits[n, g] < digit_share
            mark = "dead" if health.dead[n, g] else f"{health.digits[n, g]:.0%}"
            plain = "#000000" if health.digits[n, g] > 0.6 else "#FFFFFF"  # on yellow, on blue
            right.text(g, n, mark, ha="center", va="center", color="#D55E00" if broken else plain, size=8)
    right.set(title=f"Entropy of a digit (gate: {digit_share:.0%})", xlabel="digit", ylabel="query")
    right.set_xticks(range(digits))
    right.set_yticks(range(queries))
    figure.colorbar(image, ax=right, format=PercentFormatter(1))
    with atomic_file(Path(path)) as temporary:
        figure.savefig(temporary, format="png", dpi=80, metadata={"Software": None})
