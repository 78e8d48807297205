"""The plan's counts on cases that can be done by hand."""

from types import SimpleNamespace

import torch
from tiny_models import tiny_config
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from benchmarks import step
from benchmarks.plan import (
    Fused,
    Kept,
    Part,
    computing,
    config_of,
    holding,
    ldm_part,
    measure,
    report,
    values_of,
    vdm_parts,
)
from vw2.models import attend
from vw2.models.attention import ATTENTION, seen_frames
from vw2.models.control import ControlConfig
from vw2.models.cosmos import CosmosConfig, CosmosVDM
from vw2.models.dldm import DLDM


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


def test_a_checkpointed_block_gives_way_to_its_input():
    with torch.device("meta"):
        layers, x = [nn.Linear(8, 8, bias=False) for _ in range(3)], torch.empty(16, 8, requires_grad=True)
    block = lambda hidden, layer: layer(hidden.sin()).sin()  # noqa: E731

    def chain(call):
        hidden = x
        for layer in layers:
            hidden = call(block, hidden, layer)
        return hidden

    whole = holding(lambda: chain(lambda block, *args: block(*args)), *layers)[1]
    assert whole == 3 * 3 * 16 * 8 * 4, (
        "of each block: its input and that of the layer for the products, and what it gives"
    )
    assert holding(lambda: chain(lambda *args: checkpoint(*args, use_reentrant=False)), *layers)[1] == 3 * 16 * 8 * 4
    assert holding(lambda: block(x, layers[0]), x, *layers)[1] == 2 * 16 * 8 * 4, "what is known is not counted"


HEADS, HEAD_WIDTH, CONTEXT = 2, 16, 12
LATENTS = 16, 3, 4, 6  # C, L, h, w


def network(layers: int) -> CosmosVDM:
    """A tiny one."""
    sizes = {"heads": HEADS, "head_width": HEAD_WIDTH, "adaln_rank": 4, "context": CONTEXT}
    return CosmosVDM(CosmosConfig(**sizes, layers=layers, tokens=0, attention="causal"))


def planned(layers: int) -> tuple[Part, Part]:
    """VDM of so many blocks and control branch of two."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        config = tiny_config(control=ControlConfig(blocks=2, hint="mlp", own_time=True), attention="slices")
        return vdm_parts(DLDM(config, SimpleNamespace(vdm=network(layers))), LATENTS)


def ends() -> int:
    """Bytes that a VDM without blocks keeps."""
    channels, frames, *sides = LATENTS
    args = torch.empty(1, *LATENTS), torch.empty(1), torch.empty(1, channels, 1, *sides)
    with FakeTensorMode(allow_non_fake_inputs=True):
        vdm = network(0)
        return holding(computing(lambda: vdm(*(torch.empty_like(each) for each in args))), vdm)[1]


def test_the_checkpointed_vdm_holds_one_block_and_the_inputs_of_all():
    (few, same), (many, branch) = planned(3), planned(5)
    _, frames, high, wide = LATENTS
    tokens, block = frames * high * wide // 4, few.block
    given = tokens * HEADS * HEAD_WIDTH * 2  # what a block begins with, in bfloat16
    assert many.block == block > given and branch.block == 0
    assert many.kept - few.kept == 2 * block, "two more blocks"
    assert many.kept_checkpointed - few.kept_checkpointed == 2 * given, "two more inputs, and still one block"
    assert many.kept_checkpointed > block + 5 * given
    assert (branch.kept, branch.kept_checkpointed) == (same.kept, same.kept_checkpointed)
    assert branch.kept > 2 * block and 2 * given < branch.kept_checkpointed < branch.kept - 2 * block + 10 * given
    assert (few.again, many.again) == (3 * many.again / 5, 5 * branch.again / 2)
    # and by hand: of what all blocks share times for the norms, 3 widths, cosine and sine, the context behind its
    # learned token; of the branch two residuals
    shared = 3 * given + 2 * tokens * HEAD_WIDTH * 4 + (1 + 2 * (frames - 1)) * CONTEXT * 4
    assert few.kept_checkpointed == ends() + block + 3 * given + shared + 2 * given


def test_the_presets_say_what_is_planned():
    """Sizes and parts are read, none is typed in."""
    values = values_of("paper")
    config = config_of(values)
    released = ControlConfig(blocks=3, weight=0.5, hint="mlp", own_time=True, sees="grey")
    assert all(config_of(values_of(name)).control == released for name in ("paper", "wan", "release"))
    assert (config.causal.view, config.causal.connector, config.sides) == ("prefix", 0, (240, 416))
    changed = values_of("paper")
    changed["dldm"]["causal"]["channels"], changed["dldm"]["size"], changed["clip"]["frames"] = 32, [32, 48], 9
    changed["train_dldm"]["optim"]["batch"] = 64
    text = report([Part("a", 10, True, 1e12)], changed, 400.0)
    assert "One clip of 9 frames" in text and "LDM at 32x48" in text and "A step of 64 clips" in text


def test_the_row_of_the_ldm_follows_its_parameters():
    rows = []
    for width in (16, 32):
        with FakeTensorMode(allow_non_fake_inputs=True):
            vdm = CosmosVDM(CosmosConfig(heads=2, head_width=16, layers=1, tokens=0))
            rows.append(ldm_part(DLDM(tiny_config(history_width=width), SimpleNamespace(vdm=vdm)), 9))
    assert rows[0].parameters < rows[1].parameters and 0 < rows[0].kept < rows[1].kept
    assert all(row.kept == row.kept_checkpointed for row in rows)


def test_states_and_report():
    trained, frozen = Part("a", 10, True, 3e12, 6e12, 2**30, 2**29, 1e12), Part("b", 10, False, 1e12)
    assert (trained.states, frozen.states) == (10 * (4 + 4 + 8), 10 * 4)
    text = report([trained, frozen], values_of("paper"), 400.0)
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
