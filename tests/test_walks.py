"""Training walks: every video as often, clips in order, frames carried on, resumed to the bit."""

from collections import Counter

import numpy as np
import pytest
import torch

from vw2.data.shards import ClipStore, write_shards
from vw2.data.walks import GROUPS, TURNS, Leg, Walked, Walks, route
from vw2.training.carried import Carried
from vw2.training.compute import ComputeConfig, start
from vw2.training.run import Group, OptimConfig, Run

T, SIDE = 5, 4
LENGTHS = [20, 9, 5, 33, 12, 5, 40, 7, 3]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Nine videos, the first two of source craft; a frame's pixels are its number over all videos."""
    folder, videos, number = tmp_path_factory.mktemp("store"), [], 0
    for v, count in enumerate(LENGTHS):
        frames = np.arange(number, number + count, dtype=np.uint8)[:, None, None, None]
        np.broadcast_to(frames, (count, SIDE, SIDE, 3)).tofile(folder / f"{v}.u8")
        videos.append((f"v{v}", "train", "x", folder / f"{v}.u8", count))
        number += count
    (folder / "clips").mkdir()
    shape = {"frames": T, "height": SIDE, "width": SIDE, "fps": 16.0, "weights": {"craft": 3.0, "openx": 1.0}}
    origin = {f"v{v}": "craft" if v < 2 else "openx" for v in range(9)}
    write_shards(folder / "clips", videos, shape, shard_bytes=40 * SIDE * SIDE * 3, sources=origin)
    return ClipStore(folder / "clips")


def walks(store, batch=2, seed=0, rows=None, **other) -> Walks:
    return Walks(store, list(range(len(store))) if rows is None else rows, seed, batch, **other)


def walked_by(walk: Walks, walker: int, steps: int) -> list[Leg]:
    """The legs of one walker."""
    group, place = divmod(walker, walk.batch)
    return [walk.legs(step)[0][place] for step in range(group, steps, GROUPS)]


# ---------------------------------------------------------------- routes


def test_a_route_goes_through_the_clips_in_order_and_to_and_fro_in_a_single_one(store):
    rows = store.select(video="v0")
    assert route(store, rows) == [Leg(row, follows=row > rows[0]) for row in rows] and len(rows) == 5
    (single,) = store.select(video="v2")
    there, back = Leg(single, follows=True), Leg(single, backwards=True, follows=True)
    assert route(store, [single]) == [Leg(single), back, there, back] and TURNS == 4


def test_a_clip_that_does_not_begin_where_another_ended_does_not_follow_it(store):
    rows = store.select(video="v0")
    assert [leg.follows for leg in route(store, [rows[0], rows[2], rows[3]])] == [False, False, True]


# ---------------------------------------------------------------- walks


def test_a_walker_sees_whole_videos_and_each_in_an_epoch_once(store):
    walk = walks(store, batch=1, rows=store.select(source="openx"))
    legs = walked_by(walk, 0, 1200)
    begins = [i for i, leg in enumerate(legs) if not leg.follows]
    for low, high in zip(begins[1:], begins[2:], strict=False):
        assert legs[low:high] in walk.routes, "from its beginning to its end"
    rows = [leg.row for leg in legs[: begins[1]]]
    assert any(rows == [leg.row for leg in way[-len(rows) :]] for way in walk.routes), "it sets out on the way"
    drawn = [walk.mixture.batch(0, draw, 1)[0] for draw in range(7 * 4)]
    assert sorted(drawn[:7]) == list(range(7)) == sorted(drawn[7:14])


def test_weights_hold_for_clips_not_for_videos(store):
    walk = walks(store, batch=4)
    seen = Counter(store.index["source"][leg.row] for step in range(3000) for leg in walk.legs(step)[0])
    assert seen["craft"] / seen.total() == pytest.approx(0.75, abs=0.02)


def test_the_walk_is_a_function_of_seed_and_step(store):
    walk = walks(store)
    straight = [walk.legs(step) for step in range(60)]
    again = walks(store)
    assert [again.legs(step) for step in (59, 3, 17)] == [straight[step] for step in (59, 3, 17)]
    assert [walks(store, seed=1).legs(step) for step in range(9)] != straight[:9]
    assert {(places.start, places.stop) for _, places, _ in straight} == {(0, 2), (2, 4), (4, 6), (6, 8)}


def test_ranks_walk_apart_and_together_like_one(store):
    parts = [walks(store, batch=2, rank=rank, ranks=2) for rank in range(2)]
    assert [walked_by(part, 0, 40) for part in parts][0] != walked_by(parts[1], 0, 40)
    drawn = sorted(walked_by(part, walker, 1)[0].row for part in parts for walker in range(2))
    assert len(drawn) == 4, "first legs of the first group"


def test_frames_are_those_of_the_legs_and_backwards_where_they_are(store):
    walk = walks(store, batch=3)
    for step in [*range(20), 7, 8]:
        walked, (legs, places, keys) = walk[step], walks(store, batch=3).legs(step)
        expected = [store.frames(leg.row)[::-1] if leg.backwards else store.frames(leg.row) for leg in legs]
        assert np.array_equal(walked.frames, expected) and walked.walkers == places
        assert walked.follows.tolist() == [leg.follows for leg in legs] and walked.keys == keys


def test_a_key_lasts_as_long_as_clips_follow_each_other_and_never_comes_again(store):
    parts = [walks(store, batch=2, rank=rank, ranks=2) for rank in range(2)]
    stretches: dict[tuple[int, int], int] = {}
    for rank, part in enumerate(parts):
        for step in range(120):
            legs, _, keys = part.legs(step)
            for leg, key in zip(legs, keys, strict=True):
                assert (key in stretches) == leg.follows and key[0] // part.walkers == rank
                stretches[key] = stretches.get(key, 0) + 1
    assert max(stretches.values()) > 4


def test_what_follows_begins_with_the_frame_that_the_leg_before_ended_with(store):
    walk = walks(store, batch=3)
    last: dict[int, int] = {}
    followed = 0
    for step in range(200):
        walked = walk[step]
        for walker, clip, follows in zip(
            range(*walked.walkers.indices(99)), walked.frames, walked.follows, strict=True
        ):
            if follows:
                followed += 1
                assert clip[0, 0, 0, 0] == last[walker]
            last[walker] = clip[-1, 0, 0, 0]
    assert followed > 300


@pytest.mark.parametrize("wrong", [{"rows": []}, {"batch": 0}, {"rank": 2, "ranks": 2}])
def test_what_cannot_be_walked_is_refused(store, wrong):
    with pytest.raises(ValueError, match="expected rows, batch >= 1 and a rank"):
        walks(store, **wrong)


# ---------------------------------------------------------------- carried frames


def batch_of(follows: list[bool], group: int = 1) -> tuple[Walked, torch.Tensor]:
    video = torch.rand(len(follows), 3, T, SIDE, SIDE, generator=torch.Generator().manual_seed(group))
    walkers = slice(group * len(follows), (group + 1) * len(follows))
    return Walked(np.empty(0), np.array(follows), walkers, [(0, 0)] * len(follows)), video


def test_a_clip_that_follows_begins_with_what_was_drawn(store):
    carried, (walked, video) = Carried(walks(store), 1.0, 0), batch_of([True, False])
    end = torch.full((2, 3, 1, SIDE, SIDE), 0.5)
    carried.keep(walked, end)
    first = carried.first(walked, video, 0)
    assert torch.equal(first[0], end[0]) and torch.equal(first[1], video[1, :, :1])
    assert torch.equal(carried.first(batch_of([True, True], 0)[0], video, 0), torch.zeros_like(end)), "others' frames"


def test_the_share_says_how_often(store):
    carried, (walked, video) = Carried(walks(store), 0.3, 0), batch_of([True, True])
    drawn = [(carried.first(walked, video, step) == 0).all((1, 2, 3, 4)).tolist() for step in range(1000)]
    assert np.mean(drawn) == pytest.approx(0.3, abs=0.03)
    none = Carried(walks(store), 0.0, 0)
    assert torch.equal(none.first(walked, video, 0), video[:, :, :1])


def test_resumed_training_sees_and_carries_what_uninterrupted_training_does(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def train(folder, crash_at=None):
        accelerator, walk, seen = start(ComputeConfig(threads=1), seed=0), walks(store), []
        model, carried = torch.nn.Conv3d(3, 3, 1), Carried(walk, 0.7, 0)
        config = OptimConfig(steps=24, batch=2, lr=0.01, save_every=8)
        run = Run(accelerator, [Group(model), Group(carried)], config, folder, "train")
        for step in run:
            if step == crash_at:
                raise KeyboardInterrupt
            walked = walk[step]
            video = torch.from_numpy(walked.frames / 255).float().movedim(-1, 1)
            first = carried.first(walked, video, step)
            drawn = model(first)
            carried.keep(walked, drawn.detach())
            seen.append(first)
            run.update(((drawn - video[:, :, -1:]) ** 2).mean(), {})
        return model, seen

    straight, whole = train(tmp_path / "straight")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "broken", crash_at=13)
    resumed, rest = train(tmp_path / "broken")
    assert torch.equal(torch.stack(rest), torch.stack(whole[8:])) and torch.equal(straight.weight, resumed.weight)
