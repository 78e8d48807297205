"""What benchmarks compare gives the same numbers; how fast each is, they tell by themselves."""

from benchmarks.dldm import time_qformer


def test_a_loop_over_steps_gives_what_all_steps_at_once_give():
    times = time_qformer(steps=4, side=3, width=16, queries=2, repeats=1)
    assert times.difference < 1e-5 and min(times.batched, times.looped) > 0
