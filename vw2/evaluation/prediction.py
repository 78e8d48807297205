"""How well the AR transformer foretells codes of unseen videos, beside what is foretold without looking.

Figures are bits per code and the share of codes that were the likeliest ("accuracy"), with intervals by video.
Legend: V videos, S codes of a video, N queries.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from vw2.data.codes import CodeStore
from vw2.evaluation.codes import entropy_bits
from vw2.evaluation.intervals import bootstrap_ratio
from vw2.models.ar import Scores

Figures = dict[str, dict[str, float | None]]


def _figure(sums: np.ndarray, counts: np.ndarray, seed: int) -> dict[str, float | None]:
    """Ratio of per-video sums with its interval by video."""
    return bootstrap_ratio(sums, counts, np.arange(len(sums)), seed).as_dict()


def predict_figures(batches: Iterable[Scores], seed: int) -> Figures:
    """bits, accuracy, end_probability (of END, where a video ends) and early_end_probability (where a clip follows).

    Args: batches: what the model thinks of the codes of all videos, some videos at a time.
    """
    rows = []
    for scores in batches:
        code = scores.is_code
        border = code & (scores.end > 0)
        columns = [
            (scores.bits.where(code, 0), code),
            (scores.correct & code, code),
            (scores.end.where(scores.is_end, 0), scores.is_end),
            (scores.end.where(border, 0), border),
        ]
        rows.append(np.stack([x.double().sum(1).cpu().numpy() for pair in columns for x in pair]))
    sums = np.concatenate(rows, axis=1)  # (8, V)
    names = ("bits", "accuracy", "end_probability", "early_end_probability")
    pairs = zip(names, sums[::2], sums[1::2], strict=True)
    return {name: _figure(top, bottom, seed) for name, top, bottom in pairs if bottom.sum()}


def unigram_figures(codes: CodeStore, train: Sequence[str], test: Sequence[str], seed: int, max_clips: int) -> Figures:
    """Control: what a table of how often each code comes at each query slot in training foretells.

    Returns: unigram_entropy_bits (of the training codes themselves, mean over slots), and unigram_bits and
        unigram_accuracy on the test videos (the table smoothed by half a count per code: Krichevsky & Trofimov 1981).
    """
    size = int(np.prod(codes.info.levels))
    seen = codes.stacked(train).reshape(-1, codes.info.queries)  # (M, N)
    count = np.stack([np.bincount(slot, minlength=size) for slot in seen.T])  # (N, V)
    share = (count + 0.5) / (count + 0.5).sum(1, keepdims=True)
    figures: Figures = {}
    entropy = np.mean([entropy_bits(slot, size) for slot in seen.T])
    figures["unigram_entropy_bits"] = {"value": float(entropy), "low": None, "high": None, "n": len(train)}
    slots = np.arange(codes.info.queries)
    asked = [codes[video][:max_clips].reshape(-1, codes.info.queries) for video in test]
    total = np.array([each.size for each in asked])
    bits = np.array([-np.log2(share[slots, each]).sum() for each in asked])
    right = np.array([(each == count.argmax(1)).sum() for each in asked])
    figures["unigram_bits"] = _figure(bits, total, seed)
    figures["unigram_accuracy"] = _figure(right, total, seed)
    return figures
