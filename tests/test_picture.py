"""Pictures shrunk from the decoder's planes show what shrinking their RGB shows; opening files leaks nothing."""

from fractions import Fraction

import numpy as np
import pytest
from numbered import numbered_frame, write_raw

from benchmarks.decode import growth
from benchmarks.films import make_film
from vw2.media.decode import read_frames, read_pictures
from vw2.media.picture import resize_picture
from vw2.media.resize import resize_frame


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    return make_film(tmp_path_factory.mktemp("film") / "a.mp4", 320, 180, 4, 0)


@pytest.mark.parametrize("fit", ["cover", "letterbox", "stretch"])
@pytest.mark.parametrize("size", [(64, 64), (60, 107), (90, 48), (45, 80), (200, 200), (180, 320)])
def test_shrinking_before_or_after_rgb_looks_the_same(film, fit, size):
    for (_, picture), (_, frame) in zip(read_pictures(film), read_frames(film), strict=True):
        small, expected = resize_picture(picture, *size, fit), resize_frame(frame, *size, fit)
        assert small.shape == expected.shape and small.dtype == np.uint8
        apart = np.abs(small.astype(int) - expected)
        assert apart.mean() < (4 if fit == "cover" else 3)  # its crop lies up to half a pixel beside
        assert np.abs(small.mean((0, 1)) - expected.mean((0, 1))).max() < 2


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_shrunk_pictures_are_turned_and_squared(tmp_path, rotation):
    path = write_raw(tmp_path / "a.mp4", [numbered_frame(5, 96, 192)] * 3, rotation=rotation, sar=Fraction(3, 2))
    sar = 3 / 2 if rotation == 180 else 2 / 3
    (_, picture), (_, frame) = next(read_pictures(path)), next(read_frames(path))
    assert picture.shape == frame.shape[:2] == ((96, 192) if rotation == 180 else (192, 96))
    for fit in ("cover", "letterbox"):
        apart = np.abs(resize_picture(picture, 48, 48, fit, sar).astype(int) - resize_frame(frame, 48, 48, fit, sar))
        assert apart.mean() < 3


def test_stripes_too_fine_for_the_target_become_grey(tmp_path):
    frame = np.zeros((128, 128, 3), np.uint8)
    frame[:, ::2] = 255
    path = write_raw(tmp_path / "a.mp4", [frame] * 2, options={"crf": "0"}, pixels="yuv444p")
    small = resize_picture(next(read_pictures(path))[1], 32, 32)
    assert small.std() < 2 and abs(small.mean() - 127.5) < 3


def test_full_range_and_extreme_sizes(tmp_path):
    path = write_raw(tmp_path / "a.mkv", [np.full((64, 2560, 3), 250, np.uint8)] * 2, codec="mjpeg", pixels="yuvj420p")
    picture = next(read_pictures(path))[1]
    for size in ((16, 16), (4, 4), (1, 1), (64, 20)):  # beyond 64 times swscale is not asked
        small = resize_picture(picture, *size, "stretch")
        assert small.shape == (*size, 3) and np.abs(small.astype(int) - 250).max() <= 2


def test_opening_leaks_nothing(film):
    assert growth(film, 300) < 15  # MB; benchmarks/decode.py does it 10,000 times
