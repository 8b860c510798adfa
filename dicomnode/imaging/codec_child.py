"""The codecs, in a process of their own: `python -I codec_child.py`.

Damaged frames make C codecs abort, hang and allocate without bound; here that ends this process and not the node's.
It serves one frame after the other until its standard input ends. A request is one line of JSON (`Request`), then the
frame; an answer one line of JSON (`Answer`), then the samples, little endian. The first line of all says it is ready.
"""

import contextlib
import json
import os
import resource
import signal
import struct
import sys
import warnings
from pathlib import Path
from typing import Any, BinaryIO, TypedDict

import gdcm
import jpeg_ls  # noqa: F401 what pydicom imports late is imported before the limits hold
import numpy as np
import openjpeg  # noqa: F401
import PIL.JpegImagePlugin  # noqa: F401
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import convert_color_space
from pydicom.uid import UID

_GDCM = "gdcm"
_OPEN_FILES = 32
_RAISED = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    BufferError,
    EOFError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    SystemError,
    TypeError,
    ValueError,
    struct.error,
)
"""What codecs raise on damaged frames; anything else, lack of memory too, ends this process."""


class Encoded(TypedDict):
    """What a codec must know besides the frame; `precision` is the frame's own, None where its header states none."""

    transfer_syntax: str
    decoders: list[str]
    rows: int
    columns: int
    samples: int
    bits_allocated: int
    bits_stored: int
    signed: bool
    planar_configuration: int
    photometric: str
    precision: int | None


class Request(Encoded):
    """One frame to decode, and what that may cost."""

    frame_bytes: int
    limit_bytes: int
    limit_s: float


class Answer(TypedDict):
    """The samples that follow, or per decoder that was tried the class of its error, and then no samples follow."""

    dtype: str
    shape: list[int]
    errors: list[str]


def main() -> int:
    """Serve standard input until it ends."""
    source, target = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    # A codec that prints must not speak to the node.
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    # A stop is for the node, which finishes the image at hand and then ends this process by closing its input.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    for limit, most in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_NOFILE, _OPEN_FILES)):
        resource.setrlimit(limit, (most, most))
    base_bytes = _address_space()
    target.write(b"ready\n")
    target.flush()
    while line := source.readline():
        request: Request = json.loads(line)
        frame = source.read(request["frame_bytes"])
        # If the node died meanwhile, nobody else would end a codec that hangs.
        signal.setitimer(signal.ITIMER_REAL, request["limit_s"])
        _limit_memory(base_bytes + request["limit_bytes"])
        _answer(target, request, frame)
        signal.setitimer(signal.ITIMER_REAL, 0)
    return 0


def _answer(target: BinaryIO, request: Request, frame: bytes) -> None:
    errors: list[str] = []
    for name in request["decoders"]:
        try:
            samples = _decode(name, request, frame)
        except _RAISED as error:  # without its message, which may quote the data set
            errors.append(f"{name}: {type(error).__name__}")
            continue
        samples = np.ascontiguousarray(samples, dtype=samples.dtype.newbyteorder("<"))
        answer: Answer = {"dtype": samples.dtype.str, "shape": list(samples.shape), "errors": []}
        _write(target, answer)
        target.write(samples.data)
        target.flush()
        return
    _write(target, {"dtype": "", "shape": [], "errors": errors})


def _write(target: BinaryIO, answer: Answer) -> None:
    target.write(json.dumps(answer).encode() + b"\n")
    target.flush()


def _decode(name: str, request: Request, frame: bytes) -> np.ndarray[Any, Any]:
    if name == _GDCM and request["precision"] is not None:
        return _decode_by_gdcm(request, frame, request["precision"])
    decoder = get_decoder(UID(request["transfer_syntax"]))
    options: Any = {
        "pixel_keyword": "PixelData",
        "number_of_frames": 1,
        "rows": request["rows"],
        "columns": request["columns"],
        "samples_per_pixel": request["samples"],
        "bits_allocated": request["bits_allocated"],
        "bits_stored": request["bits_stored"],
        "pixel_representation": int(request["signed"]),
        "planar_configuration": request["planar_configuration"],
        "photometric_interpretation": request["photometric"],
    }
    samples, _ = decoder.as_array(encapsulate([frame]), index=0, decoding_plugin=name, **options)
    return samples


def _decode_by_gdcm(request: Request, frame: bytes, precision: int) -> np.ndarray[Any, Any]:
    """Return the samples in RGB if they are colours, by the frame's own precision, which pydicom's plugin ignores."""
    fragment, fragments = gdcm.Fragment(), gdcm.SequenceOfFragments.New()
    fragment.SetByteStringValue(frame)
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((request["columns"], request["rows"], 1))
    image.SetDataElement(element)
    interpretation = gdcm.PhotometricInterpretation.GetPIType(request["photometric"])
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(interpretation))
    if request["samples"] > 1:
        image.SetPlanarConfiguration(0)
    syntax = gdcm.TransferSyntax.GetTSType(request["transfer_syntax"])
    image.SetTransferSyntax(gdcm.TransferSyntax(syntax))
    container, signed = 8 if precision <= 8 else 16, request["signed"]
    image.SetPixelFormat(gdcm.PixelFormat(request["samples"], container, precision, precision - 1, int(signed)))
    # GDCM hands its char* over as text.
    decoded = image.GetBuffer().encode("utf-8", "surrogateescape")
    samples = np.frombuffer(decoded, dtype=f"<{'i' if signed else 'u'}{container // 8}")
    if request["samples"] == 1:
        return samples.reshape(request["rows"], request["columns"])
    colours = samples.reshape(request["rows"], request["columns"], request["samples"])
    return colours if request["photometric"] == "RGB" else convert_color_space(colours, "YBR_FULL", "RGB")


def _address_space() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


def _limit_memory(most_bytes: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (most_bytes, hard))


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main())
