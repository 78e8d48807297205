"""The dLDM at a tiny size: shapes, which loss teaches what, overfitting, control branch, rendering, files."""

import copy
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tiny_models import (
    FRAMES,
    LATENT,
    SIDE,
    SMALL,
    STEPS,
    clip,
    copy_blocks,
    draw,
    taught,
    tiny_batch,
    tiny_config,
    tiny_dldm,
    tiny_latents,
    tiny_ldm,
    tiny_prior,
    wake,
)

from vw2.closure import import_closure
from vw2.models import ldm_files
from vw2.models.adapt import AdaptConfig
from vw2.models.backends import load_prior
from vw2.models.control import ControlConfig
from vw2.models.dldm import DLDM, JointBatch
from vw2.models.drawing import Strokes, warp
from vw2.models.flow import add_noise, flow_loss, sample
from vw2.models.ldm import LDM, LDMConfig
from vw2.models.ldm_files import load_codec, load_ldm, save_ldm
from vw2.models.losses import L2
from vw2.models.prior import PriorModelConfig, VAEConfig, VDMConfig
from vw2.models.renderer import DLDMRenderer, LDMRenderer, load_dldm, load_renderer, save_dldm
from vw2.models.settings import laid_over
from vw2.training.compute import generator

QUERIES = SMALL["queries"]


def moving(batch: int = 4, side: int = SIDE) -> torch.Tensor:
    """(B, 3, 9, side, side): a bright square that goes another way in each clip."""
    video = torch.full((batch, 3, FRAMES, side, side), -0.5)
    part = side // 4
    for row in range(batch):
        down, right = row // 2 % 2 * 2 - 1, row % 2 * 2 - 1
        for t in range(FRAMES):
            y, x = (side * 3 // 8 + sign * t * side // 24 for sign in (down, right))
            video[row, :, t, y : y + part, x : x + part] = torch.tensor([0.9, 0.2, 0.5]).view(3, 1, 1)
    return video


def indices(batch: int = 2, seed: int = 0, codebook: int = 1000) -> torch.Tensor:
    return torch.randint(0, codebook, (batch, STEPS, QUERIES), generator=generator(seed))


# ---------------------------------------------------------------- shapes and losses


def test_ldm_shapes_and_loss():
    ldm, video = tiny_ldm(), clip(side=16)
    features = ldm.features(video)
    assert features.shape == (2, 16, STEPS + 1, 4, 4)
    codes, index = ldm.quantise(features)
    assert codes.shape == (2, STEPS, QUERIES, 4) and index.shape == (2, STEPS, QUERIES) and index.dtype == torch.int64
    assert torch.equal(ldm.fsq.to_codes(index), codes.detach())
    assert ldm.decoder(features[:, :, :1], codes).over(video[:, :, :1]).shape == video.shape
    loss, logs, end = ldm.train()(video, clip(frames=1))
    assert end.shape == (2, 3, 1, SIDE, SIDE) and not end.requires_grad
    assert loss.isfinite() and set(logs) == {"train/recon", "codes/used"} and 1 <= logs["codes/used"] <= 8
    loss.backward()
    assert taught(ldm) == {name for name, _ in ldm.named_parameters()}, "the warm-up teaches everything"


@pytest.mark.parametrize("codebook, levels", [(8, None), (4096, None), (105, (7, 5, 3))])
def test_ldm_follows_the_codebook(codebook, levels):
    ldm = tiny_ldm(codebook=codebook, levels=levels).train()
    with torch.no_grad():
        index = ldm.quantise(ldm.features(clip(8, side=16)))[1]
    assert 0 <= index.min() and index.max() < codebook == ldm.fsq.codebook
    assert ldm.eval().coarse(clip(frames=1), indices(codebook=codebook)).shape == (2, 3, FRAMES, SIDE, SIDE)


def test_ldm_shrinks_what_it_is_shown():
    ldm, video = tiny_ldm(), clip(frames=FRAMES, side=SIDE)
    small = ldm.shrink(video)
    torch.testing.assert_close(small, torch.nn.functional.avg_pool3d(video, (1, 2, 2)), atol=1e-6, rtol=0)
    assert ldm.shrink(small) is small
    assert torch.equal(ldm.encode(video), ldm.encode(small))
    assert ldm.shrink(clip(1, 5, 48)[..., :40]).shape == (1, 3, 5, 16, 16)


def test_wrong_sizes_end_in_a_sentence():
    with pytest.raises(ValueError, match="dldm.size must be a multiple of 8, got 36; round it"):
        LDMConfig(size=36)
    with pytest.raises(ValueError, match="dldm.levels 8,8 multiply to 64 but dldm.codebook is 1000"):
        LDMConfig(levels=(8, 8))
    with pytest.raises(AssertionError, match=r"expected T = 1 \+ 4m frames, got 8"):
        tiny_ldm().features(clip(frames=8, side=16))
    with pytest.raises(AssertionError, match=r"expected T = 1 \+ 4m frames, got 7"):
        tiny_prior().vae.encode(clip(frames=7))


@pytest.mark.parametrize("prediction", ["change", "velocity"])
def test_joint_loss(prediction):
    dldm, prior = tiny_dldm(prediction=prediction)
    batch = tiny_batch(prior)
    loss, logs, _ = dldm(batch, prior.vae, generator(0))
    assert loss.isfinite() and set(logs) == {"train/denoise", "train/recon", "codes/used"}
    torch.testing.assert_close(loss.detach(), logs["train/denoise"] + logs["train/recon"])
    assert torch.equal(loss, dldm(batch, prior.vae, generator(0))[0]), "all that is drawn comes from the generator"
    assert not torch.equal(loss, dldm(batch, prior.vae, generator(1))[0])
    loss.backward()
    assert taught(dldm) == {name for name, _ in dldm.named_parameters()}, "no parameter is left out"


def test_joint_loss_in_bfloat16():
    dldm, prior = tiny_dldm()
    with torch.autocast("cpu", torch.bfloat16):
        loss, logs, _ = dldm(tiny_batch(prior), prior.vae, generator(0))
    loss.backward()
    full = dldm(tiny_batch(prior), prior.vae, generator(0))[1]
    assert loss.isfinite() and logs["train/recon"].item() == pytest.approx(full["train/recon"].item(), rel=0.05)
    assert all(p.grad.isfinite().all() for p in dldm.parameters())


# ---------------------------------------------------------------- what teaches what


def reconstruction_alone(mode: str) -> tuple[DLDM, torch.Tensor]:
    dldm, _ = tiny_dldm(reconstruction=mode)
    video = dldm.ldm.shrink(clip(2))
    codes, _ = dldm.ldm.quantise(dldm.ldm.features(video))
    frame = video[:, :, :1]
    return dldm, L2(0.0)(dldm.draw(frame, codes).over(frame), video)


def test_reconstruction_off_teaches_nothing():
    _, loss = reconstruction_alone("off")
    assert loss > 0 and not loss.requires_grad


def test_reconstruction_teaches_the_decoder_alone():
    dldm, loss = reconstruction_alone("decoder")
    loss.backward()
    assert taught(dldm) == {f"ldm.decoder.{name}" for name, _ in dldm.ldm.decoder.named_parameters()}


def test_reconstruction_reaches_the_trunk_but_never_the_codes():
    dldm, loss = reconstruction_alone("trunk")
    loss.backward()
    parts = {name.split(".")[1] for name in taught(dldm)}
    assert parts == {"encoder", "decoder"} and all(name.startswith("ldm.") for name in taught(dldm))
    assert not taught(dldm.ldm.query), "no code parameter learns from the reconstruction"


def gradients(mode: str, weight: float) -> dict[str, torch.Tensor]:
    """Gradients of the whole joint loss with a weight on its reconstruction part."""
    dldm, prior = tiny_dldm(reconstruction=mode, reconstruction_weight=weight)
    dldm(tiny_batch(prior), prior.vae, generator(0))[0].backward()
    return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in dldm.named_parameters()}


@pytest.mark.parametrize("mode", ["off", "decoder", "trunk"])
def test_weight_of_the_reconstruction_in_the_joint_loss(mode):
    without, with_ = gradients(mode, 0.0), gradients(mode, 3.0)
    moved = {name for name in without if not torch.equal(without[name], with_[name])}
    parts = {".".join(name.split(".")[:2]) for name in moved}
    assert parts == {"off": set(), "decoder": {"ldm.decoder"}, "trunk": {"ldm.decoder", "ldm.encoder"}}[mode]
    denoising_alone = {
        name.split(".")[1] for name, g in without.items() if name.startswith("ldm.") and g.abs().max() > 0
    }
    assert denoising_alone == {"encoder", "query"}, "denoising teaches the codes, and the decoder nothing"


def test_nothing_flows_through_the_control_hint():
    dldm, prior = tiny_dldm()
    latents = tiny_latents(prior)
    hint, codes = draw(*latents.shape, seed=3).requires_grad_(), dldm.ldm.fsq.to_codes(indices()).requires_grad_()
    dldm.velocity(draw(*latents.shape), torch.full((2,), 0.7), latents[:, :, :1], codes, hint).square().sum().backward()
    assert hint.grad is None and codes.grad.abs().max() > 0
    assert taught(dldm.control) == {name for name, _ in dldm.control.named_parameters()}


def test_codes_learn_only_through_the_projection():
    # With the context cut, neither encoder nor queries get anything from the denoising loss.
    dldm, prior = tiny_dldm(reconstruction="off")
    dldm.projection.forward = lambda codes: torch.zeros(len(codes), STEPS * QUERIES, 12)
    dldm(tiny_batch(prior), prior.vae, generator(0))[0].backward()
    assert not taught(dldm.ldm) and "transformer.proj_out.weight" in taught(dldm.vdm)


# ---------------------------------------------------------------- learning


def test_codes_are_alive_from_the_first_step():
    # Pooled over the slots of a clip even codes that say nothing look alive; so look at each slot alone.
    torch.manual_seed(0)
    ldm = LDM(LDMConfig(**SMALL))
    with torch.no_grad():
        index = ldm.quantise(ldm.features(clip(16, side=16)))[1]  # 16 clips: 4 bits at most
    for slot in index.flatten(1).T:
        share = torch.unique(slot, return_counts=True)[1] / len(slot)
        assert -(share * share.log2()).sum() > 2


def fit(model, batch, steps: int, key: str) -> list[float]:
    """Losses of some AdamW steps on one batch."""
    optimiser, losses = torch.optim.AdamW(model.parameters(), lr=5e-3), []
    for _ in range(steps):
        loss, logs, _ = batch(model)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(logs[key]))
    return losses


def test_ldm_overfits_one_batch_by_its_codes():
    # Four clips with the same first frame: only codes can tell which way the square goes.
    torch.manual_seed(0)
    ldm, video = LDM(LDMConfig(**SMALL)), moving(side=16)
    losses = fit(ldm, lambda model: model(video, video[:, :, :1]), 80, "train/recon")
    copied = L2(ldm.config.pixel_motion_weight)(video[:, :, :1].expand_as(video), video)
    assert losses[0] == pytest.approx(copied.item(), rel=1e-5), "an untrained decoder copies the first frame"
    assert losses[-1] < 0.2 * losses[0]
    with torch.no_grad():
        features = ldm.features(video)
        codes, index = ldm.quantise(features)
        other = ldm.decoder(features[:, :, :1], codes.flip(0)).over(video[:, :, :1])
    assert len(torch.unique(index.flatten(1), dim=0)) == 4
    assert L2(ldm.config.pixel_motion_weight)(other, video) > 3 * losses[-1], "the decoder listens"


def test_dldm_overfits_one_batch():
    torch.manual_seed(0)
    prior = tiny_prior(awake=False)
    dldm, video = DLDM(tiny_config(first_noise=0.0), prior), moving()
    batch = JointBatch(video, video[:, :, :1])
    losses = fit(dldm, lambda model: model(batch, prior.vae, generator(0)), 60, "train/denoise")
    assert losses[-1] < 0.1 * losses[0]


# ---------------------------------------------------------------- control branch


def test_control_changes_nothing_at_the_start():
    prior = tiny_prior()
    torch.manual_seed(1)
    dldm = DLDM(tiny_config(control=ControlConfig(blocks=2)), prior).eval()
    copy_blocks(dldm.control, dldm.vdm)
    latents = tiny_latents(prior)
    hint = draw(*latents.shape, seed=3)
    codes = dldm.ldm.fsq.to_codes(indices())
    given = (draw(*latents.shape), torch.tensor([0.2, 0.9]), latents[:, :, :1])
    with torch.no_grad():
        plain = dldm.vdm(*given, dldm.projection(codes))
        assert torch.equal(dldm.velocity(*given, codes, hint), plain)
        wake(dldm.control.zero)
        heard = dldm.velocity(*given, codes, hint)
        assert not torch.equal(heard, plain)
        assert not torch.equal(heard, dldm.velocity(*given, codes, -hint)), "then the coarse video is heard"


def test_control_starts_as_a_copy_and_goes_its_own_way():
    dldm, _ = tiny_dldm(awake=False)
    theirs = dldm.vdm.transformer
    pairs = [(dldm.control.patch_embed, theirs.patch_embed), (dldm.control.blocks["0"], theirs.transformer_blocks[0])]
    for mine, other in pairs:
        for one, two in zip(mine.parameters(), other.parameters(), strict=True):
            assert torch.equal(one, two) and one is not two


def test_control_weight_is_a_factor_and_zero_blocks_switch_it_off():
    given, results = None, {}
    for weight in (0.0, 1.0):
        dldm, prior = tiny_dldm(control=ControlConfig(weight=weight))
        latents = tiny_latents(prior)
        given = (draw(*latents.shape), torch.tensor([0.2, 0.9]), latents[:, :, :1])
        codes = dldm.ldm.fsq.to_codes(indices())
        with torch.no_grad():
            results[weight] = dldm.velocity(*given, codes, draw(*latents.shape, seed=3))
            off = dldm.vdm(*given, dldm.projection(codes))
        assert torch.equal(results[weight], off) == (weight == 0)
    bare, prior = tiny_dldm(control=ControlConfig(blocks=0))
    assert bare.control is None and not any("control" in name for name in bare.state_dict())
    assert bare(tiny_batch(prior), prior.vae, generator(0))[0].isfinite()


def test_sampling_from_little_noise_gives_the_coarse_video():
    # A velocity of zero keeps what the sampler starts from.
    dldm, prior = tiny_dldm(sampling_start=1e-4, sampling_steps=1)
    dldm.velocity_told = lambda noisy, *_: torch.zeros_like(noisy)
    first, index = clip(frames=1), indices()
    noise = draw(2, LATENT, STEPS + 1, SIDE // 8, SIDE // 8)
    coarse = prior.vae.encode(dldm.ldm.coarse(first, index))
    expected = torch.cat([prior.vae.encode(first), coarse[:, :, 1:]], dim=2)
    assert torch.allclose(dldm.render(prior.vae, first, index, noise), prior.vae.decode(expected), atol=1e-2)


def test_what_the_vae_cannot_tell_of_the_coarse_video_is_lost_or_kept():
    first, index, noise = clip(frames=1), indices(), draw(2, LATENT, STEPS + 1, SIDE // 8, SIDE // 8)
    results = {}
    for remainder in ("lost", "kept"):
        dldm, prior = tiny_dldm(sampling_start=1e-4, sampling_steps=1, sampling_remainder=remainder)
        results[remainder] = dldm.render(prior.vae, first, index, noise)
    coarse = dldm.ldm.coarse(first, index)
    through = prior.vae.decode(prior.vae.encode(coarse))
    assert (through - coarse).abs().mean() > 0.1, "the VAE loses much of it"
    change = results["lost"] - through  # what the VDM did; the VAE's own range of values is that of pictures
    torch.testing.assert_close(results["kept"], (coarse + change).clamp(-1, 1), atol=1e-5, rtol=0)
    dldm.velocity_told = lambda noisy, *_: torch.zeros_like(noisy)
    still = dldm.render(prior.vae, first, index, noise)[:, :, 1:]  # the first frame is given
    torch.testing.assert_close(still, coarse[:, :, 1:], atol=1e-3, rtol=0, msg="a VDM that changes nothing leaves it")


def test_the_remainder_is_of_what_sampling_begins_on():
    with pytest.raises(ValueError, match="dldm.sampling_remainder kept goes with dldm.sampling_start below 1"):
        tiny_config(sampling_remainder="kept")


@pytest.mark.parametrize("start", [0.0, 1.5])
def test_bad_start_of_sampling_is_refused(start):
    with pytest.raises(ValueError, match="sampling_start"):
        tiny_config(sampling_start=start)


# ---------------------------------------------------------------- drawing over a first frame


def test_what_is_not_drawn_over_stays_and_what_is_erased_goes():
    flow, erase, paint = (torch.zeros(1, channels, 2, 4, 4) for channels in (2, 1, 3))
    erase[:, :, 1], paint[:, :, 1] = 1, 0.25
    frame = clip(1, frames=1, side=8)
    video = Strokes(flow, erase, paint).over(frame)
    torch.testing.assert_close(video[:, :, :1], frame, msg="at any size, every pixel")
    assert torch.equal(video[:, :, 1], torch.full((1, 3, 8, 8), 0.25)), "whatever was there"


def test_what_is_moved_takes_its_pixels_along():
    frame = clip(1, frames=1, side=8)
    flow = torch.zeros(1, 2, 3, 8, 8)
    flow[:, 0, 1], flow[:, 1, 2] = 2 / 8, -3 / 8  # from two pixels to the right; from three above
    video = warp(frame, flow)
    torch.testing.assert_close(video[:, :, 0], frame[:, :, 0])
    torch.testing.assert_close(video[:, :, 1, :, :-2], frame[:, :, 0, :, 2:])
    torch.testing.assert_close(video[:, :, 1, :, -2:], frame[:, :, 0, :, -1:].expand(-1, -1, -1, 2))  # the border
    torch.testing.assert_close(video[:, :, 2, 3:], frame[:, :, 0, :-3])
    wide = torch.randint(-4, 5, (1, 3, 1, 2, 512)).bfloat16() / 4
    assert torch.equal(warp(wide, torch.zeros(1, 2, 1, 2, 512).bfloat16()), wide), "places are kept finer than colours"


def test_training_hands_on_what_a_rollout_would_go_on_from():
    ldm, video = wake(tiny_ldm(), 3).eval(), clip(4)
    first = video[:, :, :1].flip(0)
    with torch.no_grad():
        end = ldm(video, first)[2]
    torch.testing.assert_close(end, ldm.coarse(first, ldm.encode(video))[:, :, -1:])
    dldm, prior = tiny_dldm()
    end = dldm(JointBatch(video, first), prior.vae, generator(0))[2]
    torch.testing.assert_close(end, dldm.ldm.coarse(first, dldm.ldm.encode(video))[:, :, -1:])
    assert not end.requires_grad


def test_a_share_of_drawn_frames_above_one_is_refused():
    with pytest.raises(ValueError, match="drawn_share"):
        tiny_config(drawn_share=1.5)


# ---------------------------------------------------------------- VDM output


def test_an_untrained_vdm_of_changes_copies_the_first_frame():
    prior = tiny_prior(awake=False)
    latents = tiny_latents(prior)
    noise, time = draw(*latents.shape), torch.tensor([0.4, 0.9])
    still = latents[:, :, :1].expand_as(latents)
    with torch.no_grad():
        velocity = prior.vdm(add_noise(still, noise, time), time, latents[:, :, :1])
    assert flow_loss(velocity, still, noise) < 1e-8


@pytest.mark.parametrize("steps", [1, 2, 6])
def test_sampling_ends_at_the_predicted_change(steps):
    # A VDM that always says the right change: no noise may be left over.
    prior = tiny_prior(awake=False)
    latents = tiny_latents(prior)
    first = latents[:, :, :1]
    velocity = lambda noisy, time: prior.vdm.to_velocity(latents - first, noisy, time, first)  # noqa: E731
    result = sample(velocity, draw(*latents.shape), first, steps, tiny_config().sampling_shift)
    torch.testing.assert_close(result, latents, atol=1e-4, rtol=0)


# ---------------------------------------------------------------- rendering


def test_render_is_a_function_of_frame_codes_and_noise():
    dldm, prior = tiny_dldm()
    renderer, first = DLDMRenderer(dldm, prior).eval(), clip(frames=1)
    noise = torch.cat([renderer.noise(first[:1], STEPS, generator(0, i)) for i in range(2)])
    assert noise.shape == (2, LATENT, STEPS + 1, SIDE // 8, SIDE // 8)
    assert torch.equal(noise[:1], renderer.noise(first[:1], STEPS, generator(0, 0)))
    video = renderer.render(first, indices(), noise)
    assert video.shape == (2, 3, FRAMES, SIDE, SIDE) and video.abs().max() <= 1 and not video.requires_grad
    assert torch.equal(video, renderer.render(first, indices(), noise)), "deterministic"
    for other in ((first.flip(0), indices(), noise), (first, indices(seed=1), noise), (first, indices(), -noise)):
        assert not torch.equal(video, renderer.render(*other))
    known = prior.vae.decode(prior.vae.encode(first))
    torch.testing.assert_close(video[:, :, :1], known, atol=1e-5, rtol=0)
    assert renderer.render(first, indices()[:, :1], noise[:, :, :2]).shape == (2, 3, 5, SIDE, SIDE)


def test_plain_ldm_renders_with_its_coarse_decoder():
    renderer, first = LDMRenderer(tiny_ldm()).eval(), clip(frames=1)
    noise = torch.cat([renderer.noise(first[:1], STEPS, generator(0, i)) for i in range(2)])
    video = renderer.render(first, indices(), noise)
    assert video.shape == (2, 3, FRAMES, SIDE, SIDE) and video.abs().max() <= 1
    assert torch.equal(video[:, :, :1], first), "the given first frame stays sharp"
    assert torch.equal(video[:, :, 1:], renderer.ldm.coarse(first, indices())[:, :, 1:])
    assert torch.equal(video, renderer.render(first, indices(), torch.ones(1))), "there is nothing to draw"


# ---------------------------------------------------------------- files


def same_weights(one: torch.nn.Module, two: torch.nn.Module) -> bool:
    left, right = one.state_dict(), two.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def test_ldm_files(tmp_path):
    ldm = tiny_ldm(codebook=105, levels=(7, 5, 3)).train()
    ldm(clip(), clip(frames=1))  # moves the running statistics of the quantiser, which are part of what codes mean
    save_ldm(ldm.eval(), tmp_path)
    loaded = load_ldm(tmp_path)
    assert loaded.config == ldm.config and same_weights(ldm, loaded) and not loaded.training
    assert torch.equal(loaded.encode(clip()), ldm.encode(clip()))
    assert isinstance(load_renderer(tmp_path, tmp_path / "no prior needed"), LDMRenderer)


@pytest.mark.parametrize("channels", [(), (8, 8, 8)], ids=["linear", "network"])
def test_prior_files(tmp_path, channels):
    torch.manual_seed(0)
    vdm = VDMConfig(heads=2, head_width=16, layers=1, adaln_rank=4, context=12)
    prior = type(tiny_prior())(PriorModelConfig(VAEConfig(LATENT, channels), vdm)).eval()
    prior.vae.fit([clip(4, seed=9)])
    wake(prior)
    prior.save(tmp_path / "one", {"seed": 3})
    loaded = load_prior(tmp_path / "one")
    assert loaded.config == prior.config and not loaded.training
    for name, value in prior.state_dict().items():  # kept in bfloat16
        assert torch.equal(loaded.state_dict()[name], value.to(torch.bfloat16).float()), name
    assert not any(p.requires_grad for p in loaded.vae.parameters())
    assert all(p.requires_grad for p in loaded.vdm.parameters())
    loaded.save(tmp_path / "two", {"seed": 3})
    for file in ("vae.safetensors", "transformer.safetensors", "config.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_dldm_saved_before_a_key_was_there_has_its_default():
    defaults = {"a": 1, "b": {"c": 2, "d": {"e": 3}}}
    assert laid_over(defaults, {"b": {"d": {}}}) == defaults
    assert laid_over(defaults, {"a": 5, "b": {"c": 6}}) == {"a": 5, "b": {"c": 6, "d": {"e": 3}}}


def test_dldm_files(tmp_path):
    tiny_prior().save(tmp_path / "prior", {})
    prior = load_prior(tmp_path / "prior")
    dldm = wake(DLDM(tiny_config(reconstruction="trunk"), prior), 2).eval()
    save_dldm(dldm, tmp_path / "dldm")
    one, two = DLDMRenderer(dldm, prior), load_renderer(tmp_path / "dldm", tmp_path / "prior")
    assert isinstance(two, DLDMRenderer) and two.dldm.config == dldm.config and not two.training
    assert same_weights(one, two)
    noise = draw(2, LATENT, STEPS + 1, 4, 4)
    assert torch.equal(one.render(clip(frames=1), indices(), noise), two.render(clip(frames=1), indices(), noise))
    # The joint stage has changed the VDM: it comes from the dLDM's file, the prior's own weights are not used for it.
    other = copy.deepcopy(prior)
    wake(other.vdm, 5)
    other.save(tmp_path / "other", {})
    assert same_weights(one.dldm, load_dldm(tmp_path / "dldm", tmp_path / "other").dldm)


@pytest.mark.parametrize("train", ["full", "lora"])
def test_codes_need_the_ldm_alone(tmp_path, monkeypatch, train):
    dldm, _ = tiny_dldm(vdm=AdaptConfig(train, rank=2))
    save_dldm(dldm, tmp_path / "dldm")
    save_ldm(dldm.ldm, tmp_path / "ldm")
    wanted, read = dldm.ldm.encode(clip()), []

    class Spy:
        def __init__(self, *args):
            self.file = safe_open(*args)

        def __enter__(self):
            self.file.__enter__()
            return self

        def __exit__(self, *args):
            self.file.__exit__(*args)

        def keys(self):
            return self.file.keys()

        def get_tensor(self, name):
            read.append(name)
            return self.file.get_tensor(name)

    for kind in ("dldm", "ldm"):
        codec = load_codec(tmp_path / kind)
        assert codec.config == dldm.ldm.config and same_weights(codec, dldm.ldm) and not codec.training
        assert torch.equal(codec.encode(clip()), wanted)
    monkeypatch.setattr(ldm_files, "safe_open", Spy)
    monkeypatch.setattr(ldm_files, "read_weights", lambda *args: pytest.fail("read all weights"))
    load_codec(tmp_path / "dldm")
    assert sorted(read) == sorted(f"ldm.{name}" for name in dldm.ldm.state_dict()), "no weight of the VDM is read"
    needed = {file.name for file in import_closure(Path(ldm_files.__file__), Path(ldm_files.__file__).parents[2])}
    assert not needed & {"backends.py", "dldm.py", "prior.py", "cosmos.py", "wan.py"}, "nor its code"
