"""Streams of random numbers: which part of a stage draws from which, so that no two of those below draw the same.

A stream's numbers are a function of (seed, stream, ...), see vw2.training.compute.generator. The values stay as they
are: another value is another result. Two streams may share a value where no stage draws from both. Orders of batches
and choices of clips (vw2.data.sampler, pick_clips of vw2.training.judge) draw from (seed, number) without a stream.
"""

from enum import IntEnum


class Stream(IntEnum):
    """First part of a key, after the seed."""

    PRIOR_VAE = 1  # noise on frames
    PRIOR_VAE_CLIPS = 2  # which clips a step sees
    PRIOR_VDM_CLIPS = 3
    PRIOR_VDM = 4  # times and noise
    PRIOR_SAMPLE = 5  # where sampling begins
    JUDGE_RENDERING = 6  # where sampling begins
    DENOISING = 7  # times and noise of the joint stage, and of the VDM's teaching
    ROLLOUT = 8  # where sampling begins
    JUDGE_DENOISING = 9  # times and noise
    WALKS = 10  # where a walker begins
    CARRIED = 11  # who begins with a drawn frame
    RECOLOUR = 13
    AR_DROPOUT = 11  # the AR transformer has no walks
    AR_HIDDEN = 12  # words shown as unknown
    AUGMENT = 1  # of the judge's frames
