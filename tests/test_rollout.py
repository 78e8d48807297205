"""Chained rollouts: clips that share a frame, noise of a row's own, the plan with its controls, files that are kept."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from tiny_models import LATENT, SIDE, STEPS, tiny_dldm, tiny_ldm

from vw2 import rollout as module
from vw2.console import UserError
from vw2.data.codes import CodesInfo, write_codes
from vw2.guardrail import Guardrail
from vw2.media.decode import read_video
from vw2.media.resize import to_model, to_uint8
from vw2.models.renderer import DLDMRenderer, LDMRenderer
from vw2.rollout import (
    CONTROLS,
    RolloutConfig,
    Row,
    choose,
    picture_name,
    plan,
    plan_batches,
    render_all,
    render_batch,
)
from vw2.training.compute import generator

CONFIG = RolloutConfig(samples=3, temperature=1.0, top_p=1.0, batch=2, max_cases=None)
T, N = 4 * STEPS + 1, 2


class Counter:
    """A renderer whose frame i of a clip is one level brighter than frame i - 1; tells what it was asked."""

    ldm = torch.nn.Linear(1, 1)  # says on which device all is

    def __init__(self):
        self.asked = []

    def noise(self, first_frame, steps, rng):
        return torch.randn(1, steps, generator=rng)

    def render(self, first_frame, index, noise, coarse_first):
        assert torch.equal(coarse_first, first_frame), "both go on from the frame drawn"
        self.asked.append((first_frame.clone(), index.clone(), noise.clone()))
        level = torch.arange(4 * index.shape[1] + 1).view(1, 1, -1, 1, 1) * (2 / 255)
        return first_frame + level

    def end(self, video, coarse_first, index):
        return video[:, :, -1:]


def make_row(name: str, clips: int, key: tuple[int, ...] = (0,), seed: int = 0, steps: int = STEPS) -> Row:
    rng = np.random.default_rng([seed, *key])
    return Row(
        name, rng.integers(0, 120, (SIDE, SIDE, 3), dtype=np.uint8), rng.integers(0, 1000, (clips, steps, N)), key
    )


def videos_of(renderer, rows: list[Row], seed: int = 0) -> list[np.ndarray]:
    return render_batch(renderer, rows, seed)


@pytest.mark.parametrize(
    "change", [{"samples": 0}, {"batch": 0}, {"max_cases": 0}, {"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.5}]
)
def test_impossible_settings_are_refused(change):
    with pytest.raises(ValueError, match=f"rollout.{next(iter(change))}"):
        replace(CONFIG, **change)


def test_some_cases_are_of_every_task():
    told = {f"v{i}": "fold" if i < 4 else "build" for i in range(7)} | {"v7": "wave"}
    videos = list(told)
    assert choose(videos, told, None) == videos == choose(videos, told, 99)
    assert choose(videos, told, 3) == ["v0", "v4", "v7"]
    assert choose(videos, told, 5) == ["v0", "v1", "v4", "v5", "v7"]


# ---------------------------------------------------------------- chaining


def test_clips_share_a_frame():
    rows, counter = [make_row("a", 3), make_row("b", 1, (1,)), make_row("c", 2, (2,))], Counter()
    progress: list[int] = []
    videos = render_batch(counter, rows, 0, advance=progress.append)
    assert progress == [3, 2, 1], "rows leave when their codes end"
    for row, video in zip(rows, videos, strict=True):
        clips = len(row.codes)
        assert video.shape == (clips * (T - 1) + 1, SIDE, SIDE, 3) and video.dtype == np.uint8
        assert np.array_equal(video[0], row.first), "begins with the given frame as it is"
        brighter = row.first[None].astype(int) + np.arange(len(video)).reshape(-1, 1, 1, 1)
        assert np.array_equal(video, brighter), "no frame is repeated or lost at a clip's border"
    for clip, (first, index, _) in enumerate(counter.asked):
        active = [row for row in rows if clip < len(row.codes)]
        assert np.array_equal(index.numpy(), np.stack([row.codes[clip] for row in active]))
        assert np.array_equal(to_uint8(first)[:, 0], np.stack([row.first for row in active]) + clip * (T - 1))


def test_next_clip_starts_from_the_unrounded_last_frame():
    class Small(Counter):
        def render(self, first_frame, index, noise, coarse_first):
            self.asked.append((first_frame.clone(), index, noise))
            return first_frame + torch.arange(5).view(1, 1, -1, 1, 1) * 1e-4

    small = Small()
    videos_of(small, [make_row("a", 3, steps=1)])
    gone = small.asked[2][0] - small.asked[0][0]
    torch.testing.assert_close(gone, torch.full_like(gone, 8e-4), atol=1e-6, rtol=0)


def test_noise_belongs_to_seed_row_and_clip():
    together, alone = Counter(), Counter()
    rows = [make_row("a", 2), make_row("b", 2, (1,)), make_row("c", 1, (0, 1))]
    videos_of(together, rows)
    videos_of(alone, rows[1:2])
    for clip in range(2):
        assert torch.equal(together.asked[clip][2][1], alone.asked[clip][2][0]), "not who is rendered beside it"
    drawn = [noise for _, _, batch in together.asked for noise in batch]
    assert len({tuple(noise.tolist()) for noise in drawn}) == 5
    other = Counter()
    videos_of(other, rows[1:2], seed=1)
    assert not torch.equal(other.asked[0][2], alone.asked[0][2])


@pytest.mark.parametrize("kind", ["dldm", "ldm"])
def test_a_video_does_not_depend_on_its_batch(kind):
    renderer = DLDMRenderer(*tiny_dldm()).eval() if kind == "dldm" else LDMRenderer(tiny_ldm()).eval()
    rows = [make_row("a", 2), make_row("b", 1, (1,)), make_row("c", 2, (2,))]
    together = videos_of(renderer, rows)
    for row, video in zip(rows, together, strict=True):
        alone = videos_of(renderer, [row])[0]
        assert video.shape == alone.shape == (len(row.codes) * (T - 1) + 1, SIDE, SIDE, 3)
        # Another batch size makes kernels sum in another order: 1e-6 of a colour, seldom across a rounding border.
        assert np.abs(video.astype(int) - alone).max() <= 1
    again = videos_of(renderer, rows)
    assert all(np.array_equal(one, two) for one, two in zip(together, again, strict=True)), "deterministic"
    first = to_model(rows[0].first[None, None])
    noise = renderer.noise(first, STEPS, generator(0, 8, 0, 0))
    direct = renderer.render(first, torch.from_numpy(rows[0].codes[:1]), noise)
    np.testing.assert_array_less(np.abs(to_uint8(direct)[0, 1:].astype(int) - together[0][1:T]), 2)
    if kind == "dldm":
        assert noise.shape == (1, LATENT, STEPS + 1, SIDE // 8, SIDE // 8)


# ---------------------------------------------------------------- plan


def code_store(folder):
    clips = pl.DataFrame({"video": ["v", "v", "w"], "split": ["test"] * 3, "clip": [0, 1, 0]})
    codes = np.random.default_rng(0).integers(0, 1000, (3, STEPS, N))
    return write_codes(folder, clips, codes, CodesInfo((8, 5, 5, 5), STEPS, N))


def test_plan_has_samples_and_controls(tmp_path):
    store, rng = code_store(tmp_path), np.random.default_rng(1)
    firsts = {video: rng.integers(0, 256, (8, 8, 3), dtype=np.uint8) for video in "vw"}
    lengths = (5, 4, 4, 3, 3, 3)
    written = [rng.integers(0, 1000, (clips, STEPS, N)) for clips in lengths]
    rows = plan(["v", "w"], written, store, firsts, CONFIG, seed=0)
    names = [row.name for row in rows]
    for video in "vw":
        wanted = [f"vw2/{video}_{s}" for s in range(3)] + [f"{name}/{video}_0" for name in CONTROLS]
        assert [name for name in names if f"/{video}_" in name] == wanted
    by_name = dict(zip(names, rows, strict=True))
    for number, video in enumerate("vw"):
        own = written[3 * number]
        for s in range(3):
            assert np.array_equal(by_name[f"vw2/{video}_{s}"].codes, written[3 * number + s])
        assert np.array_equal(by_name[f"ground_truth_codes/{video}_0"].codes, store[video])
        shuffled, wild = (by_name[f"{name}_codes/{video}_0"].codes for name in ("shuffled", "random"))
        steps = lambda codes: sorted(map(tuple, codes.reshape(-1, N).tolist()))  # noqa: E731
        assert shuffled.shape == own.shape and not np.array_equal(shuffled, own)
        assert steps(shuffled) == steps(own), "a permutation of its steps; the codes of a step stay together"
        assert wild.shape == own.shape and 0 <= wild.min() and wild.max() < 1000
        assert steps(wild) != steps(own)
    assert all(row.first is firsts[row.name.split("/")[1][0]] for row in rows)
    assert len({row.key for row in rows}) == len(rows), "noise of their own"
    again = plan(["v", "w"], written, store, firsts, CONFIG, seed=0)
    assert all(a.key == b.key and np.array_equal(a.codes, b.codes) for a, b in zip(rows, again, strict=True))
    other = plan(["v", "w"], written, store, firsts, CONFIG, seed=1)
    assert not np.array_equal(other[-1].codes, rows[-1].codes)


def test_a_videos_rows_do_not_depend_on_the_other_cases(tmp_path):
    """One case more or fewer, another order, other samples: nothing that is drawn at random for a video changes."""
    store, rng = code_store(tmp_path), np.random.default_rng(1)
    firsts = {video: rng.integers(0, 256, (8, 8, 3), dtype=np.uint8) for video in "vw"}
    written = {video: [rng.integers(0, 1000, (4, STEPS, N)) for _ in range(CONFIG.samples)] for video in "vw"}

    def rows_of(cases: str, samples: int = CONFIG.samples) -> dict[str, Row]:
        given = [codes for video in cases for codes in written[video][:samples]]
        return {row.name: row for row in plan([*cases], given, store, firsts, replace(CONFIG, samples=samples), 0)}

    both = rows_of("vw")
    assert len({row.key for row in both.values()}) == len(both)
    random = [both[f"random_codes/{video}_0"].codes for video in "vw"]
    assert not np.array_equal(*random), "each video has draws of its own"
    for found in (rows_of("wv"), rows_of("v"), rows_of("w"), rows_of("vw", samples=1)):
        for name, row in found.items():
            assert row.key == both[name].key, name
            assert np.array_equal(row.codes, both[name].codes) and row.first is both[name].first, name


def test_batches_hold_rows_of_like_length():
    rows = [make_row(str(i), clips) for i, clips in enumerate((3, 1, 2, 3, 1))]
    assert plan_batches(rows, 2) == [[1, 4], [2, 0], [3]]
    assert sorted(sum(plan_batches(rows, 3), [])) == list(range(5))


# ---------------------------------------------------------------- files


class Forbidden(Counter):
    def render(self, *given):
        raise AssertionError("rendered again")


def test_videos_are_written_and_an_interrupted_run_goes_on(tmp_path):
    rows = [make_row("vw2/a_0", 2), make_row("vw2/b_0", 1, (1,)), make_row("random_codes/a_0", 1, (2,))]
    render_all(Counter(), rows, 16.0, CONFIG, 0, tmp_path)
    files = {row.name: tmp_path / f"{row.name}.mp4" for row in rows}
    for row in rows:
        frames = read_video(files[row.name])
        assert frames.shape == (len(row.codes) * (T - 1) + 1, SIDE, SIDE, 3)
        if row.codes.shape[0] == 1:
            assert abs(int(frames[-1].mean()) - int(frames[0].mean()) - (T - 1)) <= 2
    before = {name: file.read_bytes() for name, file in files.items()}
    render_all(Forbidden(), rows, 16.0, CONFIG, 0, tmp_path)
    files["vw2/b_0"].unlink()
    counter = Counter()
    render_all(counter, rows, 16.0, CONFIG, 0, tmp_path)
    assert [len(index) for _, index, _ in counter.asked] == [2], "only the batch that was not whole"
    assert {name: file.read_bytes() for name, file in files.items()} == before
    assert not [file for file in tmp_path.rglob("*") if ".partial" in file.name]
    with pytest.raises(AssertionError, match="rendered again"):
        render_all(Forbidden(), [*rows, replace(rows[0], name="vw2/c_0")], 16.0, CONFIG, 0, tmp_path)


class Censor:
    """A checker that refuses videos whose first frame is among some, and marks the others."""

    def __init__(self, *refused: np.ndarray):
        self.refused, self.seen = refused, 0

    def check_video_safety(self, frames: np.ndarray) -> np.ndarray | None:
        self.seen += 1
        return None if any(np.array_equal(frames[0], each) for each in self.refused) else np.full_like(frames, 99)


def frames_of(path: Path) -> np.ndarray:
    return read_video(path).astype(int)


def test_a_refused_video_is_black_and_named(tmp_path, monkeypatch):
    lines: list[str] = []
    monkeypatch.setattr(module, "say", lines.append)
    rows = [make_row(f"vw2/{name}_0", 1, (i,)) for i, name in enumerate("abcde")]
    censor = Censor(rows[1].first, rows[4].first)
    refused = render_all(Counter(), rows, 16.0, CONFIG, 0, tmp_path, Guardrail(censor))
    assert refused == {"vw2/b_0", "vw2/e_0"}
    assert censor.seen == 5, "the others are drawn all the same"
    for number, row in enumerate(rows):
        frames = frames_of(tmp_path / f"{row.name}.mp4")
        assert frames.shape == (T, SIDE, SIDE, 3)
        assert np.abs(frames - (0 if number in (1, 4) else 99)).max() <= 2, row.name
    (line,) = lines
    assert "refuses 2 of 5 videos" in line and line.endswith("black: vw2/b_0, vw2/e_0")
    # a run that goes on after it knows of both, though it draws one of them alone
    (tmp_path / "vw2/e_0.mp4").unlink()
    assert render_all(Counter(), rows, 16.0, CONFIG, 0, tmp_path, Guardrail(censor)) == refused
    assert censor.seen == 6 and lines == [line, line]
    lines.clear()
    assert not render_all(Counter(), rows, 16.0, CONFIG, 0, tmp_path / "other", Guardrail(Censor()))
    assert not lines


def test_a_refused_video_ends_a_strict_run(tmp_path):
    rows = [make_row(f"{name}_0", 1, (i,)) for i, name in enumerate("abc")]
    guard = Guardrail(Censor(rows[2].first))
    with pytest.raises(UserError, match="the guardrail refuses a rendered video"):
        render_all(Counter(), rows, 16.0, CONFIG, 0, tmp_path, guard, strict=True)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a_0.mp4", "b_0.mp4"], "the batch before it is kept"
    with pytest.raises(UserError, match="the guardrail refuses a rendered video"):
        render_batch(Counter(), rows, 0, guard)


# ---------------------------------------------------------------- names


def test_names_of_what_is_made_of_a_picture():
    assert picture_name(Path("a/X.jpg"), "vw2", "Fold a paper boat!") == "X_fold-a-paper-boat"
    assert picture_name(Path("X.jpg"), "plain_ldm", "fold") == "X_plain_ldm_fold"
    assert picture_name(Path("X.jpg"), "vw2", " ") == "X"
    assert picture_name(Path("X.jpg"), "vw2", "../build_a/tower") == "X_build-a-tower", "no way out of the folder"
    paper = 60 * "\N{PAGE FACING UP}"  # of 4 bytes each
    long = [picture_name(Path(f"{stem}.jpg"), "vw2", f"fold {end}") for stem in ("X", paper) for end in "ab"]
    long += [picture_name(Path("X.jpg"), "vw2", f"{'fold ' * 90}{end}") for end in "ab"]
    assert len(set(long)) == 6 and all(len(name.encode()) < 200 for name in long)
