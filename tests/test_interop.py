"""The authors' files: names there and back bit for bit, wrappers and variants, reports of what does not fit, codes."""

import io
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from tiny_models import causal_ldm, clip

from stages import export_release, import_release
from stages.import_release import RELEASE, Options
from stages.import_release import codes as import_codes_of
from vw2.console import UserError
from vw2.data.codes import CodesInfo, read_codes, write_codes
from vw2.files import read_json
from vw2.interop.checkpoints import (
    export_weights,
    flatten,
    import_weights,
    read_checkpoint,
    write_checkpoint,
)
from vw2.interop.codes import export_codes, import_codes, read_release_codes
from vw2.interop.keys_tokenizer import TOKENIZER
from vw2.models.causal import CausalConfig
from vw2.models.dldm_config import DLDMConfig
from vw2.models.ldm import LDM
from vw2.models.ldm_files import load_ldm
from vw2.models.settings import settings
from vw2.params import build
from vw2.patch import parse, patch

ROOT = Path(__file__).resolve().parents[1]
RECORDED = ROOT.parent / "shared" / "reference" / "fixtures" / "tokenizer_tiny.safetensors"
TINY = {"channels": 4, "multipliers": (2, 4), "space": 8, "blocks": 1, "z_channels": 6, "connector": 10}


def tiny(seed: int = 0, **changes) -> LDM:
    return causal_ldm(seed, **TINY | changes)


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    """What the authors' code would have saved of a small tokenizer."""
    return export_weights(tiny(), TOKENIZER)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return set(one) == set(other) and all(
        one[key].dtype == other[key].dtype and torch.equal(one[key], other[key]) for key in one
    )


# Names


@pytest.mark.skipif(not RECORDED.is_file(), reason="the authors' recordings are not beside the repo")
def test_authors_weights_come_back_bit_for_bit(tmp_path):
    theirs = read_checkpoint(RECORDED)
    model = causal_ldm(channels=8, z_channels=16, connector=32)
    report = import_weights(model, theirs, TOKENIZER)
    assert report.fits and report.fitting == 467 == len(theirs) and report.elsewhere == 0
    assert same(export_weights(model, TOKENIZER), theirs)
    write_checkpoint(tmp_path / "back.pt", export_weights(model, TOKENIZER), "network.")
    back = read_checkpoint(tmp_path / "back.pt")
    assert same({key.removeprefix("network."): value for key, value in back.items()}, theirs)


def test_bfloat16_comes_back_bit_for_bit(weights):
    half = {key: value.bfloat16() if value.is_floating_point() else value for key, value in weights.items()}
    model = tiny(1)
    import_weights(model, half, TOKENIZER)
    assert same(export_weights(model, TOKENIZER, torch.bfloat16), half)


def test_other_configurations_keep_names_apart():
    for changes in (
        {"patch": 2, "multipliers": (1, 2, 2, 4), "encoder_attention": (128,), "decoder_attention": (256, 64)},
        {"patch": 8, "time": 8, "encoder_attention": (64,), "decoder_attention": (64, 128), "multipliers": (2, 2)},
        {"codebook": 64000, "queries": 1, "query_layers": 3},
    ):
        with torch.device("meta"):
            model = tiny(**changes)
        names = [TOKENIZER.theirs(key) for key in model.state_dict()]
        assert len(set(names)) == len(names) and len(export_weights(model, TOKENIZER)) == len(names) + 5


def test_buffers_are_made_anew(weights):
    assert weights["encoder.patcher3d.patch_size_buffer"].tolist() == [4]
    assert weights["decoder.unpatcher3d._arange"].tolist() == [0, 1]
    assert torch.equal(weights["encoder.patcher3d.wavelets"], torch.full((2,), 2**-0.5))
    assert weights["encoder.patcher3d.patch_size_buffer"].dtype == torch.int32


# Files and what they wrap names in


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "network.",
        "ldm_net.network.",
        "model.network.",
        "_orig_mod.network.",
        "module.network.",
        "state_dict.model.ldm_net.network.",
        "ldm_net.module.network.",
        "module.module.network.",
        "network.module.",
        "network._orig_mod.module.",
        "model_state_dict.",
        "model_state_dict.module.",
        "params.",
    ],
)
def test_wrapped_names_are_found(tmp_path, weights, prefix, suffix):
    file = tmp_path / f"file{suffix}"
    extra = {"net.blocks.0.weight": torch.zeros(1), "net_ctrl.x": torch.zeros(2)}
    write_checkpoint(file, {f"{prefix}{key}": value for key, value in weights.items()} | extra)
    model = tiny(1)
    report = import_weights(model, read_checkpoint(file), TOKENIZER)
    assert report.fits and report.elsewhere == 2
    assert same(export_weights(model, TOKENIZER), weights)


@pytest.mark.parametrize(
    "average",
    ["ema.network.", "network_ema.", "model.ema.network.", "ema.", "model_ema.network.", "ldm_net_ema.network."]
    + ["ema.module.", "ema.averaged_model."],
)
def test_averaged_weights_are_told_apart(weights, average):
    averaged = export_weights(tiny(1), TOKENIZER)
    both = {f"network.{key}": value for key, value in weights.items()}
    both |= {f"{average}{key}": value for key, value in averaged.items()}
    for ema, expected in ((False, weights), (True, averaged)):
        model = tiny(2)
        report = import_weights(model, both, TOKENIZER, ema)
        assert report.elsewhere == len(weights) and same(export_weights(model, TOKENIZER), expected)
    with pytest.raises(UserError, match="expected averaged .* holds only the plain ones; turn EMA off"):
        import_weights(tiny(), weights, TOKENIZER, ema=True)
    alone = {f"{average}{key}": value for key, value in averaged.items()}
    with pytest.raises(UserError, match="expected plain .* holds only averaged .* ones; turn EMA on"):
        import_weights(tiny(), alone, TOKENIZER)


def test_nested_containers(tmp_path, weights):
    network = {f"network.{key}": value for key, value in weights.items()}
    losses = {"best": np.float64(0.5), "loss": np.array([1.0, 0.5]), "seen": np.array([True])}
    optimizer = {"state": {0: {"step": torch.ones(1)}}}
    torch.save({"model": network, "iteration": 5, "optimizer": optimizer} | losses, tmp_path / "a.pt")
    report = import_weights(tiny(1), read_checkpoint(tmp_path / "a.pt"), TOKENIZER)
    assert report.fits and report.elsewhere == 1


def test_nesting_without_end_is_refused(tmp_path):
    """A dictionary in itself, and shared ones that stand for many."""
    own, shared = {}, {"x": torch.zeros(1)}
    own["a"] = own
    for _ in range(12):
        shared = dict.fromkeys("abcd", shared)
    for tree, sentence in ((own, "nests dictionaries deeper than 16"), (shared, "holds more than 200000 entries")):
        torch.save(tree, tmp_path / "tree.pt")
        with pytest.raises(UserError, match=f"{sentence}, expected weights; save its state dict alone"):
            read_checkpoint(tmp_path / "tree.pt")


def test_what_is_no_weight_is_left_out_or_named(tmp_path):
    state = {"net.norm._extra_state": io.BytesIO(b"of Transformer Engine"), "net.w": torch.zeros(2)}
    torch.save(state, tmp_path / "a.pt")
    assert set(read_checkpoint(tmp_path / "a.pt")) == {"net.w"}
    odd_ones = {
        "sparse_coo": torch.ones(2).to_sparse(),
        "meta": torch.ones(2, device="meta"),
        "quantized": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
        "nested": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    }
    for kind, odd in odd_ones.items():
        torch.save(state | {"net.odd": odd}, tmp_path / "a.pt")
        with pytest.raises(UserError, match=f"net.odd is a {kind} tensor, expected one with all its values"):
            read_checkpoint(tmp_path / "a.pt")


class Evil:
    def __reduce__(self):
        return os.system, ("exit 1",)


def test_files_that_are_no_weights_end_in_a_sentence(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_checkpoint(tmp_path / "none.pt")
    torch.save({"model": Evil()}, tmp_path / "evil.pt")
    (tmp_path / "noise.pt").write_bytes(b"\x00noise" * 9)
    (tmp_path / "noise.safetensors").write_bytes(b"\xff" * 99)
    for name in ("evil.pt", "noise.pt", "noise.safetensors"):
        with pytest.raises(UserError, match="is no file of plain weights"):
            read_checkpoint(tmp_path / name)
    torch.save({"model": Path("x")}, tmp_path / "path.pt")
    for name, kind in (("evil", r"unsupported GLOBAL \w+.system"), ("path", r"Unsupported global: GLOBAL pathlib\S*")):
        with pytest.raises(UserError, match=rf"is no file of plain weights \({kind}\); expected") as error:
            read_checkpoint(tmp_path / f"{name}.pt")
        assert "\x1b" not in str(error.value) and "\n" not in str(error.value)
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    with pytest.raises(UserError, match="holds a list, expected a dictionary"):
        read_checkpoint(tmp_path / "list.pt")


@pytest.mark.parametrize("read", [read_checkpoint, lambda file: read_release_codes(file, 3, 2, 1000)])
@pytest.mark.parametrize("zipped", [True, False])
def test_broken_files_end_in_a_sentence(tmp_path, zipped, read):
    file, rng = tmp_path / "file.pt", np.random.default_rng(0)
    torch.save({"net.a": torch.zeros(30, 6).long()}, file, _use_new_zipfile_serialization=zipped)
    whole, broken = file.read_bytes(), 0
    for cut in rng.integers(len(whole), size=100):
        changed = bytearray(whole)
        changed[cut % 400] ^= 0x55
        for content in (whole[:cut], bytes(changed)):
            file.write_bytes(content)
            try:
                read(file)
            except UserError as error:
                broken += "is no file of plain" in str(error) or "expected" in str(error)
    assert broken > 100


# Reports


def test_report_names_what_does_not_fit(weights):
    before = export_weights(tiny(1), TOKENIZER)
    model = tiny(1)
    del weights["quant_conv.conv3d.bias"]
    weights["quant_conv.conv3d.extra"] = torch.zeros(1)
    weights["encoder.act.weight"] = torch.zeros(3, 16)
    with pytest.raises(UserError) as error:
        import_weights(model, weights, TOKENIZER)
    sentence = str(error.value)
    assert "1 missing: quant_conv.conv3d.bias" in sentence and "1 unexpected: quant_conv.conv3d.extra" in sentence
    assert "1 of another shape: encoder.act.weight (expected 4x16, got 3x16)" in sentence
    assert same(export_weights(model, TOKENIZER), before), "all or nothing"


@pytest.mark.parametrize(
    "change, fault",
    [
        (lambda bias: bias.int(), "expected floating numbers, got int32"),
        (lambda bias: bias.bool(), "expected floating numbers, got bool"),
        (lambda bias: bias.to(torch.complex64), "expected floating numbers, got complex64"),
        (lambda bias: bias.to(torch.float8_e4m3fn), "expected 16 bits or more, got float8_e4m3fn"),
        (lambda bias: bias / 0, "expected finite numbers, got nan or infinity"),
    ],
)
def test_other_numbers_are_refused(weights, change, fault):
    name = "quant_conv.conv3d.bias"
    weights[name] = change(weights[name])
    with pytest.raises(
        UserError, match=re.escape(f"weights fit the dLDM tokenizer; 1 of other numbers: {name} ({fault})")
    ):
        import_weights(tiny(), weights, TOKENIZER)


def test_averaged_weights_of_the_outer_part(weights):
    """Beside plain ones under the longer prefix."""
    averaged, model = export_weights(tiny(1), TOKENIZER), tiny(2)
    both = {f"ldm_net.network.{key}": value for key, value in weights.items()}
    both |= {f"ldm_net_ema.network.{key}": value for key, value in averaged.items()}
    import_weights(model, both, TOKENIZER, ema=True)
    assert same(export_weights(model, TOKENIZER), averaged)


@pytest.mark.parametrize("lead", ["ema.network-", "model.ema.ldm_net-network-"])
def test_a_tracker_of_averages_keeps_parameters_alone(weights, lead):
    """Under names without dots; what is no parameter is that of the plain weights."""
    parameters = {TOKENIZER.theirs(key) for key, _ in tiny().named_parameters()}
    averaged = {key: value for key, value in export_weights(tiny(1), TOKENIZER).items() if key in parameters}
    plain = {f"network.{key}": value for key, value in weights.items()}
    tracked = {lead + key.replace(".", "-"): value for key, value in averaged.items()}
    model = tiny(2)
    report = import_weights(model, flatten(plain | tracked, Path("x")), TOKENIZER, ema=True)
    assert report.fits and report.ema and same(export_weights(model, TOKENIZER), weights | averaged)
    second = {f"ldm_net.{key}": value + 1 if key[8:] in parameters else value for key, value in plain.items()}
    assert import_weights(model, flatten(plain | second | tracked, Path("x")), TOKENIZER, ema=True) == replace(
        report, elsewhere=report.elsewhere + len(second)
    )
    assert same(export_weights(model, TOKENIZER), weights | averaged), "two plain ones agree in what is no parameter"
    places = "encoder.pos_embedding.positional_encoding_gaussian_matrix"
    second[f"ldm_net.network.{places}"] = weights[places] + 1
    for file in (tracked, plain | second | tracked):
        with pytest.raises(UserError, match=f"1 missing: {places};"):
            import_weights(tiny(), flatten(file, Path("x")), TOKENIZER, ema=True)


@pytest.mark.parametrize(
    ("plain", "averages"),
    [
        ("model.network.", "ema_model.network."),
        ("network.", "ema.ema_model.network."),
        ("network.", "ema_network."),
        ("state_dict.model.network.", "state_dict.model.network_ema."),
    ],
)
def test_other_names_of_averages(weights, plain, averages):
    averaged = export_weights(tiny(1), TOKENIZER)
    both = {f"{plain}{key}": value for key, value in weights.items()}
    both |= {f"{averages}{key}": value for key, value in averaged.items()}
    if "network_ema" not in averages:  # beside a usual name that of an EMA wrapper's own copy does not count
        both |= {f"ema.online_model.network.{key}": value + 1 for key, value in weights.items()}
    for ema, expected in ((False, weights), (True, averaged)):
        model = tiny(2)
        import_weights(model, both, TOKENIZER, ema)
        assert same(export_weights(model, TOKENIZER), expected)


def test_of_two_models_the_known_name_wins_and_strangers_are_refused(weights):
    other = export_weights(tiny(1), TOKENIZER)
    teacher = {f"teacher.network.{key}": value for key, value in other.items()}
    model = tiny(2)
    import_weights(model, teacher | {f"network.{key}": value for key, value in weights.items()}, TOKENIZER)
    assert same(export_weights(model, TOKENIZER), weights)
    import_weights(model, teacher, TOKENIZER)
    assert same(export_weights(model, TOKENIZER), other), "alone it is the one"
    fewer = {f"network.{key}": value for key, value in weights.items() if "patcher3d" not in key}
    import_weights(model, teacher | fewer, TOKENIZER)
    assert same(export_weights(model, TOKENIZER), weights), "also where it has fewer entries"
    averages = {f"{kind}_ema.network.{key}": value for key, value in other.items() for kind in ("fast", "slow")}
    import_weights(model, fewer | averages, TOKENIZER)
    with pytest.raises(UserError, match="got several \\(fast_ema.network., slow_ema.network.\\)"):
        import_weights(model, fewer | averages, TOKENIZER, ema=True)
    known = {f"state_dict.model_ema.network.{key}": value for key, value in weights.items()}
    stranger = {f"fast_ema.network.{key}": value for key, value in other.items()}
    import_weights(model, known | stranger, TOKENIZER, ema=True)
    assert same(export_weights(model, TOKENIZER), weights), "a sign of averaging does not make a known name strange"
    student = {f"student.network.{key}": value for key, value in weights.items()}
    with pytest.raises(UserError, match=r"several \(student.network., teacher.network.\); save the one"):
        import_weights(model, teacher | student, TOKENIZER)


@pytest.mark.parametrize("leads", [("model.", "state_dict."), ("network.", "ldm_net.network."), ("", "network.")])
@pytest.mark.parametrize("ema", [False, True])
def test_of_two_models_under_known_names_copies_are_one_and_others_refused(weights, leads, ema):
    """Whether averaged or not, beside the other variant."""
    kinds = ("ema.", "") if ema else ("", "ema.")
    lead, second = (f"{kinds[0]}{each}" for each in leads)
    averaged = export_weights(tiny(1), TOKENIZER)
    one = {f"{lead}{key}": value for key, value in weights.items()}
    one |= {f"{kinds[1]}network.{key}": value for key, value in averaged.items()}
    model = tiny(2)
    import_weights(model, one | {f"{second}{key}": value.clone() for key, value in weights.items()}, TOKENIZER, ema)
    assert same(export_weights(model, TOKENIZER), weights)
    other = export_weights(tiny(3), TOKENIZER)
    less = {key: value for key, value in other.items() if "patcher3d" not in key}  # constants tell no models apart
    half = {key: value.bfloat16() if value.is_floating_point() else value for key, value in weights.items()}
    named = ", ".join(each or "bare names" for each in sorted((lead, second)))
    for rival in (other, less, half):
        both = one | {f"{second}{key}": value for key, value in rival.items()}
        sentence = f"expected one dLDM tokenizer in the file, got several ({named}); save the one that is meant"
        with pytest.raises(UserError, match=re.escape(sentence)):
            import_weights(tiny(), both, TOKENIZER, ema)
        import_weights(model, both, TOKENIZER, not ema)
        assert same(export_weights(model, TOKENIZER), averaged), "of the other variant there is one"


def test_names_that_meet_without_their_wrappers(tmp_path, weights):
    own = {f"network.{key}": value for key, value in weights.items()}
    wrapped = {f"_orig_mod.{key}": value.clone() for key, value in own.items()}
    torch.save(own | wrapped, tmp_path / "a.pt")
    assert same(read_checkpoint(tmp_path / "a.pt"), own), "copies do no harm"
    wrapped["_orig_mod.network.encoder.act.weight"] += 1
    sentence = "expected one tensor network.encoder.act.weight in the file, got two that differ, the second written "
    for state, second in ((own | wrapped, "_orig_mod.network."), (wrapped | own, "network.")):
        torch.save(state, tmp_path / "a.pt")
        with pytest.raises(UserError, match=re.escape(f"{sentence}{second}encoder.act.weight; save the one")):
            read_checkpoint(tmp_path / "a.pt")
    for odd in (torch.zeros(2, dtype=torch.bfloat16), torch.zeros(1)):
        with pytest.raises(UserError, match="expected one tensor a.b in the file"):
            flatten({"a": {"b": torch.zeros(2)}, "a.b": odd}, Path("x"))


def test_constants_may_be_left_out(weights):
    arrange = {key: value for key, value in weights.items() if "patcher3d" not in key}
    model = tiny(1)
    report = import_weights(model, arrange, TOKENIZER)
    assert report.fits and report.fitting == len(weights) - 5 and same(export_weights(model, TOKENIZER), weights)


def test_a_file_of_something_else_says_what_it_holds():
    with pytest.raises(UserError, match=r"none of either \(its names begin with model\); check the file"):
        import_weights(tiny(), {"model.decoder.weight": torch.zeros(1)}, TOKENIZER)


def test_unexpected_entries_may_be_allowed(weights):
    model = tiny(1)
    weights["quant_conv.more"] = torch.zeros(1)
    with pytest.raises(UserError, match="1 unexpected: quant_conv.more; choose"):
        import_weights(model, weights, TOKENIZER)
    report = import_weights(model, weights, TOKENIZER, strict=False)
    assert not report.fits and report.complete and report.unexpected == ("quant_conv.more",)


def test_other_constants_are_refused(weights):
    weights["encoder.patcher3d.wavelets"] = torch.ones(2)
    with pytest.raises(UserError, match="of another value: encoder.patcher3d.wavelets"):
        import_weights(tiny(), weights, TOKENIZER)


def test_a_file_of_something_else(weights):
    with pytest.raises(UserError, match="expected plain weights of the dLDM tokenizer, the file holds none of either"):
        import_weights(tiny(), {"net.x": torch.zeros(1)}, TOKENIZER)


# Codes

INFO = CodesInfo((8, 5, 5, 5), 3, 2)
LOOP: list = []
LOOP.append(LOOP)


def test_codes_there_and_back(tmp_path):
    rng = np.random.default_rng(0)
    rows = [("b", "train", 0), ("a", "train", 0), ("a", "train", 1), ("c", "test", 0)]
    clips = pl.DataFrame(rows, schema=["video", "split", "clip"], orient="row")
    store = write_codes(tmp_path, clips, rng.integers(1000, size=(4, 3, 2)), INFO)
    export_codes(store, tmp_path / "codes.pt", "train")
    theirs = torch.load(tmp_path / "codes.pt", weights_only=True)
    assert {key: tuple(value.shape) for key, value in theirs.items()} == {"a": (2, 6), "b": (1, 6)}
    assert theirs["a"].dtype == torch.int32 and theirs["a"][1].tolist() == store["a"][1].reshape(-1).tolist()
    back = import_codes(tmp_path / "codes.pt", tmp_path / "back", INFO)
    assert back.frame.equals(store.frame.filter(pl.col("split") == "train")) and back.info == INFO
    assert read_codes(tmp_path / "back").frame.equals(back.frame)
    with pytest.raises(UserError, match="no video of split probe"):
        export_codes(store, tmp_path / "none.pt", "probe")


def test_any_integers_will_do(tmp_path):
    given = {"a": [[0, 1, 2, 3, 4, 5]], "b": torch.arange(12, dtype=torch.uint8).view(2, 6), "c": torch.arange(6)}
    torch.save(given, tmp_path / "codes.pt")
    codes = read_release_codes(tmp_path / "codes.pt", 3, 2, 1000)
    assert codes["a"].tolist() == codes["c"].tolist() == [[[0, 1], [2, 3], [4, 5]]]
    assert codes["b"][1].tolist() == [[6, 7], [8, 9], [10, 11]]


INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")


@pytest.mark.parametrize("dtype", INTEGERS)
def test_tensors_arrays_and_lists_of_any_width(tmp_path, dtype):
    """As the release reads them: with torch.tensor, whatever they are made of (fact sheet, 3.3)."""
    array = np.arange(12, dtype=dtype).reshape(2, 6)
    tensor = torch.from_numpy(array)
    kinds = {
        "array": array,
        "arrays": list(array),
        "tensor": tensor,
        "tensors": list(tensor),
        "big": array.astype(">i4"),
    }
    kinds |= {
        "numbers": array.tolist(),
        "mixed": [array[0], tensor[1].tolist()],
        "one": tensor[0],
        "part": tensor[:, :],
    }
    torch.save(kinds, tmp_path / "codes.pt")
    wanted = np.arange(12).reshape(2, 3, 2)
    for name, codes in read_release_codes(tmp_path / "codes.pt", 3, 2, 1000).items():
        assert codes.dtype == np.int64 and np.array_equal(codes, wanted[: len(codes)]), name


@pytest.mark.parametrize(
    "value, sentence",
    [
        (torch.zeros(2, 5, dtype=torch.long), r"expected integers \(clips, 6\), got \(2, 5\); change steps"),
        (torch.zeros(2, 6), r"expected integers \(clips, 6\), got \(2, 6\) float32"),
        (torch.full((1, 6), 1000), r"expected codes in \[0, 1000\), got 1000 to 1000"),
        (np.zeros((2, 6)), r"expected integers \(clips, 6\), got \(2, 6\) float64"),
        (np.zeros((2, 6), "S1"), r"is no file of plain codes \(Can only build .*BytesDType"),
        ("codes", r"expected integers \(clips, 6\), got str"),
        ({"b": torch.zeros(1, 6).long()}, r"got dict; save them as an integer tensor"),
        ([[1, 2], [3]], r"got rows of unequal lengths"),
        ([[[[1]]]], r"got list"),
        (LOOP, r"got list"),
        ([], r"got \(0,\) float64"),
        (torch.zeros(2, 6, dtype=torch.bool), r"got \(2, 6\) bool"),
        (torch.zeros(2, 6, dtype=torch.complex64), r"got \(2, 6\) complex64"),
        (torch.ones(2, 6).long().to_sparse(), r"got a sparse_coo tensor"),
        (torch.zeros(2, 6, device="meta").long(), r"got a meta tensor"),
        (torch.zeros(1, 1).long().expand(10**12, 6), r"got \(1000000000000, 6\) int64 made of fewer numbers"),
        (np.full((1, 6), 2**64 - 1, np.uint64), r"got 9223372036854775807 to 9223372036854775807"),
        (torch.full((1, 6), -1), r"got -1 to -1"),
    ],
)
def test_wrong_codes_end_in_a_sentence(tmp_path, value, sentence):
    torch.save({"a": value}, tmp_path / "codes.pt")
    with pytest.raises(UserError, match=sentence):
        read_release_codes(tmp_path / "codes.pt", 3, 2, 1000)


def test_a_stem_twice_is_refused(tmp_path):
    torch.save({1: torch.zeros(2, 6).long(), "1": torch.zeros(1, 6).long()}, tmp_path / "codes.pt")
    with pytest.raises(UserError, match="expected one entry per video in .*, got two named 1; rename one"):
        read_release_codes(tmp_path / "codes.pt", 3, 2, 1000)


# The command


def command(*words: object, folder: Path) -> subprocess.CompletedProcess:
    return started("import_release", *words, "--out", folder / "out")


def started(stage: str, *words: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", f"stages.{stage}", *map(str, words)], cwd=ROOT, capture_output=True, text=True
    )


def test_command_imports_a_tokenizer(tmp_path, weights):
    write_checkpoint(tmp_path / "theirs.pt", weights, "network.")
    (tmp_path / "tiny.json").write_text(json.dumps({"size": 32, "causal": TINY}))
    done = command(
        "tokenizer", tmp_path / "theirs.pt", "--config", tmp_path / "tiny.json", "--view", "prefix", folder=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert f"{len(weights)} weights fit the dLDM tokenizer; 0 entries" in done.stderr
    model = load_ldm(tmp_path / "out" / "tokenizer")
    assert model.config == replace(RELEASE, size=32, causal=CausalConfig(**TINY, view="prefix"))
    assert same(export_weights(model, TOKENIZER), weights)
    video = clip(1, 9, 32)
    assert model.coarse(video[:, :, :1], model.encode(video)).shape == video.shape


def test_command_exports_a_tokenizer_in_either_precision(tmp_path, weights):
    """A bfloat16 file comes back bit for bit as bfloat16, and with the same values as float32."""
    half = {key: value.bfloat16() if value.is_floating_point() else value for key, value in weights.items()}
    write_checkpoint(tmp_path / "theirs.pt", half, "network.")
    (tmp_path / "tiny.json").write_text(json.dumps({"size": 32, "causal": TINY}))
    done = command("tokenizer", tmp_path / "theirs.pt", "--config", tmp_path / "tiny.json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    given = {f"network.{key}": value for key, value in half.items()}
    folder, back = tmp_path / "out" / "tokenizer", tmp_path / "back.pt"
    done = started("export_release", "tokenizer", folder, back, "--dtype", "bfloat16")
    assert done.returncode == 0, done.stderr
    assert same(read_checkpoint(back), given)
    export_release.main("tokenizer", folder, back, "network.", False, "float32")
    whole = {key: value.float() if value.is_floating_point() else value for key, value in given.items()}
    constants = {key for key in whole if key.endswith("wavelets")}  # made anew, not rounded
    written = read_checkpoint(back)
    assert same(*({k: v for k, v in each.items() if k not in constants} for each in (written, whole)))
    assert {written[key].dtype for key in constants} == {torch.float32}


@pytest.mark.parametrize(
    "kind, changes, sentence",
    [
        ("dit", {"prefix": "ldm_net.network."}, "expected --prefix with a tokenizer, .* got dit; leave it out"),
        ("codes", {"ema": True}, "--ema and --dtype with weights, got codes; leave it out"),
        ("codes", {"dtype": "bfloat16"}, "--ema and --dtype with weights, got codes; leave it out"),
        ("dit", {"dtype": "float16"}, "expected --dtype float32 or bfloat16, got float16; change it"),
    ],
)
def test_export_refuses_options_of_other_kinds(tmp_path, kind, changes, sentence):
    plain = {"prefix": "network.", "ema": False, "dtype": "float32"}
    with pytest.raises(UserError, match=sentence):
        export_release.main(kind, tmp_path / "none", tmp_path / "none.pt", **plain | changes)


@pytest.mark.parametrize(
    "kind, changes, sentence",
    [
        ("dit", {"view": "prefix"}, "expected --view with a tokenizer and --frames with codes, got dit; leave it out"),
        ("codes", {"view": "adjacent"}, "expected --view with a tokenizer and .* got codes; leave it out"),
        ("dit", {"frames": 49}, "and --frames with codes, got dit; leave it out"),
        ("tokenizer", {"frames": 49}, "and --frames with codes, got tokenizer; leave it out"),
        ("codes", {"ema": True}, "expected --ema, --every and --no-strict with weights, got codes; leave it out"),
        ("codes", {"every": True}, "expected --ema, --every and --no-strict with weights, got codes; leave it out"),
        ("codes", {"strict": False}, "expected --ema, --every and --no-strict with weights, got codes; leave it out"),
    ],
)
def test_import_refuses_options_of_other_kinds(tmp_path, kind, changes, sentence):
    """Before it looks at the file; without them it does."""
    plain = {"config": None, "view": None, "ema": False, "frames": 93, "strict": True, "every": False}
    for options, told in ((plain | changes, sentence), (plain, "none.pt does not exist")):
        with pytest.raises(UserError, match=told):
            import_release.main(kind, tmp_path / "none.pt", tmp_path / "out", **options)


@pytest.mark.parametrize("frames, steps", [(2, 1), (9, 2), (49, 12), (177, 44)])
def test_codes_of_other_clips(tmp_path, frames, steps):
    torch.save({"a": torch.zeros(3, 4 * steps).long()}, tmp_path / "codes.pt")
    assert "codes of 1 videos" in import_codes_of(tmp_path / "codes.pt", tmp_path / "out", Options(frames=frames))
    assert read_codes(tmp_path / "out" / "codes").info.steps == steps
    for wrong in (1, 10):
        with pytest.raises(UserError, match=f"expected --frames 2 or 1 more than a multiple of 4, got {wrong}"):
            import_codes_of(tmp_path / "codes.pt", tmp_path / "out", Options(frames=wrong))


def test_command_fails_in_a_sentence(tmp_path, weights):
    write_checkpoint(tmp_path / "theirs.pt", weights)
    done = command("tokenizer", tmp_path / "theirs.pt", folder=tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr and "of another shape" in done.stderr
    assert not (tmp_path / "out").exists()


def test_settings_are_checked(tmp_path):
    file = tmp_path / "config.json"
    for text, sentence in (
        ('{"causal": {"channel": 4}}', "dldm.causal.channel: unknown key"),
        ('{"size": [30, 32]}', "dldm.size must be a multiple of 16, got (30, 32)"),
        ("{", "is not JSON"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=re.escape(sentence)):
            settings(read_json(file), RELEASE, "dldm")


def test_what_is_imported_is_what_the_preset_release_trains():
    text, _ = patch((ROOT / "params.yaml").read_text(), parse((ROOT / "presets/release.yaml").read_text(), "r"), "r")
    assert build(DLDMConfig, parse(text, "params")["dldm"], "dldm").ldm == RELEASE
