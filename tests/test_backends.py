"""One suite for every back end of the VDM port, at tiny random size, saved as folders and loaded as real weights."""

import copy
import dataclasses
import shutil
from inspect import signature
from typing import get_args, get_type_hints

import vw2.torchvision_ops  # noqa: F401

import pytest
import torch
from diffusers import CosmosTransformer3DModel, WanTransformer3DModel
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.transformer_cosmos import CosmosAttnProcessor2_0, CosmosRotaryPosEmbed
from diffusers.models.transformers.transformer_wan import WanAttention, WanAttnProcessor, WanRotaryPosEmbed
from safetensors.torch import load_file, save_file
from tiny_models import clip, copy_blocks, draw, names, taught, tiny_config, wake

from vw2.console import UserError
from vw2.models import backends, hub, spread
from vw2.models.adapt import AdaptConfig, adapt_vdm, start_vdm
from vw2.models.attention import ATTENTION, BlockCausalProcessor, KVCache, Layout
from vw2.models.backends import (
    BACKENDS,
    BackendConfig,
    check_size,
    load_backend,
    random_cosmos,
    random_mini,
    random_wan,
    sketch,
    vae_alone,
)
from vw2.models.begin import check_precision
from vw2.models.control import ControlConfig
from vw2.models.cosmos import CosmosConfig, CosmosVDM
from vw2.models.dldm import DLDM, JointBatch
from vw2.models.flow import sample
from vw2.models.port import VDM, VideoVAE
from vw2.models.prior import PriorModelConfig, VAEConfig, VDMConfig
from vw2.models.renderer import DLDMRenderer, load_dldm, save_dldm
from vw2.models.wan import WanBlockCausalProcessor, WanVDM
from vw2.training.compute import generator

FRAMES, LATENTS, STEPS, CODES = 9, 3, 2, 2  # T, L, K, N
HEIGHT, WIDTH = 32, 64  # pixels
KINDS = tuple(BACKENDS)
PUBLISHED = ("cosmos", "wan")
VAE = {"base_dim": 4, "num_res_blocks": 1, "dim_mult": [1, 1, 1, 1]}
COSMOS = CosmosConfig(
    latent=4, heads=2, head_width=16, layers=2, adaln_rank=4, context=12, max_size=(8, 16, 16), padding_mask=True
)
WAN = {
    "in_channels": 6,
    "out_channels": 6,
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "num_layers": 2,
    "ffn_dim": 16,
    "text_dim": 10,
    "freq_dim": 8,
    "rope_max_seq_len": 16,
}


def scales(latent: int) -> dict:
    """Mean and standard deviation of latent channels that leave their mark."""
    return {"latents_mean": [0.1 * i for i in range(latent)], "latents_std": [0.5 + 0.1 * i for i in range(latent)]}


def tiny(kind: str):
    """A back end of a few thousand weights, all awake, as `load_backend` should give it back."""
    torch.manual_seed(0)
    if kind == "mini":
        vdm = VDMConfig(heads=2, head_width=16, layers=2, adaln_rank=4, context=12)
        prior = random_mini(PriorModelConfig(VAEConfig(latent=6), vdm))
        prior.vae.fit([clip(4, seed=9)])
        wake(prior.vdm)
        for tensor in prior.state_dict().values():
            tensor.copy_(tensor.bfloat16())  # as the mini prior is kept
        return prior.eval()
    if kind == "cosmos":
        causal = dataclasses.replace(COSMOS, tokens=0, attention="causal")
        pair = random_cosmos(causal, VAE | {"z_dim": 4} | scales(4))
    else:
        pair = random_wan(WAN, VAE | {"z_dim": 6, "decoder_base_dim": 4} | scales(6))
    wake(pair.vae)
    wake(pair.vdm.transformer)
    return pair.eval()


def save(pair, kind: str, folder):
    """Write it as its makers do; the config that loads it."""
    if kind == "mini":
        pair.save(folder, {})
        return BackendConfig()
    pair.vae.net.save_pretrained(folder / "vae")
    pair.vdm.transformer.save_pretrained(folder / "transformer")
    return BackendConfig(kind=kind, weights=str(folder))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """kind -> (config, folder) of saved back ends."""
    made = {}
    for kind in KINDS:
        folder = tmp_path_factory.mktemp(kind)
        made[kind] = save(tiny(kind), kind, folder), folder
    return made


@pytest.fixture(scope="module", params=KINDS)
def pair(request, folders):
    return load_backend(*folders[request.param])


def video(batch: int = 2, frames: int = FRAMES, seed: int = 0) -> torch.Tensor:
    return torch.rand(batch, 3, frames, HEIGHT, WIDTH, generator=generator(seed)) * 2 - 1


def state(pair, batch: int = 2) -> dict:
    """Inputs of the VDM."""
    vae, vdm = pair.vae, pair.vdm
    height, width = HEIGHT // vae.side, WIDTH // vae.side
    return {
        "noisy": draw(batch, vae.latent, LATENTS, height, width),
        "time": torch.linspace(0.3, 0.8, batch),
        "first": draw(batch, vae.latent, 1, height, width, seed=1),
        "context": draw(batch, STEPS * CODES, vdm.context, seed=2),
    }


def tokens(pair) -> int:
    """L P."""
    return LATENTS * HEIGHT * WIDTH // (pair.vae.side * pair.vdm.patch) ** 2


def residual(pair, seed: int) -> torch.Tensor:
    return draw(2, tokens(pair), pair.vdm.width, seed=seed)


# ---------------------------------------------------------------- the port


def test_fits_the_port(pair):
    assert isinstance(pair.vae, VideoVAE) and isinstance(pair.vdm, VDM)
    assert pair.vae.latent == pair.vdm.latent
    assert not pair.vae.training and not pair.vdm.training
    assert not any(p.requires_grad for p in pair.vae.parameters())
    assert all(p.requires_grad for p in pair.vdm.parameters())
    named = lambda kind, name: list(signature(getattr(kind, name)).parameters)  # noqa: E731  no part of isinstance
    for asked, given in (("begin", "begin"), ("__call__", "forward"), ("fresh", "fresh"), ("last", "last")):
        assert named(VDM, asked) == named(type(pair.vdm), given), asked


def test_save_and_load_give_the_same_model(folders):
    for kind in KINDS:
        made, loaded = tiny(kind), load_backend(*folders[kind])
        known = state(made)
        assert torch.equal(made.vae.encode(video()), loaded.vae.encode(video())), kind
        with torch.no_grad():
            assert torch.equal(made.vdm(**known), loaded.vdm(**known)), kind


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "mini"])
def test_a_folder_is_known_before_its_weights_are_read(kind, folders):
    config, folder = folders[kind]
    known, loaded = sketch(config, folder), load_backend(config, folder)
    sizes = lambda pair: {name: p.shape for name, p in pair.state_dict().items()}  # noqa: E731
    assert sizes(known) == sizes(loaded) and known.vdm.most == loaded.vdm.most
    assert {p.device.type for p in known.parameters()} == {"meta"}
    with pytest.raises(UserError, match="multiples of"):
        check_size(known, 2, 2)
    other = {"cosmos": "wan", "wan": "cosmos"}[kind]
    with pytest.raises(UserError, match="expected the"):
        sketch(dataclasses.replace(config, weights=str(folders[other][1])), folder)


# ---------------------------------------------------------------- VAE


@torch.no_grad()
def test_vae_shapes_and_range(pair):
    vae = pair.vae
    latents = vae.encode(video())
    assert latents.shape == (2, vae.latent, LATENTS, HEIGHT // vae.side, WIDTH // vae.side)
    back = vae.decode(30 * latents)
    assert back.shape == (2, 3, FRAMES, HEIGHT, WIDTH) and back.abs().max() <= 1
    assert latents.isfinite().all() and latents.std() > 1e-3


@torch.no_grad()
def test_vae_first_frame_alone(pair):
    latents = pair.vae.encode(video())
    torch.testing.assert_close(pair.vae.encode(video()[:, :, :1]), latents[:, :, :1], atol=1e-5, rtol=1e-5)
    decoded = pair.vae.decode(latents)
    torch.testing.assert_close(pair.vae.decode(latents[:, :, :1]), decoded[:, :, :1], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_vae_is_causal_in_time(pair):
    """Bit for bit: latent frame l is frames 4 l - 3 to 4 l."""
    clean, other = video(), video()
    other[:, :, 5:] = video(seed=3)[:, :, 5:]
    one, two = pair.vae.encode(clean), pair.vae.encode(other)
    assert torch.equal(one[:, :, :2], two[:, :, :2]) and not torch.equal(one[:, :, 2], two[:, :, 2])
    changed = one.clone()
    changed[:, :, 2] += 1
    one, two = pair.vae.decode(one), pair.vae.decode(changed)
    assert torch.equal(one[:, :, :5], two[:, :, :5]) and not torch.equal(one[:, :, 5:], two[:, :, 5:])


def test_latents_of_wan_are_normalised(folders):
    """Mean and standard deviation of each channel come from the model's config."""
    vae = load_backend(*folders["wan"]).vae
    raw = vae.net.encode(video()).latent_dist.mode()
    mean, std = (torch.tensor(scales(6)[f"latents_{name}"]).view(1, -1, 1, 1, 1) for name in ("mean", "std"))
    torch.testing.assert_close(vae.encode(video()) * std + mean, raw)
    latents = (raw - mean) / std
    torch.testing.assert_close(vae.decode(latents), vae.net.decode(latents * std + mean).sample)  # the same rounding


# ---------------------------------------------------------------- VDM


@torch.no_grad()
def test_velocity(pair):
    known = state(pair)
    velocity = pair.vdm(**known)
    assert velocity.shape == known["noisy"].shape and velocity.isfinite().all()
    noisy = known["noisy"].clone()
    noisy[:, :, 0] = 7
    assert torch.equal(pair.vdm(**known | {"noisy": noisy})[:, :, 1:], velocity[:, :, 1:]), "the given frame is taken"
    for name, value in (("first", -known["first"]), ("time", known["time"] / 2), ("context", -known["context"])):
        assert not torch.equal(pair.vdm(**known | {name: value})[:, :, 1:], velocity[:, :, 1:]), name
    assert pair.vdm(**known | {"context": None}).isfinite().all()


@torch.no_grad()
def test_null_tokens_are_as_none(pair):
    pair = copy.deepcopy(pair)
    pair.vdm.null.normal_()
    known = state(pair)
    told = pair.vdm(**known)
    known["context"] = pair.vdm.null.expand(2, STEPS * CODES, -1)
    null = pair.vdm(**known)
    torch.testing.assert_close(null, pair.vdm(**known | {"context": None}), atol=1e-5, rtol=1e-5)
    assert (null - told).abs().max() > 1e-4


@torch.no_grad()
def test_begin_is_the_beginning_of_a_pass(pair):
    vdm, known, seen = pair.vdm, state(pair), []
    hooks = [vdm.blocks[0].register_forward_hook(lambda _, given, out: seen.extend([given[0], out]))]
    vdm(**known)
    hooks[0].remove()
    hidden, run = vdm.begin(**known)
    assert hidden.shape == (2, tokens(pair), vdm.width)
    assert torch.equal(hidden, seen[0]) and torch.equal(run(vdm.blocks[0], hidden), seen[1])
    embed = wake(copy.deepcopy(vdm.patch_embed), 3)
    assert not torch.equal(vdm.begin(**known, embed=embed)[0], hidden)


@torch.no_grad()
def test_control_residuals(pair):
    known, vdm = state(pair), pair.vdm
    velocity, zero = vdm(**known), torch.zeros_like(residual(pair, 3))
    assert torch.equal(vdm(**known, control=[zero]), velocity)
    assert torch.equal(vdm(**known, control=[zero, zero]), velocity)
    first, second = residual(pair, 3), residual(pair, 4)
    assert not torch.equal(vdm(**known, control=[first]), velocity)
    assert not torch.equal(vdm(**known, control=[first, second]), vdm(**known, control=[first]))
    assert torch.equal(vdm(**known), velocity), "nothing stays behind"


def test_gradient_reaches_context_and_control(pair):
    known = state(pair)
    context, control = known["context"].requires_grad_(), residual(pair, 3).requires_grad_()
    pair.vdm(**known, control=[control]).square().sum().backward()
    assert (context.grad.abs().sum(-1) > 0).all() and control.grad.abs().sum() > 0
    pair.vdm.zero_grad()


@torch.no_grad()
@pytest.mark.parametrize("frame", range(1, LATENTS))
def test_causal_over_latent_frames(pair, frame):
    """Bit for bit: a latent frame does not reach the velocity of those before it."""
    known = state(pair)
    noisy = known["noisy"].clone()
    noisy[:, :, frame] += 1
    one, two = pair.vdm(**known), pair.vdm(**known | {"noisy": noisy})
    assert torch.equal(one[:, :, :frame], two[:, :, :frame])
    assert not torch.equal(one[:, :, frame:], two[:, :, frame:])


@torch.no_grad()
@pytest.mark.parametrize("step", range(STEPS))
def test_causal_over_code_steps(pair, step):
    """Bit for bit: the codes of step k reach latent frames after k alone."""
    known = state(pair)
    context = known["context"].clone()
    context[:, step * CODES : (step + 1) * CODES] += 1
    one, two = pair.vdm(**known), pair.vdm(**known | {"context": context})
    assert torch.equal(one[:, :, : step + 1], two[:, :, : step + 1])
    assert not torch.equal(one[:, :, step + 1], two[:, :, step + 1])


@torch.no_grad()
@pytest.mark.parametrize("way", sorted(ATTENTION))
@pytest.mark.parametrize("step", range(STEPS))
def test_causal_with_projection_and_control(pair, way, step):
    """Bit for bit, of all that a joint step computes: codes, hint and noise of step k reach frames after k alone."""
    torch.manual_seed(1)
    dldm = DLDM(tiny_config(attention=way, control=ControlConfig(2, 0.5, "mlp", own_time=True)), pair).eval()
    for part in (dldm.control, dldm.projection):
        wake(part)
    known = state(pair)
    old = {key: known[key] for key in ("noisy", "time", "first")}
    old |= {"hint": draw(*known["noisy"].shape, seed=6), "codes": draw(2, STEPS, CODES, 4, seed=7).tanh()}
    new = {key: value.clone() for key, value in old.items()}
    new["codes"][:, step:] += 0.5
    for key in ("noisy", "hint"):
        new[key][:, :, step + 1 :] += 1
    before = dldm.velocity(**old)
    for part in ("codes", "noisy", "hint"):
        now = dldm.velocity(**old | {part: new[part]})
        assert torch.equal(before[:, :, : step + 1], now[:, :, : step + 1]), part
        assert not torch.equal(before[:, :, step + 1], now[:, :, step + 1]), part


@torch.no_grad()
def test_sampler_keeps_the_first_frame(pair):
    known = state(pair)
    velocity = lambda x, t: pair.vdm(x, t, known["first"], known["context"])  # noqa: E731
    made = sample(velocity, known["noisy"], known["first"], steps=2, shift=1.0)
    assert torch.equal(made[:, :, :1], known["first"]) and made.isfinite().all()


@pytest.mark.parametrize("train", get_args(get_type_hints(AdaptConfig)["train"]))
@pytest.mark.parametrize("kind", KINDS)
def test_each_mode_teaches_the_vdm_what_it_promises(kind, train, folders):
    pair = load_backend(*folders[kind])
    before = {name: value.clone() for name, value in pair.vdm.state_dict().items()}
    start_vdm(pair, AdaptConfig(train))
    kept = [torch.equal(value, before[name]) for name, value in pair.vdm.state_dict().items() if name in before]
    assert all(kept) == (train != "random"), "random alone forgets what was pretrained"
    adapt_vdm(pair.vdm, AdaptConfig(train, rank=2))
    wake(pair.vdm)  # a fresh VDM's last layer is zero, and so are LoRA's second matrices
    known = state(pair)
    known["context"].requires_grad_()  # what codes learn from, in every mode
    pair.vdm(**known).square().sum().backward()
    assert known["context"].grad.any()
    adapters = {name for name in names(pair.vdm) if ".lora_" in name}
    assert bool(adapters) == (train == "lora")
    if train in ("frozen", "lora"):
        assert taught(pair.vdm) == adapters
    else:  # the token of no codes is not asked for here
        assert taught(pair.vdm) >= names(pair.vdm) - {"null"}


def test_dldm_learns_on_every_back_end(pair):
    """A joint step: the denoising loss reaches codes, projection, control and VDM, not the VAE; then a render."""
    torch.manual_seed(1)
    dldm = DLDM(tiny_config(), pair)
    copy_blocks(dldm.control, dldm.vdm)
    wake(dldm.control.zero)
    wake(dldm.ldm)
    batch = JointBatch(video(), video()[:, :, :1])
    loss, _, _ = dldm(batch, pair.vae, generator(0))
    loss.backward()
    for part in (dldm.ldm.query, dldm.projection, dldm.control, dldm.vdm):
        assert sum(float(p.grad.abs().sum()) for p in part.parameters() if p.grad is not None) > 0, type(part).__name__
    assert all(p.grad is None for p in pair.vae.parameters())
    pair.vdm.zero_grad()
    renderer, first = DLDMRenderer(dldm, pair).eval(), video(1, 1)
    noise = renderer.noise(first, STEPS, generator(1))
    index = torch.zeros(1, STEPS, CODES, dtype=torch.int64)
    assert renderer.render(first, index, noise).shape == (1, 3, FRAMES, HEIGHT, WIDTH)


# ---------------------------------------------------------------- Wan


@torch.no_grad()
def test_wan_without_masks_is_the_model_of_its_authors(folders):
    """With their attention put back; times per token as diffusers' Wan pipeline spreads them (expand_timesteps)."""
    pair = load_backend(*folders["wan"])
    known = state(pair)
    pair.vdm.transformer.set_attn_processor(WanAttnProcessor())
    keep = torch.ones_like(known["noisy"][:1, :1])
    keep[:, :, 0] = 0
    given = (1 - keep) * known["first"] + keep * known["noisy"]
    times = torch.stack([(keep[0, 0, :, ::2, ::2] * 1000 * t).flatten() for t in known["time"]])
    text = torch.cat([torch.zeros(2, 1, 10), known["context"]], dim=1)
    theirs = pair.vdm.transformer(given, times, text).sample
    torch.testing.assert_close(pair.vdm(**known), theirs, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_wan_attention_is_theirs_under_a_mask():
    """Our processor against diffusers' own, given the masks as tensors; however ours is computed."""
    torch.manual_seed(0)
    make = lambda **keys: wake(WanAttention(24, heads=2, dim_head=12, processor=WanAttnProcessor(), **keys))  # noqa: E731
    attn, cross = make(), make(cross_attention_dim_head=12)
    rope = WanRotaryPosEmbed(12, (1, 2, 2), 16)(torch.zeros(1, 6, LATENTS, 4, 4))
    hidden, context = draw(2, LATENTS * 4, 24), draw(2, 1 + STEPS * CODES, 24, seed=1)
    frame, codes = torch.arange(LATENTS).repeat_interleave(4), torch.tensor([0, 1, 1, 2, 2])
    for layer, source, mask, turn in (
        (attn, None, frame[:, None] >= frame[None], rope),
        (cross, context, frame[:, None] >= codes[None], None),
    ):
        theirs = layer(hidden, source, mask, turn)
        for way in ATTENTION:
            layer.set_processor(WanBlockCausalProcessor(Layout(LATENTS, attention=way)))
            torch.testing.assert_close(layer(hidden, source, None, turn), theirs, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_masks_can_be_taken_off(pair):
    layout, known = pair.vdm.layout, state(pair)
    noisy, context = known["noisy"].clone(), known["context"].clone()
    noisy[:, :, 2] += 1
    context[:, CODES:] += 1
    before = layout.frame_sight, layout.code_sight
    for name, changed in (("frame_sight", {"noisy": noisy}), ("code_sight", {"context": context})):
        setattr(layout, name, "full")
        assert not torch.equal(pair.vdm(**known | changed)[:, :, 1], pair.vdm(**known)[:, :, 1]), name
        layout.frame_sight, layout.code_sight = before


@torch.no_grad()
def test_frames_one_by_one_equal_the_clip(pair):
    """Latent frames at their own times, one after the other over the cache of those before, give the same velocity."""
    known, past = state(pair), KVCache()
    times = torch.tensor([[0.0, 0.3, 0.6], [0.0, 0.2, 0.9]])
    whole, parts = pair.vdm(**known | {"time": times}), []
    for t in range(LATENTS):
        with pair.vdm.layout.window(t, LATENTS, past):
            one = {"noisy": known["noisy"][:, :, t : t + 1], "time": times[:, t]}
            parts.append(pair.vdm(**known | one))
            past.keep()
    torch.testing.assert_close(torch.cat(parts, dim=2), whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_checkpointing_changes_no_number(kind, folders):
    """Loss and gradients of a joint step; every block runs twice, those of the control branch among them."""
    found, runs = [], []
    for checkpointing in (False, True):
        pair = load_backend(*folders[kind])
        torch.manual_seed(1)
        dldm = DLDM(tiny_config(vdm=AdaptConfig("lora", rank=2, checkpointing=checkpointing)), pair)
        wake(dldm).train()
        runs.append(0)
        for block in (*pair.vdm.blocks, *dldm.control.blocks.values()):
            block.attn1.to_q.register_forward_hook(lambda *_: runs.append(runs.pop() + 1))
        loss, _, _ = dldm(JointBatch(video(), video()[:, :, :1]), pair.vae, generator(0))
        loss.backward()
        found.append({"loss": loss} | {name: p.grad for name, p in dldm.named_parameters() if p.grad is not None})
    assert runs == [3, 6] and found[0].keys() == found[1].keys()
    for name, one in found[0].items():
        torch.testing.assert_close(one, found[1][name], msg=name)


def trained(kind: str, folders, tmp_path, **keys):
    """A saved dLDM whose VDM is no longer the published one; its renderer, and how to load it again."""
    config, folder = folders[kind]
    config = dataclasses.replace(config, **keys)
    pair = load_backend(config, folder)
    torch.manual_seed(1)
    dldm = DLDM(tiny_config(backend=config, vdm=AdaptConfig("lora", rank=2)), pair)
    wake(dldm, 5)
    save_dldm(dldm, tmp_path / "dldm")
    return DLDMRenderer(dldm, pair).eval(), lambda: load_dldm(tmp_path / "dldm", folder).place(torch.device("cpu"))


@pytest.mark.parametrize("share", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("kind", PUBLISHED)
def test_spread_weights_are_the_trained_ones(kind, share, folders, tmp_path, monkeypatch):
    """All on disk, some of them, none: a render is as without a device map. An older run's files are not read."""
    plain, load = trained(kind, folders, tmp_path, device_map="auto", offload=str(tmp_path / "offload"))
    total = sum(p.numel() * p.itemsize for p in plain.dldm.vdm.transformer.parameters())
    monkeypatch.setattr(spread, "room", lambda: {"cpu": int(share * total)})
    known = video(1, 1), torch.zeros(1, STEPS, CODES, dtype=torch.int64), plain.noise(video(1, 1), STEPS, generator(1))
    for _ in range(2):  # the second time there are files of the first
        wake(plain.dldm)
        save_dldm(plain.dldm, tmp_path / "dldm")
        loaded = load()
        on_disk = [p.is_meta for p in loaded.dldm.vdm.parameters()]
        assert any(on_disk) == (share < 1) and not loaded.dldm.vdm.null.is_meta
        assert not any(p.is_meta for p in loaded.dldm.control.parameters())
        assert torch.equal(loaded.render(*known), plain.render(*known))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", PUBLISHED)
def test_a_trained_dldm_needs_no_published_transformer(kind, dtype, folders, tmp_path):
    """Nothing of it but its sizes: its weights are in the dLDM's own file."""
    config, folder = folders[kind]
    shutil.copytree(config.weights, tmp_path / "published")
    own = {kind: (dataclasses.replace(config, weights=str(tmp_path / "published")), folder)}
    plain, load = trained(kind, own, tmp_path, dtype=dtype)
    for file in (tmp_path / "published" / "transformer").glob("*.safetensors"):
        file.unlink()
    loaded = load()
    tensors = lambda dldm: dict(dldm.named_parameters()) | dict(dldm.named_buffers())  # noqa: E731
    theirs, ours = tensors(loaded.dldm), tensors(plain.dldm)
    assert theirs.keys() == ours.keys()
    for name, value in ours.items():
        assert torch.equal(theirs[name], value) and theirs[name].dtype == value.dtype, name
    known = video(1, 1), torch.zeros(1, STEPS, CODES, dtype=torch.int64), plain.noise(video(1, 1), STEPS, generator(1))
    assert torch.equal(loaded.render(*known), plain.render(*known))
    with pytest.raises(UserError, match="expected .*safetensors files in .*transformer, found none"):
        load_backend(*own[kind])


def test_no_folder_for_what_fits_nowhere(folders, tmp_path, monkeypatch):
    _, load = trained("wan", folders, tmp_path, device_map="auto")
    monkeypatch.setattr(spread, "room", lambda: {"cpu": 0})
    with pytest.raises(UserError, match="dldm.backend.offload is null; set it to a folder"):
        load()


IN_BFLOAT16 = {kind: {"dtype": "bfloat16"} for kind in PUBLISHED} | {"mini": {}}
HALVES = [(kind, keys, {}) for kind, keys in IN_BFLOAT16.items()]
FULL = {"self_attention": "full", "cross_attention": "full", "control": ControlConfig(2, 0.5, "mlp", True)}
HALVES += [("cosmos", IN_BFLOAT16["cosmos"] | {"tokens": 8}, FULL)]  # as the release


@pytest.mark.parametrize("train, blocks", [("full", 0), ("random", 0), ("frozen", 1)])
def test_weights_that_learn_are_not_kept_in_bfloat16(train, blocks):
    half = BackendConfig("wan", "folder", dtype="bfloat16")
    learning = {"vdm": AdaptConfig(train), "control": ControlConfig(blocks)}
    with pytest.raises(ValueError, match=f"as small steps vanish in bfloat16 weights, got {train} and {blocks}; set"):
        check_precision(tiny_config(backend=half, **learning))
    check_precision(tiny_config(backend=half, vdm=AdaptConfig("lora"), control=ControlConfig(0)))


def test_renders_under_the_autocast_of_its_place():
    pair = tiny("mini")
    renderer = DLDMRenderer(wake(DLDM(tiny_config(), pair)), pair).eval()
    noise = renderer.noise(video(1, 1), STEPS, generator(1))
    draw_at = lambda: renderer.render(video(1, 1), torch.ones(1, STEPS, CODES, dtype=torch.int64), noise)  # noqa: E731
    exact = draw_at()
    renderer.place(torch.device("cpu"), lambda: torch.autocast("cpu", torch.bfloat16))
    half = draw_at()
    assert half.dtype == torch.float32 and not torch.equal(half, exact) and (half - exact).abs().mean() < 0.05


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("kind, keys, changes", HALVES)
def test_weights_of_the_vdm_in_bfloat16(kind, keys, changes, autocast, folders):
    """Velocity, joint loss with gradients and a render, with and without autocast; all else stays in float32."""
    config, folder = folders[kind]
    exact = load_backend(dataclasses.replace(config, **keys | ({"dtype": "float32"} if keys else {})), folder)
    pair = load_backend(dataclasses.replace(config, **keys), folder)
    pair.vdm.to(torch.bfloat16)  # mini has no such choice
    assert {p.dtype for p in pair.vae.parameters()} <= {torch.float32}
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        with torch.no_grad():
            wanted, velocity = exact.vdm(**state(pair)), pair.vdm(**state(pair))
        assert velocity.dtype == torch.float32 and (velocity - wanted).abs().mean() < 0.1 * wanted.abs().mean()
        torch.manual_seed(1)
        dldm = DLDM(tiny_config(**changes), pair)
        wake(dldm.control.zero)
        loss, _, _ = dldm(JointBatch(video(), video()[:, :, :1]), pair.vae, generator(0))
    assert loss.isfinite()
    loss.backward()
    for part in (dldm.ldm.query, dldm.projection, dldm.control, dldm.vdm):
        assert sum(float(p.grad.abs().sum()) for p in part.parameters() if p.grad is not None) > 0, type(part).__name__
    renderer, index = DLDMRenderer(dldm, pair).eval(), torch.zeros(1, STEPS, CODES, dtype=torch.int64)
    noise = renderer.noise(video(1, 1), STEPS, generator(1))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        made = renderer.render(video(1, 1), index, noise)
    assert made.shape == (1, 3, FRAMES, HEIGHT, WIDTH) and made.isfinite().all()


def test_true_sizes():
    """Parameters of the published networks, and what the port says of them."""
    with torch.device("meta"):
        cosmos, causal, wan = (
            BACKENDS[kind].random(BackendConfig(kind, weights="x", tokens=tokens))
            for kind, tokens in (("cosmos", 512), ("cosmos", 0), ("wan", 0))
        )
    count = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
    assert (count(cosmos.vdm), count(cosmos.vae)) == (1_956_413_440, 126_892_531)
    assert count(causal.vdm) == count(cosmos.vdm) + 1024, "one learned token in front of the codes"
    assert (cosmos.vdm.config.attention, causal.vdm.config.attention) == ("full", "causal")
    assert (count(wan.vdm.transformer), count(wan.vae)) == (4_999_787_712, 704_688_668)
    assert (cosmos.vae.latent, cosmos.vae.side, cosmos.vdm.patch, cosmos.vdm.width, cosmos.vdm.context) == (
        (16, 8, 2, 2048, 1024)
    )
    assert (wan.vae.latent, wan.vae.side, wan.vdm.patch, wan.vdm.width, wan.vdm.context) == (48, 16, 2, 3072, 4096)
    check_size(wan, 480, 832)
    with pytest.raises(UserError, match="multiples of 32 pixels, got 100 and 832"):
        check_size(wan, 100, 832)


@torch.no_grad()
def test_cosmos_attention_is_theirs_under_a_mask():
    """Our processor against diffusers' own, given the masks as tensors; however ours is computed."""
    torch.manual_seed(0)
    heads = {"heads": 2, "dim_head": 12, "qk_norm": "rms_norm", "elementwise_affine": True, "out_bias": False}
    make = lambda **keys: wake(Attention(24, processor=CosmosAttnProcessor2_0(), **heads, **keys))  # noqa: E731
    attn, cross = make(), make(cross_attention_dim=20)
    rope = CosmosRotaryPosEmbed(12, (8, 16, 16), (1, 2, 2), rope_scale=(1.0, 1.0, 1.0))
    turn = rope(torch.zeros(1, 6, LATENTS, 4, 4), fps=None)
    hidden, context = draw(2, LATENTS * 4, 24), draw(2, 1 + STEPS * CODES, 20, seed=1)
    frame, codes = torch.arange(LATENTS).repeat_interleave(4), torch.tensor([0, 1, 1, 2, 2])
    for layer, source, mask, turned in (
        (attn, None, frame[:, None] >= frame[None], turn),
        (cross, context, frame[:, None] >= codes[None], None),
    ):
        theirs = layer(hidden, source, mask, image_rotary_emb=turned)
        assert not torch.allclose(theirs, layer(hidden, source, None, image_rotary_emb=turned)), "the mask does matter"
        for way in ATTENTION:
            layer.set_processor(BlockCausalProcessor(Layout(LATENTS, attention=way)))
            torch.testing.assert_close(
                layer(hidden, source, None, image_rotary_emb=turned), theirs, atol=1e-5, rtol=1e-5
            )


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"in_channels": 4}, "with in_channels 5, got 4"),
        ({"extra_pos_embed_type": "learnable"}, "with extra_pos_embed_type None, got learnable"),
        ({"patch_size": (1, 1, 2)}, r"with patch_size \(1, 2, 2\), got"),
        ({"patch_size": (2, 2, 2)}, r"with patch_size \(1, 2, 2\), got"),
        ({"patch_size": (1, -2, -2)}, r"with patch_size \(1, 1, 1\), got"),
        ({"use_crossattn_projection": True}, "with use_crossattn_projection False, got True"),
    ],
)
def test_cosmos_of_another_kind_is_refused(change, told):
    config = dict(
        CosmosConfig(latent=4, heads=2, head_width=12, layers=1, adaln_rank=4, context=12).transformer().config
    )
    given = {key: value for key, value in (config | change).items() if not key.startswith("_")}
    with pytest.raises(ValueError, match=told):
        CosmosVDM.around(CosmosTransformer3DModel(**given))


@pytest.mark.parametrize("odd", [{"patch": 0}, {"fps": 0.0}, {"fps": -24.0}])
def test_patches_and_frame_rates_that_cannot_be(odd):
    with pytest.raises(ValueError, match="patch must be at least 1 and fps above 0 or null, got"):
        CosmosConfig(**odd)


@pytest.mark.parametrize("width", [7, 10, 13])
def test_heads_that_the_rotary_embedding_cannot_turn(width):
    with pytest.raises(ValueError, match=f"head_width must be even and at least 12, got {width}"):
        CosmosConfig(head_width=width)


def test_wan_with_another_way_in_is_refused():
    with pytest.raises(ValueError, match="in_channels 9"):
        WanVDM(WanTransformer3DModel(**WAN | {"in_channels": 9}))


# ---------------------------------------------------------------- what is loaded, and what is not


@pytest.mark.parametrize("kind", KINDS)
def test_licence_is_shown_once_before_loading(kind, folders, monkeypatch):
    lines, config = [], folders[kind][0]
    monkeypatch.setattr(backends, "say", lines.append)
    backends.show_licence.cache_clear()
    load_backend(*folders[kind])
    load_backend(*folders[kind])
    names = {"mini": "Apache-2.0", "cosmos": "NVIDIA Open Model License", "wan": "Apache-2.0"}
    assert len(lines) == 1 and names[kind] in lines[0] and BACKENDS[kind].title in lines[0]
    backends.show_licence.cache_clear()
    if kind != "mini":
        with pytest.raises(UserError):
            load_backend(dataclasses.replace(config, weights="no/where"), folders[kind][1])
        assert len(lines) == 2, "shown before anything is fetched or read"


@pytest.mark.parametrize("kind", PUBLISHED)
@pytest.mark.parametrize("revision", [None, "main", "b8fff73"])
def test_hub_id_needs_a_pinned_commit(kind, revision, tmp_path):
    with pytest.raises(UserError, match="dldm.backend.revision, 40 hexadecimal digits") as error:
        load_backend(BackendConfig(kind=kind, weights="some/model", revision=revision), tmp_path)
    assert "https://huggingface.co/some/model/commits/main" in str(error.value) and "\n" not in str(error.value)


def test_hub_out_of_reach(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "snapshot_download", lambda *_, **__: (_ for _ in ()).throw(ConnectionError("no route")))
    with pytest.raises(UserError, match="could not be fetched; connect to the Hugging Face hub once"):
        load_backend(BackendConfig(kind="wan", weights="some/model", revision="a" * 40), tmp_path)


def test_only_configs_and_safetensors_of_the_pinned_commit_are_fetched(folders, monkeypatch):
    asked = {}

    def fetch(weights, **options):
        asked.update(options, weights=weights)
        return folders["wan"][1]

    monkeypatch.setattr(hub, "snapshot_download", fetch)
    load_backend(BackendConfig(kind="wan", weights="some/model", revision="a" * 40), folders["wan"][1])
    assert asked["weights"] == "some/model" and asked["revision"] == "a" * 40
    endings = {"config.json", "*.safetensors", "*.safetensors.index.json"}
    assert set(asked["allow_patterns"]) == {f"{part}/{end}" for part in ("vae", "transformer") for end in endings}
    load_backend(BackendConfig(kind="wan", weights="some/model", revision="a" * 40), folders["wan"][1], vae_alone)
    assert set(asked["allow_patterns"]) == {f"vae/{end}" for end in endings} | {"transformer/config.json"}


def test_wrong_folders(folders, tmp_path):
    def refused(kind, folder) -> str:
        with pytest.raises(UserError) as error:
            load_backend(BackendConfig(kind=kind, weights=str(folder)), folder)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "found no config.json" in refused("wan", tmp_path)
    assert "expected the CosmosTransformer3DModel of diffusers" in refused("cosmos", folders["wan"][1])
    pair = tiny("wan")
    save(pair, "wan", tmp_path)
    file = tmp_path / "transformer/diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    save_file({key: value for key, value in weights.items() if "blocks.1." not in key}, file)
    assert "lack" in refused("wan", tmp_path) and "blocks.1." in refused("wan", tmp_path)
    save_file(weights | {"another": torch.zeros(1)}, file)
    assert "hold 1 others, first another" in refused("wan", tmp_path)
    file.write_bytes(b"not a tensor")
    assert "could not be read" in refused("wan", tmp_path)
    file.rename(file.with_suffix(".bin"))
    assert "expected *.safetensors files" in refused("wan", tmp_path)
    (tmp_path / "vae/config.json").write_text("{")
    assert "a broken config.json" in refused("wan", tmp_path)


@pytest.mark.parametrize(
    "keys, sentence",
    [
        ({"weights": "data/other"}, "kind mini is the prior of the stage pretrain_prior"),
        ({"dtype": "bfloat16"}, "kind mini is the prior of the stage pretrain_prior"),
        ({"kind": "wan", "weights": "x", "tokens": 512}, "dldm.backend.tokens must be 0, or for cosmos"),
        ({"kind": "wan"}, "needs dldm.backend.weights"),
        ({"kind": "wan", "weights": "x", "offload": "tmp"}, "goes with dldm.backend.device_map auto"),
    ],
)
def test_configs_that_cannot_be(keys, sentence):
    with pytest.raises(ValueError, match=sentence):
        BackendConfig(**keys)
