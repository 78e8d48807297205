"""How close rendered frames come to real ones: PSNR, SSIM, LPIPS.

Conventions (all our choice where no paper is cited; the paper gives none): frames are compared in RGB at the size they
have; the given first frame is not counted; a pair of videos is cut to the shorter one; the mean is taken over frames,
then over videos; all rollouts of a test case count (mean, not best of n).

Pictures are (T, H, W, 3) uint8, or float together with a declared `value_range` such as (-1, 1); both are mapped to
[0, 1]. PSNR and SSIM run in float64 by slices and additions only, so that they do not depend on the number of threads;
LPIPS is a float32 convolution net and may, in the last digits.

Legend: T frames, H W pixels, C channels.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from vw2.files import locate

MAX_PSNR = 100.0  # dB given to equal pictures, whose PSNR is infinite: metrics must be finite
MOVING_THRESHOLD = 20  # grey levels of 255: above H.264 noise and soft shadow, below a hand or flap on any table
ALEXNET = "alexnet-owt-7be5be79.pth"  # torchvision's file; the last part of its name starts its SHA-256
CHUNK = 2**20  # values converted to float64 at a time
WINDOW, SIGMA, K1, K2 = 11, 1.5, 0.01, 0.03  # SSIM, Wang et al. 2004

Range = tuple[float, float] | None
Perceptual = tuple[str, nn.Module]


def align(rendered: np.ndarray, real: np.ndarray, given: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Cut two videos to the frames that are compared: after the `given` first ones, up to the shorter's end.

    Raises: ValueError if nothing is left.
    """
    end = min(len(rendered), len(real))
    if end <= given:
        raise ValueError(f"nothing to compare: videos of {len(rendered)} and {len(real)} frames, {given} given")
    return rendered[given:end], real[given:end]


def psnr(a: ArrayLike, b: ArrayLike, mask: ArrayLike | None = None, value_range: Range = None) -> np.ndarray:
    """Peak signal-to-noise ratio of each frame: -10 log10 of the mean squared error on [0, 1].

    Args:    a, b: (T, H, W, C) uint8, or float with value_range = (low, high); mask: (T, H, W) bool, pixels to count.
    Returns: (T,) float64 in dB, at most MAX_PSNR; NaN for a frame of which the mask counts no pixel.
    Raises:  ValueError on unequal shapes or a float picture without range.
    """
    a, b = _pair(a, b)
    mask = np.ones(a.shape[:3], bool) if mask is None else np.asarray(mask, bool)
    error, count = _squared_error(a, b, mask, value_range)
    return np.where(count > 0, psnr_of(error / np.maximum(count, 1)), np.nan)


def psnr_of(mse: ArrayLike) -> np.ndarray:
    """PSNR in dB of a mean squared error on the [0, 1] scale, at most MAX_PSNR."""
    return -10 * np.log10(np.maximum(mse, 10 ** (-MAX_PSNR / 10)))


def moving_mask(real: ArrayLike, threshold: float = MOVING_THRESHOLD) -> np.ndarray:
    """Pixels that differ from the first frame of the clip: where what was done can be seen ("render.*", our choice).

    A pixel moves if any channel differs by more than the threshold. The reference is the first frame, the one that the
    renderer is given, so the mask also covers what has moved and rests again, and what was uncovered.

    Args:    real: (T, H, W, C) uint8; threshold: grey levels of 255.
    Returns: (T, H, W) bool, all False in the first frame.
    Raises:  ValueError if not uint8 video.
    """
    real = np.asarray(real)
    if real.dtype != np.uint8 or real.ndim != 4:
        raise ValueError(f"moving_mask expects uint8 (T, H, W, C), got {real.dtype} {real.shape}")
    first = real[0].astype(np.int16)  # uint8 differences would wrap around
    return np.stack([(np.abs(frame - first) > threshold).any(-1) for frame in real])


def moving_error(rendered: ArrayLike, real: ArrayLike, threshold: float = MOVING_THRESHOLD) -> tuple[float, int]:
    """Squared error over the moving pixels of all frames but the first, to be pooled over the clips of a video.

    Args:    rendered, real: (T, H, W, C) uint8, cut to the shorter one; threshold: see `moving_mask`.
    Returns: sum over pixels of the squared error on [0, 1] averaged over channels, and the number of pixels.
    """
    rendered, real, mask = np.asarray(rendered), np.asarray(real), moving_mask(real, threshold)
    a, b = _pair(*align(rendered, real))
    error, count = _squared_error(a, b, align(rendered, mask)[1], None)
    return float(error.sum()), int(count.sum())


def ssim(a: ArrayLike, b: ArrayLike, value_range: Range = None) -> np.ndarray:
    """Structural similarity of each frame (Wang et al. 2004, eq. 13): 11-tap Gaussian, sigma 1.5, K 0.01 and 0.03.

    Only windows inside the frame count (no padding); channels are scored one by one, then averaged.

    Args:    a, b: (T, H, W, C) uint8, or float with value_range; H and W >= 11.
    Returns: (T,) float64 in [-1, 1].
    Raises:  ValueError on unequal shapes, frames below 11 pixels or a float picture without range.
    """
    a, b = _pair(a, b)
    if min(a.shape[1:3]) < WINDOW:
        raise ValueError(f"ssim expects frames of at least {WINDOW} x {WINDOW} pixels, got {a.shape[1:3]}")
    return np.concatenate([_ssim(x, y) for x, y in _chunks(a, b, value_range)])


def _ssim(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """SSIM of a few frames; a, b: (T, H, W, C) float64 in [0, 1] -> (T,)."""
    x, y = (torch.from_numpy(v).movedim(-1, 1).contiguous() for v in (a, b))  # (T, C, H, W)
    mean_x, mean_y = _blur(x), _blur(y)
    var_x, var_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    cov = _blur(x * y) - mean_x * mean_y
    c1, c2 = K1**2, K2**2
    score = (2 * mean_x * mean_y + c1) * (2 * cov + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return score.numpy().mean((1, 2, 3))


def _blur(x: Tensor) -> Tensor:
    """Gaussian average of every full window: (T, C, H, W) -> (T, C, H-10, W-10).

    Two passes of shifted slices: several times faster than a convolution in float64, and the same on any thread count.
    """
    taps = torch.exp(-((torch.arange(WINDOW, dtype=x.dtype) - WINDOW // 2) ** 2) / (2 * SIGMA**2))
    taps = (taps / taps.sum()).tolist()
    for axis in (2, 3):
        size = x.shape[axis] - WINDOW + 1
        out = taps[0] * x.narrow(axis, 0, size)
        for shift in range(1, WINDOW):
            out.add_(x.narrow(axis, shift, size), alpha=taps[shift])
        x = out
    return x


def lpips_model(seed: int, weights: Path | None = None) -> Perceptual:
    """LPIPS on AlexNet (Zhang et al. 2018, version 0.1), named after the backbone it really has. Never downloads.

    The linear weights come with the lpips package. The trained backbone is torchvision's file, recognised by its
    SHA-256: at `weights`, else in the torch hub cache. Without it the backbone is random, drawn from the seed; such a
    distance compares two methods on one machine but not with published figures, hence its own name.

    Args:    seed: of the random backbone; weights: path of alexnet-owt-7be5be79.pth, or None.
    Returns: ("lpips" | "lpips_untrained", module in eval mode without gradients).
    Raises:  FileNotFoundError if `weights` is given and missing; ValueError if it is another file.
    """
    import vw2.torchvision_ops  # noqa: F401  must precede lpips, which imports torchvision

    # isort: split
    import lpips

    # lpips would call torch.load itself and torchvision would warn of its call; both are done here, in the open.
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.default_generator.manual_seed(seed)
        model = lpips.LPIPS(net="alex", pretrained=False, pnet_rand=True, verbose=False)
    linear = Path(lpips.__file__).parent / "weights" / "v0.1" / "alex.pth"
    unexpected = model.load_state_dict(_load(linear), strict=False).unexpected_keys
    if unexpected:
        raise ValueError(f"lpips's own weights {linear} do not fit its model: {unexpected}; install lpips 0.1.4")
    backbone = _trained_backbone(weights)
    if backbone is not None:
        state = _load(backbone)
        # net.slice2.3.weight <- features.3.weight: lpips cuts torchvision's layers into slices, keeping their numbers.
        model.net.load_state_dict({key: state["features." + key.split(".", 1)[1]] for key in model.net.state_dict()})
    return ("lpips" if backbone is not None else "lpips_untrained"), model.eval().requires_grad_(False)


@torch.no_grad()
def lpips_distance(a: ArrayLike, b: ArrayLike, model: nn.Module, value_range: Range = None) -> np.ndarray:
    """Perceptual distance of each frame (Zhang et al. 2018, eq. 1).

    Args:    a, b: (T, H, W, 3) uint8, or float with value_range; H and W >= 32; model: from `lpips_model`.
    Returns: (T,) float64, >= 0, 0 for equal pictures.
    Raises:  ValueError on unequal shapes, frames below 32 pixels or a float picture without range.
    """
    a, b = _pair(a, b)
    if min(a.shape[1:3]) < 32 or a.shape[3] != 3:
        raise ValueError(f"lpips_distance expects (T, H, W, 3) with H and W >= 32, got {a.shape}")
    device = next(model.parameters()).device
    scores = []
    for chunk in _chunks(a, b, value_range):
        pair = [torch.from_numpy(2 * v - 1).float().movedim(-1, 1).to(device) for v in chunk]  # (T, 3, H, W) in [-1, 1]
        scores.append(model(*pair).reshape(-1).double().cpu().numpy())
    return np.concatenate(scores)


def video_quality(
    rendered: ArrayLike, real: ArrayLike, perceptual: Perceptual | None = None, given: int = 1
) -> dict[str, float]:
    """Quality of one rendered video: the mean over its frames after the given ones (conventions at the file's top).

    Args:    rendered, real: (T, H, W, 3) uint8, cut to the shorter; perceptual: from `lpips_model`, or None.
    Returns: {"psnr" in dB, "ssim", and "lpips" or "lpips_untrained"}; average over videos with `bootstrap_mean`.
    """
    a, b = align(np.asarray(rendered), np.asarray(real), given)
    scores = {"psnr": float(psnr(a, b).mean()), "ssim": float(ssim(a, b).mean())}
    if perceptual is not None:
        name, model = perceptual
        scores[name] = float(lpips_distance(a, b, model).mean())
    return scores


def _pair(a: ArrayLike, b: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Check two videos against each other."""
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape or a.ndim != 4 or not a.size:
        raise ValueError(f"expected two videos (T, H, W, C) of one shape, got {a.shape} and {b.shape}")
    return a, b


def _chunks(a: np.ndarray, b: np.ndarray, value_range: Range) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield a few frames of both videos at a time as float64 in [0, 1]: a minute of 480p would not fit in memory."""
    step = max(1, CHUNK // a[0].size)
    for start in range(0, len(a), step):
        yield _unit(a[start : start + step], value_range), _unit(b[start : start + step], value_range)


def _squared_error(a: np.ndarray, b: np.ndarray, mask: np.ndarray, value_range: Range) -> tuple[np.ndarray, np.ndarray]:
    """Sum over each frame's masked pixels of the squared error averaged over channels, and their number: (T,), (T,)."""
    if mask.shape != a.shape[:3]:
        raise ValueError(f"expected a mask of shape {a.shape[:3]}, got {mask.shape}")
    error = np.concatenate([((x - y) ** 2).mean(-1) for x, y in _chunks(a, b, value_range)])  # (T, H, W)
    return (error * mask).sum((1, 2)), mask.sum((1, 2))


def _unit(video: np.ndarray, value_range: Range) -> np.ndarray:
    """Map to float64 in [0, 1]: uint8 by 255, float by its declared range."""
    if video.dtype == np.uint8:
        return video / 255.0
    if value_range is None or not np.issubdtype(video.dtype, np.floating):
        raise ValueError(f"expected uint8 or float with a declared value_range, got {video.dtype} and {value_range}")
    low, high = value_range
    return (video.astype(np.float64) - low) / (high - low)


def _trained_backbone(weights: Path | None) -> Path | None:
    """Find torchvision's trained AlexNet on this disk, or None; never trust a name without its checksum."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / ALEXNET if weights is None else locate(weights)
    if weights is None and not path.is_file():
        return None
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest.startswith(ALEXNET.removesuffix(".pth").rsplit("-", 1)[1]):
        return path
    if weights is None:
        return None  # a broken download in the cache is no trained backbone
    raise ValueError(f"{path} is not torchvision's {ALEXNET} (its SHA-256 begins {digest[:8]}); give that file or null")


def _load(path: Path) -> dict[str, Tensor]:
    """Read a state dict without running any code from the file."""
    return torch.load(path, map_location="cpu", weights_only=True)
