"""The control branch, the release's denoiser and sampler: parity with the authors' code, gradients, closed forms."""

import json
import math

import numpy as np
import pytest
import torch
from edm import denoised, denoising_loss, sigma_of
from release_dit import (
    PART,
    RELEASE,
    SHAPES,
    TINY,
    checkpoint,
    close,
    inputs,
    needs_shapes,
    needs_whole,
    recorded,
    release_networks,
)
from safetensors.torch import load_file
from tiny_models import copy_blocks, draw, tiny_prior, wake
from torch import nn

from vw2.interop.keys_dit import CONTROL, PLAIN, Parts, buffers, to_release
from vw2.models.control import SEES, ControlBranch, ControlConfig, LinearHint, MLPHint
from vw2.models.cosmos import CosmosConfig, CosmosVDM
from vw2.models.denoiser import (
    SOLVERS,
    NoiseConfig,
    draw_noise_time,
    guided,
    integrate_ab2,
    karras_sigmas,
    time_of,
)
from vw2.models.flow import add_noise, sample
from vw2.training.compute import generator

WEIGHTS, KEYS = 240_494_368, 97
HIGHEST = 80 / 81  # t of sigma 80


class Recorded(MLPHint):
    """The release's hint with the recorded embedding."""

    def __init__(self, value):
        nn.Module.__init__(self)
        self.value = value

    def forward(self, latents):
        return self.value


def tiny_branch(awake: bool = True, **changes) -> tuple[ControlBranch, CosmosVDM]:
    torch.manual_seed(0)
    vdm = wake(CosmosVDM(CosmosConfig(latent=6, layers=3, tokens=0, attention="causal", **TINY)))
    config = ControlConfig(**{"blocks": 2, "weight": 0.5, "hint": "mlp", "own_time": True} | changes)
    branch = ControlBranch(config, vdm)
    return (wake(branch, 1) if awake else branch), vdm


def given() -> tuple[torch.Tensor, ...]:
    """noisy, time, first, context, hint."""
    shape = (2, 6, 3, 4, 6)
    return (
        draw(*shape),
        torch.tensor([0.3, 0.9]),
        draw(2, 6, 1, 4, 6, seed=2),
        draw(2, 8, 32, seed=3),
        draw(*shape, seed=4),
    )


# ---------------------------------------------------------------- parity with the authors' code


@torch.no_grad()
def test_first_block_from_the_committed_part():
    state, io = load_file(PART), recorded()
    vdm = CosmosVDM(CosmosConfig(layers=1, **TINY))
    branch = ControlBranch(ControlConfig(blocks=1, weight=0.5, hint="mlp", own_time=True), vdm)
    branch.hint = Recorded(io["encoded_hint_T_H_W_B_D"].flatten(0, 2).transpose(0, 1))
    theirs = {key: f"net_ctrl.{CONTROL.theirs(key)}" for key in branch.state_dict()}
    found = branch.load_state_dict({key: state[name] for key, name in theirs.items() if name in state}, strict=False)
    assert all(key.startswith("last.") for key in found.missing_keys)
    (residual,) = branch(vdm, *inputs(), io["x"])
    close(residual, io["ctrl_block0"].flatten(1, 3))


@needs_whole
@torch.no_grad()
def test_control_branch_and_the_dit_that_it_steers():
    io, (vdm, branch) = recorded(), release_networks()
    close(branch.hint(io["hint"]), io["encoded_hint_T_H_W_B_D"].flatten(0, 2).transpose(0, 1))
    residuals = branch(vdm, *inputs(), io["hint"])
    for number, residual in enumerate(residuals):
        close(residual, io[f"ctrl_block{number}"].flatten(1, 3))
    close(vdm(*inputs(), residuals), io["dit_out_ctrl"])


@needs_whole
@torch.no_grad()
@pytest.mark.parametrize("sigma", [0.01, 1.0, 20.0])
def test_denoiser(sigma):
    io, (vdm, branch) = recorded(), release_networks()
    clean, first, time = io["gt_frames"], io["gt_frames"][:, :, :1], time_of(torch.tensor([sigma]))
    noisy = add_noise(clean, io["x"], time)
    control = branch(vdm, noisy, time, first, io["crossattn_emb"], io["hint"])
    found = denoised(vdm(noisy, time, first, io["crossattn_emb"], control), noisy, time, first)
    close(found, io[f"denoise_x0_sigma_{sigma}"])
    noise = (clean + sigma * io["x"] - found) / sigma
    torch.testing.assert_close(noise, io[f"denoise_eps_sigma_{sigma}"], atol=1e-4, rtol=1e-4)


@needs_whole
@torch.no_grad()
def test_guided_sampling():
    io, (vdm, branch), seen = recorded(), release_networks(), []
    first = io["gt_frames"][:, :, :1]

    def velocity(context):
        return lambda x, t: vdm(x, t, first, context, branch(vdm, x, t, first, context, io["hint"]))

    flow = guided(velocity(io["crossattn_emb"]), velocity(io["crossattn_emb_neg"]), 7.0)
    final = sample(
        flow, io["x"], first, 6, 7.0, 1.0, lambda *args: integrate_ab2(*args, watch=lambda *s: seen.append(s))
    )
    torch.testing.assert_close(final, io["sampler_final"], atol=1e-4 * io["sampler_final"].abs().max().item(), rtol=0)
    assert torch.equal(final[:, :, :1], first) and len(seen) == 7
    for number, (latents, time) in enumerate(seen[:-1], 1):
        theirs = io[f"sampler_x_{number}"][:, :, 1:]  # behind the given frame, which the network does not read from x
        torch.testing.assert_close(
            latents[:, :, 1:] / (1 - time), theirs, atol=1e-4 * theirs.abs().max().item(), rtol=0
        )


def test_noise_levels_and_solver_alone():
    io = recorded()
    for steps in (6, 35):
        np.testing.assert_allclose(karras_sigmas(steps, 7), io[f"sampler_sigmas_{steps}"].numpy(), rtol=1e-12)
    times, states = [], []

    def velocity(noisy, time):
        times.append(time[0].item())
        clean = 0.8 * torch.tanh(noisy / (1 - time) / (1 + time / (1 - time)))
        return (noisy - clean) / time

    integrate_ab2(velocity, io["ab2_init"] / 80, 10, watch=lambda x, t: states.append((x, t)))
    assert len(times) == 11 and times[0] == pytest.approx(HIGHEST) and states[-1][1] == 0
    latents, time = states[9]
    assert sigma_of(torch.tensor(time, dtype=torch.float64)).item() == pytest.approx(0.002)
    close(latents / (1 - time), io["ab2_final"])


# ---------------------------------------------------------------- names and true size


@needs_whole
def test_import_and_export_lose_nothing():
    state, (vdm, branch) = checkpoint(), release_networks()
    rest = {prefix + key: value for prefix in PLAIN for key, value in buffers(TINY["head_width"]).items()}
    back = to_release(Parts(vdm.state_dict(), branch.state_dict(), rest))
    assert back.keys() == state.keys() and all(torch.equal(back[key], state[key]) for key in state)


def test_what_theirs_has_no_place_for_is_told():
    with pytest.raises(ValueError, match="null has no place in the authors' checkpoint"):
        to_release(Parts({"null": torch.zeros(1)}))


@needs_shapes
def test_true_size_and_all_names():
    with torch.device("meta"):
        vdm = CosmosVDM(CosmosConfig(layers=3))
        branch = ControlBranch(ControlConfig(blocks=3, weight=0.5, hint="mlp", own_time=True), vdm)
    assert sum(p.numel() for p in branch.parameters()) == WEIGHTS, "with the last layer that is never run"
    assert not any(p.requires_grad for p in branch.last.parameters())
    listed = json.loads(SHAPES.read_text())["dit_ctrl (prefix 'net_ctrl.')"]
    rest = {f"net_ctrl.{key}": value for key, value in buffers(128).items()}
    out = to_release(Parts({}, branch.state_dict(), rest))
    assert len(out) == KEYS
    assert {key: tuple(value.shape) for key, value in out.items()} == {
        f"net_ctrl.{key}": tuple(shape) for key, (shape, _) in listed.items()
    }


# ---------------------------------------------------------------- the branch


@pytest.mark.parametrize("hint", ["linear", "mlp"])
@pytest.mark.parametrize("own_time", [False, True])
def test_at_first_it_changes_nothing_and_then_follows_the_hint(hint, own_time):
    branch, vdm = tiny_branch(awake=False, hint=hint, own_time=own_time)
    copy_blocks(branch, vdm)
    args = given()
    assert all((residual == 0).all() for residual in branch(vdm, *args))
    assert torch.equal(vdm(*args[:4], branch(vdm, *args)), vdm(*args[:4]))
    wake(branch.zero)
    residuals = branch(vdm, *args)
    assert [tuple(r.shape) for r in residuals] == [(2, 18, 48)] * 2
    assert not torch.equal(residuals[0], branch(vdm, *args[:4], args[4] + 1)[0]), "also the first residual sees it"


def test_blocks_are_copies_under_the_same_masks():
    branch, vdm = tiny_branch(awake=False)
    for mine, theirs in zip(branch.blocks.values(), vdm.blocks, strict=False):
        assert mine is not theirs and mine.attn1.processor.layout is vdm.layout is mine.attn2.processor.layout
        assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), theirs.parameters(), strict=True))
    wake(vdm, 3)
    copy_blocks(branch, vdm)
    pairs = [
        (branch.patch_embed, vdm.patch_embed),
        (branch.time_embed, vdm.time_embed),
        (branch.last["proj_out"], vdm.transformer.proj_out),
        (branch.blocks["1"], vdm.blocks[1]),
    ]
    for mine, theirs in pairs:
        assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), theirs.parameters(), strict=True))


@pytest.mark.parametrize("hint", ["linear", "mlp"])
@pytest.mark.parametrize("part, frame", [("noisy", 1), ("hint", 2), ("context", 1), ("context", 2)])
def test_causality(hint, part, frame):
    branch, vdm = tiny_branch(hint=hint)
    args = list(given())
    place = {"noisy": 0, "context": 3, "hint": 4}[part]
    velocity = lambda: vdm(*args[:4], branch(vdm, *args))  # noqa: E731
    with torch.no_grad():
        before = velocity()
        args[place] = args[place].clone()
        changed = args[place][:, 4 * (frame - 1) :] if part == "context" else args[place][:, :, frame:]
        changed += 1
        now = velocity()
    assert torch.equal(before[:, :, :frame], now[:, :, :frame]) and not torch.equal(
        before[:, :, frame], now[:, :, frame]
    )


@pytest.mark.parametrize("hint", ["linear", "mlp"])
def test_no_gradient_flows_through_the_hint(hint):
    branch, vdm = tiny_branch(hint=hint)
    noisy, time, first, context, latents = given()
    latents.requires_grad_()
    context.requires_grad_()
    vdm(noisy, time, first, context, branch(vdm, noisy, time, first, context, latents)).square().mean().backward()
    assert latents.grad is None and context.grad.abs().max() > 0
    untaught = [name for name, p in branch.named_parameters() if p.requires_grad and p.grad is None]
    assert untaught == [], "the branch itself learns"


def test_checkpointing_changes_no_gradient():
    grads = []
    for checkpointing in (False, True):
        branch, vdm = tiny_branch()
        if checkpointing:
            vdm.transformer.enable_gradient_checkpointing()
        args = given()
        vdm(*args[:4], branch(vdm, *args)).square().mean().backward()
        grads.append([p.grad for p in (*branch.parameters(), *vdm.parameters()) if p.grad is not None])
    assert len(grads[0]) == len(grads[1]) and all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_keys_and_sizes_of_the_hints():
    vdm = tiny_prior().vdm
    mini = ControlBranch(ControlConfig(), vdm)
    assert {key.split(".")[0] for key in mini.state_dict()} == {"patch_embed", "blocks", "hint", "zero"}
    assert mini.hint.weight.shape == (32, 6 * 4) and isinstance(mini.hint, LinearHint)
    wide = MLPHint(vdm)
    assert wide.embed.weight.shape == (32, 128 * 4), "the mini has no padding mask"
    assert tiny_branch(hint_channels=16)[0].hint.embed.weight.shape == (48, 17 * 4), "the release has one"
    with pytest.raises(ValueError, match="dldm.control.hint_channels must be at least 6, .* got 5; raise it"):
        tiny_branch(hint_channels=5)
    widths = [layer.out_features for layer in wide.mlp if isinstance(layer, nn.Linear)]
    assert widths == [16, 16, 32, 32, 96, 96, 256, 32]
    with pytest.raises(ValueError, match=r"dldm.control.blocks must lie in 1\.\.2, the VDM's, or .* 0\.\.1, got 3"):
        ControlBranch(ControlConfig(blocks=3), vdm)
    assert RELEASE.hint == "mlp"


@torch.no_grad()
def test_copies_that_are_no_first_blocks():
    branch, vdm = tiny_branch(blocks=(0, 2))
    some = {key: value for key, value in tiny_branch(blocks=3)[0].state_dict().items() if ".1." not in key[:9]}
    assert branch.state_dict().keys() == some.keys(), "each has the number of its block"
    args = given()
    first, none, last = branch(vdm, *args)
    alone, its = tiny_branch(blocks=1)  # the same VDM
    alone.load_state_dict({key: value for key, value in branch.state_dict().items() if key in alone.state_dict()})
    torch.testing.assert_close(alone(its, *args)[0], first, atol=0, rtol=0)
    assert none is None and not torch.equal(vdm(*args[:4], [first, none, last]), vdm(*args[:4], [first]))
    full = vdm(*args[:4], [first, torch.zeros_like(first), last])
    torch.testing.assert_close(vdm(*args[:4], [first, none, last]), full)


@pytest.mark.parametrize("blocks", [(2, 0), (1, 1), (-1,), -1])
def test_blocks_that_cannot_be(blocks):
    with pytest.raises(ValueError, match="dldm.control.blocks must .*, got"):
        ControlConfig(blocks=blocks)


# ---------------------------------------------------------------- denoiser and solvers in closed form


def test_noise_levels_are_drawn_as_said():
    config = NoiseConfig()
    time = draw_noise_time(20000, config, generator(0))
    sigma = sigma_of(time.double())
    assert torch.equal(time, draw_noise_time(20000, config, generator(0))) and 0 < time.min() and time.max() < 1
    high = sigma > 200  # of the normal draw next to none: ln(200 / sqrt 24) = 3.7 standard deviations
    assert high.float().mean() == pytest.approx(0.05, abs=5 * math.sqrt(0.05 * 0.95 / 20000))
    assert sigma.max() < 1.1e5
    assert sigma[high].log().mean() == pytest.approx((math.log(200) + math.log(1e5)) / 2, abs=0.3)
    assert sigma[~high].log().mean() == pytest.approx(math.log(24) / 2, abs=0.05)
    assert sigma[~high].log().std() == pytest.approx(1, abs=0.05)
    only = draw_noise_time(1000, NoiseConfig(high_share=0.0), generator(0))
    assert sigma_of(only.double()).max() < 200


def test_loss_is_the_weighted_error_of_the_clean_video():
    clean, noise, velocity = draw(2, 3, 4, 2, 2), draw(2, 3, 4, 2, 2, seed=1), draw(2, 3, 4, 2, 2, seed=2)
    time = torch.tensor([0.2, 0.9])
    noisy, first = add_noise(clean, noise, time), clean[:, :, :1]
    found = denoised(velocity, noisy, time, first)
    sigma = sigma_of(time).view(2, 1, 1, 1, 1)
    wanted = ((1 + sigma**2) / sigma**2 * (clean - found) ** 2).mean()
    torch.testing.assert_close(denoising_loss(velocity, clean, noise, time), wanted, rtol=1e-4, atol=0)
    assert denoising_loss(noise - clean, clean, noise, time) == 0
    off = denoising_loss(noise - clean + 2, clean, noise, torch.tensor([0.5, 0.5]))  # 4 (1/4 + 1/4) over 3 of 4 frames
    assert off == pytest.approx(1.5, rel=1e-5)


def test_guidance():
    flow = guided(lambda x, t: x, lambda x, t: torch.ones_like(x), 7.0)
    assert torch.equal(flow(torch.full((1,), 3.0), None), torch.full((1,), 3.0 + 7 * 2))


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("start", [1.0, 0.5])
def test_a_point_mass_is_found(solver, start):
    clean, noise = draw(1, 3, 4, 2, 2), draw(1, 3, 4, 2, 2, seed=1)
    begin = add_noise(clean, noise, torch.tensor([start]))
    flow = lambda x, t: (x - clean) / t.view(-1, 1, 1, 1, 1)  # noqa: E731
    found = sample(flow, begin, clean[:, :, :1], 5, 3.0, start, SOLVERS[solver])
    torch.testing.assert_close(found, clean, atol=1e-4, rtol=0)


def test_second_order_is_better_than_first():
    """Data N(0, 1): x_0 = x_t (1 - t) / ((1 - t)^2 + t^2); the flow maps noise to itself but for its first level."""
    noise = draw(1, 1, 2, 4, 4)
    flow = lambda x, t: (x - x * (1 - t) / ((1 - t) ** 2 + t**2)) / t  # noqa: E731
    exact = noise * 80 / math.sqrt(1 + 80**2)
    errors = [(integrate_ab2(flow, noise, steps) - exact).abs().max().item() for steps in (10, 20, 40)]
    assert errors[2] < 0.3 * errors[1] < 0.09 * errors[0], errors


# ---------------------------------------------------------------- what it sees of the coarse video


def test_what_the_branch_sees():
    class Pixels:  # a VAE that does nothing
        encode = staticmethod(lambda video: video)

    coarse = draw(1, 3, 2, 4, 4).clamp(-1, 1)
    assert torch.equal(SEES["change"](Pixels, coarse, coarse[:, :, :1]), coarse - coarse[:, :, :1])
    assert torch.equal(SEES["change"](None, coarse, coarse[:, :, :1], coarse), coarse - coarse[:, :, :1]), "at hand"
    coarse[:, :, 0, 0, 0] = torch.tensor([1.0, -1.0, -1.0])  # red
    light = SEES["grey"](Pixels, coarse, coarse[:, :, :1])
    assert torch.equal(light[:, 0], light[:, 1]) and torch.equal(light[:, 0], light[:, 2])
    torch.testing.assert_close(light[0, :, 0, 0, 0], torch.full((3,), 2 * 0.2989 - 1))
