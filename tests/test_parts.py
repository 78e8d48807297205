"""One LDM of two kinds of parts: the mini as it was, the causal ones through every stage, the true sizes, files."""

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_dldm import moving, taught
from tiny_models import (
    FRAMES,
    SMALL,
    causal_ldm,
    causal_settings,
    clip,
    draw,
    tiny_config,
    tiny_prior,
    wake,
)
from tiny_stages import OPTIM, make_folder, write_params

from stages import export_release, extract_codes, import_release, train_dldm, warmup_dldm
from stages.preset import read
from vw2.console import UserError
from vw2.data.codes import read_codes
from vw2.data.shards import ClipStore
from vw2.interop.checkpoints import export_weights, write_checkpoint
from vw2.interop.keys_tokenizer import TOKENIZER
from vw2.media.resize import to_model
from vw2.models.backends import random_wan, true_cosmos
from vw2.models.causal3d import FrameNorm
from vw2.models.dldm import DLDM, JointBatch
from vw2.models.dldm_config import DLDMConfig
from vw2.models.drawing import Painting
from vw2.models.ldm import LDM, LDMConfig
from vw2.models.ldm_files import load_ldm, save_ldm
from vw2.models.pretrained import take_over
from vw2.models.renderer import LDMRenderer, load_renderer
from vw2.params import build
from vw2.patch import parse, patch
from vw2.rollout import Row, render_batch
from vw2.training.compute import generator

ROOT = Path(__file__).parents[1]
NARROW = {"multipliers": (2, 4), "space": 8, "blocks": 1, "query_layers": 1, "query_heads": 2}  # of causal parts
SIZE = (16, 24)
CONTEXT = 12  # of the tiny prior


def digest(*tensors: torch.Tensor) -> str:
    return hashlib.sha256(b"".join(each.contiguous().numpy().tobytes() for each in tensors)).hexdigest()[:16]


# ---------------------------------------------------------------- the mini, as it is since its decoder warps


def test_names_and_first_draws_of_the_mini_stay():
    for config, weights, after in ((SMALL, "a1e59ad7588e7189", 0.35904884), ({}, "ffc1bb50a4911bd0", 0.27411222)):
        torch.manual_seed(0)
        ldm = LDM(LDMConfig(**config))
        assert hashlib.sha256("\n".join(ldm.state_dict()).encode()).hexdigest()[:16] == "7cfc0c19e65ad3cf"
        assert digest(*ldm.state_dict().values()) == weights
        assert torch.rand(1).item() == pytest.approx(after, abs=1e-8), "and nothing is drawn beside them"


def test_outputs_of_the_mini_stay():
    # To a tolerance: kernels of other machines sum in another order.
    torch.manual_seed(0)
    ldm, video = wake(LDM(LDMConfig(**SMALL))), clip()
    loss, _, _ = ldm(video, video[:, :, :1])
    loss.backward()
    assert loss.item() == pytest.approx(4.1246448, rel=1e-5)
    assert sum(p.grad.double().abs().sum().item() for p in ldm.parameters()) == pytest.approx(1220.52916, rel=1e-3)
    index = ldm.eval().encode(video)
    assert digest(index) == "a1691e71baca770d"
    assert ldm.coarse(video[:, :, :1], index).double().abs().sum().item() == pytest.approx(39416.9050, rel=1e-5)


def test_pretrained_mini_still_fits():
    ldm = LDM(LDMConfig())
    assert take_over(ldm, ROOT / "data/pretrained/ldm.safetensors") == []


# ---------------------------------------------------------------- causal parts


def config(connector: int = 0, **changes) -> DLDMConfig:
    """A dLDM of causal parts that sees 16 x 24 pixels, its VDM told by connector or projection."""
    parts = causal_settings(**{"size": SIZE, **NARROW, "connector": connector, **changes})
    return replace(tiny_config(), **{"queries": 2} | parts)


def dldm_of(awake: bool = True, **changes) -> tuple[DLDM, object]:
    prior = tiny_prior()
    torch.manual_seed(1)
    dldm = DLDM(config(**changes), prior)
    return (wake(dldm, 2, 0.03) if awake else dldm).eval(), prior


def wide(batch: int = 2, seed: int = 0) -> torch.Tensor:
    """Clips of 32 x 48 pixels."""
    return torch.cat([clip(batch, seed=seed), clip(batch, seed=seed + 1)[..., :16]], dim=-1)


@pytest.mark.parametrize("queries, codebook", [(1, 1000), (3, 1000), (8, 1000), (4, 8), (4, 4096), (4, 64000), (1, 8)])
def test_grid_of_queries_and_codebooks_of_causal_parts(queries, codebook):
    dldm, prior = dldm_of(queries=queries, codebook=codebook)
    video = wide()
    loss, _, _ = dldm.train()(JointBatch(video, video[:, :, :1]), prior.vae, generator(0))
    loss.backward()
    assert loss.isfinite() and taught(dldm.ldm.query)
    index = dldm.eval().ldm.encode(video)
    assert index.shape == (2, 2, queries) and 0 <= index.min() and index.max() < codebook
    assert torch.equal(dldm.ldm.fsq.to_index(dldm.ldm.fsq.to_codes(index)), index)
    coarse = dldm.ldm.coarse(video[:, :, :1], index)
    changed = (index + codebook // 2) % codebook
    assert coarse.shape[2] == FRAMES and not torch.equal(dldm.ldm.coarse(video[:, :, :1], changed), coarse)


def test_shapes_of_what_is_not_square():
    for settings in (config().ldm, LDMConfig(**SMALL | {"size": SIZE})):
        torch.manual_seed(0)
        ldm, video = LDM(settings), wide()
        assert ldm.shrink(video).shape == (2, 3, FRAMES, *SIZE)
        loss, _, end = ldm(video, video[:, :, :1])
        assert loss.isfinite() and end.shape == (2, 3, 1, 32, 48)
        index = ldm.eval().encode(video)
        assert index.shape == (2, 2, 2) and ldm.coarse(video[:, :, :1], index).shape == video.shape


def test_a_painting_takes_the_size_of_the_frame_alone():
    video = draw(1, 3, 5, 4, 6)
    assert torch.equal(Painting(video).over(torch.zeros(1, 3, 1, 4, 6)), video)
    large = Painting(torch.full((1, 3, 5, 4, 6), 0.5)).over(draw(1, 3, 1, 8, 12))
    assert torch.equal(large, torch.full((1, 3, 5, 8, 12), 0.5))
    assert torch.equal(Painting(video).end(torch.zeros(1, 3, 1, 4, 6)), video[:, :, -1:].clamp(-1, 1))


def test_pairs_of_frames():
    ldm = causal_ldm(**NARROW, size=16, stride=1, queries=2)
    video = clip(frames=2, side=16)
    assert ldm.encode(video).shape == (2, 1, 2) and ldm.coarse(video[:, :, :1], ldm.encode(video)).shape == video.shape
    with pytest.raises(ValueError, match="dldm.causal.time must be 4, the frames of a step, got 8; change it"):
        LDMConfig(**causal_settings(patch=8, time=8, multipliers=(3, 2))).for_clips(9)


def test_the_reconstruction_falls_on_one_batch():
    ldm, video = causal_ldm(**NARROW, size=16, channels=8, queries=2), moving(side=16)
    optimiser, losses = torch.optim.AdamW(ldm.parameters(), lr=3e-3), []
    for _ in range(25):
        loss, _, _ = ldm(video, video[:, :, :1])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def gradients(mode: str, weight: float, connector: int) -> dict[str, torch.Tensor]:
    dldm, prior = dldm_of(reconstruction=mode, reconstruction_weight=weight, connector=connector)
    dldm(JointBatch(wide(), wide(seed=3)[:, :, :1]), prior.vae, generator(0))[0].backward()
    return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in dldm.named_parameters()}


@pytest.mark.parametrize("connector", [0, CONTEXT], ids=["projection", "connector"])
@pytest.mark.parametrize("mode", ["off", "decoder", "trunk", "codes"])
def test_what_the_losses_teach(mode, connector):
    without, with_ = gradients(mode, 0.0, connector), gradients(mode, 3.0, connector)
    part = lambda name: ".".join(name.split(".")[:2])  # noqa: E731
    moved = {part(name) for name in without if not torch.equal(without[name], with_[name])}
    reach = ["ldm.decoder", "ldm.encoder", "ldm.query"][: ["off", "decoder", "trunk", "codes"].index(mode)]
    assert moved == set(reach), "the reconstruction"
    denoising = {name for name, g in without.items() if g.abs().max() > 0 and name.startswith("ldm.")}
    lift = {"ldm.decoder.from_digits.weight", "ldm.decoder.from_digits.bias"}
    heard = set() if connector == 0 else {"ldm.connector", "ldm.decoder"}
    assert {part(name) for name in denoising} == {"ldm.encoder", "ldm.query"} | heard
    assert {name for name in denoising if part(name) == "ldm.decoder"} <= lift, "but for what the connector reads too"


def test_nothing_flows_through_the_control_hint():
    dldm, prior = dldm_of(connector=CONTEXT)
    latents = prior.vae.encode(wide())
    index = torch.randint(0, 1000, (2, 2, 2), generator=generator(0))
    hint, codes = draw(*latents.shape, seed=3).requires_grad_(), dldm.ldm.fsq.to_codes(index).requires_grad_()
    dldm.velocity(draw(*latents.shape), torch.full((2,), 0.7), latents[:, :, :1], codes, hint).square().sum().backward()
    assert hint.grad is None and codes.grad.abs().max() > 0
    assert taught(dldm.ldm.connector) and dldm.projection is None


@pytest.mark.parametrize("connector", [0, CONTEXT], ids=["projection", "connector"])
@torch.no_grad()
def test_later_codes_change_no_earlier_rendered_frame(connector):
    dldm, prior = dldm_of(connector=connector)
    index = torch.randint(0, 1000, (2, 2, 2), generator=generator(0))
    first, noise = wide()[:, :, :1], draw(*prior.vae.encode(wide()).shape)
    before = dldm.render(prior.vae, first, index, noise)
    for step in range(2):
        late = index.clone()
        late[:, step:] = (late[:, step:] + 500) % 1000
        now, same = dldm.render(prior.vae, first, late, noise), 4 * step + 1
        assert torch.equal(now[:, :, :same], before[:, :, :same])
        assert not torch.equal(now[:, :, same:], before[:, :, same:])


def test_a_connector_of_another_width_is_refused():
    with pytest.raises(UserError, match="dldm.causal.connector must be 12, the width of the VDM's context, or 0"):
        dldm_of(connector=10)


def test_a_frame_norm_learns_on_what_does_not():
    norm, frames = FrameNorm(4), draw(2, 4, 3, 2, 2).contiguous(memory_format=torch.channels_last_3d)
    (norm(frames) * draw(2, 4, 3, 2, 2, seed=1)).sum().backward()
    assert taught(norm) == {"weight", "bias"} and not frames.requires_grad


def test_in_bfloat16():
    ldm, video = causal_ldm(**NARROW, size=16), clip(side=16)
    with torch.autocast("cpu", torch.bfloat16):
        loss = ldm(video, video[:, :, :1])[0]
    loss.backward()
    assert loss.item() == pytest.approx(ldm(video, video[:, :, :1])[0].item(), rel=0.05)


def test_files(tmp_path):
    ldm = causal_ldm(**NARROW, size=SIZE, codebook=105, levels=(7, 5, 3))
    save_ldm(ldm, tmp_path)
    loaded = load_ldm(tmp_path)
    assert loaded.config == ldm.config and torch.equal(loaded.encode(wide()), ldm.encode(wide()))
    assert isinstance(load_renderer(tmp_path, tmp_path / "no prior needed"), LDMRenderer)


# ---------------------------------------------------------------- the stages


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """After the warm-up of causal parts."""
    folder = tmp_path_factory.mktemp("causal")
    make_folder(folder, frames=9)
    return folder


def stage_params(connector: int) -> Path:
    causal = {"channels": 4, "multipliers": [2, 4], "space": 8, "blocks": 1, "z_channels": 6, "connector": connector}
    return write_params(Path(), {"dldm": {"parts": "causal", "size": [16, 16], "causal": causal | {"query_heads": 2}}})


def test_causal_parts_through_the_stages(workspace, monkeypatch):
    monkeypatch.chdir(workspace)
    monkeypatch.setenv("VW2_SCRATCH", str(workspace / "scratch"))
    params = stage_params(CONTEXT)
    warmup_dldm.main(params)
    store, warm = ClipStore(Path("data/clips")), load_ldm(Path("data/warmup"))
    assert warm.config.parts == "causal" and len(json.loads(Path("metrics/warmup_dldm.json").read_text())["train"])
    # the weights of the authors, so to speak, take the place of the warm-up's
    theirs = causal_ldm(7, **NARROW | {"query_layers": 2}, size=16, queries=2, connector=CONTEXT)
    write_checkpoint(Path("theirs.pt"), export_weights(theirs, TOKENIZER), "network.")
    Path("tiny.json").write_text((workspace / "data/warmup/config.json").read_text())
    options = {"config": Path("tiny.json"), "view": None, "ema": False, "frames": 93, "strict": True, "every": False}
    import_release.main("tokenizer", Path("theirs.pt"), Path("data/release"), **options)
    for file in Path("data/release/tokenizer").iterdir():
        file.replace(Path("data/warmup") / file.name)
    video = to_model(store.batch([0, 1]))
    assert torch.equal(load_ldm(Path("data/warmup")).encode(video), theirs.encode(video))
    train_dldm.main(params)
    renderer = load_renderer(Path("data/dldm"), Path("data/prior"))
    assert renderer.dldm.projection is None and OPTIM["steps"] == 2
    moved = {
        part
        for part in ("encoder", "query", "decoder", "connector")
        for name, weight in getattr(renderer.ldm, part).state_dict().items()
        if not torch.equal(weight, theirs.state_dict()[f"{part}.{name}"])
    }
    assert moved == {"encoder", "query", "decoder", "connector"}, "the joint stage began there and taught them all"
    extract_codes.main(params, "vw2")
    codes = read_codes(Path("data/codes"))
    (drawn,) = render_batch(renderer, [Row("v0", store.frames(0)[0], codes["v0"], (0,))], 0)
    assert drawn.shape == (9, 32, 32, 3)
    # and back into their files
    export_release.main("tokenizer", Path("data/dldm"), Path("back.pt"), "network.", False, "float32")
    export_release.main("codes", Path("data/codes"), Path("codes.pt"), "network.", False, "float32")
    import_release.main("tokenizer", Path("back.pt"), Path("data/again"), **options)
    assert torch.equal(load_ldm(Path("data/again/tokenizer")).encode(video), renderer.ldm.encode(video))
    told = torch.load("codes.pt", weights_only=True)
    assert told["v0"].tolist() == codes["v0"].reshape(len(codes["v0"]), -1).tolist()
    with pytest.raises(UserError, match="dldm.levels is .* but the LDM in data/warmup was made with"):
        write = stage_params(CONTEXT).read_text().replace("codebook: 1000", "codebook: 64000")
        Path("params.yaml").write_text(write)
        train_dldm.main(Path("params.yaml"))


# ---------------------------------------------------------------- true sizes


def preset(name: str) -> DLDMConfig:
    text, _ = patch((ROOT / "params.yaml").read_text(), read(name, ROOT / "presets"), name)
    return build(DLDMConfig, parse(text, "params.yaml")["dldm"], "dldm").for_clips(93)


RELEASE = 142_588_036
CONNECTOR = 256 * 1024 + 9 * 256 * 1024 + (3 + 9 + 3) * 1024**2 + 5 * 1024 + 2 * (256 + 1024)  # kernels, biases, norms


@pytest.mark.parametrize("name", ["paper", "wan"])
def test_true_sizes_without_a_connector(name):
    chosen = preset(name)
    with torch.device("meta"):
        ldm = LDM(chosen.ldm)
    assert sum(weight.numel() for weight in ldm.parameters()) == RELEASE - CONNECTOR
    assert ldm.query.former.view == "prefix" and chosen.sides == (240, 416)


def test_the_whole_release():
    chosen = preset("release")
    with torch.device("meta"):
        prior = true_cosmos(chosen.backend)
        dldm = DLDM(chosen, prior)
    count = lambda *modules: sum(p.numel() for module in modules for p in module.parameters())  # noqa: E731
    assert count(dldm.ldm) == RELEASE and len(export_weights(dldm.ldm, TOKENIZER)) == 467
    assert count(dldm.vdm) == 1_956_413_440 and count(dldm.control) == 240_494_368
    assert count(dldm) == count(dldm.ldm, dldm.vdm, dldm.control), "and nothing else"
    codes = torch.empty(1, 23, 4, 4, device="meta")
    assert dldm.tokens(codes).shape == (1, 92, 1024)


def test_the_whole_wan():
    """The weights that its preset speaks of."""
    chosen = preset("wan")
    with torch.device("meta"):
        dldm = DLDM(chosen, random_wan())
    count = lambda *modules: sum(p.numel() for module in modules for p in module.parameters())  # noqa: E731
    assert count(dldm) == count(dldm.ldm, dldm.vdm, dldm.control, dldm.projection), "and nothing else"
    assert dldm.tokens(torch.empty(1, 23, 4, 4, device="meta")).shape == (1, 92, 4096)
    (said,) = re.findall(r"([\d.]+) B trained parameters", (ROOT / "presets/wan.yaml").read_text())
    assert f"{sum(p.numel() for p in dldm.parameters() if p.requires_grad) / 1e9:.1f}" == said


def test_the_whole_paper():
    """VDM with one learned token in front of the codes, the projection in the place of the connector."""
    chosen = preset("paper")
    with torch.device("meta"):
        prior = true_cosmos(chosen.backend)
        dldm = DLDM(chosen, prior)
    count = lambda *modules: sum(p.numel() for module in modules for p in module.parameters())  # noqa: E731
    assert count(dldm.ldm) == RELEASE - CONNECTOR and count(dldm.vdm) == 1_956_413_440 + 1024
    assert count(dldm.control) == 240_494_368
    assert count(dldm) == count(dldm.ldm, dldm.vdm, dldm.control, dldm.projection), "and nothing else"
    assert dldm.tokens(torch.empty(1, 23, 4, 4, device="meta")).shape == (1, 92, 1024)
