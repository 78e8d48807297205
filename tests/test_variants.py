"""Variants of the dLDM: what learns, what the coarse loss may reach, clip lengths, windows, code grids, losses."""

import math
from dataclasses import replace

import pytest
import torch
from tiny_models import (
    LATENT,
    SIDE,
    causal_settings,
    clip,
    draw,
    names,
    taught,
    tiny_batch,
    tiny_config,
    tiny_dldm,
    tiny_ldm,
    tiny_prior,
    wake,
)
from torch.nn.functional import conv2d, max_pool2d, relu

from vw2.console import UserError
from vw2.models import losses
from vw2.models.adapt import AdaptConfig, adapt_vdm, start_vdm
from vw2.models.backends import BackendConfig, load_prior
from vw2.models.causal import CausalConfig
from vw2.models.control import ControlConfig
from vw2.models.dldm import DLDM, JointBatch
from vw2.models.ldm import LDM, LDMConfig
from vw2.models.ldm_files import load_ldm, save_ldm
from vw2.models.losses import L2, STAGES, WEIGHTS, VGGFeatures, reconstruction_loss, vgg_features
from vw2.models.projection import ProjectionConfig
from vw2.models.renderer import DLDMRenderer, LDMRenderer, load_dldm, save_dldm
from vw2.models.timeline import fill, stride_of, windows
from vw2.training.compute import generator
from vw2.training.fit import fit

MODES = ("random", "frozen", "lora", "full")


def adapted(train: str, awake: bool = True, **changes) -> tuple[DLDM, object]:
    """A dLDM whose VDM learns in a mode, LoRA of rank 2."""
    return tiny_dldm(awake=awake, vdm=AdaptConfig(train=train, rank=2, alpha=2.0), **changes)


def pair_batch(frames: int, batch: int = 2) -> JointBatch:
    """What the joint stage eats, for clips of T frames."""
    video = clip(batch, frames)
    return JointBatch(video, video[:, :, :1])


# ---------------------------------------------------------------- the VDM: random, frozen, lora, full


@pytest.mark.parametrize("train", MODES)
def test_each_mode_trains_exactly_what_it_promises(train):
    dldm, prior = adapted(train)
    lora = {
        f"transformer.transformer_blocks.{block}.attn{which}.{layer}.lora_{matrix}.default.weight"
        for block in range(2)
        for which in (1, 2)
        for layer in ("to_q", "to_k", "to_v", "to_out.0")
        for matrix in "AB"
    }
    promised = {"random": names(dldm.vdm), "frozen": set(), "lora": lora, "full": names(dldm.vdm)}[train]
    assert lora <= names(dldm.vdm) or train != "lora"
    before = {name: value.clone() for name, value in dldm.vdm.state_dict().items()}
    optimiser = torch.optim.AdamW([p for p in dldm.parameters() if p.requires_grad], lr=0.01)
    dldm(tiny_batch(prior), prior.vae, generator(0))[0].backward()
    optimiser.step()
    assert taught(dldm.vdm) == promised
    moved = {name for name, value in dldm.vdm.state_dict().items() if not torch.equal(before[name], value)}
    assert moved == promised, "one step moves these and nothing else"
    for part in (dldm.projection, dldm.control, dldm.ldm.decoder, dldm.ldm.encoder, dldm.ldm.query):
        assert taught(part) == names(part), "projection, control branch and LDM learn in every mode"


def test_lora_changes_nothing_at_the_start():
    given = (draw(2, LATENT, 3, 4, 4), torch.tensor([0.3, 0.8]), draw(2, LATENT, 1, 4, 4, seed=1))
    outputs = []
    for train in ("full", "lora"):
        vdm = adapted(train, awake=False)[0].vdm
        with torch.no_grad():
            outputs.append(vdm(*given, draw(2, 4, 12, seed=2)))
    assert torch.equal(*outputs)


def test_random_forgets_the_pretrained_weights_and_other_modes_do_not():
    for train in MODES:
        prior = tiny_prior(awake=False)
        before = {name: value.clone() for name, value in prior.vdm.state_dict().items()}
        start_vdm(prior, AdaptConfig(train=train))
        after = prior.vdm.state_dict()
        lost = {name for name in before if not torch.equal(before[name], after[name])}
        assert bool(lost) == (train == "random")
        assert not after["transformer.proj_out.weight"].any(), "a fresh VDM of changes also starts by copying"


def test_what_lora_learns_is_kept_in_float32():
    vdm = tiny_prior().vdm.bfloat16()
    adapt_vdm(vdm, AdaptConfig(train="lora", rank=2))
    kept = {parameter.dtype for parameter in vdm.parameters() if parameter.requires_grad}
    assert kept == {torch.float32} and vdm.patch_embed.proj.weight.dtype == torch.bfloat16
    context = draw(2, 4, 12, seed=2)
    out = vdm(draw(2, LATENT, 3, 4, 4), torch.tensor([0.3, 0.8]), draw(2, LATENT, 1, 4, 4, seed=1), context)
    out.square().mean().backward()
    gradients = [parameter.grad for name, parameter in vdm.named_parameters() if "lora_B" in name]
    assert all(each.dtype == torch.float32 and each.isfinite().all() for each in gradients)


@pytest.mark.parametrize("train", ["lora", "frozen"])
def test_adapted_files(tmp_path, train):
    tiny_prior().save(tmp_path / "prior", {})
    prior = load_prior(tmp_path / "prior")
    dldm = wake(DLDM(tiny_config(vdm=AdaptConfig(train=train, rank=2)), prior), 2).eval()
    assert not any("lora" in name for name in dldm.control.state_dict()), "the control branch is fully trained"
    save_dldm(dldm, tmp_path / "dldm")
    loaded = load_dldm(tmp_path / "dldm", tmp_path / "prior")
    assert loaded.dldm.config == dldm.config
    index, noise = torch.randint(0, 1000, (2, 2, 2), generator=generator(0)), draw(2, LATENT, 3, 4, 4)
    same = DLDMRenderer(dldm, prior).render(clip(frames=1), index, noise)
    assert torch.equal(same, loaded.render(clip(frames=1), index, noise))
    learns = lambda module: {name for name, p in module.named_parameters() if p.requires_grad}  # noqa: E731
    assert learns(loaded.dldm.vdm) == learns(dldm.vdm), "a loaded model goes on in its mode"


# ---------------------------------------------------------------- what the coarse loss may reach


def gradients(weight: float, **changes) -> dict[str, torch.Tensor]:
    dldm, prior = tiny_dldm(reconstruction_weight=weight, **changes)
    dldm(tiny_batch(prior), prior.vae, generator(0))[0].backward()
    return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in dldm.named_parameters()}


LADDER = {
    "off": set(),
    "decoder": {"ldm.decoder"},
    "trunk": {"ldm.decoder", "ldm.encoder"},
    "codes": {"ldm.decoder", "ldm.encoder", "ldm.query"},
}


@pytest.mark.parametrize("blocks", [0, 1], ids=["without control", "with control"])
@pytest.mark.parametrize("mode", LADDER)
def test_reconstruction_reaches_codes_in_the_ablation_alone(mode, blocks):
    changes = {"reconstruction": mode, "control": ControlConfig(blocks=blocks)}
    without, with_ = gradients(0.0, **changes), gradients(3.0, **changes)
    moved = {".".join(name.split(".")[:2]) for name in without if not torch.equal(without[name], with_[name])}
    assert moved == LADDER[mode]
    denoising = {name for name, g in without.items() if g.abs().max() > 0}
    assert any(name.startswith("ldm.query") for name in denoising), "denoising teaches the codes"
    assert not any(name.startswith("ldm.decoder") for name in denoising), "and nothing through the control hint"


def test_a_decoder_that_is_off_stands_still():
    dldm, _ = tiny_dldm(reconstruction="off")
    assert not any(p.requires_grad for p in dldm.ldm.decoder.parameters())
    assert all(p.requires_grad for p in dldm.ldm.encoder.parameters())


def test_off_the_connector_still_learns_all_of_its_way():
    dldm, prior = tiny_dldm(reconstruction="off", **causal_settings(connector=12))
    dldm(tiny_batch(prior), prior.vae, generator(0))[0].backward()
    assert taught(dldm.ldm.connector) == names(dldm.ldm.connector)
    assert taught(dldm.ldm.decoder) == {"from_digits.weight", "from_digits.bias"}, "by the denoising loss"
    lift = dldm.ldm.decoder.from_digits.weight.grad.clone()
    dldm.zero_grad()
    dldm.config = replace(dldm.config, denoising_weight=0.0)
    dldm(tiny_batch(prior), prior.vae, generator(0))[0].backward()
    assert lift.any() and not taught(dldm), "reconstruction teaches nothing"


def test_plain_ldm_is_the_same_model_without_vdm(tmp_path):
    dldm, _ = tiny_dldm()
    save_ldm(dldm.ldm, tmp_path)
    plain = LDMRenderer(load_ldm(tmp_path))
    assert plain.ldm.config == dldm.config.ldm and type(plain.ldm) is type(dldm.ldm) is LDM
    inner = {name.removeprefix("ldm.") for name in dldm.state_dict() if name.startswith("ldm.")}
    assert set(plain.ldm.state_dict()) == inner
    index = torch.randint(0, 1000, (2, 2, 2), generator=generator(0))
    assert torch.equal(plain.ldm.coarse(clip(frames=1), index), dldm.ldm.coarse(clip(frames=1), index))


# ---------------------------------------------------------------- contradictions


@pytest.mark.parametrize(
    "wrong, sentence",
    [
        ({"window": 92}, "dldm.window must be 1 + 4m frames, at least 5, got 92"),
        ({"window": 1}, "dldm.window must be 1 + 4m frames, at least 5, got 1"),
        ({"reconstruction_weight": -1.0}, "dldm.reconstruction_weight must be at least 0, got -1.0; raise it"),
        ({"queries": 0}, "dldm.queries must be at least 1, got 0"),
        ({"size": -16}, "dldm.size must be at least 1, got -16"),
        ({"size": (16, 0)}, "dldm.size must be at least 1, got (16, 0)"),
        ({"width": 0}, "dldm.width must be a multiple of 4, at least 4, got 0"),
        ({"query_width": 10}, "dldm.query_width must be a multiple of 4, at least 4, got 10"),
        ({"history_width": 10}, "dldm.history_width must be a multiple of 4, at least 4, got 10"),
        ({"query_layers": 0}, "dldm.query_layers must be at least 1, got 0"),
        ({"max_steps": 0}, "dldm.max_steps must be at least 1, got 0"),
        ({"sampling_shift": 0.0}, "dldm.sampling_start must lie in (0, 1] and dldm.sampling_shift be above 0, got 1.0"),
        ({"sampling_shift": -1.0}, "dldm.sampling_start must lie in (0, 1] and dldm.sampling_shift be above 0"),
        ({"sampling_steps": 0}, "dldm.sampling_steps must be at least 1, got 0"),
        ({"first_noise": -1.0}, "dldm.first_noise must be at least 0, got -1.0"),
        ({"motion_weight": -3.0}, "dldm.motion_weight must be at least 0, got -3.0"),
        ({"pixel_motion_weight": -3.0}, "dldm.pixel_motion_weight must be at least 0, got -3.0"),
        ({"vgg_file": "x.pth"}, "dldm.vgg_file is set but dldm.reconstruction_loss is l2; set the loss to l1_vgg"),
        ({"reconstruction_loss": "l1_vgg", "size": 8}, "dldm.reconstruction_loss l1_vgg needs dldm.size 16, got 8"),
    ],
)
def test_contradictions_end_in_a_sentence(wrong, sentence):
    with pytest.raises(ValueError) as error:
        tiny_config(**wrong)
    assert str(error.value).startswith(sentence) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "cls, wrong, sentence",
    [
        (ProjectionConfig, {"width": 10}, "dldm.projection.width must be a multiple of 4, at least 4, got 10"),
        (ProjectionConfig, {"width": 0}, "dldm.projection.width must be a multiple of 4, at least 4, got 0"),
        (ProjectionConfig, {"layers": -1}, "dldm.projection.layers must be at least 0, got -1"),
        (CausalConfig, {"channels": 0}, "dldm.causal.channels must be at least 1, got 0"),
        (CausalConfig, {"multipliers": (2, -4, 4)}, r"dldm.causal.multipliers must be at least 1, got \(2, -4, 4\)"),
        (CausalConfig, {"blocks": 0}, "dldm.causal.blocks must be at least 1, got 0"),
        (CausalConfig, {"z_channels": 0}, "dldm.causal.z_channels must be at least 1, got 0"),
        (CausalConfig, {"query_heads": 0}, "dldm.causal.query_heads must be at least 1, got 0"),
        (CausalConfig, {"connector": -1}, "dldm.causal.connector must be at least 0, got -1"),
    ],
)
def test_sizes_of_parts_that_cannot_be(cls, wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        cls(**wrong)


def test_a_rank_of_zero_is_refused():
    with pytest.raises(ValueError, match="dldm.vdm.rank must be at least 1"):
        AdaptConfig(rank=0)


def test_stride_is_derived_and_checked():
    found = {frames: stride_of(None, frames, 64) for frames in (2, 5, 9, 49, 93, 177)}
    assert found == {2: 1, 5: 4, 9: 4, 49: 4, 93: 4, 177: 4}
    with pytest.raises(UserError, match="clips of 2 frames have 1 frames a step but dldm.stride is 4; leave it null"):
        fit(tiny_config(stride=4), 2)
    for frames in (0, 1, 3, 10):
        with pytest.raises(UserError, match=f"clips must have 2 frames or 1 .* 5, got {frames}; change clip.frames"):
            fit(tiny_config(), frames)
    with pytest.raises(UserError, match="clips of 177 frames have 44 steps but dldm.max_steps is 4; raise it"):
        fit(tiny_config(), 177)
    with pytest.raises(UserError, match="draws 22 steps at once but dldm.projection.max_steps is 4; raise it or lower"):
        fit(tiny_config(max_steps=64), 177)
    full = {"self_attention": "full", "cross_attention": "full", "max_steps": 64}
    told = tiny_config(**full, backend=BackendConfig("cosmos", "folder", tokens=3))
    with pytest.raises(UserError, match="told 2 steps of 2 codes at once but dldm.backend.tokens is 3; raise it"):
        fit(told, 9)
    assert fit(replace(told, backend=replace(told.backend, tokens=4)), 9)
    assert fit(tiny_config(), 2).ldm.stride == 1 and fit(tiny_config(stride=4), 9) == tiny_config(stride=4)


# ---------------------------------------------------------------- clip lengths and windows


def test_the_second_of_two_frames_fills_its_block():
    video = clip(frames=2)
    filled = fill(video)
    assert filled.shape[2] == 5 and torch.equal(filled[:, :, :2], video)
    assert all(torch.equal(filled[:, :, t], video[:, :, 1]) for t in range(1, 5))
    assert all(torch.equal(fill(each), each) for each in (clip(frames=1), clip(frames=9)))


def test_windows_share_their_borders():
    (whole,) = windows(23, 93, 4)
    assert (whole.steps, whole.frames) == (slice(0, 23), slice(0, 93))
    assert whole.noise == slice(0, 24)
    one, two = windows(44, 93, 4)  # T = 177
    assert (one.steps, two.steps) == (slice(0, 22), slice(22, 44))
    assert (one.frames, two.frames) == (slice(0, 89), slice(88, 177)), "a window begins where the last one ends"
    assert (one.noise, two.noise) == (slice(0, 23), slice(22, 45))
    assert [w.end - w.begin for w in windows(5, 9, 4)] == [2, 2, 1]
    assert [w.frames for w in windows(1, 93, 1)] == [slice(0, 2)]
    for steps in range(1, 50):
        parts = windows(steps, 21, 4)
        assert [w.begin for w in parts[1:]] == [w.end for w in parts[:-1]] and parts[-1].end == steps
        assert len(parts) == math.ceil(steps / 5) and max(w.frames.stop - w.frames.start for w in parts) <= 21


PARTS = {"frames": {}, "causal": causal_settings(connector=0), "connector": causal_settings(connector=12)}


@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
@pytest.mark.parametrize("frames, steps, drawn", [(2, 1, 1), (9, 2, 1), (49, 12, 1), (93, 23, 1), (177, 44, 2)])
def test_every_clip_length_of_the_paper_runs(frames, steps, drawn, parts):
    config = fit(tiny_config(max_steps=64, projection=ProjectionConfig(width=16, max_steps=23), **parts), frames)
    prior = tiny_prior()
    dldm, batch = wake(DLDM(config, prior), 2), pair_batch(frames)
    assert len(dldm.windows(steps)) == drawn
    warm = dldm.ldm.train()(batch.video, batch.first)[0]
    warm.backward()
    connector = {name for name in names(dldm.ldm) if name.startswith("connector")}
    assert warm.isfinite() and taught(dldm.ldm) == names(dldm.ldm) - connector, "warm-up"
    loss, _, _ = dldm(batch, prior.vae, generator(0))
    loss.backward()
    assert loss.isfinite() and taught(dldm.ldm) == names(dldm.ldm), "joint"
    video, renderer = clip(frames=frames), DLDMRenderer(dldm, prior).eval()
    index = dldm.ldm.encode(video)
    assert index.shape == (2, steps, 2), "extraction"
    noise = torch.cat([renderer.noise(video[:1, :, :1], steps, generator(0, i)) for i in range(2)])
    rendered = renderer.render(video[:, :, :1], index, noise)
    assert rendered.shape == video.shape and rendered.abs().max() <= 1, "rendering"
    assert LDMRenderer(dldm.ldm).render(video[:, :, :1], index, noise).shape == video.shape, "plain LDM"


def test_long_clips_are_drawn_window_by_window(monkeypatch):
    dldm, prior = tiny_dldm(window=5, sampling_start=0.5)
    first, index, noise = clip(frames=1), torch.zeros(2, 3, 2, dtype=torch.long), draw(2, LATENT, 4, 4, 4)
    index[:, 1] = 7
    seen, coarse, velocity = [], dldm.ldm.coarse, dldm.velocity_told
    monkeypatch.setattr(dldm.ldm, "coarse", lambda *given: seen.append("coarse") or coarse(*given))
    record = lambda *given: seen.append(tuple(given[0].shape[2:])) or velocity(*given)  # noqa: E731
    monkeypatch.setattr(dldm, "velocity_told", record)
    video = dldm.render(prior.vae, first, index, noise)
    assert video.shape == (2, 3, 13, SIDE, SIDE)
    assert seen == ["coarse"] + 3 * 2 * [(2, 4, 4)], "three windows of two sampling steps, the coarse video drawn once"
    monkeypatch.undo()
    again = dldm.render_window(
        prior.vae,
        video[:, :, 4:5],
        dldm.ldm.fsq.to_codes(index[:, 1:2]),
        dldm.ldm.coarse(first, index)[:, :, 4:9],
        noise[:, :, 1:3],
    )
    assert torch.equal(video[:, :, 5:9], again[:, :, 1:]), "a window starts from the last frame drawn"
    other = index.clone()
    other[:, 2] = 999
    assert torch.equal(dldm.render(prior.vae, first, other, noise)[:, :, :9], video[:, :, :9]), "causal across windows"


def test_training_takes_one_window_at_random(monkeypatch):
    dldm, prior = tiny_dldm(window=5)
    batch, seen, velocity = pair_batch(9), [], dldm.velocity
    monkeypatch.setattr(dldm, "velocity", lambda *given: seen.append(given) or velocity(*given))
    first, second = (prior.vae.encode(batch.video[:, :, frames]) for frames in (slice(0, 5), slice(4, 9)))
    for seed in range(8):
        dldm(batch, prior.vae, generator(seed))
    assert all(given[0].shape[2] == 2 and given[3].shape[1] == 1 for given in seen)
    codes = dldm.ldm.quantise(dldm.ldm.features(dldm.ldm.shrink(batch.video)))[0]
    picked = [next(k for k in range(2) if torch.equal(given[3], codes[:, k : k + 1])) for given in seen]
    assert set(picked) == {0, 1}, "now the first, now the second"
    dldm, prior = tiny_dldm(window=5, first_noise=0.0)
    monkeypatch.setattr(dldm, "velocity", lambda *given: seen.append(given) or given[0])
    for seed, k in enumerate(picked):
        dldm(batch, prior.vae, generator(seed))
        torch.testing.assert_close(seen[-1][2], (first, second)[k][:, :, :1])


# ---------------------------------------------------------------- grids of the ablations


@pytest.mark.parametrize(
    "queries, codebook", [(1, 1000), (2, 1000), (4, 1000), (8, 1000), (4, 8), (4, 4096), (4, 64000), (1, 8)]
)
def test_grid_of_queries_and_codebooks(queries, codebook):
    dldm, prior = tiny_dldm(queries=queries, codebook=codebook)
    dldm.train()
    dldm.ldm.spread.eval()  # as the joint stage does; batch statistics would cancel the bias in front of them
    loss, _, _ = dldm(tiny_batch(prior), prior.vae, generator(0))
    loss.backward()
    assert loss.isfinite() and taught(dldm.ldm.query) == names(dldm.ldm.query)
    index = dldm.eval().ldm.encode(clip())
    assert index.shape == (2, 2, queries) and 0 <= index.min() and index.max() < codebook
    assert torch.equal(dldm.ldm.fsq.to_index(dldm.ldm.fsq.to_codes(index)), index)
    assert dldm.render(prior.vae, clip(frames=1), index, draw(2, LATENT, 3, 4, 4)).shape == clip().shape


# ---------------------------------------------------------------- reconstruction losses


def test_l2_in_closed_form():
    video = torch.zeros(1, 3, 2, 2, 2)
    assert L2(0.0)(video + 0.5, video) == 0.25
    video[:, :, 1, 0, 0] = 1.0  # one of the four pixels of frame 1 moves by 1: weights 1 and 5, mean 2
    missed = torch.zeros_like(video)
    assert L2(4.0)(missed, video).item() == pytest.approx((5 / 2) / 8)
    assert L2(0.0)(missed, video).item() == pytest.approx(1 / 8)


@pytest.fixture(scope="module")
def vgg_file(tmp_path_factory):
    """A VGG16 of random weights, saved as torchvision saves its own."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("vgg") / "vgg16.pth"
    extra = {"classifier.6.bias": torch.zeros(1000)}
    torch.save(VGGFeatures().state_dict() | extra, path)
    return path


def test_l1_vgg_is_the_formula_of_the_release(vgg_file):
    weights = torch.load(vgg_file, weights_only=True)

    def features(frame):
        """VGG16 written out: convolutions at these numbers, pooling where the numbers jump by 3."""
        x, found = (frame - torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1)), []
        x = x / torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1)
        for number in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28):
            if number in (5, 10, 17, 24):
                x = max_pool2d(x, 2)
            x = relu(conv2d(x, weights[f"features.{number}.weight"], weights[f"features.{number}.bias"], padding=1))
            if number + 1 in STAGES:
                found.append(x)
        return found

    video, coarse = clip(1, 2, 16), clip(1, 2, 16, seed=1).requires_grad_()
    loss = reconstruction_loss("l1_vgg", 0.0, 0.1, str(vgg_file))
    flat = lambda x: x.detach().transpose(1, 2).flatten(0, 1)  # noqa: E731
    pairs = zip(
        (1 / 2.6, 1 / 4.8, 1 / 3.7, 1 / 5.6, 10 / 1.5), features(flat(coarse)), features(flat(video)), strict=True
    )
    expected = (coarse - video).abs().mean() + 0.1 * sum(w * (a - b).abs().mean() for w, a, b in pairs)
    found = loss(coarse, video)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5) and len(WEIGHTS) == 5
    assert loss(video, video) == 0
    found.backward()
    assert coarse.grad.abs().max() > 0 and not any(p.requires_grad for p in vgg_features(str(vgg_file)).parameters())


def test_ldm_learns_with_l1_vgg_and_keeps_the_vgg_out_of_its_files(vgg_file, tmp_path):
    ldm = tiny_ldm(reconstruction_loss="l1_vgg", vgg_file=str(vgg_file)).train()
    loss, *_ = ldm(clip(), clip(frames=1))
    loss.backward()
    assert taught(ldm) == names(ldm) and not any("vgg" in name for name in ldm.state_dict())
    save_ldm(ldm.eval(), tmp_path)
    assert load_ldm(tmp_path).config == ldm.config
    dldm, prior = tiny_dldm(reconstruction_loss="l1_vgg", vgg_file=str(vgg_file))
    other, _ = tiny_dldm()
    recon = [each(tiny_batch(prior), prior.vae, generator(0))[1]["train/recon"] for each in (dldm, other)]
    assert recon[0] != recon[1], "the joint stage has the same loss"


def test_missing_or_wrong_vgg_weights_end_in_a_sentence(vgg_file, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    vgg_features.cache_clear()
    config = {"reconstruction_loss": "l1_vgg"}
    with pytest.raises(UserError, match="expected torchvision's VGG16 weights .* does not exist; put the file there"):
        fit(LDMConfig(**config), 9)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / losses.FILE).write_bytes(b"half a download")
    with pytest.raises(UserError, match="has another checksum"):
        fit(LDMConfig(**config), 9)
    other = tmp_path / "other.pth"
    torch.save({"features.0.weight": torch.zeros(1)}, other)
    with pytest.raises(UserError, match="holds something else") as error:
        fit(LDMConfig(**config, vgg_file=str(other)), 9)
    assert "\n" not in str(error.value)
    LDM(LDMConfig(**config))  # a model that is not trained needs no VGG
