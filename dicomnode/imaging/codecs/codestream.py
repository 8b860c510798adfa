"""What a compressed frame says of itself before anything is decoded: a decoder allocates by it, not by the tags.

The frame is also brought into the form that decoders expect: what stands behind its end marker, or between its image
data and its end marker, is left out.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from pydicom.uid import UID, JPEG2000TransferSyntaxes, JPEGLSTransferSyntaxes, JPEGTransferSyntaxes

from dicomnode.domain.errors import UndecodablePixels

RGB, YBR = "RGB", "YBR"
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}
_DCT_PROCESSES = frozenset({0xC0, 0xC1, 0xC2})
_STANDALONE = frozenset(range(0xD0, 0xD9)) | {0x01}
_START_OF_SCAN = 0xDA
_APPLICATION_0, _APPLICATION_14 = 0xE0, 0xEE
_RGB_IDENTIFIERS = frozenset({b"RGB", b"rgb"})
_J2K_START = b"\xff\x4f\xff\x51"
_J2K_BOXES = 4096
_TILE_PART, _CODING_STYLE, _J2K_COMMENT = b"\xff\x90", b"\xff\x52", b"\xff\x64"
_LEAST_TILE_PART = 14
_END = b"\xff\xd9"
_ZEROS = re.compile(rb"\0+")
# No frame in the wild comes near; a hostile one of empty segments would otherwise cost seconds.
_MOST_SEGMENTS, _MOST_TILE_PARTS = 10_000, 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameHeader:
    """The size of a compressed frame, and how its samples are to be understood.

    `precision`: bits per sample. `signed`: whether the samples are signed, None where the encoding leaves that to the
    tags. `colours`: "RGB" or "YBR" for what a decoder gives of three components, None where the frame does not say.
    """

    rows: int
    columns: int
    samples: int
    precision: int
    signed: bool | None = None
    colours: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Codestream:
    """A frame with nothing behind its end marker, and its header; the header is None where the encoding has none."""

    frame: bytes
    header: FrameHeader | None


def read_codestream(frame: bytes, transfer_syntax: UID) -> Codestream:
    """Return the frame from its first marker to its end marker, and what its header says.

    Raises: UndecodablePixels when header or end marker is missing: decoders fill in what a frame cut short lacks, and
    half a lung must not be read.
    """
    if transfer_syntax in JPEG2000TransferSyntaxes:
        return _read_jpeg_2000(frame)
    if transfer_syntax in JPEGTransferSyntaxes or transfer_syntax in JPEGLSTransferSyntaxes:
        return _read_jpeg(frame)
    return Codestream(frame=frame, header=None)


def _read_jpeg(frame: bytes) -> Codestream:
    """Cut a JPEG or JPEG-LS frame behind its last end marker; image data cannot hold one.

    Source: ISO 10918-1 B.1.1.5; ISO 14495-1 C.1.
    """
    header, position = _jpeg_header(frame)
    end = frame.rfind(_END, position)
    if end < 0:
        raise UndecodablePixels("the compressed frame has no end marker")
    return Codestream(frame=frame[: end + 2], header=header)


def _jpeg_header(frame: bytes) -> tuple[FrameHeader, int]:
    """Return the header and where the segment behind it begins. Source: ISO 10918-1 B.2.2; ISO 14495-1 C.2.2."""
    colours = None
    for marker, body, end in _segments(frame):
        colours = _declared_colours(marker, body) or colours
        if marker in _START_OF_FRAME and len(body) >= 6:
            identifiers = body[6::3][:3]
            header = FrameHeader(
                rows=int.from_bytes(body[1:3]),
                columns=int.from_bytes(body[3:5]),
                samples=body[5],
                precision=body[0],
                # The discrete cosine transform works on samples without a sign; lossless processes keep bit patterns.
                signed=False if marker in _DCT_PROCESSES else None,
                colours=RGB if identifiers in _RGB_IDENTIFIERS else colours or _adobe_behind(frame, end),
            )
            return header, end
    raise UndecodablePixels("the compressed frame has no JPEG header")


def _segments(frame: bytes, position: int = 2) -> Iterator[tuple[int, bytes, int]]:
    """Yield (marker, body without its length, end) of the segments up to the image data."""
    position = position if frame[:2] == b"\xff\xd8" else len(frame)
    for _ in range(_MOST_SEGMENTS):
        if position + 4 > len(frame) or frame[position] != 0xFF:
            return
        marker = frame[position + 1]
        if marker == 0xFF or marker in _STANDALONE:
            position += 1 if marker == 0xFF else 2
            continue
        end = position + 2 + int.from_bytes(frame[position + 2 : position + 4])
        yield marker, frame[position + 4 : end], end
        if marker == _START_OF_SCAN:
            return
        position = end


def _declared_colours(marker: int, body: bytes) -> str | None:
    """Return what an application's segment says of the colours. Source: JFIF 1.02; Adobe Technical Note 5116."""
    if marker == _APPLICATION_14 and body[:5] == b"Adobe" and len(body) >= 12:
        return {0: RGB, 1: YBR}.get(body[11])
    return YBR if marker == _APPLICATION_0 and body[:5] == b"JFIF\0" else None


def _adobe_behind(frame: bytes, position: int) -> str | None:
    """Return what segments between the header and the image data say of the colours."""
    found = (_declared_colours(marker, body) for marker, body, _ in _segments(frame, position))
    return next((colours for colours in found if colours is not None), None)


def _codestream_start(frame: bytes) -> int:
    """Return where the codestream begins, also behind the boxes of a JP2 file. Source: ISO 15444-1 A.3, Annex I."""
    start = frame.find(_J2K_START, 0, _J2K_BOXES)
    if start < 0:
        raise UndecodablePixels("the compressed frame has no JPEG 2000 header")
    return start


def _read_jpeg_2000(frame: bytes) -> Codestream:
    """Cut a JPEG 2000 frame to its codestream, without what stands between the last tile-part and the end marker.

    Canon writes a comment segment there, which decoders take for a damaged tile-part. Where the stated lengths of the
    tile-parts do not lead to the end marker, the last one counts.
    Source: ISO 15444-1 A.4.2 and A.4.4.
    """
    stream = frame[_codestream_start(frame) :]
    header = _jpeg_2000_header(stream)
    first, image_ends = _tile_parts(stream)
    if image_ends > first and _leads_to_end(stream, image_ends):
        whole = stream.startswith(_END, image_ends)
        return Codestream(frame=stream[: image_ends + 2] if whole else stream[:image_ends] + _END, header=header)
    end = stream.rfind(_END, first)
    if end < 0:
        raise UndecodablePixels("the compressed frame has no end marker")
    return Codestream(frame=stream[: end + 2], header=header)


def _leads_to_end(stream: bytes, position: int) -> bool:
    """Tell whether nothing but comments and zeros stand between a position and the end marker."""
    for _ in range(_MOST_SEGMENTS):
        zeros = _ZEROS.match(stream, position)
        position = zeros.end() if zeros else position
        marker = stream[position : position + 2]
        if marker == _END:
            return True
        if marker != _J2K_COMMENT:
            return False
        position += 2 + max(2, int.from_bytes(stream[position + 2 : position + 4]))
    return False


def _tile_parts(stream: bytes) -> tuple[int, int]:
    """Return where the first tile-part begins, and where the last one ends by the lengths that they state.

    Both are the same where a length is missing (0: up to the end marker) or leads out of the frame.
    """
    first = position = _main_header(stream)[0]
    for _ in range(_MOST_TILE_PARTS):
        if stream[position : position + 2] != _TILE_PART:
            return first, position
        length = int.from_bytes(stream[position + 6 : position + 10])
        if length < _LEAST_TILE_PART or position + length > len(stream):
            break
        position += length
    return first, first


def _main_header(stream: bytes) -> tuple[int, bool]:
    """Return where the main header ends, and whether the components were transformed before they were encoded."""
    position, transformed = 2, False
    for _ in range(_MOST_SEGMENTS):
        marker = stream[position : position + 2]
        if marker[:1] != b"\xff" or marker == _TILE_PART:
            break
        if marker == _CODING_STYLE:
            transformed = stream[position + 8 : position + 9] == b"\x01"
        position += 2 + max(2, int.from_bytes(stream[position + 2 : position + 4]))
    return position, transformed


def _jpeg_2000_header(stream: bytes) -> FrameHeader:
    """Read the SIZ and COD segments of a codestream. Source: ISO 15444-1 A.5.1 and A.6.1."""
    body = stream[6:46]
    if len(body) < 38:
        raise UndecodablePixels("the compressed frame has no JPEG 2000 header")
    right, bottom, left, top = (int.from_bytes(body[at : at + 4]) for at in (2, 6, 10, 14))
    return FrameHeader(
        rows=bottom - top,
        columns=right - left,
        samples=int.from_bytes(body[34:36]),
        precision=(body[36] & 0x7F) + 1,
        signed=bool(body[36] & 0x80),
        # A decoder undoes the transformation of the components, whatever the tags call the colours.
        colours=RGB if _main_header(stream)[1] else None,
    )
