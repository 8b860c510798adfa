"""What a compressed frame says of itself before anything is decoded: a decoder allocates by it, not by the tags."""

from dataclasses import dataclass

from pydicom.uid import UID, JPEG2000TransferSyntaxes, JPEGLSTransferSyntaxes, JPEGTransferSyntaxes

from dicomnode.domain.errors import UndecodablePixels

_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}
_STANDALONE = frozenset(range(0xD0, 0xD9)) | {0x01}
_J2K_START = b"\xff\x4f\xff\x51"


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameHeader:
    """The size of a compressed frame; `precision` is bits per sample."""

    rows: int
    columns: int
    samples: int
    precision: int


def read_header(frame: bytes, transfer_syntax: UID) -> FrameHeader | None:
    """Return what the frame's header says, or None where the encoding has none (RLE).

    Raises: UndecodablePixels when the header is missing or cut short.
    """
    if transfer_syntax in JPEG2000TransferSyntaxes:
        return _jpeg_2000(frame)
    if transfer_syntax in JPEGTransferSyntaxes or transfer_syntax in JPEGLSTransferSyntaxes:
        return _jpeg(frame)
    return None


def _jpeg(frame: bytes) -> FrameHeader:
    """Walk the marker segments to the start of frame. Source: ISO 10918-1 B.1.1, B.2.2; ISO 14495-1 C.2.2."""
    position = 2 if frame[:2] == b"\xff\xd8" else len(frame)
    while position + 4 <= len(frame) and frame[position] == 0xFF:
        marker = frame[position + 1]
        if marker == 0xFF or marker in _STANDALONE:
            position += 1 if marker == 0xFF else 2
            continue
        body = frame[position + 4 : position + 10]
        if marker in _START_OF_FRAME and len(body) == 6:
            rows, columns = int.from_bytes(body[1:3]), int.from_bytes(body[3:5])
            return FrameHeader(rows=rows, columns=columns, samples=body[5], precision=body[0])
        position += 2 + int.from_bytes(frame[position + 2 : position + 4])
    raise UndecodablePixels("the compressed frame has no JPEG header")


def _jpeg_2000(frame: bytes) -> FrameHeader:
    """Read the SIZ segment, also behind the boxes of a JP2 file. Source: ISO 15444-1 A.5.1."""
    start = frame.find(_J2K_START, 0, 4096)
    body = frame[start + 6 : start + 46]
    if start < 0 or len(body) < 38:
        raise UndecodablePixels("the compressed frame has no JPEG 2000 header")
    right, bottom, left, top = (int.from_bytes(body[at : at + 4]) for at in (2, 6, 10, 14))
    samples = int.from_bytes(body[34:36])
    return FrameHeader(rows=bottom - top, columns=right - left, samples=samples, precision=(body[36] & 0x7F) + 1)
