"""The plan's counts on cases that can be done by hand."""

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import scaled_dot_product_attention

from benchmarks import step
from benchmarks.plan import CONTROL, Fused, Kept, Part, computing, control_of, measure, report, values_of
from vw2.models import attend
from vw2.models.attention import ATTENTION, seen_frames
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


def test_attention_of_the_vdm_keeps_no_matrix_under_autocast():
    """Though a CPU would multiply matrices."""
    most = attend.MOST
    with FakeTensorMode(), Fused(), Kept() as kept:
        given = [torch.empty(1, 2, 512, 16, requires_grad=True) for _ in range(3)]
        computing(lambda: ATTENTION["slices"](*given, seen_frames(0, 1, 512)))()
    assert kept.total < 512 * 512 and attend.MOST == most


def test_under_autocast():
    """As on a GPU: the input in bfloat16 for the product, in float32 for the norm."""
    layer, norm, x = nn.Linear(8, 4, bias=False), nn.LayerNorm(8), torch.empty(16, 8).requires_grad_()
    product = measure(computing(lambda: layer(x)), layer)[2]
    assert product == 16 * 8 * 2 + 8 * 4 * 2, "input and weight, both copies"
    small = torch.empty(16, 8, dtype=torch.bfloat16).requires_grad_()
    assert measure(computing(lambda: norm(small)), norm)[2] >= 16 * 8 * 4


def test_the_branch_is_that_of_the_preset():
    released = ControlConfig(blocks=3, weight=0.5, hint="mlp", own_time=True, sees="grey")
    assert CONTROL == control_of("wan") == control_of("release") == released


def test_states_and_report():
    trained, frozen = Part("a", 10, True, 3e12, 6e12, 2**30, 2**29, 1e12), Part("b", 10, False, 1e12)
    assert (trained.states, frozen.states) == (10 * (4 + 4 + 8), 10 * 4)
    text = report([trained, frozen], 400.0)
    assert "| a | 10 | 0.00 | 0.00 | 0.00 | 1.00 | 0.50 | 3.0 | 6.0 |" in text
    assert "A clip costs 11.0 TFLOP checkpointed, 10.0 without" in text
    assert f"{128 * 100_000 * 11e12 / 400e12 / 3600:,.0f} GPU hours" in text


def test_a_real_step():
    values = values_of("smoke")
    values["compute"]["dtype"] = "float32"  # accelerate allows one precision a process
    found = step.figures(values, 1, 3)
    assert found["clips of a step"] == 3 and found["seconds a step"] == 3 * found["seconds a clip"] > 0
    assert found["parameters that learn"] > 10**6 and found["peak memory, GiB"] > 0


def test_a_step_in_micro_batches_reaches_all_that_learns():
    values = values_of("smoke")
    values["train_dldm"]["optim"]["micro_batch"] = 2
    made, seen = step.Step(values, step.start(step.ComputeConfig(), 0)), []
    handle = made.dldm.register_forward_pre_hook(lambda _, args: seen.append(len(args[0].video)))
    for number in range(2):  # a VDM whose last layer is still zero teaches itself alone
        made(number, 3)
    handle.remove()
    assert seen == [2, 1, 2, 1]
    for part in (made.dldm.ldm.encoder, made.dldm.ldm.decoder, made.dldm.vdm):
        assert sum(float(p.grad.abs().sum()) for p in part.parameters() if p.grad is not None) > 0
