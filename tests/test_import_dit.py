"""The authors' DiT and control branch by the command: tensor for tensor, to the outputs, and a dLDM that begins so."""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import vw2.torchvision_ops  # noqa: F401  (must come before diffusers)

import pytest
import torch
from diffusers import AutoencoderKLWan
from release_dit import SHAPES, TINY, needs_shapes
from safetensors.torch import load_file, save_file
from tiny_models import draw, tiny_config, tiny_ldm, wake

from stages import export_release, import_release
from stages.import_release import Options, dit
from vw2.console import UserError
from vw2.interop.checkpoints import read_checkpoint, write_checkpoint
from vw2.interop.dit import DiTConfig, import_dit
from vw2.interop.keys_dit import Parts, buffers, to_release
from vw2.models.adapt import AdaptConfig
from vw2.models.backends import BackendConfig, load_backend
from vw2.models.begin import begin_joint
from vw2.models.control import ControlBranch, ControlConfig
from vw2.models.cosmos import CosmosConfig, CosmosVDM
from vw2.models.dldm_config import DLDMConfig
from vw2.models.ldm_files import save_ldm
from vw2.models.pretrained import load_whole
from vw2.models.renderer import save_dldm
from vw2.training.compute import generator

ROOT = Path(__file__).resolve().parents[1]
TOKENS = 12
VAE = {"base_dim": 4, "num_res_blocks": 1, "dim_mult": [1, 1, 1, 1], "z_dim": 4}
VAE |= {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}
CONFIG = DiTConfig(
    CosmosConfig(latent=4, layers=3, max_size=(8, 16, 16), tokens=TOKENS, **TINY),
    ControlConfig(blocks=2, weight=0.5, hint="mlp", own_time=True),
)


def networks(seed: int) -> tuple[CosmosVDM, ControlBranch]:
    torch.manual_seed(seed)
    vdm = CosmosVDM(CONFIG.vdm)
    branch = wake(ControlBranch(CONFIG.control, vdm), seed)
    return wake(vdm, seed).eval(), branch.eval()


def theirs(vdm: CosmosVDM, branch: ControlBranch, ema: bool = False) -> dict[str, torch.Tensor]:
    """What the authors' code would have saved, with the buffers that ours do without."""
    rest = {f"{prefix}{key}": value for prefix in ("net.", "net_ctrl.") for key, value in buffers(12).items()}
    rest |= {"net.blocks.0.self_attn._extra_state": torch.ones(1)}
    return to_release(Parts(vdm.state_dict(), branch.state_dict(), {} if ema else rest), ema)


@pytest.fixture
def checkpoint():
    return theirs(*networks(0))


@pytest.fixture
def options(tmp_path) -> Options:
    (tmp_path / "tiny.json").write_text(json.dumps(asdict(CONFIG)))
    return Options(tmp_path / "tiny.json")


def ours(key: str) -> bool:
    """Whether a name of the branch is of a layer that the DiT lacks: of the hint, or one that starts at zero."""
    return key.startswith(("net_ctrl.x_embedder2.", "net_ctrl.input_hint_block.", "net_ctrl.zero_blocks."))


def imported(checkpoint, folder: Path, options: Options, name: str = "theirs.pt") -> str:
    write_checkpoint(folder / name, checkpoint)
    return dit(folder / name, folder / "out", options)


def given() -> tuple[torch.Tensor, ...]:
    """noisy, time, first, context, hint."""
    shape = (2, 4, 3, 4, 6)
    return draw(*shape), torch.tensor([0.3, 0.9]), draw(2, 4, 1, 4, 6, seed=2), draw(2, 8, 32, seed=3), draw(*shape)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def backend(folder: Path) -> BackendConfig:
    """The imported folder with a VAE put into it."""
    AutoencoderKLWan(**VAE).save_pretrained(folder / "vae")
    return BackendConfig(kind="cosmos", weights=str(folder), tokens=TOKENS)


def ready(checkpoint, tmp_path: Path, options: Options) -> tuple[DLDMConfig, Path]:
    """Settings of a dLDM that begins with the imported networks, and the folder of its warm LDM."""
    imported(checkpoint, tmp_path, options)
    folder, warm = tmp_path / "out" / "dit", tmp_path / "data" / "warmup"
    save_ldm(tiny_ldm(), warm)
    control = ControlConfig(2, 0.5, "mlp", True, weights=str(folder / "control.safetensors"))
    return tiny_config(backend=backend(folder), control=control, self_attention="full", cross_attention="full"), warm


@pytest.mark.parametrize("averaged", [False, True])
def test_every_tensor_and_the_outputs(tmp_path, options, averaged):
    plain, ema = networks(0), networks(1)
    wanted = ema if averaged else plain
    told = imported(theirs(*plain) | theirs(*ema, ema=True), tmp_path, Options(options.config, ema=averaged))
    count = len(wanted[0].state_dict()), len(wanted[1].state_dict())
    spare = 2 * len(buffers(12)) + 1 + sum(count)  # and all of the other variant
    fit = "averaged weights fit" if averaged else "weights fit"
    assert f"{count[0]} {fit} the DiT; {count[1]} {fit} the control branch; {spare} entries" in told
    folder = tmp_path / "out" / "dit"
    vdm = load_backend(backend(folder), tmp_path / "no prior needed").vdm
    assert same(vdm.state_dict(), wanted[0].state_dict()) and vdm.config == CONFIG.vdm
    branch = ControlBranch(CONFIG.control, vdm).eval()
    load_whole(branch, folder / "control.safetensors", "dldm.control.weights")
    assert same(branch.state_dict(), wanted[1].state_dict())
    args = given()
    with torch.no_grad():
        mine, ours = vdm(*args[:4], branch(vdm, *args)), wanted[0](*args[:4], wanted[1](wanted[0], *args))
    assert torch.equal(mine, ours) and not torch.equal(mine, plain[0](*args[:4]))


@pytest.mark.parametrize("beside", ["net_ctrl.", "in net.", "in both"])
def test_averages_of_the_dit_alone(tmp_path, options, checkpoint, beside):
    """The branch is then plain: in names of its own, or as layers of the hint in the plain DiT or in both."""
    plain, ema = networks(0), networks(1)
    averages = {key: value for key, value in theirs(*ema, ema=True).items() if key.startswith("net_ema.")}
    if beside == "net_ctrl.":
        file, branch = checkpoint | averages, plain[1].state_dict()
    else:
        hints = {key.replace("net_ctrl.", "net."): value for key, value in checkpoint.items() if ours(key)}
        file = {key: value for key, value in checkpoint.items() if key.startswith("net.")} | hints | averages
        branch = None
        if beside == "in both":
            file |= {key.replace("net.", "net_ema."): value + 1 for key, value in hints.items()}
    told = imported(file, tmp_path, Options(options.config, ema=True))
    assert f"{len(plain[0].state_dict())} averaged weights fit the DiT; {len(plain[1].state_dict())} " in told
    assert ("averaged weights fit the control branch" in told) == (beside == "in both")
    vdm = load_backend(backend(tmp_path / "out" / "dit"), tmp_path).vdm
    assert same(vdm.state_dict(), ema[0].state_dict())
    found = load_file(tmp_path / "out" / "dit" / "control.safetensors")
    assert branch is None or same(found, branch)
    added = 1 if beside == "in both" else 0
    zero = found["zero.0.weight"], plain[1].state_dict()["zero.0.weight"] + added
    assert torch.equal(*zero) and found.keys() == plain[1].state_dict().keys()


def test_every_name_that_does_not_fit_can_be_listed(tmp_path, options, checkpoint, capsys):
    broken = {key: value for key, value in checkpoint.items() if ".mlp." not in key}
    write_checkpoint(tmp_path / "theirs.pt", broken)
    for every in (False, True):
        with pytest.raises(UserError, match="6 missing: blocks.0.mlp.layer1.weight, .* and 3 more"):
            import_release.main(
                "dit", tmp_path / "theirs.pt", tmp_path / "out", options.config, None, False, 93, True, every
            )
        listed = [line for line in capsys.readouterr().err.splitlines() if line.startswith("DiT: missing: blocks.")]
        assert len(listed) == (6 if every else 0)


def test_precision_and_containers_are_kept(tmp_path, options, checkpoint):
    half = {f"model._orig_mod.{key}": v.bfloat16() if v.is_floating_point() else v for key, v in checkpoint.items()}
    imported(half, tmp_path, options, "theirs.safetensors")
    for file in ("control.safetensors", "transformer/diffusion_pytorch_model.safetensors"):
        assert {v.dtype for v in load_file(tmp_path / "out" / "dit" / file).values()} == {torch.bfloat16}


def test_shared_and_turned_memory_is_written_out(tmp_path, options, checkpoint):
    """Two names of one storage and a transposed view: safetensors would take neither."""
    first, second = (f"net_ctrl.zero_blocks.block{number}.weight" for number in (0, 1))
    checkpoint[first] = checkpoint[second] = checkpoint[second].T
    dit_first, dit_second = (f"net.blocks.{number}.mlp.layer1.weight" for number in (0, 1))
    checkpoint[dit_first] = checkpoint[dit_second]
    imported(checkpoint, tmp_path, options)
    branch = load_file(tmp_path / "out" / "dit" / "control.safetensors")
    assert torch.equal(branch["zero.0.weight"], checkpoint[first])
    assert torch.equal(branch["zero.1.weight"], checkpoint[first])


@pytest.mark.parametrize("prefix", ["net.", "", "module.net."])
def test_a_plain_dit_has_no_branch(tmp_path, options, checkpoint, prefix):
    alone = {prefix + key.removeprefix("net."): value for key, value in checkpoint.items() if key.startswith("net.")}
    assert "it has no control branch" in imported(alone, tmp_path, options)
    assert not (tmp_path / "out" / "dit" / "control.safetensors").exists()
    vdm = load_backend(backend(tmp_path / "out" / "dit"), tmp_path).vdm
    assert same(vdm.state_dict(), networks(0)[0].state_dict())


def test_a_plain_dit_of_fewer_blocks_than_the_releases_branch(tmp_path, options):
    sizes = replace(CONFIG.vdm, layers=1)
    options.config.write_text(json.dumps({"vdm": asdict(sizes)}))
    file = to_release(Parts(wake(CosmosVDM(sizes)).state_dict(), {}, {f"net.{k}": v for k, v in buffers(12).items()}))
    assert "it has no control branch" in imported(file, tmp_path, options)


@pytest.mark.parametrize("lead", ["net.", "", "model.net."])
def test_both_networks_in_one_name_space(tmp_path, options, checkpoint, lead):
    """As the authors' -ctrl.pt: a plain DiT and the layers of the branch that it lacks; the branch copies the rest."""
    own = ("x_embedder2.", "input_hint_block.", "zero_blocks.")
    dit_alone = {key.removeprefix("net."): value for key, value in checkpoint.items() if key.startswith("net.")}
    branch = {key.removeprefix("net_ctrl."): value for key, value in checkpoint.items()}
    added = {key: value for key, value in branch.items() if key.startswith(own)}
    told = imported({lead + key: value for key, value in (dit_alone | added).items()}, tmp_path, options)
    assert "dldm.control.weights to" in told
    vdm = load_backend(backend(tmp_path / "out" / "dit"), tmp_path).vdm
    assert same(vdm.state_dict(), networks(0)[0].state_dict())
    copied = to_release(Parts({}, load_file(tmp_path / "out" / "dit" / "control.safetensors")))
    assert copied.keys() == to_release(Parts({}, networks(0)[1].state_dict())).keys()
    for key, value in copied.items():
        bare = key.removeprefix("net_ctrl.")
        assert torch.equal(value, added[bare] if bare.startswith(own) else dit_alone[bare]), key


def test_two_of_both_networks_in_one_name_space_are_refused(tmp_path, options, checkpoint):
    """With the DiT's prefix and without it: both would get the same names."""
    bare = {key.replace("net_ctrl.", "net.").removeprefix("net."): value for key, value in checkpoint.items()}
    lead = {f"net.{key}": value for key, value in bare.items()}
    imported(bare | lead, tmp_path, options)
    lead["net.zero_blocks.block0.bias"] = lead["net.zero_blocks.block0.bias"] + 1
    with pytest.raises(UserError, match="expected one tensor net_ctrl.zero_blocks.block0.bias in the file"):
        imported(bare | lead, tmp_path, options)


@pytest.mark.parametrize("odd", ["net.blocks.x.weight", "net.blocks.0x.weight", "net.blocks.weight"])
def test_an_odd_name_beside_the_branchs_layers_is_reported(tmp_path, options, checkpoint, odd):
    hints = {key.replace("net_ctrl.", "net."): value for key, value in checkpoint.items() if ours(key)}
    file = {key: value for key, value in checkpoint.items() if key.startswith("net.")} | hints
    with pytest.raises(UserError, match=f"1 unexpected: {odd.removeprefix('net.')}"):
        imported(file | {odd: torch.zeros(1)}, tmp_path, options)


def test_lora_of_the_warm_up(tmp_path, options, checkpoint):
    layer = "net.blocks.0.self_attn.q_proj."
    weight = checkpoint.pop(f"{layer}weight")
    checkpoint |= {f"{layer}base_layer.weight": weight, f"{layer}lora_A.default.weight": torch.ones(2, len(weight))}
    checkpoint[f"{layer}lora_B.default.weight"] = torch.zeros(len(weight), 2)
    imported(checkpoint, tmp_path, options)
    vdm = load_backend(backend(tmp_path / "out" / "dit"), tmp_path).vdm
    assert same(vdm.state_dict(), networks(0)[0].state_dict())
    with pytest.raises(UserError, match=f"expected one tensor {layer}weight in the file, got two that differ"):
        imported(checkpoint | {f"{layer}weight": weight + 1}, tmp_path, options)
    checkpoint[f"{layer}lora_B.default.weight"][0, 0] = 1
    with pytest.raises(UserError, match="a LoRA that changes the DiT; merge it"):
        imported(checkpoint, tmp_path, options)
    with pytest.raises(ValueError, match="LoRA merged"):
        to_release(Parts({"transformer.transformer_blocks.0.attn1.to_q.base_layer.weight": weight}))


def test_a_dldm_goes_out_as_it_came(tmp_path, options, checkpoint):
    config, warm = ready(checkpoint, tmp_path, options)
    save_dldm(begin_joint(config, warm, tmp_path).dldm, tmp_path / "data" / "dldm")
    export_release.dit(tmp_path / "data" / "dldm", tmp_path / "back.pt", export_release.Options())
    back = read_checkpoint(tmp_path / "back.pt")
    assert {key for key in checkpoint if not key.endswith("_extra_state")} == back.keys()
    weights = [key for key in back if "pos_embedder" not in key]  # their sizes say how long a video may be
    assert same({key: checkpoint[key] for key in weights}, {key: back[key] for key in weights})
    with pytest.raises(UserError, match="holds no dLDM; give the folder"):
        export_release.dit(warm, tmp_path / "none.pt", export_release.Options())
    with pytest.raises(UserError, match="expected an LDM with the release's parts"):
        export_release.tokenizer(warm, tmp_path / "none.pt", export_release.Options())
    assert not (tmp_path / "none.pt").exists()
    export_release.dit(tmp_path / "data" / "dldm", tmp_path / "ema.pt", export_release.Options(ema=True))
    averages = {key.replace(".", "_ema.", 1): value for key, value in back.items()}
    assert same(read_checkpoint(tmp_path / "ema.pt"), averages)


def test_a_bfloat16_dldm_goes_out_as_it_came(tmp_path, options, checkpoint):
    """By the command; as float32 it keeps the same values. Counters and positions are made anew, in float32."""
    half = {key: value.bfloat16() if value.is_floating_point() else value for key, value in checkpoint.items()}
    config, warm = ready(half, tmp_path, options)
    save_dldm(begin_joint(config, warm, tmp_path).dldm, tmp_path / "data" / "dldm")
    for dtype in (torch.bfloat16, torch.float32):
        told = str(dtype).removeprefix("torch.")
        export_release.main("dit", tmp_path / "data" / "dldm", tmp_path / "back.pt", "network.", False, told)
        back = read_checkpoint(tmp_path / "back.pt")
        assert {key for key in half if not key.endswith("_extra_state")} == back.keys()
        anew = {key for key in back if "pos_embedder" in key or "accum_" in key}
        assert {back[key].dtype for key in anew} == {torch.int64, torch.float32}
        weights = back.keys() - anew
        assert {back[key].dtype for key in weights} == {dtype}
        assert same({key: half[key].to(dtype) for key in weights}, {key: back[key] for key in weights})


def test_a_dldm_with_lora_and_without_a_branch_goes_out(tmp_path, options, checkpoint):
    config, warm = ready(checkpoint, tmp_path, options)
    alone = ControlConfig(blocks=0)
    for lora in (AdaptConfig(train="lora", rank=2, alpha=4.0), AdaptConfig()):
        dldm = begin_joint(replace(config, vdm=lora, control=alone), warm, tmp_path).dldm
        for name, parameter in dldm.vdm.named_parameters():
            if ".lora_" in name:
                torch.nn.init.normal_(parameter, std=0.1, generator=generator(len(name)))
        want = dldm.vdm(*given()[:4])
        save_dldm(dldm, tmp_path / "data" / "dldm")
        export_release.dit(tmp_path / "data" / "dldm", tmp_path / "back.pt", export_release.Options())
        back = read_checkpoint(tmp_path / "back.pt")
        assert not any(key.startswith("net_ctrl") or "lora" in key for key in back)
        imported(back, tmp_path, options, "again.pt")
        vdm = load_backend(backend(tmp_path / "out" / "dit"), tmp_path).vdm
        torch.testing.assert_close(vdm(*given()[:4]), want, atol=1e-5, rtol=1e-5)


def test_a_dldm_begins_with_both(tmp_path, options, checkpoint):
    config, warm = ready(checkpoint, tmp_path, options)
    dldm = begin_joint(config, warm, tmp_path).dldm
    vdm, branch = networks(0)
    assert same(dldm.vdm.state_dict(), vdm.state_dict()) and same(dldm.control.state_dict(), branch.state_dict())
    with pytest.raises(UserError, match="dldm.control.blocks must lie in 1..3"):
        begin_joint(replace(config, control=replace(config.control, blocks=9)), warm, tmp_path)


def test_one_sentence_for_all_that_does_not_fit(tmp_path, options, checkpoint):
    del checkpoint["net.blocks.1.mlp.layer1.weight"]
    checkpoint["net.blocks.1.mlp.layer3.weight"] = torch.zeros(1)
    checkpoint["net_ctrl.zero_blocks.block0.bias"] = torch.zeros(7)
    with pytest.raises(UserError) as error:
        imported(checkpoint, tmp_path, options)
    for part in (
        "fit the DiT; 1 missing: blocks.1.mlp.layer1.weight; 1 unexpected: blocks.1.mlp.layer3.weight; ",
        "fit the control branch; 1 of another shape: zero_blocks.block0.bias (expected 48, got 7); choose",
    ):
        assert part in str(error.value)
    assert not (tmp_path / "out").exists()


def test_wrong_settings_end_in_a_sentence(tmp_path, checkpoint, options):
    for chosen, sentence in (
        ({"vdm": {"layer": 3}}, "dit.vdm.layer: unknown key.*did you mean dit.vdm.layers"),
        ({"vdm": {"layers": 2}}, r"control.blocks must lie in 1\.\.2, .*, got 3"),
        ({"control": {"hint": "linear"}}, "the authors' networks have .* control.hint mlp"),
        (asdict(CONFIG) | {"vdm": asdict(CONFIG.vdm) | {"time_scale": 9.0}}, "cannot say that vdm.time_scale is 9.0"),
    ):
        options.config.write_text(json.dumps(chosen))
        with pytest.raises(UserError, match=sentence):
            imported(checkpoint, tmp_path, options)


def test_command_ends_a_broken_file_in_a_sentence(tmp_path, options, checkpoint):
    write_checkpoint(tmp_path / "theirs.pt", checkpoint)
    broken = tmp_path / "broken.pt"
    broken.write_bytes((tmp_path / "theirs.pt").read_bytes()[:5000])
    line = [sys.executable, "-m", "stages.import_release", "dit", broken, "--config", options.config]
    done = subprocess.run([*map(str, line), "--out", str(tmp_path / "out")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "is no file of plain weights" in done.stderr and "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_branch_of_other_sizes_is_refused_whole(tmp_path):
    branch = networks(0)[1]
    before = {key: value.clone() for key, value in branch.state_dict().items()}
    file = tmp_path / "branch.safetensors"
    save_file({key: value for key, value in networks(1)[1].state_dict().items() if key != "zero.1.bias"}, file)
    with pytest.raises(UserError, match="1 of .* weights in .* first zero.1.bias; change dldm.control.weights"):
        load_whole(branch, file, "dldm.control.weights")
    assert same(branch.state_dict(), before), "all or nothing"
    file.write_bytes(b"noise")
    for each in (file, tmp_path / "none"):
        with pytest.raises(UserError, match="could not be read .* set dldm.control.weights to a safetensors file"):
            load_whole(branch, each, "dldm.control.weights")
    with pytest.raises(ValueError, match="dldm.control.blocks is 0, no branch"):
        ControlConfig(blocks=0, weights="branch.safetensors")


@needs_shapes
def test_all_names_at_true_size():
    listed = {key: value for key, value in json.loads(SHAPES.read_text()).items() if key.startswith("dit")}
    weights = {
        f"{title.split(chr(39))[1]}{key}": torch.empty(shape, device="meta")
        for title, entries in listed.items()
        for key, (shape, _) in entries.items()
    }
    vdm, _, reports = import_dit(weights, DiTConfig())
    assert sum(p.numel() for p in vdm.parameters()) == 1_956_413_440
    assert all(report.fits for report in reports) and sum(report.fitting for report in reports) < len(weights)
