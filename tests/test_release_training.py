"""The release's noise levels, loss weight and guidance as parameters of the dLDM; by default all is as it was."""

import pytest
import torch
from edm import denoising_loss
from tiny_models import LATENT, STEPS, clip, draw, tiny_batch, tiny_config, tiny_dldm, tiny_ldm

from vw2.models.control import ControlConfig
from vw2.models.cosmos import CosmosConfig, CosmosVDM
from vw2.models.denoiser import NoiseConfig, draw_noise_time, release_weight
from vw2.models.flow import add_noise, draw_time, flow_loss, motion_weight, noised, sample
from vw2.training.compute import generator

SHAPE = (2, LATENT, STEPS + 1, 4, 4)
RELEASE = {"noise_levels": "release", "level_weight": "release", "motion_weight": 0.0, "first_noise": 0.0}


def window(batch: int = 2) -> tuple[torch.Tensor, ...]:
    """clean, known, hint, codes of a window."""
    shape = (batch, *SHAPE[1:])
    codes = torch.rand(batch, STEPS, 2, 4, generator=generator(5)) * 2 - 1
    return draw(*shape), draw(batch, LATENT, 1, 4, 4, seed=1), draw(*shape, seed=2), codes


def start(seed: int = 3) -> tuple[torch.Tensor, ...]:
    """Code indices and start noise of two clips."""
    return torch.randint(0, 1000, (2, STEPS, 2), generator=generator(seed)), draw(*SHAPE, seed=4)


@torch.no_grad()
def test_by_default_all_is_as_before():
    dldm, _ = tiny_dldm()
    clean, known, hint, codes = window()
    rng = generator(7)
    noise = torch.randn(clean.shape, generator=rng)
    time = draw_time(2, 1.59, rng)
    jitter = 0.1 * torch.rand(2, 1, 1, 1, 1, generator=rng)
    first = known + jitter * torch.randn(known.shape, generator=rng)
    velocity = dldm.velocity(add_noise(clean, noise, time), time, first, codes, hint)
    wanted = flow_loss(velocity, clean, noise, motion_weight(clean, 1.0) * noised(time, STEPS + 1))
    for mode in (True, False):
        found = dldm.train(mode).denoising(clean, known, hint, codes, generator(7))
        assert torch.equal(found, wanted), "to the last bit"


@torch.no_grad()
def test_levels_and_loss_of_the_release():
    dldm, _ = tiny_dldm(**RELEASE)
    clean, known, hint, codes = window()
    rng = generator(7)
    noise, time = torch.randn(clean.shape, generator=rng), draw_noise_time(2, NoiseConfig(), rng)
    velocity = dldm.velocity(add_noise(clean, noise, time), time, known, codes, hint)
    wanted = denoising_loss(velocity, clean, noise, time)
    torch.testing.assert_close(dldm.denoising(clean, known, hint, codes, generator(7)), wanted, rtol=1e-5, atol=0)


def test_loss_weight_in_closed_form():
    shared = release_weight(torch.tensor([0.5, 1.0]), 4)  # (1/4 + 1/4) and 1, of which 3 in 4 frames count
    assert shared.shape == (2, 1, 4, 1, 1) and shared[:, 0, 0, 0, 0].tolist() == [0.375, 0.75]
    each = release_weight(torch.tensor([[0.0, 0.5, 1.0]]), 3)
    torch.testing.assert_close(each.flatten(), torch.tensor([1.0, 0.5, 1.0]) * 2 / 3)


def test_independent_levels_of_the_release():
    dldm, _ = tiny_dldm(frame_times="independent", **RELEASE)
    loss = dldm.denoising(*window(), generator(0))
    assert loss.isfinite() and not torch.equal(loss, dldm.denoising(*window(), generator(1)))


def test_weight_of_the_denoising_loss():
    dldm, prior = tiny_dldm(denoising_weight=10.0, reconstruction_weight=0.5)
    loss, logs, _ = dldm(tiny_batch(prior), prior.vae, generator(0))
    torch.testing.assert_close(loss.detach(), 10 * logs["train/denoise"] + 0.5 * logs["train/recon"])


# ---------------------------------------------------------------- clips whose codes are not told


@torch.no_grad()
@pytest.mark.parametrize("tokens, attention", [(0, "full"), (0, "causal"), (12, "full")])
def test_null_tokens_are_as_none(tokens, attention):
    torch.manual_seed(0)
    vdm = CosmosVDM(CosmosConfig(LATENT, 2, 12, 2, 4, 8, (8, 16, 16), tokens=tokens, attention=attention)).eval()
    torch.nn.init.normal_(vdm.transformer.proj_out.weight)
    if not tokens:
        torch.nn.init.normal_(vdm.null)
    noisy, time, first = draw(*SHAPE), torch.tensor([0.3, 0.9]), draw(2, LATENT, 1, 4, 4, seed=2)
    none, null = vdm(noisy, time, first), vdm(noisy, time, first, vdm.null.expand(2, STEPS * 2, -1))
    torch.testing.assert_close(null, none, atol=1e-6, rtol=1e-5)
    assert (none - vdm(noisy, time, first, draw(2, STEPS * 2, 8))).abs().max() > 1e-4
    assert ("null" in vdm.state_dict()) is not bool(tokens), "the release's weights know no such token"


@torch.no_grad()
def test_untold_clips_alone_are_deaf():
    dldm, _ = tiny_dldm()
    noisy, known, coarse, codes = window()
    time, untold = torch.tensor([0.5, 0.7]), torch.tensor([True, False])
    one, other = (dldm.velocity(noisy, time, known, each, coarse, untold) for each in (codes, -codes))
    assert torch.equal(one[0], other[0]) and not torch.equal(one[1], other[1])
    assert torch.equal(one[1], dldm.velocity(noisy, time, known, codes, coarse)[1])


@pytest.mark.parametrize(
    "which, changes", [("untold", {"code_dropout": 0.25}), ("unsteered", {"control": ControlConfig(dropout=0.25)})]
)
def test_a_share_of_training_clips_is_not_told_or_steered(monkeypatch, which, changes):
    dldm, seen = tiny_dldm(**changes)[0], []

    def velocity(noisy, time, first, codes, hint, untold, unsteered):
        seen.append({"untold": untold, "unsteered": unsteered})
        return noisy

    monkeypatch.setattr(dldm, "velocity", velocity)
    dldm.train().denoising(*window(4000), generator(0))
    spread = 5 * (0.25 * 0.75 / 4000) ** 0.5
    shares = {name: 0.0 if clips is None else clips.float().mean().item() for name, clips in seen[0].items()}
    assert shares.pop(which) == pytest.approx(0.25, abs=spread) and set(shares.values()) == {0.0}
    dldm.eval().denoising(*window(), generator(0))
    assert not any(clips is not None and clips.any() for clips in seen[1].values()), "when judged none is left out"


@torch.no_grad()
def test_unsteered_clips_alone_are_blind_to_the_coarse_video():
    dldm, _ = tiny_dldm()
    noisy, known, coarse, codes = window()
    time, unsteered = torch.tensor([0.5, 0.7]), torch.tensor([True, False])
    draw_with = lambda hint: dldm.velocity(noisy, time, known, codes, hint, None, unsteered)  # noqa: E731
    one, other = draw_with(coarse), draw_with(-coarse)
    assert torch.equal(one[0], other[0]) and not torch.equal(one[1], other[1])
    assert torch.equal(one[1], dldm.velocity(noisy, time, known, codes, coarse)[1])
    alone = dldm.vdm(noisy, time, known, dldm.tokens(codes))
    torch.testing.assert_close(one[0], alone[0], atol=1e-6, rtol=1e-5)


def test_unsteered_training_teaches_the_codes_and_not_the_branch():
    dldm, _ = tiny_dldm(control=ControlConfig(dropout=1.0))
    dldm.train().denoising(*window(), generator(0)).backward()
    assert all(p.grad is None or not p.grad.any() for p in dldm.control.parameters())
    assert all(p.grad.any() for p in dldm.projection.mlp.parameters())


def test_deaf_training_teaches_the_projection_nothing():
    dldm, _ = tiny_dldm(code_dropout=1.0)
    dldm.train().denoising(*window(), generator(0)).backward()
    assert all(not p.grad.any() for p in dldm.projection.parameters()) and dldm.vdm.null.grad.any()


# ---------------------------------------------------------------- guidance


@torch.no_grad()
def test_guidance_goes_beyond_what_is_drawn_without_codes():
    (dldm, prior), frame, (index, noise) = tiny_dldm(guidance=3.0), clip(frames=1), start()
    found = dldm.render(prior.vae, frame, index, noise)
    codes, first = dldm.ldm.fsq.to_codes(index), prior.vae.encode(frame)
    hint = prior.vae.encode(dldm.ldm.coarse(frame, index)) - first

    def velocity(noisy, time):
        told = dldm.velocity(noisy, time, first, codes, hint)
        control = dldm.control(dldm.vdm, noisy, time, first, None, hint)
        return 4 * told - 3 * dldm.vdm(noisy, time, first, None, control)  # told + 3 (told - untold)

    wanted = prior.vae.decode(sample(velocity, noise, first, dldm.config.sampling_steps, dldm.config.sampling_shift))
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)


def test_without_guidance_nothing_is_drawn_twice():
    renders, calls = [], []
    for scale in (0.0, 2.0):
        dldm, prior = tiny_dldm(guidance=scale)
        hook = dldm.vdm.register_forward_hook(lambda *args: calls.append(1))
        renders.append(dldm.render(prior.vae, clip(frames=1), *start()))
        hook.remove()
        calls.append(0)
    assert calls == [1] * 2 + [0] + [1] * 4 + [0], "2 steps of the sampler"
    assert not torch.equal(*renders)


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"code_dropout": 1.5}, r"dldm.code_dropout must lie in \[0, 1\], got 1.5"),
        ({"guidance": -1.0}, "dldm.guidance must be at least 0, got -1.0"),
        (
            {"guidance": 2.0, "sampling_order": "frames", "frame_times": "independent"},
            "goes with dldm.sampling_order clip, got 2.0",
        ),
        ({"target_jitter": 1.0}, "target_jitter goes with dldm.control.sees grey"),
    ],
)
def test_wrong_settings_end_in_a_sentence(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        tiny_config(**changes)


def test_the_vdm_alone_sees_other_colours():
    logs = []
    for strength in (0.0, 1.0):
        dldm, prior = tiny_dldm(target_jitter=strength, control=ControlConfig(blocks=1, sees="grey"))
        seen, encode = [], prior.vae.encode
        prior.vae.encode = lambda video, to=encode, seen=seen: (seen.append(video), to(video))[1]
        batch = tiny_batch(prior)
        logs.append(dldm(batch, prior.vae, generator(0))[1] | {"video": seen[0], "coarse": seen[2], "first": seen[1]})
    plain, jittered = logs
    assert torch.equal(plain["train/recon"], jittered["train/recon"]) and torch.equal(plain["video"], batch.video)
    assert not torch.equal(plain["video"], jittered["video"])
    assert torch.equal(jittered["first"], jittered["video"][:, :, :1]) and torch.equal(
        plain["coarse"], jittered["coarse"]
    )


@torch.no_grad()
def test_nothing_is_encoded_for_nobody():
    for control, start_level, encoded in ((1, 1.0, 2), (1, 0.5, 3), (0, 1.0, 1)):
        dldm, prior = tiny_dldm(control=ControlConfig(blocks=control, sees="grey"), sampling_start=start_level)
        calls, encode = [], prior.vae.encode
        prior.vae.encode = lambda video, to=encode, calls=calls: (calls.append(1), to(video))[1]
        dldm.render(prior.vae, clip(frames=1), *start())
        assert len(calls) == encoded, (control, start_level)


@torch.no_grad()
def test_the_ldm_sees_a_clip_shrunk_as_asked():
    video = clip(1, 2, 40)
    for mode in ("area", "bilinear"):
        small = tiny_ldm(shrink=mode).shrink(video)
        each = torch.nn.functional.interpolate(video[:, :, 1], size=(16, 16), mode=mode)
        assert small.shape == (1, 3, 2, 16, 16) and torch.equal(small[:, :, 1], each)
