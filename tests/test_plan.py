"""The plan's counts on cases that can be done by hand."""

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.plan import CONTROL, Fused, Kept, Part, control_of, measure, report
from vw2.models.control import ControlConfig


def test_a_linear_map():
    with torch.device("meta"):
        layer, x = nn.Linear(8, 4, bias=False), torch.empty(16, 8, requires_grad=True)
    forward, backward, kept = measure(lambda: layer(x), layer)
    assert (forward, backward) == (2 * 16 * 8 * 4, 2 * 2 * 16 * 8 * 4), "gradients of the weight and of the input"
    assert kept == 16 * 8 * 4, "the input, in fp32; the weight is a parameter"
    twice = measure(lambda: layer(x) + layer(x), layer)
    assert twice[0] == 2 * forward and twice[2] == kept, "what two steps keep of one tensor counts once"


def test_attention_keeps_no_matrix():
    query, key, value = (torch.empty(1, 2, 512, 16, device="meta", requires_grad=True) for _ in range(3))
    with Fused(), Kept() as kept:
        scaled_dot_product_attention(query, key, value)
    four = 4 * query.numel() * 4  # query, key, value and output
    assert four <= kept.total < four + 2 * 512 * 512


def test_the_branch_is_that_of_the_preset():
    released = ControlConfig(blocks=3, weight=0.5, hint="mlp", own_time=True, sees="grey")
    assert CONTROL == control_of("wan") == control_of("release") == released


def test_states_and_report():
    trained, frozen = Part("a", 10, True, 3e12, 6e12, 2**30, 2**29, 1e12), Part("b", 10, False, 1e12)
    assert (trained.states, frozen.states) == (10 * (2 + 2 + 12), 10 * 2)
    text = report([trained, frozen], 400.0)
    assert "| a | 10 | 0.00 | 0.00 | 0.00 | 1.00 | 0.50 | 3.0 | 6.0 |" in text
    assert "A clip costs 11.0 TFLOP checkpointed, 10.0 without" in text
    assert f"{128 * 100_000 * 11e12 / 400e12 / 3600:,.0f} GPU hours" in text
