"""Every file of a folder is taken as it is or refused with the true reason, however broken or strange it is."""

import sys
from pathlib import Path

import numpy as np
import odd_videos
import pytest
from numbered import numbered_frame, read_number, write_raw
from PIL import Image

from vw2.data.clips import resample
from vw2.data.manifest import Entry, build, write_quarantine
from vw2.data.sources import folder, frames
from vw2.data.sources.base import IngestConfig, utf8
from vw2.media.decode import read_frames, scan
from vw2.media.timing import longest_gap

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="pipes, and names that are no UTF-8")
WHOLE = list(range(odd_videos.FRAMES))
TAKEN = {  # file -> the numbers in its frames
    **dict.fromkeys(odd_videos.PIXELS, WHOLE),
    "size_0x0.mp4": WHOLE,
    "size_65535.mp4": WHOLE,
    "count_less.avi": WHOLE,
    "box_4gb.mp4": WHOLE,
    "no_duration.mkv": WHOLE,
    "fragments.mp4": WHOLE,
    "tail_of_zeros.mp4": WHOLE,
    "times_double.mkv": WHOLE,
    "times_negative.mkv": WHOLE,
    "times_wrap.ts": WHOLE,
    "times_jump.mkv": WHOLE,
    "edit_later.mp4": WHOLE[10:],
    "edit_empty.mp4": WHOLE,
    "cover_first.mp4": WHOLE,
    "two_streams.mkv": WHOLE,
    "interlaced.mpg": WHOLE,
    "long_gop.mp4": list(range(300)),
    "animated.gif": WHOLE,
    "black.mp4": [0] * len(WHOLE),
    "frozen.mp4": [7] * len(WHOLE),
    "-dash.mp4": WHOLE,
    "a b\tc.mp4": WHOLE,
    "line\nbreak.mp4": WHOLE,
    "ünï ☃ 紙.mp4": WHOLE,
    "100%d.mp4": WHOLE,
    "http:x.mp4": WHOLE,
    "folder.mp4/inside.mp4": WHOLE,
}
REFUSED = {
    "size_0x0.avi": "breaks after 0 frames",
    "size_giant.avi": "breaks after 0 frames",
    "size_8000_lie.avi": "breaks after 0 frames",
    "size_65535.gif": "breaks after 0 frames",
    "size_changes.h264": "changes its size after 20 frames from 96x48 to 192x96",
    "count_more.avi": "is cut short: 40 frames came out of 400 declared",
    "count_giant.mp4": "is not a video in a known container",
    "times_giant.mp4": "asks for more memory than it may have",
    "codec_unknown.mp4": "uses a codec this build of FFmpeg does not know",
    "samples_outside.mp4": "holds no frame that can be decoded (40 declared)",
    "empty_chunks.avi": "lacks frames: 40 frames came out of 50 declared",
    "times_gap.mkv": "shows one frame for 3600 s from 0.6 s on",
    "slideshow.mkv": "shows one frame for 60 s from 0.0 s on",
    "cover_only.mp4": "has no video stream, only a cover picture",
    "apng.mp4": "is not a video in a known container",
    "webp.mp4": "is not a video in a known container",
    "pipe.mp4": "is a pipe or device, not a file",
    "self.mp4": "cannot be read (Too many levels of symbolic links)",
    "dangling.mp4": "cannot be read (No such file or directory)",
    r"latin\xe9.mp4": "has a name that is not UTF-8",
}


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """The folder, and what became of every file in it."""
    root = tmp_path_factory.mktemp("odd") / "films"
    odd_videos.make(root)
    items = list(folder.entries(IngestConfig("folder", str(root), time_limit=60.0), root.parent / "work", 2))
    return root, {item.path.removeprefix(f"{root}/"): item for item in items}, items


def test_no_file_is_forgotten_and_the_tables_hold_them(odd, tmp_path):
    root, found, items = odd
    names = {utf8(name) for name in odd_videos.MAKERS if name != "loop"}
    assert set(found) == names == set(TAKEN) | set(REFUSED) and len(items) == len(names)
    taken = [item for item in items if isinstance(item, Entry)]
    assert set(build([Entry(**vars(item) | {"split": "train"}) for item in taken])["path"]) == {e.path for e in taken}
    write_quarantine(tmp_path / "q.parquet", [item for item in items if not isinstance(item, Entry)])


@pytest.mark.parametrize("name", REFUSED, ids=ascii)
def test_refused_with_the_true_reason(odd, name):
    item = odd[1][name]
    assert not isinstance(item, Entry) and item.reason.startswith(REFUSED[name]), item


@pytest.mark.parametrize("name", TAKEN, ids=ascii)
def test_taken_whole(odd, name):
    root, found, _ = odd
    item, shown = found[name], [frame for _, frame in read_frames(root / name)]
    assert isinstance(item, Entry), item
    assert [read_number(frame) for frame in shown] == TAKEN[name] and item.frames == len(shown)
    assert (item.width, item.height) == (96, 48) and item.variable == (name == "times_jump.mkv")
    rate = {"interlaced.mpg": 25, "animated.gif": 20, "times_jump.mkv": 39 / 5.3}.get(name, 30)
    assert item.fps == pytest.approx(rate, rel=1e-3)
    if name in odd_videos.PIXELS:  # neither the range nor the order of channels is mistaken
        wanted = numbered_frame(0).astype(int)
        wanted = wanted if "grey" not in name else np.repeat(wanted[..., :1] * 0 + shown[0][..., :1], 3, -1)
        apart = np.abs(shown[0].astype(int) - wanted)
        assert apart.mean() < 4 and np.abs(shown[0][20:30, 20:30].astype(int) - 90).max() <= 3
        red = shown[0][-4:, -4:].reshape(-1, 3).mean(0)
        assert "grey" in name or red[0] > 150 > 110 > red[1:].max()


def test_a_pause_in_the_times_is_shown_as_long_as_it_lasts(odd):
    item = odd[1]["times_jump.mkv"]
    stream = resample(read_frames(Path(item.path)), item.fps, 16, item.variable)
    shown = [read_number(frame) for frame in stream]
    assert shown.count(19) == pytest.approx(4 * 16, abs=1) and set(shown[:10]) < set(WHOLE[:20])


def test_longest_gap():
    assert longest_gap([5.0, 5.1, 7.1, 7.2], 1.0) == pytest.approx((2.0, 0.1))
    assert longest_gap([0.0, 0.2, 0.1], 4.0) == longest_gap([None, None], 4.0) == (0.25, 0.0)


def test_linked_folders_are_entered_once(tmp_path):
    root, store = tmp_path / "films", tmp_path / "store"
    (root / "own").mkdir(parents=True)
    (store / "deep").mkdir(parents=True)
    (store / "deep/b.mp4").write_text("x")
    (root / "own/a.mp4").write_text("x")
    (root / "linked").symlink_to(store, target_is_directory=True)
    (root / "own/again").symlink_to(store / "deep", target_is_directory=True)
    (store / "up").symlink_to(root, target_is_directory=True)
    assert folder.find_videos(root) == ["linked/deep/b.mp4", "own/a.mp4"]
    Image.new("RGB", (4, 4)).save(store / "1.png")
    assert frames.find_folders(root) == {"linked": ("1.png",)}


def test_a_folder_that_cannot_be_opened_is_told(tmp_path, monkeypatch):
    (tmp_path / "films/locked").mkdir(parents=True)
    odd_videos.lock(monkeypatch, "locked")
    config = IngestConfig("folder", str(tmp_path / "films"))
    found = list(folder.entries(config, tmp_path / "work", 1))
    assert [(Path(item.path).name, item.reason) for item in found] == [
        ("locked", "is a folder that cannot be opened (Permission denied)")
    ]


def test_an_unreadable_file_is_not_called_broken(tmp_path, monkeypatch):
    path = write_raw(tmp_path / "a.mp4", [numbered_frame(0)] * 2)
    monkeypatch.setattr(Path, "open", lambda self, *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    with pytest.raises(PermissionError):
        scan(path)
