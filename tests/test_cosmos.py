"""The VDM on Cosmos and the Wan VAE: parity with the authors' DiT, true size, causality, loading, the port."""

import dataclasses
import json
import math

import vw2.torchvision_ops  # noqa: F401  (must come before diffusers)

import pytest
import torch
from diffusers import AutoencoderKLWan, CosmosTransformer3DModel
from release_dit import (
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
from tiny_models import clip, draw, tiny_prior, wake

from vw2.interop.keys_dit import Parts, buffers, to_release
from vw2.models.attention import Layout
from vw2.models.cosmos import FIRST_TIME, CosmosConfig, CosmosVDM
from vw2.models.hub import read
from vw2.models.prior import VDMConfig
from vw2.models.wan_vae import WanVAE

DIT, DIT_KEYS = 1_956_413_440, 574


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def tiny_vdm(**changes) -> CosmosVDM:
    torch.manual_seed(0)
    return wake(CosmosVDM(CosmosConfig(latent=6, layers=3, **TINY | changes))).eval()


def given(frames: int = 3) -> dict[str, torch.Tensor]:
    return {
        "noisy": draw(2, 6, frames, 4, 6, seed=1),
        "time": torch.tensor([0.3, 0.9]),
        "first": draw(2, 6, 1, 4, 6, seed=2),
        "context": draw(2, 4 * (frames - 1), 32, seed=3),
    }


# ---------------------------------------------------------------- parity with the authors' code


@needs_whole
def test_dit_and_its_parts():
    io, vdm = recorded(), release_networks()[0]
    hidden, run = vdm.begin(*inputs())
    close(hidden, io["x_embedded"].flatten(1, 3))
    close(run(vdm.blocks[0], hidden), io["block0_out"].flatten(1, 3))
    raw = vdm.time_embed.time_proj(io["timesteps"][0])
    temb, normed = vdm.time_embed(hidden, io["timesteps"][0])
    close(raw, io["t_emb_raw"][0])
    close(normed, io["t_emb_normed"][0])
    close(temb, io["adaln_lora_B_T_3D"][0])
    close(vdm(*inputs()), io["dit_out_no_ctrl"])
    assert FIRST_TIME == pytest.approx(io["timesteps"][0, 0].item(), rel=1e-6)


def test_rotary_angles():
    vdm, io = CosmosVDM(CosmosConfig(layers=1, **TINY)), recorded()
    vdm.layout.frames = 3
    for mine, wave in zip(vdm.transformer.rope(io["x"], fps=None), (torch.cos, torch.sin), strict=True):
        close(mine, wave(io["rope_emb_L_1_1_D"][:, 0, 0]), 1e-5)


@needs_whole
def test_the_causal_cross_attention_that_the_release_never_uses():
    out = release_networks("release-causal")[0](*inputs())
    close(out, recorded()["dit_out_causal_cross_no_ctrl"])
    assert (out - recorded()["dit_out_no_ctrl"]).abs().max() > 1e-2


@needs_whole
def test_fewer_codes_are_filled_up_with_zero_tokens():
    vdm, (noisy, time, first, context) = release_networks()[0], inputs()
    filled = torch.cat([context[:, :92], torch.zeros_like(context[:, 92:])], dim=1)
    close(vdm(noisy, time, first, context[:, :92]), vdm(noisy, time, first, filled), 0)
    close(vdm(noisy, time, first), vdm(noisy, time, first, torch.zeros_like(context)), 0)
    with pytest.raises(AssertionError, match="at most 512 context tokens, got 513"):
        vdm(noisy, time, first, draw(1, 513, 32))


def test_small_queries_and_keys_are_divided_by_the_releases_norm():
    """RMSNorm of Transformer Engine with eps 1e-6; diffusers' blocks have 1e-5, with which the mini was trained."""
    for config, eps in ((CosmosConfig(layers=1, **TINY), 1e-6), (VDMConfig().cosmos(4), 1e-5)):
        with torch.device("meta"):
            vdm = CosmosVDM(config)
        norms = [norm for block in vdm.blocks for a in (block.attn1, block.attn2) for norm in (a.norm_q, a.norm_k)]
        assert norms and all(norm.eps == eps for norm in norms)
    norm = CosmosVDM(CosmosConfig(layers=1, **TINY)).blocks[0].attn2.norm_k
    x = torch.full((1, 12), 1e-3)
    torch.testing.assert_close(norm(x), x / (1e-6 + 1e-6) ** 0.5)


def test_frames_per_second_stretch_the_rotary_time():
    """At 12 per second frames lie twice as far apart as at 24, which is how far they lie where nothing is said."""
    told = {fps: tiny_vdm(fps=fps).transformer.rope(draw(1, 6, 3, 4, 6), fps=fps)[0] for fps in (None, 12.0, 24.0)}
    assert torch.equal(told[None], told[24.0])
    half = tiny_vdm(rope_scale=(1.0, 1.0, 1.0)).transformer.rope(draw(1, 6, 5, 4, 6), fps=None)[0]
    assert torch.equal(told[12.0].unflatten(0, (3, 6))[:, 0, :2], half.unflatten(0, (5, 6))[::2, 0, :2])
    assert not torch.equal(tiny_vdm(fps=12.0)(**given()), tiny_vdm()(**given()))


@pytest.mark.parametrize("patch", [1, 4])
def test_other_patches(patch):
    vdm = tiny_vdm(patch=patch)
    noisy, first = draw(2, 6, 3, 4, 8, seed=1), draw(2, 6, 1, 4, 8, seed=2)
    hidden, _ = vdm.begin(noisy, torch.tensor([0.3, 0.9]), first)
    assert hidden.shape == (2, 3 * (4 // patch) * (8 // patch), vdm.width)
    assert vdm(noisy, torch.tensor([0.3, 0.9]), first).shape == noisy.shape
    assert CosmosVDM.around(vdm.transformer).patch == patch


# ---------------------------------------------------------------- true size and names


@needs_shapes
def test_true_size_and_all_names():
    with torch.device("meta"):
        vdm = CosmosVDM(CosmosConfig())
    assert sum(p.numel() for p in vdm.parameters()) == DIT
    listed = json.loads(SHAPES.read_text())["dit (prefix 'net.')"]
    rest = {f"net.{key}": value for key, value in buffers(128).items()}
    out = to_release(Parts(vdm.state_dict(), {}, rest))
    assert len(out) == DIT_KEYS
    theirs = {f"net.{key}": (tuple(shape), kind) for key, (shape, kind) in listed.items()}
    assert {key: (tuple(v.shape), str(v.dtype).split(".")[1]) for key, v in out.items()} == theirs


@needs_whole
def test_buffers_follow_from_the_sizes():
    for key, value in buffers(12).items():
        theirs = checkpoint()[f"net.{key}"]
        assert torch.equal(value, theirs) and value.dtype == theirs.dtype


# ---------------------------------------------------------------- the port


@pytest.mark.parametrize("attention, tokens", [("full", 16), ("causal", 0), ("full", 0), ("release-causal", 16)])
def test_begin_and_blocks_are_the_forward_pass(attention, tokens):
    vdm, seen = tiny_vdm(attention=attention, tokens=tokens), []
    handle = vdm.blocks[-1].register_forward_hook(lambda module, args, out: seen.append(out))
    vdm(**given())
    hidden, run = vdm.begin(**given())
    assert hidden.shape == (2, 3 * 2 * 3, vdm.width)
    for block in vdm.blocks:
        hidden = run(block, hidden)
    handle.remove()
    assert torch.equal(hidden, seen[0])


@pytest.mark.parametrize("vdm", [tiny_vdm(), tiny_prior().vdm], ids=["release", "mini"])
def test_what_the_port_promises(vdm):
    assert isinstance(vdm, CosmosVDM) and isinstance(vdm.layout, Layout)
    assert vdm.latent == 6 and vdm.patch == 2 and len(vdm.blocks) == len(vdm.transformer.transformer_blocks)
    assert vdm.context == vdm.blocks[0].attn2.to_k.in_features and vdm.width == vdm.patch_embed.proj.out_features


def test_control_residuals_are_added_after_the_first_blocks():
    vdm, residual = tiny_vdm(), draw(2, 18, 48, seed=5)
    hidden, run = vdm.begin(**given())
    seen = []
    handle = vdm.blocks[1].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    out = vdm(**given(), control=[residual])
    handle.remove()
    assert torch.equal(seen[0], run(vdm.blocks[0], hidden) + residual)
    assert torch.equal(vdm(**given(), control=[0 * residual]), vdm(**given())) and not torch.equal(out, vdm(**given()))


def test_times_per_latent_frame():
    vdm, old = tiny_vdm(), given()
    same = old["time"][:, None].expand(-1, 3)
    assert torch.equal(vdm(**old), vdm(**old | {"time": same}))
    other = same.clone()
    other[:, 0] = 0.123  # the given first frame has its own
    assert torch.equal(vdm(**old), vdm(**old | {"time": other}))
    other[:, 2] = 0.123
    assert not torch.equal(vdm(**old), vdm(**old | {"time": other}))


@pytest.mark.parametrize("prediction", ["velocity", "change"])
@pytest.mark.parametrize("what", ["noisy", "context"])
@pytest.mark.parametrize("frame", [1, 2])
def test_causality(what, frame, prediction):
    old = given()
    start, dim = (frame, 2) if what == "noisy" else (4 * (frame - 1), 1)
    later = old[what].clone()
    later.narrow(dim, start, later.shape[dim] - start).add_(1)
    new = old | {what: later}
    causal, full = tiny_vdm(attention="causal", tokens=0, prediction=prediction), tiny_vdm()
    before, now = causal(**old), causal(**new)
    assert torch.equal(before[:, :, :frame], now[:, :, :frame]) and not torch.equal(
        before[:, :, frame], now[:, :, frame]
    )
    assert not torch.equal(full(**old)[:, :, :frame], full(**new)[:, :, :frame]), "the release's masks are off"


def test_the_noisy_first_frame_is_not_looked_at():
    vdm, old = tiny_vdm(), given()
    noisy = old["noisy"].clone()
    noisy[:, :, 0] += 1
    assert torch.equal(vdm(**old), vdm(**old | {"noisy": noisy}))


def test_causal_attention_wants_a_learned_token():
    with pytest.raises(ValueError, match="tokens is 512; set it to 0"):
        CosmosConfig(attention="causal")


def test_weights_from_a_folder(tmp_path):
    vdm = tiny_vdm()
    vdm.transformer.save_pretrained(tmp_path / "transformer")

    def load(folder, **options):
        net = read(CosmosTransformer3DModel, folder / "transformer", controlnet_block_every_n=1)
        return CosmosVDM.around(net, **options)

    again = load(tmp_path)
    assert dataclasses.replace(vdm.config, max_size=again.config.max_size) == again.config
    assert torch.equal(again.eval()(**given()), vdm(**given()))
    narrow = CosmosVDM(dataclasses.replace(vdm.config, mlp_ratio=2.0))
    narrow.transformer.save_pretrained(tmp_path / "narrow" / "transformer")
    found = load(tmp_path / "narrow")
    assert found.config.mlp_ratio == 2.0 and found.blocks[0].ff.net[2].in_features == 2 * found.width
    causal = load(tmp_path, tokens=0, attention="causal")
    assert causal.config.attention == "causal" and causal.null.shape == (1, 1, 32)


# ---------------------------------------------------------------- the VAE of Wan 2.1


def tiny_vae() -> WanVAE:
    torch.manual_seed(0)
    mean, std = [0.1 * i for i in range(16)], [1 + 0.1 * i for i in range(16)]
    net = AutoencoderKLWan(base_dim=4, num_res_blocks=1, dim_mult=[1, 1, 1, 1], latents_mean=mean, latents_std=std)
    return WanVAE(wake(net)).eval()


def test_vae_shapes_and_normalisation():
    vae, video = tiny_vae(), clip(1)
    assert (vae.latent, vae.side) == (16, 8)
    latents = vae.encode(video)
    assert latents.shape == (1, 16, 3, 4, 4)
    raw = vae.net.encode(video).latent_dist.mode()
    for channel in (0, 7, 15):
        close(latents[:, channel], (raw[:, channel] - 0.1 * channel) / (1 + 0.1 * channel), 1e-5)
    assert torch.equal(vae.decode(latents), vae.net.decode(latents * vae.std + vae.mean).sample.clamp(-1, 1))
    assert vae.decode(100 * latents).abs().max() <= 1 and vae.decode(latents).shape == video.shape
    with pytest.raises(AssertionError, match=r"expected T = 1 \+ 4m frames, got 8"):
        vae.encode(clip(1, 8))


@pytest.mark.parametrize("frame", [1, 5])
def test_vae_is_causal(frame):
    vae, video = tiny_vae(), clip(1)
    later = video.clone()
    later[:, :, frame:] *= -1
    before, now = vae.encode(video), vae.encode(later)
    same = math.ceil(frame / 4)
    assert torch.equal(before[:, :, :same], now[:, :, :same]) and not torch.equal(before[:, :, same], now[:, :, same])


def test_vae_at_true_size():
    with torch.device("meta"):
        net = AutoencoderKLWan()
    assert sum(p.numel() for p in net.parameters()) == 126_892_531
