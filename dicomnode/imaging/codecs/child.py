"""The codecs, in a process of their own: `python -I codec_child.py [descriptor]`.

Damaged frames make C codecs abort, hang and allocate without bound; here that ends this process and not the node's.
It serves one frame after the other until its standard input ends. A request is one line of JSON (`Request`), an answer
another (`Answer`). The frame lies in the memory that the descriptor names, and the samples, little endian, take its
place; without such memory each follows its line. The first line of all says it is ready.
"""

import contextlib
import ctypes
import json
import mmap
import os
import resource
import signal
import struct
import sys
import warnings
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, TypedDict

import gdcm
import numpy as np
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID, JPEGTransferSyntaxes

_GDCM, _PILLOW = "gdcm", "pillow"
_OPEN_FILES = 32
"""Some ten are open: pipes, the shared memory and what holds it mapped, a library being loaded."""
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
    """What a codec must know besides the frame.

    `precision` and `signed` are the frame's own; without a header (RLE) bits allocated and False, and where a header
    does not state the sign, False. `rgb`: whether the frame itself says that its colours are RGB.
    """

    transfer_syntax: str
    decoders: list[str]
    rows: int
    columns: int
    samples: int
    precision: int
    signed: bool
    rgb: bool


class Request(Encoded):
    """One frame to decode, and what that may cost; `shared_bytes`: how large the shared memory is, 0 without one."""

    frame_bytes: int
    shared_bytes: int
    limit_bytes: int
    limit_s: float


class Answer(TypedDict):
    """What the samples are, or per decoder that was tried the class of its error, and then there are none."""

    dtype: str
    shape: list[int]
    errors: list[str]


class _Channel:
    """How frames come and samples go."""

    def __init__(self, source: BinaryIO, target: BinaryIO, descriptor: int | None) -> None:
        self._source, self._target, self._descriptor = source, target, descriptor
        self._shared: mmap.mmap | None = None

    def request(self) -> Request | None:
        """Return the next request, or None after the last."""
        line = self._source.readline()
        return json.loads(line) if line else None

    def frame(self, request: Request) -> bytes:
        if self._descriptor is None:
            return self._source.read(request["frame_bytes"])
        if self._shared is None or len(self._shared) != request["shared_bytes"]:
            # The former mapping goes first: both together are more than the limit of memory allows for.
            self._shared = None
            self._shared = mmap.mmap(self._descriptor, request["shared_bytes"])
        return self._shared[: request["frame_bytes"]]

    def answer(self, samples: np.ndarray[Any, Any]) -> None:
        dtype = samples.dtype.newbyteorder("<")
        answer: Answer = {"dtype": dtype.str, "shape": list(samples.shape), "errors": []}
        if self._shared is None:
            self.write(json.dumps(answer).encode() + b"\n")
            self.write(np.ascontiguousarray(samples, dtype=dtype).data)
            return
        np.copyto(np.ndarray(samples.shape, dtype, self._shared), samples)
        self.write(json.dumps(answer).encode() + b"\n")

    def refuse(self, errors: list[str]) -> None:
        answer: Answer = {"dtype": "", "shape": [], "errors": errors}
        self.write(json.dumps(answer).encode() + b"\n")

    def write(self, what: "bytes | memoryview[Any]") -> None:
        self._target.write(what)
        self._target.flush()


def main() -> int:
    """Serve standard input until it ends."""
    descriptor = int(sys.argv[1]) if len(sys.argv) > 1 else None
    channel = _Channel(sys.stdin.buffer, os.fdopen(os.dup(1), "wb"), descriptor)
    # A codec that prints must not speak to the node.
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    # A stop is for the node, which finishes the image at hand and then ends this process by closing its input.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    for limit, most in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_NOFILE, _OPEN_FILES)):
        resource.setrlimit(limit, (most, most))
    base_bytes = _address_space()
    channel.write(b"ready\n")
    while (request := channel.request()) is not None:
        # If the node died meanwhile, nobody else would end a codec that hangs.
        signal.setitimer(signal.ITIMER_REAL, request["limit_s"])
        _limit_memory(base_bytes + request["shared_bytes"] + request["limit_bytes"])
        _serve(channel, request, channel.frame(request))
        signal.setitimer(signal.ITIMER_REAL, 0)
    return 0


def _serve(channel: _Channel, request: Request, frame: bytes) -> None:
    errors: list[str] = []
    for name in request["decoders"]:
        try:
            samples = _decode(name, request, frame)
        except _RAISED as error:  # without its message, which may quote the data set
            errors.append(f"{name}: {type(error).__name__}")
            continue
        channel.answer(samples)
        return
    channel.refuse(errors)


def _decode(name: str, request: Request, frame: bytes) -> np.ndarray[Any, Any]:
    """Return the samples as they are encoded: colours are not converted, and no sign is made up."""
    if name == _PILLOW:
        return _decode_by_pillow(request, frame)
    if name == _GDCM and request["transfer_syntax"] in JPEGTransferSyntaxes:
        return _decode_by_gdcm(request, frame)
    decoder = get_decoder(UID(request["transfer_syntax"]))
    options: Any = {
        "pixel_keyword": "PixelData",
        "number_of_frames": 1,
        "rows": request["rows"],
        "columns": request["columns"],
        "samples_per_pixel": request["samples"],
        "bits_allocated": _container(request),
        "bits_stored": request["precision"],
        "pixel_representation": int(request["signed"]),
        # A compressed frame says itself how its colours lie; what the tag says is often left over from before.
        "planar_configuration": 0,
        "photometric_interpretation": "MONOCHROME2" if request["samples"] == 1 else "RGB",
    }
    samples, _ = decoder.as_array(encapsulate([frame]), index=0, decoding_plugin=name, raw=True, **options)
    return samples


def _container(request: Request) -> int:
    return 8 if request["precision"] <= 8 else 16


def _decode_by_pillow(request: Request, frame: bytes) -> np.ndarray[Any, Any]:
    """Return the samples of a JPEG frame of eight bits.

    Colours stay as they are encoded, unless the frame itself says that they are RGB.
    """
    if request["precision"] != 8:
        raise ValueError
    image = Image.open(BytesIO(frame), formats=("JPEG",))
    if request["samples"] == 3 and not request["rgb"]:
        image.draft("YCbCr", image.size)
    return np.asarray(image)


def _decode_by_gdcm(request: Request, frame: bytes) -> np.ndarray[Any, Any]:
    """Return the samples of a JPEG frame by the frame's own precision, which pydicom's plugin ignores."""
    fragment, fragments = gdcm.Fragment(), gdcm.SequenceOfFragments.New()
    fragment.SetByteStringValue(frame)
    fragments.AddFragment(fragment)
    compressed, decoded = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010)), gdcm.DataElement()
    compressed.SetValue(fragments.__ref__())
    container, precision = _container(request), request["precision"]
    codec = gdcm.JPEGCodec()
    codec.SetNumberOfDimensions(2)
    codec.SetDimensions((request["columns"], request["rows"], 1))
    colours = gdcm.PhotometricInterpretation.RGB
    interpretation = gdcm.PhotometricInterpretation.MONOCHROME2 if request["samples"] == 1 else colours
    codec.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(interpretation))
    # The last, since it sets up the codec of that precision with all the rest.
    codec.SetPixelFormat(gdcm.PixelFormat(request["samples"], container, precision, precision - 1))
    if not codec.Decode(compressed, decoded):
        raise ValueError
    samples = _samples_of(decoded, f"<u{container // 8}", request)
    shape = (request["rows"], request["columns"])
    return samples.reshape(shape if request["samples"] == 1 else (*shape, request["samples"]))


def _samples_of(decoded: gdcm.DataElement, dtype: str, request: Request) -> np.ndarray[Any, Any]:
    """Copy what GDCM decoded from where it lies: as the text that it hands out it would cost as much as decoding."""
    value = decoded.GetByteValue()
    expected = np.dtype(dtype).itemsize * request["rows"] * request["columns"] * request["samples"]
    if value is None or str(value.GetLength()) != str(expected):
        raise ValueError
    held = (ctypes.c_char * expected).from_address(int(value.GetVoidPointer()))
    return np.frombuffer(memoryview(held), dtype=np.dtype(dtype)).copy()


def _address_space() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


def _limit_memory(most_bytes: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (most_bytes, hard))


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main())
