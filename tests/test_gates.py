"""Health gates: every figure in closed form, every gate by its sentence, and the stage that a broken one stops."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch
from tiny_models import clip, draw, tiny_dldm, tiny_ldm
from tiny_stages import make_folder, write_params

from stages import extract_codes, train_dldm, train_plain_ldm, warmup_dldm
from vw2.console import UserError
from vw2.data.codes import read_codes
from vw2.data.shards import ClipStore
from vw2.evaluation.health import code_health, motion_energy, motion_share, write_health
from vw2.evaluation.rendering import render_figures
from vw2.media.resize import to_uint8
from vw2.models.control import ControlConfig
from vw2.models.dldm import DLDM
from vw2.models.ldm import LDM
from vw2.models.renderer import load_renderer
from vw2.rollout import Row, render_batch
from vw2.training import watch as watching
from vw2.training.compute import generator
from vw2.training.gates import GatesConfig, broken_gates, check_gates
from vw2.training.judge import code_figures, judge_denoising

LEVELS = (4, 3)  # code = first digit + 4 * second digit

# ---------------------------------------------------------------- entropies and dead digits


def test_entropy_by_step_and_by_digit():
    # 4 clips, 2 steps, 2 queries. Query 0: first digit 0..3 evenly at both steps, second always 1. Query 1: at step 0
    # code 0 always, at step 1 codes 0 and 11 by turns (digits 0, 0 and 3, 2).
    codes = np.zeros((4, 2, 2), int)
    codes[:, :, 0] = (np.arange(4) + 4)[:, None]
    codes[:, 1, 1] = [0, 11, 0, 11]
    health = code_health(codes, LEVELS)
    # step 0: code 0 in half of the 8 places, four others 1/8 each; step 1: 0 and 11 a quarter each, four others 1/8
    np.testing.assert_allclose(health.steps, [0.5 * 1 + 4 / 8 * 3, 2 / 4 * 2 + 4 / 8 * 3])
    rare = -(0.25 * np.log2(0.25) + 0.75 * np.log2(0.75))  # query 1: 2 of 8 places hold code 11
    np.testing.assert_allclose(health.digits, [[1, 0], [rare / 2, rare / np.log2(3)]])
    assert health.dead.tolist() == [[False, True], [False, False]]
    assert health.figures() == {
        "codes.step_entropy_bits.k0": pytest.approx(2.0),
        "codes.step_entropy_bits.k1": pytest.approx(2.5),
        "codes.digit_entropy_share.g0": pytest.approx(rare / 2),
        "codes.digit_entropy_share.g1": 0.0,
        "codes.dead_digits": 1,
    }
    figures = code_figures(codes, LEVELS, ["a"] * len(codes))
    assert health.figures().items() <= {k: v["value"] for k, v in figures.items()}.items(), "among the metrics"
    assert all(figure["n"] == 1 for figure in figures.values())


def test_even_codes_have_all_the_entropy_there_is():
    codes = np.tile(np.arange(12)[:, None, None], (2, 3, 2))
    health = code_health(codes, LEVELS)
    np.testing.assert_allclose(health.steps, np.log2(12))
    np.testing.assert_allclose(health.digits, 1.0)
    assert not health.dead.any()


def test_picture_of_the_entropies(tmp_path):
    codes = np.random.default_rng(0).integers(0, 12, (6, 3, 2))
    codes[:, :, 1] = 0
    for name in ("one.png", "two.png"):
        write_health(tmp_path / name, code_health(codes, LEVELS), 0.25, 0.1)
    one, two = ((tmp_path / name).read_bytes() for name in ("one.png", "two.png"))
    assert one == two and one[:4] == b"\x89PNG"


# ---------------------------------------------------------------- motion of the coarse video


def test_motion_energy_in_closed_form():
    real = np.zeros((3, 4, 4, 3), np.uint8)
    real[1:, 0, 0] = 255  # one pixel moves, in two of three frames
    half = np.zeros_like(real)
    half[1:, 0, 0] = 51  # a fifth of the way
    half[:, 3, 3] = np.array([0, 200, 90])[:, None]  # where nothing moves it does not count
    assert motion_energy(real, real) == (2.0, 2.0)
    assert motion_energy(half, real) == pytest.approx((2 / 25, 2.0))
    still = np.repeat(real[:1], 3, 0)
    assert motion_energy(still, real) == (0.0, 2.0)
    share = motion_share([motion_energy(drawn, real) for drawn in (real, half, still)], ["a", "b", "b"], 0)
    assert share.value == pytest.approx((2 + 2 / 25) / 6) and share.n == 2
    assert motion_share([motion_energy(still, real)] * 2, ["a", "b"], 0).value == 0


# ---------------------------------------------------------------- ignored codes


def test_denoising_loss_is_the_velocity_error_at_one_noise():
    dldm, prior = tiny_dldm(first_noise=0.0, motion_weight=0.0)
    clean = draw(2, 6, 3, 4, 4)
    known, codes = clean[:, :, :1], draw(2, 2, 2, 4, seed=1)
    error = draw(2, 6, 3, 4, 4, seed=2)
    rng = generator(5)
    noise = torch.randn(clean.shape, generator=rng)
    dldm.velocity = lambda *_: noise - clean + error
    found = dldm.denoising(clean, known, clean, codes, generator(5))
    assert found.item() == pytest.approx((error[:, :, 1:] ** 2).mean().item(), rel=1e-5)


def deaf(dldm: DLDM) -> DLDM:
    """The same model, whose VDM gets the same tokens whatever the codes are."""
    dldm.projection.forward = lambda codes: torch.zeros(len(codes), codes.shape[1] * codes.shape[2], 12)
    return dldm


def test_ignored_codes_do_not_raise_the_denoising_loss(workspace):
    store, rows = ClipStore(Path("data/clips")), list(range(0, 40, 5))
    figures = {}
    for name, blocks in (("no control", 0), ("control", 1)):
        dldm, prior = tiny_dldm(stride=1, control=ControlConfig(blocks=blocks))
        figures[name] = judge_denoising(dldm, prior.vae, store, rows, 0)
        assert figures[name] == judge_denoising(dldm, prior.vae, store, rows, 0), "the same noise every time"
        figures[f"deaf, {name}"] = judge_denoising(deaf(dldm), prior.vae, store, rows, 0)
    value = lambda name, key: figures[name][f"denoise.{key}"]["value"]  # noqa: E731
    assert value("deaf, no control", "rise") == value("deaf, no control", "rise_tokens") == 0
    assert value("deaf, control", "rise_tokens") == 0 != value("deaf, control", "rise")
    assert all(value(name, key) != 0 for name in ("no control", "control") for key in ("rise_tokens", "rise_unsteered"))
    assert value("no control", "rise_unsteered") == value("no control", "rise_tokens"), "there is nothing to silence"
    assert value("deaf, control", "rise_unsteered") == 0 and value("control", "unsteered") != value("control", "own")
    assert all(figure["n"] == 5 for figure in figures["control"].values()), "videos, not clips"
    (text,) = sentences(healthy() | figures["deaf, no control"], GatesConfig())
    assert text.startswith("the codes are ignored")


# ---------------------------------------------------------------- sentences


def healthy() -> dict:
    value = lambda x: {"value": x, "low": None, "high": None, "n": 3}  # noqa: E731
    return {
        "codes.entropy_bits": 8.0,
        "codes.used_fraction": 0.6,
        "codes.dead_digits": 0,
        "codes.step_entropy_bits.k0": 7.0,
        "codes.step_entropy_bits.k1": 7.5,
        "codes.digit_entropy_share.g0": 0.9,
        "coarse.motion_share": value(0.7),
        "denoise.rise": 0.1,
        "render.psnr": value(25.0),
        "render.psnr_other_codes": value(20.0),
    }


SEEN = (500, 2, 4)  # clips, steps, queries


def sentences(figures: dict, gates: GatesConfig) -> list[str]:
    return list(broken_gates(figures, gates, 1000, SEEN, Path("codes.png"), Path("clips.png")))


def test_a_healthy_run_goes_on():
    assert sentences(healthy(), GatesConfig()) == []
    pooled = {key: healthy()[key] for key in ("codes.entropy_bits", "codes.used_fraction")}
    assert sentences(pooled, GatesConfig()) == [], "gates whose figures a stage does not have are open"
    edge = {
        "codes.entropy_bits": 0.5 * 9.96579,
        "codes.used_fraction": 0.1,
        "codes.step_entropy_bits.k1": 0.25 * 9.96579,
        "codes.digit_entropy_share.g0": 0.1,
        "coarse.motion_share": {"value": 0.25},
        "denoise.rise": 1e-6,
    }
    assert sentences(healthy() | edge, GatesConfig()) == []


BROKEN = [
    ({"codes.entropy_bits": 4.9}, "the codes died: 4.90 bits of entropy, at least 4.98 expected (gates.entropy_share)"),
    ({"codes.used_fraction": 0.099}, "the codes died: 9.9% of 1,000 usable codes in use, at least 10% expected"),
    ({"codes.dead_digits": 1}, "the codes died: digits with a single level in use: 1, at most 0 expected (gates.dead"),
    ({"codes.step_entropy_bits.k1": 2.0}, "the codes of step 1 died: 2.00 bits of entropy, at least 2.49 expected (ga"),
    ({"codes.digit_entropy_share.g0": 0.05}, "digit 0 of the codes died: 5.0% of its entropy in use, at least 10%"),
    (
        {"coarse.motion_share": {"value": 0.1}},
        "the coarse decoder stands still: 10.0% of the real motion, at least 25%",
    ),
    (
        {"denoise.rise": 0.0},
        "the codes are ignored: another clip's codes raise the denoising loss by 0.00%, more than",
    ),
    ({"render.psnr": {"value": 20.4}}, "the codes are not listened to: a clip's own codes render it only 0.40 dB"),
]


@pytest.mark.parametrize("broken, sentence", BROKEN, ids=[next(iter(each[0])) for each in BROKEN])
def test_a_broken_gate_stops_a_run_with_one_sentence(broken, sentence):
    (text,) = sentences(healthy() | broken, GatesConfig())
    assert text.startswith(sentence) and ".png" in text and "(gates." in text and "\n" not in text
    with pytest.raises(UserError) as error:
        check_gates(healthy() | broken, GatesConfig(), 1000, SEEN, Path("codes.png"), Path("clips.png"))
    assert str(error.value) == text
    check_gates(healthy() | broken, GatesConfig(enabled=False), 1000, SEEN, Path("codes.png"), Path("clips.png"))


def test_few_codes_of_a_large_codebook_are_not_dead():
    levels, seen = (8, 8, 8, 5, 5, 5), (75, 18, 4)
    figures = code_figures(np.random.default_rng(0).integers(64_000, size=seen), levels, ["a", "b", "c"] * 25)
    assert figures["codes.used_fraction"]["value"] < 0.1, "they cannot use more"
    gates = GatesConfig(entropy_share=0.9, step_entropy_share=0.9, used_share=0.9)
    check = lambda figures: list(broken_gates(figures, gates, 64_000, seen, Path("a"), Path("b")))  # noqa: E731
    assert check(figures) == []
    poor = code_figures(np.random.default_rng(0).integers(2000, size=seen), levels, ["a", "b", "c"] * 25)
    assert any("% of 5,400 usable codes in use" in text for text in check(poor))


def test_few_clips_of_a_single_video_are_not_compared():
    moves = [np.stack([np.full((8, 8, 3), 200 * t, np.uint8) for t in range(2)])] * 8
    draw_same = lambda numbers, codes: moves[: len(numbers)]  # noqa: E731
    codes = np.zeros((8, 1, 1), int)
    one, *_ = render_figures(draw_same, moves.__getitem__, codes[:7], ["a"] * 7, 0)
    for two in (
        render_figures(draw_same, moves.__getitem__, codes, ["a"] * 8, 0)[0],
        render_figures(draw_same, moves.__getitem__, codes[:2], ["a", "b"], 0)[0],
    ):
        assert set(two) - set(one) == {"render.psnr_other_codes"} and "render.psnr" in one
    dldm, prior = tiny_dldm()
    store = SimpleNamespace(frames=lambda row: to_uint8(clip(1)[0]), index=pl.DataFrame({"video": ["a"]}), at_once=2)
    store.batch = lambda rows: np.stack([store.frames(row) for row in rows])
    figures = judge_denoising(dldm, prior.vae, store, [0], 0)
    assert set(figures) == {"denoise.own"}
    healthier = {key: value for key, value in healthy().items() if key[:6] not in ("denois", "render")}
    assert sentences(healthier | figures | one, GatesConfig()) == [], "these gates are open"


# ---------------------------------------------------------------- the stages, on clips of two frames


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workspace")
    make_folder(folder, frames=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("VW2_SCRATCH", str(folder / "scratch"))
        warmup_dldm.main(write_params(folder, {}))
    return folder


@pytest.fixture(autouse=True)
def inside(request, monkeypatch):
    if "workspace" in request.fixturenames:
        folder = request.getfixturevalue("workspace")
        monkeypatch.chdir(folder)
        monkeypatch.setenv("VW2_SCRATCH", str(folder / "scratch"))


def test_a_broken_gate_stops_the_joint_stage_before_it_writes_a_model(workspace):
    with pytest.raises(UserError, match="the coarse decoder stands still: .* see plots/train_dldm.png"):
        gates = {"enabled": True, "entropy_share": 0.0, "used_share": 0.0, "dead_digits": 8}
        gates |= {"step_entropy_share": 0.0, "digit_entropy_share": 0.0, "denoise_margin": -1.0, "motion_share": 99.0}
        train_dldm.main(write_params(workspace, {"gates": gates}))
    with pytest.raises(UserError, match="the codes died: .* see plots/train_dldm_codes.png"):
        train_dldm.main(write_params(workspace, {"gates": {"enabled": True, "entropy_share": 1.0}}))
    assert Path("plots/train_dldm_codes.png").is_file() and Path("plots/train_dldm.png").is_file()
    assert not Path("data/dldm").exists() and not Path("metrics/train_dldm.json").exists()


OPEN = {"enabled": True, "entropy_share": 0.0, "used_share": 0.0, "dead_digits": 8}
OPEN |= {"step_entropy_share": 0.0, "digit_entropy_share": 0.0, "motion_share": 0.0, "margin_db": -99.0}


def test_codes_that_died_stop_a_training_at_the_next_look(workspace, monkeypatch):
    monkeypatch.setattr(train_dldm, "leave_to_first", lambda *_: pytest.fail("trained to the end"))
    Path("plots/train_dldm_codes.png").unlink(missing_ok=True)
    with pytest.raises(UserError, match="the codes died: .* see plots/train_dldm_codes.png"):
        gates = OPEN | {"entropy_share": 1.0, "every": 1}
        train_dldm.main(write_params(workspace, {"gates": gates, "dldm": {"motion_weight": 2.0}}))
    assert Path("plots/train_dldm_codes.png").is_file() and not Path("data/dldm").exists()


def test_looking_changes_nothing(workspace):
    file, seen = Path("data/warmup/ldm.safetensors"), []
    before = file.read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watching, "check_gates", lambda *args: seen.append(args))
        warmup_dldm.main(write_params(workspace, {"gates": OPEN | {"every": 1}}))
    assert file.read_bytes() == before and len(seen) == 1, "before the second step"


@pytest.mark.parametrize("clips", [3, 300, 600])
def test_looks_are_at_clips_from_all_of_the_list(clips, monkeypatch):
    seen = []
    store = SimpleNamespace(index=pl.DataFrame({"video": [str(n) for n in range(clips)]}))
    monkeypatch.setattr(watching, "encode_rows", lambda ldm, store, rows: seen.extend(rows) or np.zeros((1, 1, 1), int))
    monkeypatch.setattr(watching, "check_gates", lambda *_: None)
    monkeypatch.setattr(watching, "write_health", lambda *_: None)
    one, none = (SimpleNamespace(is_main_process=main) for main in (True, False))
    rows = list(range(clips))
    given = (tiny_ldm(), store, rows, GatesConfig(every=5), Path("a"), Path("b"))
    watching.watch(none, *given)(5)
    look = watching.watch(one, *given)
    for step in (0, 4, 6):
        look(step)
    assert seen == [], "not before the first step, nor between, nor on another process"
    look(5)
    assert len(set(seen)) == len(seen) == min(clips, watching.CLIPS) and (seen[0], seen[-1]) == (0, clips - 1)
    assert max(np.diff(seen)) <= 1 + clips // watching.CLIPS


def test_evaluation_mode_ends_as_it_began():
    ldm = tiny_ldm().train()
    ldm.spread.eval()
    modes = [part.training for part in ldm.modules()]
    with watching.evaluating(ldm):
        assert not any(part.training for part in ldm.modules())
    assert [part.training for part in ldm.modules()] == modes and len(set(modes)) == 2
    with pytest.raises(ValueError, match="gates.every must be at least 1 or null, got 0"):
        GatesConfig(every=0)


def test_stages_run_on_pairs_of_frames(workspace):
    params = write_params(workspace, {"dldm": {"vdm": {"train": "frozen"}}})
    train_dldm.main(params)
    metrics = json.loads(Path("metrics/train_dldm.json").read_text())
    alone = {"unsteered", "unsteered_other", "rise_unsteered"}
    assert set(metrics["denoise"]) == {"own", "other_codes", "other_tokens", "rise", "rise_tokens"} | alone
    rise = metrics["denoise"]["other_codes"] / metrics["denoise"]["own"] - 1
    assert metrics["denoise"]["rise"] == pytest.approx(rise, abs=1e-4)
    assert set(metrics["codes"]["step_entropy_bits"]) == {"k0"} and "motion_share" in metrics["coarse"]
    extract_codes.main(params, "vw2")
    codes, store = read_codes(Path("data/codes")), ClipStore(Path("data/clips"))
    assert codes["v0"].shape == (8, 1, 2), "nine frames: eight clips of one step"
    renderer = load_renderer(Path("data/dldm"), Path("data/prior"))
    assert renderer.ldm.config.stride == 1
    (video,) = render_batch(renderer, [Row("v0", store.frames(0)[0], codes["v0"], (0,))], 0)
    assert video.shape == (9, 32, 32, 3), "one frame a step, as the real video has"


def test_plain_ldm_stays_a_model_without_vdm(workspace):
    train_plain_ldm.main(write_params(workspace, {}))
    assert isinstance(load_renderer(Path("data/plain_ldm/dldm"), Path("no prior needed")).ldm, LDM)
    metrics = json.loads(Path("metrics/plain_ldm/train_dldm.json").read_text())
    assert "denoise" not in metrics and "dead_digits" in metrics["codes"]


def test_contradictions_stop_a_stage_with_a_sentence(workspace):
    with pytest.raises(UserError, match="dldm.stride is 4; leave it null"):
        warmup_dldm.main(write_params(workspace, {"dldm": {"stride": 4}}))
    with pytest.raises(UserError, match="does not exist; put the file there"):
        train_dldm.main(write_params(workspace, {"dldm": {"reconstruction_loss": "l1_vgg", "vgg_file": "nothing.pth"}}))


# ---------------------------------------------------------------- figures that are not numbers, or not there


@pytest.mark.parametrize("key", ["codes.entropy_bits", "codes.used_fraction", "coarse.motion_share", "denoise.rise"])
def test_nan_breaks_a_gate(key):
    figures = {"codes.entropy_bits": 9.0, "codes.used_fraction": 0.9, "coarse.motion_share": 0.9, "denoise.rise": 0.5}
    assert not list(broken_gates(figures, GatesConfig(), 1000, SEEN, Path("a"), Path("b")))
    assert list(broken_gates(figures | {key: float("nan")}, GatesConfig(), 1000, SEEN, Path("a"), Path("b")))


def test_codes_that_the_vdm_does_not_hear_as_tokens():
    figures = {"codes.entropy_bits": 9.0, "codes.used_fraction": 0.9, "denoise.rise": 0.5, "denoise.rise_tokens": 1e-6}
    assert sentences(figures, GatesConfig()) == [], "asked only where it is set"
    (sentence,) = sentences(figures, GatesConfig(token_margin=0.001))
    assert "gates.token_margin" in sentence


def test_where_nothing_moves_there_are_no_figures():
    still, codes = [np.zeros((5, 8, 8, 3), np.uint8)] * 2, np.zeros((2, 1, 1), int)
    assert motion_share([motion_energy(each, each) for each in still], ["a", "b"], 0) is None
    figures, own, other = render_figures(lambda numbers, codes: still, still.__getitem__, codes, ["a", "b"], 0)
    assert figures == {} and own[0] is own[1] is other[0] is other[1] is still[0]
