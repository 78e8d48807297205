"""The loader that streams clips: all of them once an epoch, in file order, for any ranks, resumed to the bit."""

import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from vw2.data.loader import ClipLoader, ClipReader, LoaderConfig, Order
from vw2.data.shards import ClipStore, write_shards

T, SIDE = 5, 4


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Nine videos, 33 clips in 5 shards; a frame's pixels are its number over all videos."""
    folder = tmp_path_factory.mktemp("store")
    videos, number = [], 0
    for v, count in enumerate([20, 9, 5, 33, 12, 5, 40, 7, 3]):
        frames = np.arange(number, number + count, dtype=np.uint8)[:, None, None, None]
        np.broadcast_to(frames, (count, SIDE, SIDE, 3)).tofile(folder / f"{v}.u8")
        videos.append((f"v{v}", "test" if v % 4 == 1 else "train", "x", folder / f"{v}.u8", count))
        number += count
    (folder / "clips").mkdir()
    shape = {"frames": T, "height": SIDE, "width": SIDE, "fps": 16.0}
    write_shards(folder / "clips", videos, shape, shard_bytes=40 * SIDE * SIDE * 3)
    store = ClipStore(folder / "clips")
    assert len(store) == 33 and store.index["shard"].n_unique() == 5
    return store


def shards_of(store):
    return [store.select(shard=shard) for shard in range(store.index["shard"].max() + 1)]


def loader(store, batch=3, seed=0, buffer=6, workers=2, **other):
    return ClipLoader(store, LoaderConfig(buffer, workers), batch, seed, **other)


def drawn(order, count):
    rows = []
    for _ in range(count):
        order.fill()
        rows.append(order.draw())
    return rows


# ---------------------------------------------------------------- order


@pytest.mark.parametrize("parts", [1, 2, 3, 6, 33])
def test_parts_are_disjoint_and_together_everything_in_every_epoch(store, parts):
    orders = [Order(shards_of(store), 3, part, parts, buffer=7) for part in range(parts)]
    for epoch in range(3):
        seen = []
        for order in orders:
            order.fill()  # begins the epoch
            assert order.epoch == epoch and len(order.buffer) == min(7, len(order.mine))
            seen += drawn(order, len(order.mine))
        assert sorted(seen) == list(range(33))


def test_an_order_is_shuffled_and_its_own_for_seed_epoch_and_part(store):
    first, second = (drawn(Order(shards_of(store), seed, 0, 1, 16), 33) for seed in (0, 1))
    assert sorted(first) == sorted(second) == list(range(33)) and first != second
    both = drawn(Order(shards_of(store), 0, 0, 1, 16), 66)
    assert both[:33] == first and sorted(both[33:]) == list(range(33)) and both[33:] != first
    assert drawn(Order(shards_of(store), 0, 0, 1, 16), 33) == first
    for place, row in enumerate(drawn(Order([list(range(33))], 0, 0, 1, 4), 33)):
        assert row <= place + 3  # nothing comes before it is read
    assert drawn(Order([list(range(9))], 0, 0, 1, 1), 9) == list(range(9))


def test_an_order_goes_on_where_it_stood(store):
    for stop in (0, 1, 5, 32, 33, 34, 50):
        order, other, third = (Order(shards_of(store), 1, 0, 1, 8) for _ in range(3))
        drawn(order, stop)
        state = json.loads(json.dumps(order.state_dict()))
        assert len(state["buffer"]) <= 8
        other.load_state_dict(state)
        third.skip(stop)
        ahead = drawn(order, 40)
        assert drawn(other, 40) == drawn(third, 40) == ahead


def test_more_parts_than_clips_are_refused(store):
    with pytest.raises(ValueError, match="a clip for each of 34 parts"):
        Order(shards_of(store), 0, 0, 34, 4)
    for wrong in ({"buffer": 0}, {"workers": 0}):
        with pytest.raises(ValueError, match="loader"):
            LoaderConfig(**wrong)


# ---------------------------------------------------------------- reader


@pytest.mark.parametrize("part, parts", [(0, 1), (1, 3), (2, 3)])
@pytest.mark.parametrize("split", [None, "train"])
def test_a_reader_gives_the_clips_of_the_store(store, part, parts, split):
    shards = shards_of(store)
    if split:
        chosen = set(store.select(split=split))
        shards = [rows for shard in shards if (rows := [row for row in shard if row in chosen])]
    order = Order(shards, 5, part, parts, 4)
    reader = ClipReader(store, order, lambda frames: (frames,))
    for row, (frames,) in islice(reader, 3 * len(order.mine)):
        assert np.array_equal(frames, store.frames(row))
    reader.close()


def test_shards_are_read_forwards_and_no_frame_twice(store, monkeypatch):
    from vw2.data import loader as module

    opened = []

    class Watched(module._Forward):
        def __init__(self, *args):
            super().__init__(*args)
            opened.append((self.shard, []))

        def clip(self, offset):
            before = self.file.tell()
            frames = super().clip(offset)
            opened[-1][1].append((before, self.file.tell()))
            return frames

    monkeypatch.setattr(module, "_Forward", Watched)
    order = Order(shards_of(store), 0, 0, 1, 4)
    list(islice(ClipReader(store, order, lambda frames: (frames,)), 33))
    assert sorted(shard for shard, _ in opened) == list(range(5))  # each once
    for shard, steps in opened:
        assert all(before < after for before, after in steps)
        assert all(left[1] == right[0] for left, right in zip(steps, steps[1:], strict=False))
        assert steps[-1][1] == (store.path / f"frames-{shard:05d}.npy").stat().st_size


# ---------------------------------------------------------------- loader


def test_batches_hold_what_prepare_makes(store):
    def ends(frames):
        return frames[0, :2], frames[[0, -1]]

    source = loader(store, rows=store.select(split="train"), prepare=ends)
    for rows, first, last in islice(source, 12):
        assert rows.shape == (3,) and first.shape == (3, 2, SIDE, 3) and last.shape == (3, 2, SIDE, SIDE, 3)
        for row, picture in zip(rows, last, strict=True):
            assert np.array_equal(picture, store.frames(row)[[0, -1]])
    source.close()


@pytest.mark.parametrize("ranks, workers", [(1, 1), (1, 3), (2, 1), (3, 2)])
def test_ranks_and_workers_together_see_everything_once(store, ranks, workers):
    per_part = 33 // (ranks * workers)
    seen = []
    for rank in range(ranks):
        source = loader(store, batch=1, workers=workers, rank=rank, ranks=ranks)
        seen += [int(rows[0]) for rows, _ in islice(source, per_part * workers)]
        source.close()
    assert len(set(seen)) == len(seen) == per_part * ranks * workers
    assert len(seen) > 33 - ranks * workers  # what is left over, less than one a part, comes next


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_resume_is_exact_to_the_bit(store, workers):
    straight = list(islice(source := loader(store, workers=workers), 40))
    source.close()
    for stop in (0, 1, 7, 20):
        before = loader(store, workers=workers)
        for expected, got in zip(straight, islice(before, stop), strict=False):
            assert all(map(np.array_equal, expected, got))
        state = json.loads(json.dumps(before.state_dict()))  # plain
        assert state["batches"] == stop
        after = loader(store, workers=workers)
        after.load_state_dict(state)
        assert after.state_dict() == state
        for expected, got in zip(straight[stop:], after, strict=False):
            assert all(map(np.array_equal, expected, got))
        before.close()
        again = next(before)  # closed and used on: as if nothing had happened
        assert all(map(np.array_equal, straight[stop], again))
        before.close()
        after.close()


def test_the_position_of_another_rank_serves(store):
    sources = [loader(store, rank=rank, ranks=2) for rank in range(2)]
    for _ in range(9):
        batches = [next(source) for source in sources]
    assert not set(batches[0][0]) & set(batches[1][0])
    ahead = [next(sources[1]) for _ in range(10)]
    late = loader(store, rank=1, ranks=2)
    late.load_state_dict(sources[0].state_dict())
    for expected in ahead:
        assert all(map(np.array_equal, expected, next(late)))
    for source in (*sources, late):
        source.close()


def test_positions_of_other_loaders_are_refused(store):
    state = loader(store).state_dict()
    for other in ({"seed": 1}, {"batch": 4}, {"workers": 1}, {"buffer": 5}, {"ranks": 2}, {"rows": range(30)}):
        with pytest.raises(ValueError, match="expected the position of a loader"):
            loader(store, **other).load_state_dict(state)
    with pytest.raises(ValueError, match="rank in"):
        loader(store, rank=2, ranks=2)


def test_what_goes_wrong_in_a_worker_is_raised(store, tmp_path):
    def broken(frames):
        raise RuntimeError("no room")

    with pytest.raises(RuntimeError, match="no room"):
        next(loader(store, prepare=broken))
    copy = tmp_path / "clips"
    copy.mkdir()
    for file in store.path.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    for file in copy.glob("*.npy"):
        file.write_bytes(file.read_bytes()[:-SIDE])
    with pytest.raises(ValueError, match="ends early"):
        list(islice(loader(ClipStore(Path(copy)), batch=33, workers=1), 1))
