"""Do the codes of a clip, drawn on its own first frame, give back what moved in it? And do they more than others do?

All figures count only pixels that move in the real clip, pooled by video; higher is better, in dB.
"""

from collections.abc import Callable, Collection, Sequence

import numpy as np

from vw2.console import track
from vw2.evaluation.intervals import Estimate, bootstrap_ratio
from vw2.evaluation.quality import moving_error, psnr_of

FEW = 8  # clips of a single video that are enough to compare their codes


def pooled_psnr(errors: Sequence[tuple[float, int]], videos: list[str], seed: int) -> Estimate:
    """PSNR in dB of the squared error pooled over the moving pixels of all clips, with a by-video interval.

    Args:
        errors: of each clip its sum and the number of pixels, as `moving_error` gives them.
        videos: the video of each clip.
    """
    ratio = bootstrap_ratio(*zip(*errors, strict=True), videos, seed)
    to_db = lambda mse: None if mse is None else psnr_of(mse)  # noqa: E731  (a larger error is a lower PSNR)
    return Estimate(psnr_of(ratio.value), to_db(ratio.high), to_db(ratio.low), ratio.n)


def comparable(videos: list[str]) -> bool:
    """Whether clips have others to be compared with: of several videos, or FEW of one (our choice), which may repeat
    one motion."""
    return len(set(videos)) > 1 or len(videos) >= FEW


def other_clip(videos: list[str]) -> np.ndarray:
    """For each clip the number of one of another video, the same for every call (our choice: half-way round).

    Where there is a single video: of another of its clips.
    """
    n = len(videos)
    picks = np.empty(n, int)
    for i in range(n):
        candidates = [(i + n // 2 + k) % n for k in range(n)]
        picks[i] = next((j for j in candidates if videos[j] != videos[i]), candidates[0])
    return picks


def render_figures(
    draw: Callable[[np.ndarray, np.ndarray], Sequence[np.ndarray]],
    real: Callable[[int], np.ndarray],
    codes: np.ndarray,
    videos: list[str],
    seed: int,
    prefix: str = "render",
    batch: int = 32,
    shown: Collection[int] | None = None,
) -> tuple[dict[str, dict], dict[int, np.ndarray], dict[int, np.ndarray]]:
    """render.psnr, render.psnr_other_codes (where clips are `comparable`), render.psnr_copy of a set of clips.

    Args:
        draw: (clip numbers, codes (B, K, N)) -> rendered clips; draws on the clips' own first frames.
        real: clip number -> clip (T, H, W, 3) uint8; asked for one at a time, as many may not fit into memory.
        codes: (clips, K, N) int64, the clips' own.
        batch: clips that are drawn together.
        shown: numbers of clips whose renders are wanted; None: all.
    Returns: figures as {"value", "low", "high", "n"}, none if nothing moves in the real clips; the rendered clips by
        number; the same with others' codes.
    """
    swapped = other_clip(videos) if comparable(videos) else None
    wanted = range(len(codes)) if shown is None else shown
    errors: dict[str, list[tuple[float, int]]] = {"psnr": [], "psnr_copy": [], "psnr_other_codes": []}
    own: dict[int, np.ndarray] = {}
    other: dict[int, np.ndarray] = {}
    for begin in track(range(0, len(codes), batch), "render clips"):
        numbers = np.arange(begin, min(begin + batch, len(codes)))
        mine = draw(numbers, codes[numbers])
        theirs = mine if swapped is None else draw(numbers, codes[swapped[numbers]])
        for number, a, b in zip(numbers.tolist(), mine, theirs, strict=True):
            clip = real(number)
            copy = np.repeat(clip[:1], len(clip), 0)
            for each, drawn in zip(errors.values(), (a, copy, b), strict=True):
                each.append(moving_error(drawn, clip))
            if number in wanted:
                own[number], other[number] = a, b
    if not any(pixels for _, pixels in errors["psnr"]):
        return {}, own, other
    if swapped is None:
        del errors["psnr_other_codes"]
    return {f"{prefix}.{name}": pooled_psnr(each, videos, seed).as_dict() for name, each in errors.items()}, own, other
