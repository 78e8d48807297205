"""Files that end early, pictures with flipped bits, times that are wrong, pictures to be mirrored."""

import struct

import av
import numpy as np
import pytest
from numbered import noisy_frame, numbered_frame, read_number, write_raw
from odd_videos import good, poke, remux
from PIL import Image

from vw2.data.clips import resample
from vw2.media.boxes import edits
from vw2.media.decode import MediaError, read_frames, read_image, read_pictures, scan
from vw2.media.timing import frame_rate, judged, longest_gap

# ---------------------------------------------------------------- files cut short


def with_sound(path, seconds, sound):
    """A video with a sound track, of so many seconds each."""
    codec = "libvpx-vp9" if path.suffix == ".webm" else "libx264"
    with av.open(str(path), "w") as container:
        video = container.add_stream(codec, rate=30, options={"g": "10", "bf": "0", "deadline": "realtime"})
        video.height, video.width, video.pix_fmt = 48, 96, "yuv420p"
        audio = container.add_stream("aac" if path.suffix == ".flv" else "libopus", rate=48000, layout="mono")
        frames = [av.VideoFrame.from_ndarray(noisy_frame(i), format="rgb24") for i in range(round(30 * seconds))]
        packets = [packet for frame in [*frames, None] for packet in video.encode(frame)]
        for start in range(0, round(48000 * sound), 960):
            wave = np.sin(np.arange(start, start + 960, dtype=np.float32) / 9)[None]
            frame = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 48000, start
            packets += audio.encode(frame)
        packets += audio.encode(None)
        for packet in sorted(packets, key=lambda each: float(each.dts * each.time_base)):
            container.mux(packet)
    return path


def nameless(path):
    """Without the durations of single tracks and with a Segment of unknown size, as some muxers write Matroska."""
    data = path.read_bytes().replace(b"DURATION", b"DURATIOX")
    at = data.index(b"\x18\x53\x80\x67") + 4
    path.write_bytes(data[:at] + b"\x01" + b"\xff" * 7 + data[at + 8 :])


@pytest.mark.parametrize("suffix", ["flv", "mkv", "webm"])
def test_a_file_with_sound_that_was_cut_is_refused_and_one_with_longer_sound_is_not(tmp_path, suffix):
    for seconds, sound in ((3, 3), (2, 4), (4, 2)):
        path = with_sound(tmp_path / f"{seconds}{sound}.{suffix}", seconds, sound)
        if suffix != "flv":
            nameless(path)
        assert scan(path).frames == 30 * seconds
        data = path.read_bytes()
        path.write_bytes(data[: len(data) * 6 // 10])
        with pytest.raises(MediaError, match="is cut short: .* s declared|breaks after"):
            scan(path)


def test_a_segment_that_reaches_beyond_the_end_is_told(tmp_path):
    path = write_raw(tmp_path / "a.mkv", map(numbered_frame, range(30)))
    path.write_bytes(path.read_bytes()[:-7])  # of the index behind the last frame
    with pytest.raises(MediaError, match="is cut short: 30 frames came out, and its last 7 bytes are missing"):
        scan(path)


# ---------------------------------------------------------------- flipped bits


@pytest.mark.parametrize(
    "name, codec, pixels, options",
    [
        ("a.mkv", "ffv1", "yuv444p", {"slicecrc": "1", "level": "3"}),
        ("a.mp4", "libx265", "yuv420p", {"x265-params": "hash=1:log-level=none:pools=none:frame-threads=1"}),
        ("a.mov", "png", "rgb24", {}),
    ],
)
def test_a_wrong_checksum_is_refused(tmp_path, name, codec, pixels, options):
    try:
        path = write_raw(tmp_path / name, map(noisy_frame, range(20)), codec=codec, pixels=pixels, options=options)
    except av.FFmpegError:
        pytest.skip(f"this build of FFmpeg has no {codec}")
    assert scan(path).frames == 20
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:  # the middle of a picture
        packet = [each for each in container.demux(video=0) if each.size][9]
        at = packet.pos + packet.size // 2
    data[at] ^= 0x55
    path.write_bytes(data)
    with pytest.raises(MediaError, match="breaks after"):
        scan(path)


def box(kind, content, size=None):
    return struct.pack(">I", len(content) + 8 if size is None else size) + kind + content


@pytest.mark.parametrize("beyond", ["moov", "trak", "edts", "elst"])
def test_boxes_that_reach_beyond_the_file_are_read_up_to_its_end(tmp_path, beyond):
    entries = b"\0\0\0\0" + struct.pack(">IIii", 1, 500, 7, 1 << 16)
    sizes = {kind: 10**6 if kind == beyond else None for kind in ("moov", "trak", "edts", "elst")}
    edit = box(b"edts", box(b"elst", entries, sizes["elst"]), sizes["edts"])
    track = box(b"trak", box(b"tkhd", bytes(12) + struct.pack(">I", 5) + bytes(68)) + edit, sizes["trak"])
    path = tmp_path / "a.mp4"
    path.write_bytes(box(b"free", b"") + box(b"moov", track, sizes["moov"]))
    assert edits(path, 5) == [(7, 1.0)] and edits(path, 6) == []


def test_an_edit_list_without_room_for_its_head_has_no_entries(tmp_path):
    path = tmp_path / "a.mp4"
    track = box(b"trak", box(b"tkhd", bytes(12) + struct.pack(">I", 5)) + box(b"edts", box(b"elst", b"")))
    path.write_bytes(box(b"moov", track) + box(b"free", b"\0\0\0\1" * 40))
    assert edits(path, 5) == []


def test_damaged_boxes_are_no_traceback(tmp_path):
    data = good(tmp_path / "a.mp4")  # its moov comes last
    for kind in (b"moov", b"trak", b"edts"):
        path = tmp_path / "b.mp4"
        path.write_bytes(data)
        poke(path, kind, -8, struct.pack(">I", 10**6))
        try:
            assert scan(path).frames == 40
        except MediaError:
            pass


def test_an_index_with_a_picture_larger_than_the_file_is_refused(tmp_path):
    path = tmp_path / "a.mp4"
    good(path, codec="mpeg4")
    poke(path, b"stsz", 12 + 4 * 20, b"\xf0")  # of picture 20
    with pytest.raises(MediaError, match="lacks frames: 20 came out, up to one that would be larger than the file"):
        scan(path)


def test_a_gif_whose_blocks_break_off_is_refused(tmp_path):
    path = tmp_path / "a.gif"
    pictures = [Image.fromarray(numbered_frame(number)) for number in range(6)]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=50)
    data, block = path.read_bytes(), b"\x21\xf9\x04"
    at = data.index(block, data.index(block) + 1)  # before the second picture
    assert data.endswith(b"\0\x3b") and scan(path).frames == 6
    for harmless in (data[:-1], data[:-1] + bytes(9), data + b"more"):
        path.write_bytes(harmless)
        assert scan(path).frames == 6
    for bad in (
        data[:at] + b"\xa1" + data[at + 1 :],
        data[: at - 1] + b"\xff" + data[at:],
        data[:at] + b"\0" + data[at:],
    ):
        path.write_bytes(bad)
        with pytest.raises(MediaError, match="breaks after"):
            scan(path)


@pytest.mark.parametrize("error", [IndexError, TypeError, EOFError, RuntimeError, MemoryError])
def test_a_picture_whose_reader_fails_in_any_way_is_refused(tmp_path, monkeypatch, error):
    def fail(*_, **__):
        raise error("in a damaged GIF, TIFF or AVIF")

    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(MemoryError if error is MemoryError else MediaError, match="in a damaged GIF, TIFF or AVIF"):
        read_image(tmp_path / "a.png")


# ---------------------------------------------------------------- times


def shifted(path, source, change):
    """The file with other times: `change` gets {frame: milliseconds}."""
    with av.open(str(source)) as container:
        times = {number: each.pts for number, each in enumerate(each for each in container.demux(video=0) if each.size)}
    change(times)

    def put(number, packet):
        packet.pts = packet.dts = times[number]

    remux(path, source, put)
    return path


def test_one_wrong_time_does_not_hide_the_clock(tmp_path):
    times = [i / 30 for i in range(60)] + [2 + i / 10 for i in range(20)]
    source = write_raw(tmp_path / "a.mkv", map(numbered_frame, range(80)), times=times, options={"bf": "0"})
    whole = scan(source)
    double = shifted(tmp_path / "b.mkv", source, lambda at: at.update({20: at[19]}))
    info = scan(double)
    assert info.variable and info.fps == pytest.approx(whole.fps)
    shown, wanted = (
        [read_number(frame) for frame in resample(read_frames(path), info.fps, 16, True)] for path in (double, source)
    )
    assert len(shown) == len(wanted) == 64 and np.abs(np.subtract(shown, wanted)).max() <= 1

    def leap(at):
        at.update({20: at[19], **{number: at[number] + 50_000_000 for number in range(60, 80)}})

    with pytest.raises(MediaError, match="shows one frame for 50000 s from 2.0 s on"):
        scan(shifted(tmp_path / "c.mkv", source, leap))


def test_wrong_times_are_told_from_right_ones():
    def given(*times):
        return [(seconds, good) for seconds, good, _ in judged((each, None) for each in times)]

    assert given(0.0, 1.0, 1.0, 3.0) == [(0.0, True), (1.0, True), (2.0, False), (3.0, True)]
    assert given(0.0, 9.0, 2.0) == [(0.0, True), (1.0, False), (2.0, True)]  # a leap that is taken back
    assert given(0.0, 1.0, None, 0.5, 4.0)[2:4] == [(1.0, False), (2.5, False)]
    assert given(0.0, 1.0, 500.0) == [(0.0, True), (1.0, True), (500.0, True)]
    assert given(None, 2.0)[0] == (2.0, False) and np.isnan(given(None, None)[0][0]) and given() == []
    times = [i / 30 for i in range(200)]
    times[50] = times[49]
    assert frame_rate(times, [1000.0, 25.0]) == (pytest.approx(30), False)
    times[100:] = [each + 500 for each in times[100:]]
    assert frame_rate(times, [30.0])[1] and longest_gap(times, 30.0)[0] == pytest.approx(500 + 1 / 30)


def test_a_declared_rate_must_fit_the_time_that_the_frames_take():
    times = [i // 2 / 15 for i in range(100)]  # every second frame at the time of the one before
    assert frame_rate(times, [1000.0, 30.0]) == (30.0, False)
    assert frame_rate(times, [1000.0]) == (pytest.approx(99 / times[-1]), False)
    assert frame_rate([0.0, None, None], [25.0]) == (25.0, False)


def test_lone_strays_do_not_stretch_the_time_that_the_frames_take():
    for first in (0, 7):
        times = [i / 25 + (60 if i % 15 == first else 0) for i in range(100)]
        assert frame_rate(times, [25.0]) == (25.0, False) and frame_rate(times, []) == (pytest.approx(25), False)
    assert frame_rate(times * 2, [25.0]) == (25.0, False)  # and with a set-back


# ---------------------------------------------------------------- mirrors


MATRICES = {  # a, b, c, d of the track header: (x, y) of the picture shows at (ax + cy, bx + dy)
    (-1, 0, 0, 1): lambda frame: frame[:, ::-1],
    (1, 0, 0, -1): lambda frame: frame[::-1],
    (-1, 0, 0, -1): lambda frame: frame[::-1, ::-1],
    (0, 1, 1, 0): lambda frame: frame.swapaxes(0, 1),
    (0, -1, -1, 0): lambda frame: frame[::-1, ::-1].swapaxes(0, 1),
    (0, 1, -1, 0): lambda frame: np.rot90(frame, -1),
}


@pytest.mark.parametrize("matrix", MATRICES, ids=str)
def test_mirrored_videos_are_shown_as_their_metadata_ask(tmp_path, matrix):
    path = write_raw(tmp_path / "a.mp4", [numbered_frame(5)] * 3)
    _, plain = next(read_frames(path))
    data = path.read_bytes()
    at = data.index(b"tkhd") + 44
    a, b, c, d = (each * 2**16 for each in matrix)
    path.write_bytes(data[:at] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 2**30) + data[at + 36 :])
    _, frame = next(read_frames(path))
    assert np.array_equal(frame, MATRICES[matrix](plain))
    height, width = (size // 2 for size in frame.shape[:2])
    small = next(read_pictures(path))[1].shrunk(height, width)
    assert np.abs(small.astype(int) - frame.reshape(height, 2, width, 2, 3).mean((1, 3))).mean() < 3
