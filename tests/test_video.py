"""Media: what is written comes back, frame by frame, in the right rate, size and range."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from numbered import noisy_frame, numbered_frame, read_number, write_raw

from vw2.data.clips import ClipConfig, cut_file, resample
from vw2.data.frame_rate import source_index
from vw2.media.decode import MediaError, frame_rate, probe, read_frames, read_image, read_video, scan
from vw2.media.encode import write_preview, write_video
from vw2.media.resize import resize_frame, resize_frames, to_model, to_uint8
from vw2.media.sheet import contact_sheet, thumbnails, write_sheet


def numbers(path):
    return [read_number(frame) for _, frame in read_frames(path)]


def smooth(frames=9, height=48, width=64):
    """Smoothly moving colours, uint8 THWC."""
    t, y, x = np.meshgrid(np.arange(frames), np.arange(height), np.arange(width), indexing="ij")
    waves = [np.sin(x / 9 + t / 3), np.cos(y / 7 - t / 4), np.sin((x + y) / 11 + t / 5)]
    return (np.stack(waves, -1) * 100 + 128).astype(np.uint8)


def test_round_trip_keeps_count_rate_size_and_values(tmp_path):
    frames = smooth()
    write_video(tmp_path / "a.mp4", frames, 16.0)
    back = read_video(tmp_path / "a.mp4")
    assert back.shape == frames.shape and back.dtype == np.uint8
    error = back.astype(float) - frames
    assert 10 * np.log10(255**2 / (error**2).mean()) > 42
    assert abs(error.mean()) < 1  # the colour matrix and range of both ways agree
    info = scan(tmp_path / "a.mp4")
    assert (info.fps, info.frames, info.width, info.height) == (16.0, 9, 64, 48)
    assert (info.codec, info.rotation, info.sar, info.variable) == ("h264", 0, 1.0, False)
    assert info.duration == pytest.approx(9 / 16)
    assert probe(tmp_path / "a.mp4").frames == 9


def test_full_range_of_colours_survives(tmp_path):
    colours = [(0, 0, 0), (255, 255, 255), (255, 0, 0), (0, 255, 0), (0, 0, 255), (128, 128, 128)]
    frames = np.stack([np.full((16, 16, 3), colour, np.uint8) for colour in colours])
    write_video(tmp_path / "a.mp4", frames, 10, crf=0)
    back = read_video(tmp_path / "a.mp4").astype(int)
    assert np.abs(back - frames).max() <= 3


def test_same_frames_give_the_same_bytes(tmp_path):
    rng = np.random.default_rng(0)
    frames = np.clip(smooth(40).astype(int) + rng.integers(-9, 9, (40, 48, 64, 3)), 0, 255).astype(np.uint8)
    data, preview = set(), set()
    for name in "abcdef":
        write_video(tmp_path / f"{name}.mp4", frames, 16)
        data.add((tmp_path / f"{name}.mp4").read_bytes())
        write_preview(tmp_path / f"{name}.mp4", frames, 16, scale=2)
        preview.add((tmp_path / f"{name}.mp4").read_bytes())
    assert len(data) == len(preview) == 1


@pytest.mark.parametrize("size", [(1, 1), (17, 33), (2, 5)])
def test_odd_sizes(tmp_path, size):
    frames = np.full((3, *size, 3), 77, np.uint8)
    write_video(tmp_path / "a.mp4", frames, 16)
    back = read_video(tmp_path / "a.mp4")
    assert back.shape == frames.shape and np.abs(back.astype(int) - 77).max() <= 2
    write_preview(tmp_path / "p.mp4", frames, 16, scale=3)
    info = probe(tmp_path / "p.mp4")
    assert (info.height, info.width) == tuple(3 * side + 3 * side % 2 for side in size)


def test_writer_refuses_what_is_not_a_video(tmp_path):
    with pytest.raises(ValueError, match="at least one frame"):
        write_video(tmp_path / "a.mp4", np.zeros((0, 8, 8, 3), np.uint8), 16)
    with pytest.raises(ValueError, match="uint8"):
        write_video(tmp_path / "a.mp4", np.zeros((2, 8, 8, 3)), 16)
    with pytest.raises(ValueError, match="positive frame rate"):
        write_video(tmp_path / "a.mp4", np.zeros((2, 8, 8, 3), np.uint8), 0)


@pytest.mark.parametrize("gop, bframes", [(1, 0), (12, 2), (250, 3)])
def test_every_frame_comes_once_in_order(tmp_path, gop, bframes):
    path = write_raw(
        tmp_path / "a.mp4", map(numbered_frame, range(70)), options={"g": str(gop), "bf": str(bframes), "crf": "18"}
    )
    assert numbers(path) == list(range(70))
    times = [seconds for seconds, _ in read_frames(path)]
    assert times == pytest.approx([i / 30 for i in range(70)], abs=1e-6)


@pytest.mark.parametrize(
    "suffix, codec", [("mkv", "libx264"), ("avi", "mpeg4"), ("webm", "libvpx-vp9"), ("ts", "libx264")]
)
def test_other_containers(tmp_path, suffix, codec):
    path = write_raw(
        tmp_path / f"a.{suffix}", map(numbered_frame, range(20)), 25, codec, options={"deadline": "realtime"}
    )
    info = scan(path)
    assert numbers(path) == list(range(20)) and info.fps == pytest.approx(25) and not info.variable


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotation_by_metadata(tmp_path, degrees):
    upright = numbered_frame(5)
    turned = np.ascontiguousarray(np.rot90(upright, -degrees // 90))  # as a camera held sideways stores it
    path = write_raw(tmp_path / "a.mp4", [turned] * 3, rotation=degrees)
    _, frame = next(read_frames(path))
    assert frame.shape == upright.shape and read_number(frame) == 5
    assert np.abs(frame.astype(int) - upright).mean() < 8
    info = probe(path)
    assert (info.rotation, info.width, info.height) == (degrees, 96, 48)


def test_pixel_aspect_ratio_is_respected(tmp_path):
    path = write_raw(tmp_path / "a.mp4", [numbered_frame(0)] * 2, sar=Fraction(2, 3))
    assert probe(path).sar == pytest.approx(2 / 3)
    turned = write_raw(tmp_path / "b.mp4", [numbered_frame(0)] * 2, sar=Fraction(2, 3), rotation=90)
    assert probe(turned).sar == pytest.approx(3 / 2)  # the pixels lie on their side, too
    # 96 x 48 pixels of shape 2/3 show as 64 x 48: letterboxed into 64 x 64 they leave 8 black lines above and below.
    _, frame = next(read_frames(path))
    boxed = resize_frame(frame, 64, 64, "letterbox", sar=2 / 3)
    dark = boxed.max((1, 2)) == 0
    assert dark[:8].all() and dark[-8:].all() and not dark[8:-8].any()


@pytest.mark.parametrize("rate, length", [(24, 48), (25, 50), (Fraction(30000, 1001), 60), (30, 60), (60, 120)])
def test_resampling_rule_to_16_fps(tmp_path, rate, length):
    path = write_raw(tmp_path / "a.mp4", map(numbered_frame, range(length)), rate)
    info = scan(path)
    assert info.fps == pytest.approx(float(rate)) and info.frames == length and not info.variable
    shown = [read_number(frame) for frame in resample(read_frames(path), info.fps, 16.0)]
    exact = Fraction(rate) / 16  # the rule in exact arithmetic
    expected = [int(j * exact) for j in range(length) if int(j * exact) < length]
    assert shown == expected


def test_resampling_by_hand():
    assert [source_index(j, 24, 16) for j in range(6)] == [0, 1, 3, 4, 6, 7]
    assert [source_index(j, 30, 16) for j in range(9)] == [0, 1, 3, 5, 7, 9, 11, 13, 15]
    assert [source_index(j, 8, 16) for j in range(5)] == [0, 0, 1, 1, 2]  # slow sources repeat
    assert [source_index(j, 16, 16) for j in range(1000)] == list(range(1000))
    assert [source_index(j, 1.6, 16) for j in range(0, 1000, 10)] == list(range(100))  # no rounding downwards
    for frames in range(1, 60):
        for source in (3, 10, 15.984, 16, 29.97002997, 120):
            shown = list(resample(((0.0, i) for i in range(frames)), source, 16))
            expected = (source_index(j, source, 16) for j in range(20 * frames))
            assert shown == [i for i in expected if i < frames]


def test_variable_rate_goes_by_time(tmp_path):
    times = [0.0, 0.1, 0.5, 0.6, 0.62, 1.0]
    path = write_raw(tmp_path / "a.mkv", map(numbered_frame, range(6)), times=times)
    info = scan(path)
    assert info.variable and info.fps == pytest.approx(5.0)
    shown = [read_number(frame) for frame in resample(read_frames(path), info.fps, 10, variable=True)]
    # at 0.0, 0.1, ..., 1.1 s; the last frame lasts the mean 0.2 s
    assert shown == [0, 1, 1, 1, 1, 2, 3, 4, 4, 4, 5, 5]


def test_frame_rate_from_times():
    assert frame_rate([i / 30 for i in range(50)], [30.0]) == (30.0, False)
    rounded = [round(i / 29.97, 3) for i in range(500)]  # Matroska keeps milliseconds
    assert frame_rate(rounded, [29.97]) == (29.97, False)
    fps, variable = frame_rate([i / 12 for i in range(50)], [30.0])  # the container lies
    assert fps == pytest.approx(12) and not variable
    assert frame_rate([0.0, 0.1, 0.05], [25.0]) == (25.0, False)  # times that run backwards say nothing
    assert frame_rate([None, None], [25.0]) == (25.0, False)
    assert frame_rate([None, None], []) == (0.0, False)
    assert frame_rate([0, 1, 2, 3, 5], [1.0])[1]


def test_broken_files_raise_the_reason(tmp_path):
    front = {"movflags": "faststart"}  # the index comes first, so that a cut file still opens
    path = write_raw(tmp_path / "a.mp4", map(noisy_frame, range(60)), options={"g": "5"}, container_options=front)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    with pytest.raises(MediaError, match=r"after \d+ frames|cut short") as error:
        list(read_frames(path))
    assert 0 < error.value.frames < 60
    with pytest.raises(MediaError, match=str(error.value.frames)):
        read_video(path)
    with pytest.raises(MediaError, match="more than 32 on a side"):
        probe(write_raw(tmp_path / "b.mp4", [numbered_frame(0)] * 2), max_side=32)
    with pytest.raises(MediaError, match=r"takes longer than 0 s to decode \(\d+ frames"):
        scan(tmp_path / "b.mp4", max_seconds=0)
    (tmp_path / "c.mp4").write_bytes(b"")
    with pytest.raises(MediaError, match="empty"):
        probe(tmp_path / "c.mp4")
    with pytest.raises(FileNotFoundError):
        probe(tmp_path / "none.mp4")


def test_a_playlist_named_mp4_is_not_followed(tmp_path):
    write_raw(tmp_path / "secret.mp4", [numbered_frame(0)] * 5)
    (tmp_path / "a.mp4").write_text("ffconcat version 1.0\nfile secret.mp4\n")
    with pytest.raises(MediaError, match="not a video in a known container"):
        probe(tmp_path / "a.mp4")


def test_transparency_lies_on_white(tmp_path):
    from PIL import Image

    clear = Image.new("RGBA", (16, 16), (255, 0, 0, 0))
    solid = Image.new("RGBA", (16, 16), (255, 0, 0, 255))
    clear.save(tmp_path / "a.gif", save_all=True, append_images=[solid], duration=100, loop=0, disposal=2)
    frames = [frame for _, frame in read_frames(tmp_path / "a.gif")]
    assert frames[0].min() > 250 and frames[1][..., 0].min() > 200 and frames[1][..., 1].max() < 60


def test_stills(tmp_path):
    from PIL import Image

    upright = numbered_frame(7)
    turned = Image.fromarray(np.ascontiguousarray(np.rot90(upright)))  # the camera was held sideways
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn clockwise to show
    turned.save(tmp_path / "a.jpg", quality=95, exif=exif)
    picture = read_image(tmp_path / "a.jpg")
    assert picture.shape == upright.shape and read_number(picture) == 7
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").min() == 255
    with pytest.raises(MediaError, match="more than 50 on a side"):
        read_image(tmp_path / "a.jpg", max_side=50)
    (tmp_path / "b.jpg").write_text("x")
    with pytest.raises(MediaError, match="not a picture"):
        read_image(tmp_path / "b.jpg")
    (tmp_path / "c.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:-200])
    with pytest.raises(MediaError, match="damaged"):
        read_image(tmp_path / "c.jpg")
    with pytest.raises(FileNotFoundError):
        read_image(tmp_path / "none.jpg")


def test_fits():
    wide = np.zeros((40, 80, 3), np.uint8)
    wide[:, 20:60] = 255  # the centre square
    assert resize_frame(wide, 20, 20, "cover").min() == 255
    boxed = resize_frame(wide, 20, 20, "letterbox")
    assert boxed[:5].max() == boxed[15:].max() == 0 and boxed[7, 10].min() == 255
    assert resize_frame(wide, 20, 20, "stretch")[10].mean(-1).tolist() == [0] * 5 + [255] * 10 + [0] * 5
    for fit in ("cover", "letterbox", "stretch"):
        for source in ((1, 1), (3, 100), (100, 3)):
            assert resize_frame(np.full((*source, 3), 9, np.uint8), 16, 24, fit).shape == (16, 24, 3)
    assert resize_frames(np.zeros((2, 8, 8, 3), np.uint8), 4, 6).shape == (2, 4, 6, 3)
    with pytest.raises(ValueError, match="cover, letterbox or stretch"):
        resize_frame(wide, 20, 20, "crop")


def test_shrinking_is_antialiased():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    small = resize_frame(stripes, 16, 16)
    assert np.abs(small.astype(int) - 128).max() <= 1


def test_model_range_and_back():
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, -1)  # THWC, every value
    video = to_model(levels)
    assert video.shape == (3, 1, 16, 16) and video.dtype == torch.float32
    assert (video.min(), video.max()) == (-1, 1)
    assert np.array_equal(to_uint8(video), levels)
    batch = np.stack([levels, levels[::-1]])
    assert np.array_equal(to_uint8(to_model(batch)), batch)
    assert to_uint8(torch.tensor([-9.0, 9.0]).expand(3, 1, 1, 2)).tolist() == [[[[0, 0, 0], [255, 255, 255]]]]
    with pytest.raises(ValueError, match="uint8"):
        to_model(np.zeros((1, 8, 8, 3), np.float32))
    with pytest.raises(ValueError, match="finite"):
        to_uint8(torch.full((3, 1, 2, 2), float("nan")))


def test_cut_file_writes_raw_frames(tmp_path):
    path = write_raw(tmp_path / "a.mp4", map(numbered_frame, range(60)))
    config = ClipConfig(frames=17, fps=15.0, height=48, width=96, fit="cover", min_frames=17)
    row = {
        "id": "a",
        "start": None,
        "stop": None,
        "fps": 30.0,
        "variable": False,
        "sar": 1.0,
        "width": 96,
        "height": 48,
    }
    ((name, written),) = cut_file(path, [row], config, tmp_path)
    raw = np.fromfile(tmp_path / "a.u8", np.uint8).reshape(-1, 48, 96, 3)
    assert name == "a" and written.frames == len(raw) == 30
    assert [read_number(frame) for frame in raw] == list(range(0, 60, 2))


@pytest.mark.parametrize(
    "wrong, words", [({"frames": 16}, "1 \\+ 4m"), ({"fps": 0.0}, "clip.fps"), ({"width": 0}, "clip.width")]
)
def test_clip_config_refuses(wrong, words):
    with pytest.raises(ValueError, match=words):
        ClipConfig(**wrong)


def test_contact_sheet(tmp_path):
    assert [int(f[0, 0, 0]) for f in thumbnails((np.full((2, 2, 3), i, np.uint8) for i in range(100)), 5)][0] == 0
    wide = smooth(30, 96, 256)
    small = thumbnails(iter(wide), 4)
    assert small.shape == (4, 48, 128, 3)  # and the sheet shows what it would show of the whole frames
    assert contact_sheet([("a", small)]).tobytes() == contact_sheet([("a", thumbnails(iter(wide), 4, 256))]).tobytes()
    few = thumbnails(iter([np.zeros((2, 2, 3), np.uint8)] * 3), 8)
    assert len(few) == 3
    sheet = contact_sheet([("one", smooth(20)), ("two", smooth(2, 8, 8))], columns=4, side=32, title="sheet")
    assert sheet.width >= 4 * 32
    write_sheet(tmp_path / "a.png", [("one", smooth(3))])
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="at least one row"):
        contact_sheet([])
