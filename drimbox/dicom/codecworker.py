"""The codec worker: one process that turns one instance at a time, and may die of it.

    python -m drimbox.dicom.codecworker '{"timeout": 60, ...}'

Standard input and output are one end of a socket pair; frames are those of `codecwire`. It says `ready`
once its codecs are loaded, then answers each request, until its input ends. What could go wrong with an
image from outside goes wrong here: it may allocate `memory` bytes beyond what it holds at rest and no
more, burn `timeout` seconds of processor an instance and no more, open and write no file, and start no
process. The gateway kills it when its patience is over.

The requests of the gateway are trusted; the instances in them are not.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import math
import os
import resource
import signal
import sys
from collections.abc import Sequence
from typing import Any

from drimbox.config import TranscodingSettings
from drimbox.dicom import codecwire
from drimbox.dicom.elements import Buffer, DatasetRefused
from drimbox.dicom.transcode import transcode

#: Buffers one writev may take (IOV_MAX is 1,024 on Linux).
_MAX_PIECES = 512


def main() -> int:
    """Serve until the input ends. Returns the exit code."""
    settings = TranscodingSettings(**json.loads(sys.argv[1]))
    incoming, outgoing = _take_over_streams()
    faulthandler.enable(2)
    for number in (signal.SIGINT, signal.SIGTERM):
        # A stop of the whole group must let the gateway finish its answers: it closes our input then.
        signal.signal(number, signal.SIG_IGN)
    _warm()
    _limit(settings)
    _send(outgoing, {"ready": True}, ())
    while True:
        request = _receive(incoming, settings)
        if request is None:
            return 0
        header, payload = request
        _limit_time(settings.timeout)
        answer, pieces = serve(header, payload, settings)
        _send(outgoing, answer, pieces)
        # The next request may be long in coming: hold nothing meanwhile.
        del request, header, payload, answer, pieces


def serve(
    header: dict[str, Any], payload: Buffer, settings: TranscodingSettings
) -> tuple[dict[str, Any], Sequence[Buffer]]:
    """Answer one request: the new data set in pieces, or why there is none (`refused`, `memory`, `bug`)."""
    try:
        pieces = transcode(payload, str(header["source"]), str(header["target"]), settings)
    except DatasetRefused as error:
        return {"result": "refused", "why": str(error)[:500]}, ()
    except MemoryError:
        return {"result": "memory", "why": "more memory than allowed"}, ()
    except Exception as error:
        # Our own mistake, or a codec's: this instance fails, the worker goes on. The message may quote
        # the instance: only its kind leaves.
        return {"result": "bug", "why": type(error).__name__}, ()
    return {"result": "done"}, pieces


def _take_over_streams() -> tuple[int, int]:
    """Keep the socket for ourselves; what a library prints must not end up in it."""
    incoming, outgoing = os.dup(0), os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)
    os.close(nowhere)
    return incoming, outgoing


def _warm() -> None:
    """Load what codecs load at their first call, before files and memory are limited."""
    import imagecodecs
    import jpeg_ls
    import numpy
    from openjpeg.utils import encode_buffer

    blank = numpy.zeros((64, 64), dtype=numpy.uint8)
    imagecodecs.jpeg8_decode(imagecodecs.jpeg8_encode(blank))
    imagecodecs.jpegls_encode(blank)
    jpeg_ls.decode_buffer(bytes(jpeg_ls.encode_buffer(blank.tobytes(), 64, 64, 1, 8)))
    encode_buffer(blank.tobytes(), 64, 64, 1, 8, False)


def _limit(settings: TranscodingSettings) -> None:
    """Lay down for good what this process may take."""
    with contextlib.suppress(OSError, ValueError):
        with open("/proc/self/statm", encoding="ascii") as source:
            at_rest = int(source.read().split()[0]) * resource.getpagesize()
        most = at_rest + settings.memory
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    for kind, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 16),
    ):
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(kind, (most, most))
    with contextlib.suppress(OSError):
        # The gateway's own work, and the PACS's if it is on this machine, goes first.
        os.nice(5)


def _limit_time(seconds: float) -> None:
    """Give the process that much processor time from now; the kernel kills it beyond."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    most = math.ceil(used.ru_utime + used.ru_stime + seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (most, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def _receive(source: int, settings: TranscodingSettings) -> tuple[dict[str, Any], bytearray] | None:
    """Read one frame; None when the gateway has gone."""
    head = _read(source, codecwire.HEAD_SIZE)
    if head is None:
        return None
    header, payload = codecwire.read_lengths(head, settings.max_instance_bytes)
    text = _read(source, header)
    data = _read(source, payload)
    if text is None or data is None:
        return None
    return codecwire.read_header(text), data


def _read(source: int, size: int) -> bytearray | None:
    data = bytearray(size)
    view = memoryview(data)
    while view:
        count = os.readv(source, [view])
        if not count:
            return None
        view = view[count:]
    return data


def _send(target: int, header: dict[str, Any], pieces: Sequence[Buffer]) -> None:
    """Write one frame without joining its pieces."""
    views = [memoryview(piece).cast("B") for piece in pieces]
    views.insert(0, memoryview(codecwire.frame_head(header, sum(len(view) for view in views))))
    first = 0
    while first < len(views):
        count = os.writev(target, views[first : first + _MAX_PIECES])
        while count or (first < len(views) and not len(views[first])):
            size = len(views[first])
            if count < size:
                views[first] = views[first][count:]
                break
            count -= size
            first += 1


if __name__ == "__main__":
    sys.exit(main())
