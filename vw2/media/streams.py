"""Which stream of a file is its video, and what decodes it."""

from __future__ import annotations

import av
from av.stream import Disposition

from vw2.media.picture import MediaError

STILLS = ("mjpeg", "png", "bmp")  # codecs of thumbnails
ALPHA = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # decoders that know transparency; FFmpeg's own leave it out


def pick_stream(container: av.container.InputContainer) -> av.VideoStream:
    """The video stream a player would show: the default one, else the first; never a cover picture, and of several
    default ones (or several where none is) not a track of thumbnails.
    """
    streams = [each for each in container.streams.video if not each.disposition & Disposition.attached_pic]
    if not streams:
        kinds = sorted({each.type for each in container.streams}) or ["nothing"]
        raise MediaError(f"has no video stream, only {', '.join(kinds).replace('video', 'a cover picture')}")

    def rank(stream: av.VideoStream) -> tuple[bool, bool, bool]:
        """Lowest for the one to be shown; of equals the first is taken."""
        picture = len(streams) > 1 and stream.codec_context is not None and stream.codec_context.name in STILLS
        return not stream.disposition & Disposition.default, bool(stream.disposition & Disposition.still_image), picture

    return min(streams, key=rank)


def decoder_of(stream: av.VideoStream) -> av.VideoCodecContext:
    """The stream's own decoder, or one that knows transparency where a WebM has it."""
    own, told = stream.codec_context, {key.lower(): value for key, value in stream.metadata.items()}
    if own.name not in ALPHA or told.get("alpha_mode") != "1":
        return own
    try:
        decoder = av.CodecContext.create(ALPHA[own.name], "r")
    except (av.FFmpegError, ValueError) as error:
        raise MediaError("is transparent, which this build of FFmpeg cannot decode (it lacks libvpx)") from error
    decoder.extradata, decoder.options = own.extradata, own.options
    decoder.thread_count = 1
    return decoder
