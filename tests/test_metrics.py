"""Intervals and picture quality against closed forms."""

import hashlib
import math

import numpy as np
import pytest
import scipy.stats
import torch
from scipy.ndimage import gaussian_filter

from vw2.evaluation import quality
from vw2.evaluation.intervals import (
    Estimate,
    bootstrap_mean,
    bootstrap_ratio,
    mean_by_video,
    success_interval,
    wilson,
)

Z2 = 1.959963984540054**2


def grey(*levels: int, size: int = 16) -> np.ndarray:
    """A video of one uniformly grey frame per level: (T, size, size, 3) uint8."""
    return np.stack([np.full((size, size, 3), level, np.uint8) for level in levels])


def noise(frames: int, size: int = 40, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, size, size, 3), dtype=np.uint8)


def test_wilson_closed_forms():
    none, half, all_ = wilson(0, 90), wilson(45, 90), wilson(90, 90)
    assert (none.value, none.low, none.n) == (0.0, 0.0, 90)
    assert none.high == pytest.approx(Z2 / (90 + Z2))  # "0 % with n = 90 only means < 4.1 %"
    assert none.high == pytest.approx(0.041, abs=1e-3)
    assert (all_.low, all_.high) == (pytest.approx(90 / (90 + Z2)), 1.0)
    assert half.high - 0.5 == pytest.approx(0.5 * math.sqrt(Z2 / (90 + Z2))) == 0.5 - half.low
    assert wilson(0.688 * 150, 150).low == pytest.approx(0.61, abs=0.005)
    with pytest.raises(ValueError, match="0 <= successes <= n"):
        wilson(3, 2)
    with pytest.raises(ValueError, match="level"):
        wilson(1, 2, level=95)


def test_estimate_is_the_detail_record():
    assert Estimate(0.5, 0.25, 0.75, 4).as_dict() == {"value": 0.5, "low": 0.25, "high": 0.75, "n": 4}


def test_bootstrap_of_two_videos_spans_both():
    # Resampled means are 0, 1/2 and 1 with probability 1/4, 1/2, 1/4: both 2.5 % tails lie at the ends.
    assert bootstrap_mean([0.0, 1.0], ["a", "b"], seed=0) == Estimate(0.5, 0.0, 1.0, 2)


def test_bootstrap_approaches_the_normal_interval_and_repeats():
    values = np.random.default_rng(1).normal(3.0, 2.0, 400)
    first = bootstrap_mean(values, np.arange(400), seed=7, draws=4000)
    half = math.sqrt(Z2) * values.std() / math.sqrt(400)
    assert first.high - first.value == pytest.approx(half, rel=0.08)
    assert first.value - first.low == pytest.approx(half, rel=0.08)
    assert first == bootstrap_mean(values, np.arange(400), seed=7, draws=4000)
    assert first != bootstrap_mean(values, np.arange(400), seed=8, draws=4000)


def test_repeating_the_rows_of_a_video_does_not_narrow_the_interval():
    values, videos = np.array([0.0, 0.2, 0.7, 1.0]), np.arange(4)
    once = bootstrap_mean(values, videos, seed=3)
    thrice = bootstrap_mean(np.repeat(values, 3), np.repeat(videos, 3), seed=3)
    assert thrice.n == once.n == 4
    assert (thrice.low, thrice.high) == (pytest.approx(once.low), pytest.approx(once.high))


def test_rows_or_videos_count_equally():
    values, videos = [0.0, 0.0, 0.0, 1.0], ["long", "long", "long", "short"]
    assert bootstrap_mean(values, videos, seed=0).value == 0.25
    means, names = mean_by_video(values, videos)
    assert means.tolist() == [0.0, 1.0] and names.tolist() == ["long", "short"]
    assert bootstrap_mean(*mean_by_video(values, videos), seed=0).value == 0.5


def test_bootstrap_ratio():
    estimate = bootstrap_ratio([1.0, 2.0, 3.0], [2.0, 4.0, 6.0], [1, 2, 3], seed=0)
    assert estimate == Estimate(0.5, 0.5, 0.5, 3)  # the same ratio in every video


def test_one_video_gives_no_interval_and_bad_input_a_sentence():
    assert bootstrap_mean([1.0, 2.0], ["a", "a"], seed=0) == Estimate(1.5, None, None, 1)
    for values, groups in (([], []), ([math.nan, 1.0], ["a", "b"]), ([1.0], ["a", "b"])):
        with pytest.raises(ValueError, match="finite values and groups"):
            bootstrap_mean(values, groups, seed=0)


def bounds(estimate: Estimate) -> tuple[float, float]:
    return pytest.approx((estimate.low, estimate.high))


def test_success_interval_of_one_rollout_a_video_is_wilsons():
    before = 0.0, 0.0
    for successes in range(21):
        found = success_interval(np.arange(20) < successes, np.arange(20))
        assert (found.low, found.high) == bounds(wilson(successes, 20)) and found.n == 20
        assert found.low >= before[0] and found.high > before[1], "more successes, a higher interval"
        before = found.low, found.high


def student(freedom: int) -> float:
    return scipy.stats.t.ppf(0.975, freedom)


def test_success_interval_counts_what_rows_are_worth():
    videos = np.repeat(np.arange(30), 3)  # three rollouts each
    for same in (np.zeros(90), np.ones(90), np.repeat(np.arange(30) % 2, 3)):  # that agree: 30 trials, not 90
        found = success_interval(same, videos)
        assert (found.low, found.high) == bounds(wilson(same.sum() / 3, 30)) and found.n == 30
    few = (student(89) / student(29)) ** 2  # Korn and Graubard's factor
    spread = success_interval(
        np.tile([1, 1, 0], 30), videos
    )  # that differ more than those of other videos: 90 of these
    assert (spread.low, spread.high) == bounds(wilson(60 * few, 90 * few)) and 0.9 < few < 0.95
    rates = np.tile([[1, 1, 1], [0, 0, 0], [1, 0, 0], [1, 1, 0]], (10, 1))  # 40 videos; surpluses 1.5, -1.5, -.5, .5
    worth = 0.25 / (40 / 39 * 10 * (2 * 1.5**2 + 2 * 0.5**2) / 120**2) * (student(119) / student(39)) ** 2
    found = success_interval(rates.ravel(), np.repeat(np.arange(40), 3))
    assert 40 < worth < 120 and (found.low, found.high) == bounds(wilson(worth / 2, worth))
    long = success_interval(np.ones(3017), np.array([*np.repeat([0, 1, 2], 1000), *range(3, 20)]))
    assert 3 < (worth := 3017**2 / (3 * 1000**2 + 17)) < 3.1 and long.low == pytest.approx(wilson(worth, worth).low)
    assert success_interval([1, 0], ["a", "a"]).low == pytest.approx(wilson(0.5, 1).low), "one video is one trial"
    with pytest.raises(ValueError, match="0 or 1"):
        success_interval([0.5], [0])


def test_psnr_of_a_constant_offset():
    db = quality.psnr(grey(100, 100, 0), grey(110, 100, 255))
    assert db == pytest.approx([20 * math.log10(255 / 10), quality.MAX_PSNR, 0.0])
    floats = quality.psnr(grey(100) / 127.5 - 1, grey(110) / 127.5 - 1, value_range=(-1, 1))
    assert floats == pytest.approx(db[:1])
    with pytest.raises(ValueError, match="value_range"):
        quality.psnr(np.zeros((1, 4, 4, 3)), np.zeros((1, 4, 4, 3)))
    with pytest.raises(ValueError, match="one shape"):
        quality.psnr(grey(0), grey(0, 0))


def test_psnr_counts_masked_pixels_only():
    a, b = grey(0, 0), grey(0, 0)
    b[0, :8] = 51  # a fifth of the range, on half of the picture
    mask = np.zeros((2, 16, 16), bool)
    mask[0, :8] = True
    assert quality.psnr(a, b)[0] == pytest.approx(20 * math.log10(5) + 10 * math.log10(2))
    masked = quality.psnr(a, b, mask)
    assert masked[0] == pytest.approx(20 * math.log10(5)) and math.isnan(masked[1])
    with pytest.raises(ValueError, match="mask"):
        quality.psnr(a, b, mask[:1])


def moving_square() -> np.ndarray:
    """Three frames; 4 pixels light up in one channel at frame 1, 8 are lit at frame 2."""
    real = grey(50, 50, 50)
    real[1, 0, :4, 0] = real[2, 0, :8, 0] = 150
    return real


def test_moving_mask_compares_with_the_first_frame():
    real = moving_square()
    mask = quality.moving_mask(real)
    assert mask.sum((1, 2)).tolist() == [0, 4, 8] and mask[2, 0, :8].all()
    assert not quality.moving_mask(real, threshold=100).any()  # "more than"
    down = np.stack([np.full((4, 4, 3), 200, np.uint8), np.zeros((4, 4, 3), np.uint8)])
    assert quality.moving_mask(down)[1].all()  # uint8 must not wrap around
    with pytest.raises(ValueError, match="uint8"):
        quality.moving_mask(real / 255)


def test_the_error_of_moving_pixels():
    real = moving_square()
    rendered = real.copy()
    rendered[0] += 90  # the given frame does not count
    rendered[1:, 8:] += 90  # nor what rests
    assert quality.moving_error(rendered, real) == (0.0, 12)
    rendered[1, 0, :4] += 51  # 4 of 12 moving pixels, all channels
    assert quality.moving_error(rendered, real) == (pytest.approx(4 * 0.04), 12)
    assert quality.moving_error(rendered[:2], real) == (pytest.approx(4 * 0.04), 4)  # cut to the shorter
    copy = np.repeat(real[:1], 3, axis=0)  # only one of three channels is wrong, by 100 levels
    assert quality.moving_error(copy, real) == (pytest.approx(12 * (100 / 255) ** 2 / 3), 12)
    assert quality.moving_error(grey(5, 5), grey(5, 5)) == (0.0, 0)


def test_align():
    a, b = quality.align(grey(0, 1, 2, 3), grey(0, 1, 2), given=1)
    assert a[:, 0, 0, 0].tolist() == b[:, 0, 0, 0].tolist() == [1, 2]
    with pytest.raises(ValueError, match="nothing to compare"):
        quality.align(grey(0), grey(0, 1))


def test_ssim_of_identical_and_constant_pictures():
    picture = noise(2)
    assert quality.ssim(picture, picture) == pytest.approx([1.0, 1.0], abs=1e-12)
    a, b = 100 / 255, 180 / 255
    expected = (2 * a * b + 1e-4) / (a * a + b * b + 1e-4)
    assert quality.ssim(grey(100), grey(180)) == pytest.approx([expected], abs=1e-9)
    floats = quality.ssim(grey(100) / 127.5 - 1, grey(180) / 127.5 - 1, value_range=(-1, 1))
    assert floats == pytest.approx([expected], abs=1e-9)
    with pytest.raises(ValueError, match="11 x 11"):
        quality.ssim(grey(0, size=8), grey(0, size=8))


def test_ssim_agrees_with_scipy_gaussian_windows():
    def blur(x: np.ndarray) -> np.ndarray:
        return gaussian_filter(x, 1.5, truncate=3.5, axes=(0, 1))[5:-5, 5:-5]  # radius 5 = 11 taps; full windows only

    a, b = noise(1, seed=1), noise(1, seed=2) // 2 + noise(1, seed=1) // 2
    x, y = a[0] / 255, b[0] / 255
    mx, my = blur(x), blur(y)
    vx, vy, cov = blur(x * x) - mx * mx, blur(y * y) - my * my, blur(x * y) - mx * my
    score = (2 * mx * my + 1e-4) * (2 * cov + 9e-4) / ((mx * mx + my * my + 1e-4) * (vx + vy + 9e-4))
    assert quality.ssim(a, b) == pytest.approx([score.mean()], abs=1e-10)


def test_scores_do_not_depend_on_the_chunking(monkeypatch):
    a, b = noise(5, seed=1), noise(5, seed=2)
    whole = quality.ssim(a, b), quality.psnr(a, b)
    monkeypatch.setattr(quality, "CHUNK", 1)
    assert np.array_equal(whole[0], quality.ssim(a, b)) and np.array_equal(whole[1], quality.psnr(a, b))


def test_lpips_without_trained_weights_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    state = torch.get_rng_state()
    name, model = quality.lpips_model(seed=0)
    assert name == "lpips_untrained"
    assert torch.equal(state, torch.get_rng_state())  # the caller's random numbers are left alone
    a, b = noise(3, seed=1), noise(3, seed=2)
    assert quality.lpips_distance(a, a, model).tolist() == [0.0, 0.0, 0.0]
    distance = quality.lpips_distance(a, b, model)
    assert distance.shape == (3,) and (distance > 0).all()
    assert np.array_equal(distance, quality.lpips_distance(a, b, quality.lpips_model(seed=0)[1]))
    assert not np.array_equal(distance, quality.lpips_distance(a, b, quality.lpips_model(seed=1)[1]))
    scores = quality.video_quality(a, b, (name, model))
    assert set(scores) == {"psnr", "ssim", "lpips_untrained"}
    assert scores["lpips_untrained"] == pytest.approx(distance[1:].mean())
    assert scores["ssim"] == pytest.approx(quality.ssim(a, b)[1:].mean())
    with pytest.raises(ValueError, match="32"):
        quality.lpips_distance(grey(0), grey(0), model)


def test_lpips_takes_its_name_only_from_the_trained_file(tmp_path, monkeypatch):
    import vw2.torchvision_ops  # noqa: F401

    # isort: split
    from torchvision.models import alexnet

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    features = {key: value for key, value in alexnet().state_dict().items() if key.startswith("features.")}
    cache = tmp_path / "checkpoints"
    cache.mkdir(parents=True)
    torch.save(features, cache / quality.ALEXNET)
    assert quality.lpips_model(seed=0)[0] == "lpips_untrained"  # right name, wrong content
    with pytest.raises(ValueError, match="SHA-256"):
        quality.lpips_model(seed=0, weights=cache / quality.ALEXNET)
    with pytest.raises(FileNotFoundError):
        quality.lpips_model(seed=0, weights=tmp_path / "absent.pth")

    # Let this file be "the trained one": its checksum is the one expected.
    digest = hashlib.sha256((cache / quality.ALEXNET).read_bytes()).hexdigest()
    path = (cache / quality.ALEXNET).rename(cache / f"alexnet-owt-{digest[:8]}.pth")
    monkeypatch.setattr(quality, "ALEXNET", path.name)
    for weights in (None, path):
        name, model = quality.lpips_model(seed=0, weights=weights)
        assert name == "lpips"
        loaded = {key.split(".", 1)[1]: value for key, value in model.net.state_dict().items()}
        assert loaded and all(torch.equal(value, features[f"features.{key}"]) for key, value in loaded.items())
