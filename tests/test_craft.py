"""The craft world: deterministic to the byte, disjoint families, true truth, equal dynamics at every nuisance level."""

import inspect

import numpy as np
import polars as pl
import pytest

from vw2.worlds import appearance, craft
from vw2.worlds.appearance import HUE_BANDS, SHEET_FAMILIES, SKIN_TONES, TABLE_FAMILIES, TILTS, draw_appearance, hue
from vw2.worlds.craft import TRUTH_SCHEMA, CraftConfig, plan, render_prior_clip, render_video, task_of
from vw2.worlds.paper import HALF_HEIGHT, HALF_WIDTH, KEY_STEPS, Fold, Sheet, flap_motion, fold_through
from vw2.worlds.scene import Nuisance, Pose, camera_matrix, picture_up, project
from vw2.worlds.script import ACTIONS, BLOCK_TASKS, PAPER_TASKS, TASKS, shorten

SMALL = CraftConfig(resolution=32)
CLIP, STEPS, BLOCKS = 17, 7, 4  # frames of a clip, key steps of a paper task, blocks of a block task
UP = np.array([0.0, -1.0])


@pytest.fixture
def unpainted(monkeypatch):
    """Videos with their truth and without the time that pictures take."""
    blank = np.zeros((2, 2, 3), np.uint8)
    monkeypatch.setattr(craft, "paint", lambda *given: blank)


def dynamics(video: craft.CraftVideo) -> pl.DataFrame:
    """What happens, without where the camera sees the hand."""
    return video.truth.select("frame", "step", "busy", "fold_angle", "action")


# ---------------------------------------------------------------- determinism


def test_same_bytes_whatever_happens_around():
    before = render_video(SMALL, "train", 3)
    np.random.seed(99)
    render_video(SMALL, "test", 1)
    render_video(SMALL, "train", 2)
    after = render_video(SMALL, "train", 3)
    assert before.frames.tobytes() == after.frames.tobytes() and before.truth.equals(after.truth)
    # nor does a video depend on how many others the world has
    larger = CraftConfig(resolution=32, train_videos=1, fail_videos=9, probe_videos=5, fps=25.0)
    assert render_video(larger, "train", 3).frames.tobytes() == before.frames.tobytes()
    other = CraftConfig(resolution=32, seed=1)
    assert render_video(other, "train", 3).frames.tobytes() != before.frames.tobytes()


def test_videos_of_a_world_differ(unpainted):
    seen = [render_video(SMALL, split, index) for split in ("train", "test", "probe", "fail") for index in range(4)]
    assert len({str(dynamics(video).rows()) for video in seen}) == len(seen)


def test_plan_has_every_video_once():
    config = CraftConfig(train_videos=18, fail_videos=3, test_paper=4, test_blocks=6, probe_videos=2)
    pairs = plan(config)
    assert len(pairs) == len(set(pairs)) == 18 + 3 + 4 + 6 + 2
    tasks = [task_of(config, "test", index) for index in range(10)]
    assert tasks[:4] == ["paper_airplane", "paper_boat"] * 2 and tasks[4:] == list(BLOCK_TASKS) * 2
    train = [task_of(config, "train", index) for index in range(18)]
    assert sum(task in PAPER_TASKS for task in train) == 9 and set(train) == set(TASKS)
    fail = [task_of(config, "fail", index) for index in range(9)]
    assert sum(task in PAPER_TASKS for task in fail) == 6 and set(fail) == set(TASKS)


@pytest.mark.parametrize(
    "wrong, sentence",
    [
        ({"nuisance": 4}, "craft.nuisance must be 0, 1, 2 or 3, got 4"),
        ({"resolution": 40}, "craft.resolution must be a multiple of 16 from 32 on, got 40"),
        (
            {"paper_frames": (145, 113)},
            r"craft.paper_frames must be shortest, at least 4, and longest, got \[145, 113\]",
        ),
        ({"paper_frames": (2, 9)}, r"at least 4, and longest, got \[2, 9\]; change it"),
        ({"paper_frames": (33, 65)}, "at most 65 frames, but seven folds .* raise its second number to at least 113"),
        ({"fps": 0.0}, "craft.fps must be above 0, got 0.0"),
        ({"train_videos": -3}, "craft.train_videos must be at least 0, got -3"),
    ],
)
def test_wrong_config_ends_in_a_sentence(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        CraftConfig(**wrong)


def test_unknown_split_is_refused():
    with pytest.raises(ValueError, match="split must be one of"):
        render_video(SMALL, "prior", 0)


# ---------------------------------------------------------------- appearance


def test_families_are_disjoint():
    for families in (TABLE_FAMILIES, SHEET_FAMILIES, SKIN_TONES):
        assert not set(families["train"]) & set(families["test"]) and families["train"] and families["test"]
    assert TILTS["train"][1] < TILTS["test"][0]
    rng = np.random.default_rng(0)
    bands = {family: {int(hue(rng, family) * HUE_BANDS) for _ in range(300)} for family in ("train", "test")}
    assert bands["test"] == {1, 4, 7, 10} and bands["train"] == set(range(HUE_BANDS)) - bands["test"]


def test_drawn_appearances_keep_to_their_family(monkeypatch):
    monkeypatch.setattr(appearance, "table_texture", lambda rng, kind, base, other: np.zeros((1, 1, 3), np.uint8))
    looks = {f: [draw_appearance(np.random.default_rng(i), f, 2) for i in range(60)] for f in ("train", "test")}
    for family, drawn in looks.items():
        other = {"train": "test", "test": "train"}[family]
        assert {look.environment.split("-")[1] for look in drawn} == set(TABLE_FAMILIES[family])
        assert {look.sheet_pattern for look in drawn} == set(SHEET_FAMILIES[family])
        low, high = TILTS[family]
        assert all(low <= look.tilt <= high for look in drawn)
        for look in drawn:
            near = [min(np.abs(np.array(tone) - look.skin).max() for tone in SKIN_TONES[f]) for f in (family, other)]
            assert near[0] <= 8
            assert np.abs(look.sheet_front - look.sheet_back).sum() >= 150, "both sides of the paper can be told apart"
    assert not {x.environment for x in looks["train"]} & {x.environment for x in looks["test"]}


@pytest.mark.parametrize("split, family", [("train", "train"), ("fail", "train"), ("test", "test"), ("probe", "test")])
def test_split_decides_the_family(unpainted, split, family):
    video = render_video(SMALL, split, 0)
    assert video.environment.startswith(f"{family}-") and video.split == split


# ---------------------------------------------------------------- truth


def test_truth_columns_and_ranges(unpainted):
    for split, index in (("train", 0), ("train", 2), ("test", 61), ("fail", 1)):
        video = render_video(SMALL, split, index)
        truth = video.truth
        assert dict(truth.schema) == TRUTH_SCHEMA and truth.null_count().sum_horizontal().item() == 0
        assert truth["frame"].to_list() == list(range(len(video.frames)))
        assert truth["step"].is_between(-1, STEPS).all() and truth["fold_angle"].is_between(0, 180).all()
        assert truth["action"].is_between(0, len(ACTIONS) - 1).all()
        seen = truth.filter("hand_visible")
        assert len(seen) and seen["hand_x"].is_between(0, 1).all() and seen["hand_y"].is_between(0, 1).all()
        assert truth["hand_x"].is_nan().equals(truth["hand_y"].is_nan())
        turning = truth.filter(pl.col("fold_angle") > 0)
        assert turning["busy"].all(), "a flap in the air"
        if video.task in PAPER_TASKS:
            assert truth["busy"].equals(truth["fold_angle"] > 0)
            names = {ACTIONS[action] for action in turning["action"]}
            assert all(name.startswith(f"{video.task} fold ") for name in names)
        else:
            assert not len(turning) and {ACTIONS[a] for a in truth.filter("busy")["action"]} == {"carry"}
        assert not truth["busy"][0] and not truth["busy"][-1] and not truth["hand_visible"][0]


def test_hand_position_is_where_the_hand_is_painted():
    # The finger tip against the same frame painted without hands: the tip lies on what the hand covers.
    config = CraftConfig(resolution=64, nuisance=0)
    states, real = [], craft.paint
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(craft, "paint", lambda s, look, n, size: (states.append((s, look, n)), np.zeros((2, 2, 3)))[1])
        truth = render_video(config, "train", 0).truth
    frames = [row["frame"] for row in truth.iter_rows(named=True) if row["hand_visible"]][::12]
    assert len(frames) >= 4
    for frame in frames:
        state, look, nuisance = states[frame]
        with_hand = real(state, look, nuisance, 64).astype(int)
        without = real(craft.replace(state, hands=()), look, nuisance, 64).astype(int)
        y, x = np.nonzero(np.abs(with_hand - without).sum(-1) > 30)
        tip = np.array([truth["hand_x"][frame], truth["hand_y"][frame]]) * 64
        assert np.hypot(x + 0.5 - tip[0], y + 0.5 - tip[1]).min() < 2.5


def test_demonstrations_are_complete_and_long_enough(unpainted):
    config = CraftConfig()
    cases = [("train", i) for i in range(18)] + [("test", i) for i in (*range(12), *range(60, 66))]
    for split, index in cases + [("probe", i) for i in range(9)]:
        video = render_video(config, split, index)
        steps = video.truth["step"].to_numpy()
        paper = video.task in PAPER_TASKS
        assert (np.diff(steps) >= 0).all(), f"{split} {index}: a step is undone"
        assert sorted(set(steps.tolist())) == list(range((STEPS if paper else BLOCKS) + 1)), f"{split} {index}"
        if paper:
            assert config.paper_frames[0] <= len(steps) <= config.paper_frames[1]
            assert (len(steps) - 1) // (CLIP - 1) >= STEPS, "whole clips of 17 frames that share one"
            assert not video.truth["hand_visible"][-1] and not video.truth["busy"][-1]


def test_failed_videos_never_get_there(unpainted):
    spoiled = 0
    for index in range(24):
        video = render_video(SMALL, "fail", index)
        steps = video.truth["step"].to_numpy()
        full = STEPS if video.task in PAPER_TASKS else BLOCKS
        assert steps.max() < full
        if (steps == -1).any():
            spoiled += 1
            assert (steps[np.argmax(steps == -1) :] == -1).all(), "what is spoiled stays so"
    assert spoiled > 12


# ---------------------------------------------------------------- nuisance


def test_same_dynamics_at_every_nuisance_level(unpainted):
    for split, index in (("train", 0), ("train", 2), ("test", 1), ("fail", 0)):
        still, shaken = (render_video(CraftConfig(nuisance=level), split, index) for level in (0, 2))
        assert dynamics(still).equals(dynamics(shaken)) and still.environment == shaken.environment
        assert not still.truth.equals(shaken.truth), "the camera moves the hand"


def rest_pairs(truth: pl.DataFrame) -> list[int]:
    """Frames that show the same scene as the one before: no hand in either, nothing turning, the same step."""
    calm = (~truth["busy"] & truth["hand_x"].is_nan()).to_numpy()
    same = np.diff(truth["step"].to_numpy()) == 0
    return [i + 1 for i in range(len(same)) if calm[i] and calm[i + 1] and same[i]]


def test_camera_is_still_without_nuisance():
    quiet = CraftConfig(resolution=32, nuisance=0)
    for config, split, still in ((quiet, "train", True), (SMALL, "probe", True), (SMALL, "train", False)):
        video = render_video(config, split, 0)
        pairs = rest_pairs(video.truth)
        assert pairs
        equal = [np.array_equal(video.frames[i], video.frames[i - 1]) for i in pairs]
        assert all(equal) if still else not any(equal)


def test_nuisance_grows_with_its_level():
    def motion(level: int) -> float:
        tracks = [craft._nuisance_track(np.random.default_rng(i), level, 100, 0) for i in range(5)]
        return float(np.mean([np.std([n.shift for n in track], 0).sum() for track in tracks]))

    assert motion(0) == 0 < motion(1) < motion(2) < motion(3)


@pytest.mark.parametrize("resolution", [32, 96])
def test_any_resolution(resolution):
    state, looks = None, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(craft, "paint", lambda *given: (looks.append(given), np.zeros((2, 2, 3), np.uint8))[1])
        video = render_video(CraftConfig(resolution=resolution), "test", 0)
    state, look, nuisance, size = looks[len(video.frames) // 2]
    frame, reference = craft.paint(state, look, nuisance, size), craft.paint(state, look, nuisance, 2 * size)
    assert frame.shape == (resolution, resolution, 3) and frame.dtype == np.uint8
    halved = reference.reshape(resolution, 2, resolution, 2, 3).mean((1, 3))
    assert np.abs(halved - frame).mean() < 4, "the same scene, finer"


def test_any_length(unpainted):
    short, long = CraftConfig(paper_frames=(33, 200)), CraftConfig(paper_frames=(180, 200))
    assert len(render_video(short, "train", 0).frames) < 145
    assert len(render_video(long, "train", 0).frames) >= 180
    assert render_video(long, "train", 0).truth["step"][-1] == STEPS


def test_few_frames_make_demonstrations_faster_and_cut_none(unpainted):
    short, free = CraftConfig(paper_frames=(113, 113)), CraftConfig(paper_frames=(113, 200))
    hastened = 0
    for split, index in [("train", i) for i in range(0, 48, 2)] + [("test", i) for i in range(8)]:
        video, slow = render_video(short, split, index), render_video(free, split, index)
        steps, calm = video.truth["step"].to_numpy(), ~video.truth["busy"].to_numpy()
        assert len(steps) == 113 and (np.diff(steps) >= 0).all()
        assert np.bincount(steps[calm], minlength=STEPS + 1)[1:].min() >= 3, f"{split} {index}: too short to be seen"
        assert calm[-1] and not video.truth["hand_visible"][-1]
        begins = [np.argmax(each["busy"]) for each in (video.truth, slow.truth)]
        hastened += begins[0] < begins[1]
    assert hastened > 12


def test_the_end_of_a_script_is_cut_where_nothing_is_done():
    states = craft.paper_script(np.random.default_rng(3), "paper_boat", white_sheet(), False, 1000)
    last = max(i for i, state in enumerate(states) if state.busy)
    cut = shorten(states, last + 2)
    assert len(cut) == last + 2 and all(a is b for a, b in zip(cut, states, strict=False))
    faster = shorten(states, last + 1)
    assert len(faster) == last + 1 and faster[0] is states[0] and faster[-1] is states[-1]


# ---------------------------------------------------------------- what the first frame does not tell


def test_first_frame_does_not_foretell_the_clip(unpainted):
    begin, action, hand, order = set(), set(), set(), set()
    for index in range(0, 80, 4):  # paper airplanes
        video = render_video(SMALL, "train", index)
        assert video.task == "paper_airplane"
        truth = video.truth
        begin.add(int(np.argmax(truth["busy"])))
        clip = tuple(truth["action"][:CLIP])
        action.add(clip)
        hand.add(next(ACTIONS[a] for a in clip if "hand" in ACTIONS[a]))
    assert len(begin) >= 6, "the time of the first fold"
    assert len(action) >= 15, "what happens in the first clip"
    assert hand == {"approach left hand", "approach right hand"}
    for index in range(20):
        states = craft.paper_script(np.random.default_rng(index), "paper_boat", white_sheet(), False, 145)
        folds = [s.fold.name for a, s in zip(states, states[1:], strict=False) if s.fold and not a.fold]
        order.add(tuple(folds))
    assert len(order) == 4, "which corner and which point comes first"


# ---------------------------------------------------------------- paper


def white_sheet() -> Sheet:
    return Sheet(np.full(3, 255.0), np.full(3, 100.0), "plain", np.random.default_rng(0))


def area(picture: np.ndarray) -> float:
    """Share of the flat sheet that the paper covers."""
    return float(picture[..., 3].sum() / white_sheet().top[..., 3].sum())


def test_folding_in_half_halves_the_area():
    sheet = white_sheet()
    across = fold_through((0, -1), (0, 1), (-1, 0))
    assert sheet.moving_area(across) == pytest.approx(0.5, abs=0.01)
    sheet.fold(across)
    assert area(sheet.top) == pytest.approx(0.5, abs=0.01) and area(sheet.bottom) == pytest.approx(0.5, abs=0.01)
    np.testing.assert_allclose(sheet.top[..., 3], sheet.bottom[..., 3], atol=0.05)  # one outline from both sides
    middle = sheet.top[..., 3] > 0.99
    assert np.abs(sheet.top[middle][:, 0] - 94).max() < 1, "the back comes up, as 0.94 of its 100"
    assert np.abs(sheet.bottom[middle][:, 0] - 100).max() < 1, "the fixed half still lies on its own back"
    sheet.fold(fold_through((-1, 0), (1, 0), (0, -1)))
    assert area(sheet.top) == pytest.approx(0.25, abs=0.01)


def test_corner_fold_by_hand():
    # The airplane's first corner: a triangle of legs 0.375 goes over onto the sheet, which loses just that.
    sheet, corner = white_sheet(), KEY_STEPS["paper_airplane"][0][0]
    share = 0.375**2 / 2 / (4 * HALF_WIDTH * HALF_HEIGHT)
    assert sheet.moving_area(corner) == pytest.approx(share, abs=0.005)
    np.testing.assert_allclose(sheet.grasp(corner), (-HALF_WIDTH, -HALF_HEIGHT), atol=0.06)
    sheet.fold(corner)
    assert area(sheet.top) == pytest.approx(1 - share, abs=0.01)
    assert sheet.moving_area(corner) == pytest.approx(0, abs=0.005), "nothing is left to fold"


@pytest.mark.parametrize("fold", [Fold((0.6, -0.8), 0.1), fold_through((0, -0.2), (-0.375, 0.175), (-1, -1))], ids=str)
def test_flap_motion(fold):
    points = np.random.default_rng(0).uniform(-0.5, 0.5, (20, 2))
    normal = np.array(fold.normal)
    mirrored = points - 2 * fold.distance(points)[:, None] * normal
    np.testing.assert_allclose(project(flap_motion(fold, np.pi, UP), points), mirrored, atol=1e-12)
    np.testing.assert_allclose(project(flap_motion(fold, 0.0, UP), points), points, atol=1e-12)
    on_the_line = points - fold.distance(points)[:, None] * normal
    for angle in (0.3, 1.5, 2.8):
        np.testing.assert_allclose(project(flap_motion(fold, angle, UP), on_the_line), on_the_line, atol=1e-12)
    upright = project(flap_motion(fold, np.pi / 2, UP), points)  # leans up the picture by LIFT of its height
    np.testing.assert_allclose(upright, on_the_line + fold.distance(points)[:, None] * 0.45 * UP, atol=1e-12)


def test_fold_through_moves_the_given_side():
    fold = fold_through((0, -1), (0, 1), (-1, 0))
    assert fold.distance(np.array([[-0.3, 0.2], [0.3, 0.2], [0, 5]])).tolist() == pytest.approx([0.3, -0.3, 0])


@pytest.mark.parametrize("task", PAPER_TASKS)
def test_every_key_step_moves_paper_whatever_the_order(task):
    for first in (0, 1):
        sheet = white_sheet()
        for number, choices in enumerate(KEY_STEPS[task]):
            second = number and KEY_STEPS[task][number - 1] == choices
            fold = choices[0] if len(choices) == 1 else choices[1 - first if second else first]
            assert 0.02 < sheet.moving_area(fold) < 0.6, f"{task} step {number + 1}"
            before = sheet.top.copy()
            sheet.fold(fold)
            assert np.abs(sheet.top - before).max() > 10


def test_picture_up_and_camera():
    up = picture_up(Pose(np.zeros(2), 0.3, 1.5))
    np.testing.assert_allclose(Pose(np.zeros(2), 0.3, 1.5).matrix()[:2, :2] @ up, (0, -1.5), atol=1e-12)
    look = draw_appearance(np.random.default_rng(0), "train", 0)
    look.tilt = look.roll = 0.0
    look.zoom = 1.0
    corners = np.array([[-1.0, -1], [1, 1], [0, 0]])
    np.testing.assert_allclose(project(camera_matrix(look, Nuisance(), 64), corners), [[0, 0], [64, 64], [32, 32]])
    moved = Nuisance(shift=np.array([0.25, 0]))
    np.testing.assert_allclose(project(camera_matrix(look, moved, 64), corners), [[16, 0], [80, 64], [48, 32]])


# ---------------------------------------------------------------- the prior's corpus


def test_prior_corpus_knows_no_task_and_no_test_appearance(monkeypatch):
    assert list(inspect.signature(render_prior_clip).parameters) == ["config", "index", "frames"]
    families, draw = [], craft.draw_appearance

    def spy(rng, family, clutter):
        families.append(family)
        return draw(rng, family, clutter)

    def never(*given):
        raise AssertionError("a task script in the prior's corpus")

    monkeypatch.setattr(craft, "draw_appearance", spy)
    monkeypatch.setattr(craft, "paper_script", never)
    monkeypatch.setattr(craft, "block_script", never)
    clips = [render_prior_clip(SMALL, index, 9) for index in range(6)]
    assert families == ["train"] * 6
    assert all(clip.shape == (9, 32, 32, 3) and clip.dtype == np.uint8 for clip in clips)
    assert render_prior_clip(SMALL, 5, 9).tobytes() == clips[5].tobytes()
    assert len({clip.tobytes() for clip in clips}) == 6
    assert sum(not np.array_equal(clip[0], clip[-1]) for clip in clips) == 6, "something moves"


def test_prior_folds_are_not_the_tasks():
    folds = {f for task in KEY_STEPS.values() for choices in task for f in choices}
    rng = np.random.default_rng(0)
    lines = np.array([(*f.normal, f.offset) for f in folds])
    for _ in range(5):
        states = craft.purposeless_script(rng, white_sheet(), 17)
        assert len(states) == 17 and all(state.step == 0 for state in states)
        for state in states:
            if state.fold is not None:
                assert np.abs(lines - (*state.fold.normal, state.fold.offset)).max(1).min() > 1e-3
                assert state.action == "free fold"
