"""Decode one JPEG frame by GDCM in a process of its own: `python -I gdcm_child.py`.

GDCM is the only kept library that reads JPEG Lossless and 12-bit JPEG, and damaged frames can make its C code abort;
here that ends this process and not the node's. Input, on standard input: one line of JSON (`Request`), then the
frame. Output: the decoded samples, little endian, colour by pixel. Every failure is a return code above 0.
"""

import json
import resource
import sys
from typing import TypedDict

import gdcm


class Request(TypedDict):
    """What the child must know besides the frame; `limit_bytes` bounds its address space, `limit_s` its processor."""

    rows: int
    columns: int
    samples: int
    precision: int
    signed: bool
    photometric: str
    transfer_syntax: str
    limit_bytes: int
    limit_s: int


def main() -> int:
    """Decode standard input to standard output."""
    source = sys.stdin.buffer
    request: Request = json.loads(source.readline())
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (request["limit_bytes"], request["limit_bytes"]))
    resource.setrlimit(resource.RLIMIT_CPU, (request["limit_s"], request["limit_s"]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.stdout.buffer.write(_decode(source.read(), request))
    sys.stdout.buffer.flush()
    return 0


def _decode(frame: bytes, request: Request) -> bytes:
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
    precision, container = request["precision"], 8 if request["precision"] <= 8 else 16
    layout = (request["samples"], container, precision, precision - 1, int(request["signed"]))
    image.SetPixelFormat(gdcm.PixelFormat(*layout))
    # GDCM hands its char* over as text.
    decoded: bytes = image.GetBuffer().encode("utf-8", "surrogateescape")
    return decoded


if __name__ == "__main__":
    sys.exit(main())
