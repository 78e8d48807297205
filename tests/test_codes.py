"""Code statistics, probes and controls against values known beforehand."""

import math

import numpy as np
import pytest

from vw2.evaluation import codes

LEVELS = [8, 5, 5, 5]


def test_digits_count_the_first_level_fastest():
    assert codes.code_digits([0, 7, 8, 40, 999], LEVELS).tolist() == [
        [0, 0, 0, 0],
        [7, 0, 0, 0],
        [0, 1, 0, 0],
        [0, 0, 1, 0],
        [7, 4, 4, 4],
    ]
    everything = codes.code_digits(np.arange(1000), LEVELS)
    assert np.array_equal(everything @ np.array([1, 8, 40, 200]), np.arange(1000))
    for bad in ([1000], [-1], [0.5]):
        with pytest.raises(ValueError, match=r"\[0, 1000\)"):
            codes.code_digits(bad, LEVELS)


def test_report_of_uniform_codes():
    report = codes.code_report(np.tile(np.arange(1000), 3), LEVELS)
    assert report["n"] == 3000 and report["codebook"] == report["used"] == 1000 and report["used_fraction"] == 1.0
    assert report["entropy_bits"] == pytest.approx(math.log2(1000))
    assert report["perplexity"] == pytest.approx(1000)
    assert [digit["used"] for digit in report["digits"]] == LEVELS
    assert [digit["entropy_bits"] for digit in report["digits"]] == pytest.approx([math.log2(n) for n in LEVELS])


def test_report_of_constant_and_of_skewed_codes():
    report = codes.code_report(np.full((5, 4), 123), LEVELS)
    assert (report["entropy_bits"], report["used"], report["perplexity"], report["n"]) == (0.0, 1, 1.0, 20)
    skewed = codes.code_report([0, 0, 8, 16], LEVELS)  # shares 1/2, 1/4, 1/4, all in the second digit
    assert skewed["entropy_bits"] == 1.5 and skewed["used_fraction"] == 0.003
    assert skewed["digits"][1] == {"levels": 5, "used": 3, "entropy_bits": 1.5}
    with pytest.raises(ValueError, match="at least one code"):
        codes.code_report([], LEVELS)


def test_a_dead_digit_does_not_hide_behind_another_query():
    two = np.stack([np.zeros(6, int), np.full(6, 999)], -1).reshape(3, 2, 2)  # clips, steps, queries
    assert [digit["used"] for digit in codes.code_report(two, LEVELS)["digits"]] == [2, 2, 2, 2], "pooled, none is dead"
    assert codes.dead_digits(two, LEVELS).tolist() == [[True] * 4] * 2
    two[0, 1, 1] -= 8  # the second query's second digit moves once
    assert codes.dead_digits(two, LEVELS).tolist() == [[True] * 4, [True, False, True, True]]
    assert not codes.dead_digits(np.arange(1000)[:, None], LEVELS).any()


def test_changed_fraction():
    found = codes.changed_fraction([[1, 2], [3, 4], [5, 6]], [[1, 0], [0, 0], [5, 6]], ["a", "a", "b"], 0)
    assert found.value == 0.5 and found.n == 2 and found.low == 0 and found.high == 0.75
    assert codes.changed_fraction([1, 2], [1, 2], ["a", "b"], 0).value == 0.0
    with pytest.raises(ValueError, match="one shape"):
        codes.changed_fraction([1], [1, 2], ["a"], 0)


def test_digit_features_are_one_hot():
    features = codes.digit_features([[0, 5], [3, 1]], [2, 3])  # digits (0, 0), (1, 2); (1, 1), (1, 0)
    assert features.tolist() == [[1, 0, 1, 0, 0, 0, 1, 0, 0, 1], [0, 1, 0, 1, 0, 0, 1, 1, 0, 0]]


def test_probe_reads_what_is_linear():
    rng = np.random.default_rng(0)
    labels, videos = rng.integers(0, 3, 300), np.repeat(np.arange(30), 10)
    features = np.eye(3)[labels] * 100 + rng.normal(0, 1e-3, (300, 3))  # scales differ: standardised inside
    probe = codes.linear_probe(features, labels, videos, seed=0)
    assert probe.score.value == 1.0 and probe.score.n == 30 and probe.score.low < 1.0
    assert probe.chance == pytest.approx(np.bincount(labels).max() / 300)
    names = np.array(["fold", "hold", "turn"])[labels]
    assert codes.linear_probe(features, names, videos, seed=0).score == probe.score


def test_probe_cannot_know_the_video():
    # The features name the video and the label is a coin toss per video: splitting by frame would score 1.
    rng = np.random.default_rng(0)
    videos = np.repeat(np.arange(40), 10)
    labels = rng.permutation(np.arange(40) % 2)[videos]
    probe = codes.linear_probe(np.eye(40)[videos], labels, videos, seed=0)
    assert probe.chance == 0.5 and probe.score.value <= 0.5


def test_probe_of_noise_is_at_chance():
    rng = np.random.default_rng(0)
    videos = np.repeat(np.arange(100), 10)
    features, labels = rng.normal(size=(1000, 4)), rng.integers(0, 2, 1000)
    probe = codes.linear_probe(features, labels, videos, seed=0)
    assert probe == codes.linear_probe(features, labels, videos, seed=0)
    assert abs(probe.score.value - 0.5) < 0.06


def test_r2_probe():
    rng = np.random.default_rng(0)
    features, videos = rng.normal(size=(400, 3)), np.repeat(np.arange(40), 10)
    target = features @ [1.0, -2.0, 0.5] + 7
    assert codes.linear_probe_r2(features, target, videos, seed=0).score.value > 0.9999
    # Signal and noise of equal variance: R2 = 1/2.
    half = codes.linear_probe_r2(features[:, :1], features[:, :2].sum(1), videos, seed=0)
    assert half.score.value == pytest.approx(0.5, abs=0.08) and half.score.low < 0.5 < half.score.high
    both = codes.linear_probe_r2(features, np.stack([target, target], 1), videos, seed=0)
    assert both.score.value > 0.9999 and both.score.n == 40 and both.chance == 0.0
    nothing = codes.linear_probe_r2(np.zeros((400, 2)), target, videos, seed=0)
    assert -0.1 < nothing.score.value < 0.0
    with pytest.raises(ValueError, match="vary"):
        codes.linear_probe_r2(features, np.ones(400), videos, seed=0)


def test_probe_needs_videos_and_classes():
    features = np.zeros((4, 1))
    with pytest.raises(ValueError, match="two videos"):
        codes.linear_probe(features, [0, 1, 0, 1], [0] * 4, seed=0)
    with pytest.raises(ValueError, match="two classes"):
        codes.linear_probe(features, [0] * 4, [0, 0, 1, 1], seed=0)
    with pytest.raises(ValueError, match="as many"):
        codes.linear_probe(features, [0, 1], [0, 1], seed=0)
    # Two videos of one class each: every fold has seen one class only, and says the wrong one.
    assert codes.linear_probe(features, [0, 0, 1, 1], [0, 0, 1, 1], seed=0).score.value == 0.0


def test_shuffle_steps_keeps_each_step_together():
    one = np.arange(40).reshape(10, 4)
    two = codes.shuffle_steps(one, np.random.default_rng(0))
    assert not np.array_equal(one, two)
    assert sorted(map(tuple, two.tolist())) == sorted(map(tuple, one.tolist()))
    assert np.array_equal(one, np.arange(40).reshape(10, 4))  # the input is left alone
    assert np.array_equal(two, codes.shuffle_steps(one, np.random.default_rng(0)))


def test_random_codes():
    drawn = codes.random_codes((500, 4), 1000, np.random.default_rng(0))
    assert drawn.shape == (500, 4) and drawn.dtype == np.int64 and drawn.min() >= 0 and drawn.max() < 1000
    assert drawn.mean() == pytest.approx(499.5, abs=30)
