"""Do the codes of a clip, drawn on its own first frame, give back what moved in it? And do they more than others do?

All figures count only pixels that move in the real clip, pooled by video; higher is better, in dB.
"""

from collections.abc import Callable

import numpy as np

from vw2.evaluation.intervals import Estimate, bootstrap_ratio
from vw2.evaluation.quality import moving_error, psnr_of

FEW = 8  # clips of a single video that are enough to compare their codes


def pooled_psnr(rendered: list[np.ndarray], real: list[np.ndarray], videos: list[str], seed: int) -> Estimate:
    """PSNR in dB of the squared error pooled over the moving pixels of all clips, with a by-video interval.

    Args:
        rendered, real: clips (T, H, W, 3) uint8.
        videos: the video of each clip.
    """
    sums, pixels = zip(*(moving_error(a, b) for a, b in zip(rendered, real, strict=True)), strict=True)
    ratio = bootstrap_ratio(list(sums), list(pixels), videos, seed)
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
    draw: Callable[[np.ndarray, np.ndarray], list[np.ndarray]],
    real: list[np.ndarray],
    codes: np.ndarray,
    videos: list[str],
    seed: int,
    prefix: str = "render",
) -> tuple[dict[str, dict], list[np.ndarray], list[np.ndarray]]:
    """render.psnr, render.psnr_other_codes (where clips are `comparable`), render.psnr_copy of a set of clips.

    Args:
        draw: (clip numbers, codes (B, K, N)) -> rendered clips; draws on the clips' own first frames.
        real: clips (T, H, W, 3) uint8.
        codes: (clips, K, N) int64, the clips' own.
    Returns: figures as {"value", "low", "high", "n"}, none if nothing moves in the real clips; the rendered clips; the
        clips rendered with others' codes.
    """
    numbers = np.arange(len(real))
    own = draw(numbers, codes)
    several = comparable(videos)
    other = draw(numbers, codes[other_clip(videos)]) if several else own
    if not any(moving_error(clip, clip)[1] for clip in real):
        return {}, own, other
    copies = [np.repeat(clip[:1], len(clip), 0) for clip in real]
    figures = {
        f"{prefix}.psnr": pooled_psnr(own, real, videos, seed).as_dict(),
        f"{prefix}.psnr_copy": pooled_psnr(copies, real, videos, seed).as_dict(),
    }
    if several:
        figures[f"{prefix}.psnr_other_codes"] = pooled_psnr(other, real, videos, seed).as_dict()
    return figures, own, other
