"""Faults that FFmpeg passes over without a word, and pictures that it would show otherwise than they are meant."""

import struct

import av
import numpy as np
import pytest
from av.stream import Disposition
from numbered import noisy_frame, numbered_frame, read_number, write_raw
from odd_videos import good, poke

from vw2.media import hdr
from vw2.media.decode import MediaError, probe, read_frames, read_pictures, scan
from vw2.media.h264 import Watch
from vw2.media.timing import frame_rate


def without(path, source, lost):
    """The file without some packets, numbered in decoding order."""
    with av.open(str(source)) as given, av.open(str(path), "w") as out:
        stream = out.add_stream_from_template(given.streams.video[0])
        for number, packet in enumerate(each for each in given.demux(video=0) if each.size):
            if number not in lost:
                packet.stream = stream
                out.mux(packet)
    return path


def numbers(path):
    return [read_number(frame) for _, frame in read_frames(path)]


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])
    return path


# ---------------------------------------------------------------- rates


def test_a_clock_that_is_set_back_begins_anew():
    times = [1.4 + i / 30 for i in range(60)] * 2
    assert frame_rate(times, [1000.0, 30.0]) == (30.0, False)
    assert frame_rate(times, []) == (pytest.approx(30), False)
    assert frame_rate([5.0, 1.0, 0.2], [25.0]) == (25.0, False)


@pytest.mark.parametrize(
    "name, codec, options", [("a.h264", "libx264", {}), ("a.hevc", "libx265", {"preset": "ultrafast"})]
)
def test_a_bare_stream_has_the_rate_that_it_tells_itself(tmp_path, name, codec, options):
    if codec == "libx265":
        options = {**options, "x265-params": "log-level=none:pools=none:frame-threads=1"}
    try:
        good(tmp_path / name, codec=codec, options=options)
    except av.FFmpegError:
        pytest.skip(f"this build of FFmpeg has no {codec}")
    assert scan(tmp_path / name).fps == probe(tmp_path / name).fps == 30


# ---------------------------------------------------------------- missing pictures


@pytest.mark.parametrize("suffix", ["mkv", "mp4", "ts"])
def test_lost_h264_pictures_are_told(tmp_path, suffix):
    source = tmp_path / f"a.{suffix}"
    good(source, options={"bf": "0", "g": "40"})
    assert scan(source).frames == 40
    with pytest.raises(MediaError, match=r"breaks after \d+ frames \(frames before the next are missing\)"):
        scan(without(tmp_path / f"b.{suffix}", source, {25, 26, 27}))
    assert numbers(without(tmp_path / f"c.{suffix}", source, {38, 39})) == list(range(38))


def test_other_reference_structures_are_no_losses(tmp_path):
    for number, params in enumerate(("b-pyramid=strict:bframes=5", "bframes=3:open-gop=1:keyint=10", "tff=1:ref=4")):
        path = tmp_path / f"{number}.mkv"
        good(path, options={"x264-params": params})
        assert numbers(path) == list(range(40))


@pytest.mark.parametrize("suffix", ["mkv", "ts"])
def test_a_recording_that_begins_in_an_open_gop_loses_only_what_cannot_be_shown(tmp_path, suffix):
    options = {"x264-params": "open-gop=1:bframes=3:b-adapt=0:keyint=12:min-keyint=12:scenecut=0"}
    source = write_raw(tmp_path / f"a.{suffix}", map(noisy_frame, range(40)), options=options)
    assert numbers(source) == list(range(40))
    with av.open(str(source)) as container:
        packets = [each for each in container.demux(video=0) if each.size]
    start = [number for number, each in enumerate(packets) if each.is_keyframe][1]
    first = sorted(each.pts for each in packets).index(packets[start].pts)
    assert packets[start + 1].pts < packets[start].pts  # it is open
    assert numbers(without(tmp_path / f"b.{suffix}", source, set(range(start)))) == list(range(first, 40))


def test_a_stream_without_times_has_no_leading_pictures(tmp_path):
    good(tmp_path / "a.h264", options={"bf": "0"})
    assert numbers(tmp_path / "a.h264") == list(range(40))
    with av.open(str(tmp_path / "a.h264")) as container:
        packets = [each for each in container.demux(video=0) if each.size]
    watch = Watch(None)
    for number, packet in enumerate(packets):
        packet.pts = number if number else None  # the first time alone is missing
        assert not watch.leaps(packet) and not watch.leads(packet)


def joined_flv(path, *parts):
    """FLV files of 40 pictures at 30 fps one after another, as an encoder writes that was started anew."""
    data = bytearray(parts[0][:13])
    for number, part in enumerate(parts):
        at = 13
        while at < len(part):
            tag = bytearray(part[at : at + 15 + int.from_bytes(part[at + 1 : at + 4], "big")])
            at += len(tag)
            tag[4:7] = (int.from_bytes(tag[4:7], "big") + 1333 * number).to_bytes(3, "big")
            data += tag
    path.write_bytes(data)


def test_a_header_that_comes_anew_is_followed(tmp_path):
    parts = []
    for number, options in enumerate(({"refs": "16", "bf": "3"}, {"refs": "1", "bf": "0"})):
        frames = map(noisy_frame, range(40 * number, 40 * number + 40))
        flags = {"flvflags": "no_duration_filesize+no_sequence_end"}
        part = write_raw(tmp_path / "part.flv", frames, options=options, container_options=flags)
        parts.append(part.read_bytes())
    joined_flv(tmp_path / "a.flv", *parts)
    assert numbers(tmp_path / "a.flv") == list(range(80))
    with pytest.raises(MediaError, match="frames before the next are missing"):
        scan(without(tmp_path / "b.flv", tmp_path / "a.flv", {10, 11, 12, 13}))


def test_mpeg4_without_its_first_key_picture_is_refused(tmp_path):
    good(tmp_path / "a.avi", codec="mpeg4", options={"g": "50"})
    with pytest.raises(MediaError, match="begins in the middle: its first picture is no key picture"):
        scan(without(tmp_path / "b.avi", tmp_path / "a.avi", {0}))


def test_a_dropped_picture_of_size_0_is_passed_over(tmp_path):
    path = tmp_path / "a.mp4"
    good(path, codec="mpeg4", options={"g": "1"})
    for number in (20, 39):
        with av.open(str(path)) as container:
            packet = [each for each in container.demux(video=0) if each.size][number - (number > 20)]
            place, size = packet.pos, packet.size
        data = path.read_bytes()  # its moov lies behind the pictures
        path.write_bytes(data[:place] + data[place + size :])
        poke(path, b"mdat", -8, struct.pack(">I", data.index(b"moov") - data.index(b"mdat") - size))
        poke(path, b"stsz", 12 + 4 * number, bytes(4))
    assert numbers(path) == [*range(20), *range(21, 39)] and scan(path).variable


# ---------------------------------------------------------------- files cut short


@pytest.mark.parametrize("share", [0.33, 0.51, 0.77])
def test_a_gif_that_was_cut_is_refused(tmp_path, share):
    path = write_raw(tmp_path / "a.gif", map(noisy_frame, range(20)), codec="gif", pixels="rgb8", rate=20)
    assert scan(path).frames == 20
    with pytest.raises(MediaError, match="breaks after"):
        scan(cut(path, int(share * path.stat().st_size)))


@pytest.mark.parametrize("flags", ["frag_keyframe+empty_moov", "frag_keyframe"])
def test_a_fragmented_file_that_was_cut_is_refused(tmp_path, flags):
    path = tmp_path / "a.mp4"
    data = good(path, options={"g": "10", "bf": "0"}, container_options={"movflags": flags})
    assert scan(path).frames == 40
    with av.open(str(path)) as container:
        border = [each.pos for each in container.demux(video=0) if each.size][25]
    for size in (data.rindex(b"moof") + 20, border):
        path.write_bytes(data[:size])
        with pytest.raises(MediaError, match="is cut short|breaks after"):
            scan(path)


def test_an_asf_file_with_sound_that_was_cut_is_refused(tmp_path):
    path = tmp_path / "a.asf"
    good(path, codec="wmv2", options={"g": "12"})
    data = path.read_bytes()
    assert scan(path).frames == 40
    path.write_bytes(data[:-100])
    with pytest.raises(MediaError, match="is cut short|breaks after"):
        scan(path)
    at = data.index(bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365"))
    told = int.from_bytes(data[at + 40 : at + 48], "little")
    assert told == len(data)


# ---------------------------------------------------------------- edit lists


@pytest.mark.parametrize("entries", [[(500, 0, 0), (500, 0, 1)], [(500, 0, 1), (500, -1, 1), (500, 512, 1)]])
@pytest.mark.parametrize("version", [0, 1])
def test_edit_lists_that_ffmpeg_does_not_follow_are_refused(tmp_path, entries, version):
    path = tmp_path / "a.mp4"
    data = good(path, options={"bf": "0"})  # its moov lies behind the pictures
    layout = ">Qqhh" if version else ">Iihh"
    body = bytes([version, 0, 0, 0]) + struct.pack(">I", len(entries))
    body += b"".join(struct.pack(layout, *entry, 0) for entry in entries)
    at = data.index(b"elst") - 4
    old = int.from_bytes(data[at : at + 4], "big")
    data = bytearray(data[:at] + struct.pack(">I", len(body) + 8) + b"elst" + body + data[at + old :])
    for kind in (b"moov", b"trak", b"edts"):
        place = data.index(kind) - 4
        data[place : place + 4] = struct.pack(
            ">I", int.from_bytes(data[place : place + 4], "big") + len(body) + 8 - old
        )
    path.write_bytes(data)
    with pytest.raises(MediaError, match="has an edit list that cannot be played"):
        scan(path)


# ---------------------------------------------------------------- pictures


def test_a_track_of_thumbnails_is_not_the_video(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        kinds = [("mjpeg", "yuvj420p", 500, 4), ("libx264", "yuv420p", 0, 40)]
        streams = [container.add_stream(codec, rate=30) for codec, *_ in kinds]
        for stream, (_, pixels, _, _) in zip(streams, kinds, strict=True):
            stream.height, stream.width, stream.pix_fmt = 48, 96, pixels
            stream.disposition = Disposition.default
        for stream, (_, _, first, frames) in zip(streams, kinds, strict=True):
            for number in range(first, first + frames):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(numbered_frame(number), format="rgb24")))
            container.mux(stream.encode(None))
    assert numbers(path) == list(range(40))


@pytest.mark.parametrize("codec", ["libvpx", "libvpx-vp9"])
def test_transparent_webm_lies_on_white(tmp_path, codec):
    path = tmp_path / "a.webm"
    rgba = np.full((48, 96, 4), (200, 40, 40, 255), np.uint8)
    rgba[:, 48:, 3] = 0
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=30, options={"deadline": "realtime", "auto-alt-ref": "0"})
        stream.height, stream.width, stream.pix_fmt = 48, 96, "yuva420p"
        stream.metadata["alpha_mode"] = "1"
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rgba, format="rgba").reformat(format="yuva420p")))
        container.mux(stream.encode(None))
    shown = list(read_frames(path))
    assert [round(30 * seconds) for seconds, _ in shown] == [0, 1, 2] and scan(path).codec in ("vp8", "vp9")
    for _, frame in shown:
        assert np.abs(frame[8:40, 8:40].astype(int) - (200, 40, 40)).max() < 12 and frame[8:40, 56:88].min() > 250


def coded(light, transfer):
    """Light (1: reference white) of BT.709 primaries as code values of PQ or HLG, in closed form (ITU-R BT.2100)."""
    light = np.linalg.inv(hdr.TO_709.astype(np.float64)) @ np.asarray(light, np.float64)
    if transfer == hdr.PQ:
        power = (203 / 10000 * light) ** (2610 / 16384)
        return 255 * ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375
    light = light * (np.exp((0.75 - 0.55991073) / 0.17883277) + 0.28466892) / 12
    bright = 0.17883277 * np.log(np.maximum(12 * light - 0.28466892, 1e-9)) + 0.55991073
    return 255 * np.where(light <= 1 / 12, np.sqrt(3 * light), bright)


@pytest.mark.parametrize("transfer", [hdr.PQ, hdr.HLG])
def test_hdr_becomes_ordinary(transfer):
    greys = np.arange(256, dtype=np.uint8)[None, :, None].repeat(3, -1)
    shown = hdr.ordinary(greys, transfer).astype(int)
    assert not np.ptp(shown, axis=-1).any() and (np.diff(shown[0, :, 0]) >= 0).all() and shown[0, 0, 0] == 0
    white = round(float(coded([1, 1, 1], transfer)[0]))
    assert shown[0, white - 1, 0] >= 250 and (shown[0, white + 1 :] == 255).all()
    for colour in ([200, 40, 40], [30, 90, 220], [128, 128, 128]):
        signal = np.array(colour) / 255
        light = signal**2.4 if transfer == hdr.PQ else ((signal + 0.099) / 1.099) ** (1 / 0.45)
        pixel = np.rint(coded(light, transfer)).astype(np.uint8)[None, None]
        assert np.abs(hdr.ordinary(pixel, transfer)[0, 0].astype(int) - colour).max() <= 6


@pytest.mark.parametrize("transfer", [hdr.PQ, hdr.HLG])
def test_hdr_by_its_formula(transfer):
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 4), np.uint8)[..., :3]  # as of transparent pictures
    light, codes = hdr._tables(transfer)
    shown = np.sqrt(np.clip(light[pixels] @ hdr.TO_709.T, 0, 1)) * (hdr.STEPS - 1)
    apart = np.abs(codes[np.rint(shown).astype(int)].astype(int) - hdr.ordinary(pixels, transfer))
    assert apart.max() <= 1 and np.count_nonzero(apart) <= 1


def test_an_hdr_file_is_shown_as_ordinary_video(tmp_path):
    path, colour = tmp_path / "a.mp4", np.array([200, 40, 40])
    rgb = np.rint(coded((colour / 255) ** 2.4, hdr.PQ) * 257).astype(np.uint16)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"crf": "0"})
        stream.height, stream.width, stream.pix_fmt = 48, 96, "yuv444p10le"
        context = stream.codec_context
        context.color_primaries, context.color_trc, context.colorspace, context.color_range = 9, hdr.PQ, 9, 1
        for _ in range(2):
            frame = av.VideoFrame.from_ndarray(np.broadcast_to(rgb, (48, 96, 3)).copy(), format="rgb48le")
            frame = frame.reformat(format="yuv444p10le", dst_colorspace=9, dst_color_range="MPEG")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    _, picture = next(read_pictures(path))
    for shown in (picture.rgb(), picture.shrunk(12, 24)):
        assert np.abs(shown.astype(int) - colour).max() <= 8
