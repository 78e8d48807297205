"""An LDM of causal parts: parity with tensors recorded from the authors' code, other shapes, causality, size.

The full recordings lie beside the repository; a part of them (tests/fixtures, see its README) is checked everywhere.
"""

import json
import re
from pathlib import Path

import vw2.torchvision_ops  # noqa: F401

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_cosmos import CosmosDecoder3d, CosmosEncoder3d
from safetensors.torch import load_file
from tiny_models import causal_ldm as tiny
from tiny_models import causal_settings, clip, draw

from vw2.interop.checkpoints import export_weights, import_weights
from vw2.interop.keys_tokenizer import TOKENIZER
from vw2.models.causal import CausalConfig
from vw2.models.causal3d import TimeUp, downsample
from vw2.models.causal_decoder import space_ups, time_ups
from vw2.models.fsq import FSQ
from vw2.models.ldm import LDM, LDMConfig
from vw2.models.qformer import QFormer, view_mask

REFERENCE = Path(__file__).parents[2] / "shared" / "reference"
FIXTURES = REFERENCE / "fixtures"
AUTHORS = {"size": (48, 80), "channels": 8, "z_channels": 16, "connector": 32}  # of the recordings
FEATURES, RECONSTRUCTION, PREQUANT = 1e-5, 1e-4, 1e-3  # tolerances that the recordings come with
needs_recordings = pytest.mark.skipif(not FIXTURES.is_dir(), reason="the authors' recordings are not beside the repo")


def decode(model: LDM, features: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """f of which f_0 is used, codes -> coarse video."""
    return model.decoder(features[:, :, :1], codes).video


@pytest.fixture(scope="module")
def recorded() -> dict[str, torch.Tensor]:
    return load_file(FIXTURES / "tokenizer_tiny_io.safetensors")


@pytest.fixture(scope="module")
def authors() -> LDM:
    model = tiny(**AUTHORS)
    import_weights(model, load_file(FIXTURES / "tokenizer_tiny.safetensors"), TOKENIZER)
    return model


def record(model: LDM, run) -> dict[str, list[torch.Tensor]]:
    """What every module returned while `run(model)` ran, by name, in order."""
    seen: dict[str, list[torch.Tensor]] = {}
    keep = lambda name: lambda module, given, output: seen.setdefault(name, []).append(output)  # noqa: E731
    hooks = [module.register_forward_hook(keep(name)) for name, module in model.named_modules()]
    with torch.no_grad():
        run(model)
    for hook in hooks:
        hook.remove()
    return seen


@needs_recordings
def test_encoder_and_queries_agree_with_the_authors(authors, recorded):
    seen = record(authors, lambda model: model.query(model.features(recorded["video"])))
    places = {
        "enc_patched": "encoder.patch",
        "enc_conv_in": "encoder.conv_in",
        "enc_down0": "encoder.down.0",
        "enc_down1": "encoder.down.1",
        "enc_mid_block1": "encoder.mid.block1",
        "enc_mid_attn": "encoder.mid.attn",
        "enc_mid_block2": "encoder.mid.block2",
        "enc_features": "encoder",
        "pos_embedding": "query.former.places",
        "enc_query": "query.out",
        "query_prequant": "query.to_digits",
    }
    for name, module in places.items():
        atol = PREQUANT if name == "query_prequant" else FEATURES
        torch.testing.assert_close(seen[module][0].view_as(recorded[name]), recorded[name], atol=atol, rtol=0)
    torch.testing.assert_close(seen["query.former"][0].flatten(1, 2), recorded["qformer_out"], atol=FEATURES, rtol=0)


@needs_recordings
@pytest.mark.parametrize("view, name", [("adjacent", "qformer_out"), ("prefix", "qformer_out_variant_prefix")])
def test_both_views_agree_with_the_authors(authors, recorded, view, name):
    model = tiny(**AUTHORS, view=view)
    model.load_state_dict(authors.state_dict())
    with torch.no_grad():
        read = model.query.former(recorded["enc_features"])
    torch.testing.assert_close(read.flatten(1, 2), recorded[name], atol=FEATURES, rtol=0)


@needs_recordings
def test_codes_agree_with_the_authors(authors, recorded):
    with torch.no_grad():
        codes, index = authors.quantise(authors.features(recorded["video"]))
        lifted = authors.decoder.lift(codes)
    assert torch.equal(index.flatten(1), recorded["indices"].flatten(1).long())
    for name in ("quant_codes", "codes_from_indices"):
        theirs = recorded[name][..., 0, 0].transpose(1, 2)  # (B, K N, G)
        mine = codes if name == "quant_codes" else authors.fsq.to_codes(index)
        assert torch.equal(mine.flatten(1, 2), theirs), name
    torch.testing.assert_close(lifted, recorded["post_quant"], atol=FEATURES, rtol=0)
    assert not recorded["quant_loss"].any(), "there is no loss of the quantiser"


@needs_recordings
def test_decoder_and_connector_agree_with_the_authors(authors, recorded):
    features, index = recorded["enc_features"], recorded["indices"].view(2, 3, 4).long()
    codes = authors.fsq.to_codes(index)
    seen = record(authors, lambda model: (decode(model, features, codes), model.tokens(codes)))
    places = {
        "dec_conv_in": "decoder.conv_in",
        "dec_mid_block1": "decoder.mid.block1",
        "dec_mid_cross": "decoder.mid.attn.codes",
        "dec_mid_self": "decoder.mid.attn.space",
        "dec_mid_temp": "decoder.mid.attn.time",
        "dec_mid_block2": "decoder.mid.block2",
        "dec_up2": "decoder.up.2",
        "dec_up1": "decoder.up.1",
        "dec_conv_out": "decoder.conv_out",
    }
    for name, module in places.items():
        atol = RECONSTRUCTION if name == "dec_conv_out" else FEATURES
        torch.testing.assert_close(seen[module][0], recorded[name], atol=atol, rtol=0)
    video = seen["decoder"][0].video
    torch.testing.assert_close(video, recorded["reconstruction"], atol=RECONSTRUCTION, rtol=0)
    tokens = seen["connector"][0][..., 0, 0].transpose(1, 2)
    torch.testing.assert_close(tokens, recorded["connector_tokens"], atol=FEATURES, rtol=0)


@needs_recordings
def test_one_frame_and_indices_alone_give_the_video(authors, recorded):
    with torch.no_grad():
        first = authors.features(recorded["video"][:, :, :1])
        index = authors.encode(recorded["video"])
        video = decode(authors, first, authors.fsq.to_codes(index))
        assert authors.quantise(first)[1].shape == (2, 0, 4), "a single frame has no step"
    torch.testing.assert_close(first, recorded["enc_features_first_frame_only"], atol=FEATURES, rtol=0)
    torch.testing.assert_close(first, recorded["enc_features"][:, :, :1], atol=FEATURES, rtol=0)
    torch.testing.assert_close(video, recorded["reconstruction"], atol=RECONSTRUCTION, rtol=0)
    coarse = authors.coarse(recorded["video"][:, :, :1], index)
    torch.testing.assert_close(coarse, recorded["reconstruction"].clamp(-1, 1), atol=RECONSTRUCTION, rtol=0)


@needs_recordings
@pytest.mark.parametrize("loss", ["rec", "con"])
def test_gradients_agree_with_the_authors(authors, recorded, loss):
    """`rec`: mean absolute error with the codes detached; `con`: mean square of the tokens. None = no gradient."""
    norms = json.loads((FIXTURES / "tokenizer_tiny_gradnorms.json").read_text())
    authors.zero_grad()
    features = authors.features(recorded["video"])
    codes = authors.quantise(features)[0]
    if loss == "rec":
        value = (decode(authors, features, codes.detach()) - recorded["video"]).abs().mean()
    else:
        value = authors.tokens(codes).square().mean()
    value.backward()
    assert value.item() == pytest.approx(norms[f"{loss}_loss"], rel=1e-5)
    ours = {TOKENIZER.theirs(name): weight.grad for name, weight in authors.named_parameters()}
    assert set(ours) == set(norms[loss])
    for name, norm in norms[loss].items():
        got = None if ours[name] is None else ours[name].norm().item()
        assert (got is None) == (norm is None), name
        # a key's bias shifts all logits alike, so its gradient is 0 but for rounding
        assert norm is None or got == pytest.approx(norm, rel=1e-3, abs=1e-7), name
    authors.zero_grad()


# A part of the recordings, committed: the coarse levels, from the second way down to the middle of the decoder


@pytest.fixture(scope="module")
def part() -> tuple[LDM, dict[str, torch.Tensor]]:
    tensors = load_file(Path(__file__).parent / "fixtures" / "tokenizer_part.safetensors")
    model, names = tiny(**AUTHORS), {}
    for key in model.state_dict():
        names[TOKENIZER.theirs(key)] = key
    weights = {names[key]: tensors.pop(key) for key in list(tensors) if key in names}
    model.load_state_dict(weights, strict=False)
    return model, tensors


@torch.no_grad()
def test_the_part_agrees_with_the_authors(part):
    model, io = part
    close = lambda ours, name, atol=FEATURES: torch.testing.assert_close(ours, io[name], atol=atol, rtol=0)  # noqa: E731
    close(model.encoder.patch(io["video"]), "enc_patched")
    close(model.encoder.down[1](io["enc_down0"]), "enc_down1")
    close(model.encoder.mid.attn(io["enc_mid_block1"]), "enc_mid_attn")
    close(torch.nn.functional.silu(model.encoder.norm_out(io["enc_mid_block2"])), "enc_features")
    close(model.query.former(io["enc_features"]).flatten(1, 2), "qformer_out")
    model.query.former.view = "prefix"
    close(model.query.former(io["enc_features"]).flatten(1, 2), "qformer_out_variant_prefix")
    model.query.former.view = "adjacent"
    codes, index = model.quantise(io["enc_features"])
    assert torch.equal(index.flatten(), io["indices"].flatten().long())
    close(model.decoder.lift(codes), "post_quant")
    close(model.tokens(codes), "connector_tokens")
    close(model.decoder.conv_in(io["post_quant"]), "dec_conv_in")
    tokens = io["dec_conv_in"][..., 0, 0].transpose(1, 2)
    attention = model.decoder.mid.attn
    close(attention.codes(io["dec_mid_block1"][:, :, 1:], tokens), "dec_mid_cross")
    close(attention(io["dec_mid_block1"], tokens), "dec_mid_temp")


# Other configurations: the trunks are those of the Cosmos tokenizer, which diffusers has too

OTHERS = {
    "patch 2": {"patch": 2, "multipliers": (1, 2, 3, 4), "encoder_attention": (128,), "decoder_attention": (256, 64)},
    "patch 8": {
        "patch": 8,
        "time": 8,
        "multipliers": (3, 2),
        "encoder_attention": (64,),
        "decoder_attention": (128, 64),
    },
    "one block": {"channels": 6, "space": 8, "blocks": 1, "multipliers": (1, 2, 2, 4), "decoder_attention": (32,)},
    "no patches": {"patch": 1, "multipliers": (1, 2, 1, 2, 2), "encoder_attention": (128,), "decoder_attention": (64,)},
    "sizes rounded once": {"resolution": 200, "encoder_attention": (25,), "decoder_attention": (24, 48)},
    "sizes that no level of the decoder has": {"resolution": 200, "decoder_attention": (25, 50)},
}
each_other = pytest.mark.parametrize("changes", OTHERS.values(), ids=OTHERS)


def diffusers_name(key: str, levels: int) -> str:
    """Our name in a trunk -> the one in diffusers."""
    key = re.sub(r"^up\.(\d+)", lambda found: f"up_blocks.{levels - 1 - int(found[1])}", key)
    for pattern, replacement in (
        (r"^down\.", "down_blocks."),
        (r"^mid\.block([12])", lambda found: f"mid_block.resnets.{int(found[1]) - 1}"),
        (r"^mid\.attn\.(0|space)\.", "mid_block.attentions.0."),
        (r"^mid\.attn\.(1|time)\.", "mid_block.temp_attentions.0."),
        (r"\.block\.", ".resnets."),
        (r"\.attn\.(\d+)\.(0|space)\.", r".attentions.\1."),
        (r"\.attn\.(\d+)\.(1|time)\.", r".temp_attentions.\1."),
        (r"(down)sample\.space\.conv|(up)sample\.time\.conv", r"\1\2samplers.0.conv1"),
        (r"(down)sample\.time\.conv|(up)sample\.space\.conv", r"\1\2samplers.0.conv2"),
        (r"sample\.out\.", "samplers.0.conv3."),
        (r"(conv\w+)\.(space|time)\.", lambda found: f"{found[1]}.conv_{found[2][0]}."),
        (r"shortcut", "conv_shortcut"),
        (r"to_out\.", "to_out.0."),
        (r"(norm\w*)\.(weight|bias)$", r"\1.norm.\2"),
    ):
        key = re.sub(pattern, replacement, key)
    return key


def cosmos(cls, config: CausalConfig, sizes: tuple[int, ...], trunk: torch.nn.Module) -> torch.nn.Module:
    """Diffusers' trunk with our weights."""
    levels = len(config.multipliers)
    widths = (config.channels, *(config.channels * each for each in config.multipliers))
    other = {}
    if cls is CosmosDecoder3d:
        widths, other = (*widths[1:], widths[-1]), {"in_channels": config.z_channels}
    model = cls(
        **other,
        block_out_channels=widths,
        num_resnet_blocks=config.blocks,
        attention_resolutions=sizes,
        resolution=config.resolution,
        patch_size=config.patch,
        spatial_compression_ratio=config.space,
        temporal_compression_ratio=config.time,
    )
    ours = {
        diffusers_name(k, levels): v
        for k, v in trunk.state_dict().items()
        if ".codes." not in k and "from_digits" not in k
    }
    wrong = model.load_state_dict(ours, strict=False)
    assert wrong.unexpected_keys == [] and all(key.startswith("conv_") for key in wrong.missing_keys)
    return model


@each_other
@torch.no_grad()
def test_other_encoders_equal_cosmos(changes):
    model = tiny(**changes)
    config = model.config.causal
    reference = cosmos(CosmosEncoder3d, config, config.encoder_attention, model.encoder)
    reference.conv_out = torch.nn.Identity()
    video = clip(1, 1 + 2 * config.time, 32)
    torch.testing.assert_close(model.features(video), reference(video), atol=1e-5, rtol=1e-4)


@each_other
@torch.no_grad()
def test_other_decoders_equal_cosmos_when_codes_say_nothing(changes):
    model = tiny(**changes)
    config = model.config.causal
    for name, weight in model.decoder.named_parameters():
        weight.mul_(".codes.to_out." not in name)
    reference = cosmos(CosmosDecoder3d, config, config.decoder_attention, model.decoder)
    reference.conv_in = torch.nn.Identity()
    codes = FSQ((8, 5, 5, 5)).to_codes(torch.arange(8).view(1, 2, 4))
    first = draw(1, config.width, 1, 2, 2)
    expected = reference(first.expand(-1, -1, 3, -1, -1))
    torch.testing.assert_close(decode(model, first, codes), expected, atol=1e-5, rtol=1e-4)


# The Q-former: all steps at once against one step after the other


@pytest.mark.parametrize("view", ["prefix", "adjacent"])
@torch.no_grad()
def test_all_steps_at_once_equal_a_loop(view):
    torch.manual_seed(0)
    former = QFormer(3, 16, layers=2, heads=4, view=view)
    features = draw(2, 16, 5, 2, 3)
    steps = []
    for k in range(1, 5):
        seen = features[:, :, (0 if view == "prefix" else k - 1) : k + 1]
        one = QFormer(3, 16, layers=2, heads=4, view="prefix")
        one.load_state_dict(former.state_dict())
        steps.append(one(seen)[:, -1])  # the last step of a prefix sees all of it
    torch.testing.assert_close(former(features), torch.stack(steps, dim=1), atol=1e-6, rtol=1e-5)


def test_masks_by_hand():
    assert view_mask("prefix", 4).int().tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
    assert view_mask("adjacent", 4).int().tolist() == [[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]


# Causality, bit for bit

CAUSAL = {"release": {}, "paper": {"view": "prefix"}, "patch 2": OTHERS["patch 2"] | {"view": "prefix"}}
# its decoder attends to codes where a step has two frames already
CAUSAL |= {f"patch 2, {n} queries": CAUSAL["patch 2"] | {"queries": n} for n in (1, 2, 3)}
each_causal = pytest.mark.parametrize("changes", CAUSAL.values(), ids=CAUSAL)


@each_causal
@torch.no_grad()
def test_later_pixels_change_no_earlier_feature_or_code(changes):
    model, video = tiny(**changes), clip(1, 13, 32)
    features = model.features(video)
    digits = model.query(features)
    assert features.shape[2] == 4 and digits.shape[1] == 3
    for frame in (1, 4, 5, 12):
        other = video.clone()
        other[:, :, frame:] = clip(1, 13 - frame, 32, seed=frame)
        touched = (frame + 3) // 4  # the first latent frame that covers a changed one
        new = model.features(other)
        assert torch.equal(new[:, :, :touched], features[:, :, :touched])
        assert not torch.equal(new[:, :, touched], features[:, :, touched])
        now = model.query(new)
        assert torch.equal(now[:, : touched - 1], digits[:, : touched - 1])
        assert not torch.equal(now[:, touched - 1], digits[:, touched - 1])


@each_causal
@torch.no_grad()
def test_later_codes_change_no_earlier_frame_or_token(changes):
    model = tiny(**changes)
    queries = model.config.queries
    index = torch.randint(1000, (1, 3, queries), generator=torch.Generator().manual_seed(0))
    first = model.features(clip(1, 1, 32))
    video, tokens = decode(model, first, model.fsq.to_codes(index)), model.tokens(model.fsq.to_codes(index))
    assert video.shape == (1, 3, 13, 32, 32) and tokens.shape == (1, 3 * queries, 10)
    for token in sorted({0, 1, queries, 3 * queries - 1}):
        other = index.clone()
        other.view(-1)[token:] = (other.view(-1)[token:] + 501) % 1000
        codes = model.fsq.to_codes(other)
        seen, now = 1 + 4 * (token // queries), decode(model, first, codes)
        assert torch.equal(now[:, :, :seen], video[:, :, :seen])
        assert not torch.equal(now[:, :, seen : seen + 4], video[:, :, seen : seen + 4])
        assert torch.equal(model.tokens(codes)[:, :token], tokens[:, :token])
        assert not torch.equal(model.tokens(codes)[:, token], tokens[:, token])


# Gradients, sizes, errors


def test_detached_codes_learn_nothing_from_the_reconstruction():
    model, video = tiny(), clip(1, 5, 32)
    features = model.features(video)
    codes = model.quantise(features)[0]
    (decode(model, features, codes.detach()) - video).abs().mean().backward(retain_graph=True)
    assert all(weight.grad is None for weight in model.query.parameters())
    assert model.encoder.conv_in.space.weight.grad.abs().sum() > 0, "the trunk learns through f_0"
    model.tokens(codes).square().mean().backward()
    assert all(weight.grad is not None for weight in model.query.parameters())


def test_true_size():
    with torch.device("meta"):
        model = LDM(LDMConfig(parts="causal", size=(240, 416)))  # view "prefix" has the same weights
        video = torch.empty(1, 3, 93, 240, 416)
    assert sum(weight.numel() for weight in model.parameters()) == 142_588_036
    features = model.features(video)
    assert features.shape == (1, 512, 24, 15, 26)
    codes, index = model.quantise(features)
    assert index.shape == (1, 23, 4) and model.tokens(codes).shape == (1, 92, 1024)
    assert decode(model, features, codes).shape == video.shape
    shapes = REFERENCE / "state_dict_shapes.json"
    if shapes.is_file():
        wanted = next(tree for title, tree in json.loads(shapes.read_text()).items() if title.startswith("dldm"))
        ours = {k: [list(v.shape), str(v.dtype)[6:]] for k, v in export_weights(model, TOKENIZER).items()}
        assert len(ours) == 467 and ours == wanted


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"patch": 3}, "dldm.causal.patch must be a power of 2, got 3"),
        ({"patch": 8}, "dldm.causal.time must be at least dldm.causal.patch 8, which is part of it, got 4; raise"),
        ({"patch": 8, "space": 4, "time": 8}, "dldm.causal.space must be at least dldm.causal.patch 8"),
        ({"multipliers": ()}, "dldm.causal.multipliers must name at least one level, got none"),
        ({"multipliers": (2,)}, "dldm.causal: 1 multipliers cannot compress patches of 4 to space 16 and time 4"),
        ({"channels": 3, "multipliers": (1, 1, 1)}, "dldm.causal: the width 3 must be a multiple of 8"),
        ({"codebook": 8, "levels": (4, 2)}, "dldm.levels must be at least 3"),
        ({"size": (32, 40)}, "dldm.size must be a multiple of 16, got (32, 40); round it"),
    ],
)
def test_impossible_configurations_end_in_a_sentence(changes, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        LDMConfig(**causal_settings(**changes))


def test_which_ways_up_double_the_frames():
    """The coarsest level is the last; `legacy` begins with it, all others one later; space goes along."""
    assert time_ups(4, 2) == [False, True, True, False] and time_ups(4, 2, legacy=True) == [False, False, True, True]
    assert space_ups(time_ups(4, 1), 3, 1) == space_ups(time_ups(4, 1, legacy=True), 3, 1) == [False, True, True, True]
    assert space_ups(time_ups(3, 1, legacy=True), 1, 1) == [False, False, True]
    for legacy in (False, True):
        model = tiny(time=8, legacy=legacy)
        features, index = model.features(clip(1, 17, 32)), model.encode(clip(1, 17, 32))
        assert features.shape[2] == 3 and decode(model, features, model.fsq.to_codes(index)).shape[2] == 17


def test_the_read_of_the_queries_may_be_wider():
    assert tiny(z_factor=2).query.to_digits.weight.shape[1] == 2 * tiny().query.to_digits.weight.shape[1]


@pytest.mark.parametrize("time", [1, 2, 4, 8])
def test_two_frames_are_two_latent_frames(time):
    model = tiny(patch=min(time, 4), space=16 if time > 1 else 4, time=time, multipliers=(2, 4, 4, 4))
    assert model.features(clip(1, 2, 32)).shape[2] == 2 and model.features(clip(1, 1 + 2 * time, 32)).shape[2] == 3


def test_sizes_that_do_not_divide_end_in_a_sentence():
    model = tiny()
    with pytest.raises(
        ValueError, match=r"expected 1 \+ 4 m frames .* multiples of 16, got 12 of 32x40; cut or resize"
    ):
        model.features(torch.zeros(1, 3, 12, 32, 40))
    with pytest.raises(ValueError, match="codes of at least one step"):
        model.tokens(torch.zeros(1, 0, 4, 4))


def test_resampling_by_hand():
    up = TimeUp(1)
    torch.nn.init.zeros_(up.conv.weight), torch.nn.init.zeros_(up.conv.bias)
    assert up(torch.arange(3.0).view(1, 1, 3, 1, 1)).flatten().tolist() == [0, 1, 1, 2, 2]
    assert list(downsample(4, False, False).parameters()) == [], "nothing to do, nothing to learn"
