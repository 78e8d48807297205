"""No frame is lost, doubled or moved on the way into a clip: numbered pictures through every codec, rate and GOP."""

from fractions import Fraction

import av
import numpy as np
import pytest
from numbered import numbered_frame, read_number, write_raw

from vw2.data.clips import ClipConfig, cut_file
from vw2.media.decode import read_frames, scan

RATES = [24, 25, Fraction(30000, 1001), 30, 60]
QUIET = {"x265-params": "log-level=none:pools=none:frame-threads=1"}
CODECS = {
    "h264": ("mp4", "libx264", "yuv420p", {"bf": "3", "g": "30", "x264-params": "b-pyramid=normal:open-gop=1"}),
    "hevc": ("mp4", "libx265", "yuv420p", {**QUIET, "bf": "4", "preset": "ultrafast"}),
    "hevc_10bit": ("mkv", "libx265", "yuv420p10le", {**QUIET, "preset": "ultrafast"}),
    "av1": ("mp4", "libsvtav1", "yuv420p", {"preset": "8", "svtav1-params": "lp=1"}),
    "vp8": ("webm", "libvpx", "yuv420p", {"deadline": "realtime", "auto-alt-ref": "1", "lag-in-frames": "10"}),
    "vp9": ("webm", "libvpx-vp9", "yuv420p", {"deadline": "realtime", "auto-alt-ref": "1", "lag-in-frames": "10"}),
    "mpeg4": ("mp4", "mpeg4", "yuv420p", {"bf": "2", "g": "12"}),
    "mpeg4_avi": ("avi", "mpeg4", "yuv420p", {"bf": "0", "g": "50"}),
    "mpeg2": ("ts", "mpeg2video", "yuv420p", {"bf": "2", "g": "15"}),
    "mjpeg": ("avi", "mjpeg", "yuvj420p", {}),
    "ffv1": ("mkv", "ffv1", "yuv444p", {}),
    "prores": ("mov", "prores_ks", "yuv422p10le", {}),
    "flv": ("flv", "flv", "yuv420p", {"g": "12"}),
    "wmv2": ("asf", "wmv2", "yuv420p", {"g": "12"}),
}
GOPS = [(1, 0), (4, 2), (12, 2), (48, 3), (250, 0), (250, 8)]


def pictures(count, height=72, width=120):
    return [numbered_frame(number, height, width) for number in range(count)]


def clip_numbers(path, folder, height=72, width=120, fps=16.0):
    """What a clip of the file shows, by way of `scan`, as the stages do it."""
    info = scan(path)
    config = ClipConfig(fps=fps, height=height, width=width)
    ((_, written),) = cut_file(path, [{"id": "a", "start": None, "stop": None, **vars(info)}], config, folder)
    raw = np.fromfile(folder / "a.u8", np.uint8).reshape(written.frames, height, width, 3)
    return [read_number(frame) for frame in raw], info


def at_constant_rate(count, rate, fps=16):
    """Source frame of each output frame in exact arithmetic: floor(j * rate / fps)."""
    step = Fraction(rate) / fps
    return [int(j * step) for j in range(count * fps) if int(j * step) < count]


def by_times(times, fps=16):
    """Source frame of each output frame: the last one due by j / fps, to a millisecond; the last lasts the mean."""
    times = [Fraction(round(time * 1000), 1000) for time in times]
    end = times[-1] + (times[-1] - times[0]) / (len(times) - 1)
    slots = [Fraction(j, fps) + Fraction(1, 1000) for j in range(int(end * fps) + 2)]
    return [max(n for n, time in enumerate(times) if time <= slot) for slot in slots if slot < end]


@pytest.mark.parametrize("name", CODECS)
def test_every_codec(tmp_path, name):
    suffix, codec, pixels, options = CODECS[name]
    try:
        av.codec.Codec(codec, "w")
    except av.FFmpegError:
        pytest.skip(f"this build of FFmpeg has no {codec}")
    path = write_raw(tmp_path / f"a.{suffix}", pictures(45), 30, codec, pixels, options)
    assert [read_number(frame) for _, frame in read_frames(path)] == list(range(45))
    shown, info = clip_numbers(path, tmp_path)
    assert (info.frames, info.variable) == (45, False) and info.fps == pytest.approx(30)
    assert shown == at_constant_rate(45, 30)


@pytest.mark.parametrize("rate", RATES, ids=lambda rate: f"{float(rate):.4g}fps")
@pytest.mark.parametrize("gop, bframes", GOPS)
def test_every_rate_and_gop(tmp_path, rate, gop, bframes):
    options = {"g": str(gop), "bf": str(bframes), "preset": "ultrafast", "sc_threshold": "0"}
    path = write_raw(tmp_path / "a.mp4", pictures(70), rate, options=options)
    with av.open(str(path)) as container:  # the file is what its name says
        packets = [packet for packet in container.demux(video=0) if packet.size]
    assert sum(packet.is_keyframe for packet in packets) == -(-70 // gop)
    order = [packet.pts for packet in packets]
    assert (order != sorted(order)) == (bframes > 0)
    shown, info = clip_numbers(path, tmp_path)
    assert info.fps == pytest.approx(float(rate)) and not info.variable
    assert shown == at_constant_rate(70, rate)


@pytest.mark.parametrize("rate", [10, 16, 50, Fraction(24000, 1001), Fraction(60000, 1001), 120])
@pytest.mark.parametrize("fps", [8, 16])
def test_other_rates(tmp_path, rate, fps):
    path = write_raw(tmp_path / "a.mkv", pictures(64), rate, options={"preset": "ultrafast"})
    shown, _ = clip_numbers(path, tmp_path, fps=float(fps))
    assert shown == at_constant_rate(64, rate, fps)


@pytest.mark.parametrize("suffix, bframes", [("mp4", 0), ("mp4", 3), ("mkv", 3), ("webm", None)])
@pytest.mark.parametrize("kind", ["phone", "drops", "bursts"])
def test_variable_rate(tmp_path, suffix, bframes, kind):
    rng = np.random.default_rng(len(kind))
    gaps = {
        "phone": rng.choice([0.033, 0.034, 0.05], 69),
        "drops": np.where(rng.random(69) < 0.15, 0.4, 0.04),
        "bursts": np.where(np.arange(69) // 20 % 2, 0.1, 0.02),
    }[kind]
    times = np.concatenate([[0.0], np.cumsum(gaps)]).round(3).tolist()
    codec, options = ("libvpx-vp9", {"deadline": "realtime"}) if bframes is None else ("libx264", {"bf": str(bframes)})
    path = write_raw(tmp_path / f"a.{suffix}", pictures(70), 30, codec, options={**options, "g": "25"}, times=times)
    shown, info = clip_numbers(path, tmp_path)
    assert info.variable and info.frames == 70
    assert shown == by_times(times)


def test_the_rule_for_times_by_hand():
    assert by_times([0.0, 0.1, 0.5]) == [0, 0] + [1] * 6 + [2] * 4
    assert at_constant_rate(6, 24) == [0, 1, 3, 4] and at_constant_rate(3, 8) == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("size", [(49, 97), (51, 96), (48, 101), (83, 131)])
@pytest.mark.parametrize(
    "suffix, codec, pixels",
    [("mp4", "libx264", "yuv444p"), ("avi", "mpeg4", "yuv420p"), ("webm", "libvpx-vp9", "yuv420p")],
)
def test_odd_sizes(tmp_path, size, suffix, codec, pixels):
    path = write_raw(tmp_path / f"a.{suffix}", pictures(30, *size), 30, codec, pixels, {"deadline": "realtime"})
    shown, info = clip_numbers(path, tmp_path, *size)
    assert (info.height, info.width) == size and shown == at_constant_rate(30, 30)


@pytest.mark.parametrize("edit", ["late", "rotated"])
def test_a_late_start_and_rotation_move_no_frame(tmp_path, edit):
    if edit == "late":  # the first frame is due at 2.5 s
        times = [2.5 + round(i / 25, 3) for i in range(50)]
        path = write_raw(tmp_path / "a.mkv", pictures(50), 25, times=times, options={"bf": "2"})
    else:
        turned = [np.ascontiguousarray(np.rot90(picture, -1)) for picture in pictures(50)]
        path = write_raw(tmp_path / "a.mp4", turned, 25, rotation=90, options={"bf": "2"})
    shown, info = clip_numbers(path, tmp_path)
    assert shown == at_constant_rate(50, 25) and not info.variable
