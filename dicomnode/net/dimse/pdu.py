"""What a PDU may be, told from its bytes before the library decodes them: its decoding costs far more than its reading.

Source: PS3.8 9.3.
"""

import struct
from collections.abc import Iterator
from enum import IntEnum

HEADER_BYTES = 6

# 128 contexts with forty transfer syntaxes each fit.
LONGEST_REQUEST_BYTES = 131_072
# Release, reject and abort have four bytes.
_LONGEST_OTHER_BYTES = 64
# Peers put a command and a data fragment into one PDU at most; thousands of empty ones would cost seconds.
_MOST_FRAGMENTS = 64
_MOST_ITEMS = 256
_MOST_SUB_ITEMS = 8192
_CONTEXT_ITEMS = frozenset({0x20, 0x21})
_CONTEXT_HEADER_BYTES = 4
_USER_INFORMATION = 0x50
# PS3.8 9.3.2 and 9.3.3: the fixed fields of A-ASSOCIATE-RQ and -AC.
_FIXED_BYTES = 68


class Pdu(IntEnum):
    """The types of PDU."""

    ASSOCIATE_RQ = 0x01
    ASSOCIATE_AC = 0x02
    ASSOCIATE_RJ = 0x03
    P_DATA = 0x04
    RELEASE_RQ = 0x05
    RELEASE_RP = 0x06
    ABORT = 0x07


# Source: PS3.8 9.3.8, service provider: unrecognized PDU, unexpected PDU, invalid PDU parameter value.
UNRECOGNISED, UNEXPECTED, INVALID_PARAMETER = 1, 2, 6


UNKNOWN_PDU = bytes([0xFF, 0, 0, 0, 0, 0])
"""The header of a PDU of no type."""


def abort_pdu(reason: int) -> bytes:
    """Return an A-ABORT by the service provider."""
    return struct.pack(">BBLBBBB", Pdu.ABORT, 0, 4, 0, 0, 2, reason)


def read_header(header: bytes | bytearray) -> tuple[int, int]:
    """Return type and announced length of a PDU."""
    pdu_type, _, length = struct.unpack(">BBL", header)
    return pdu_type, length


def longest(pdu_type: int, p_data_bytes: int) -> int:
    """Return how long a PDU of this type may be, where P-DATA was negotiated to be at most `p_data_bytes`."""
    if pdu_type == Pdu.P_DATA:
        return p_data_bytes
    return LONGEST_REQUEST_BYTES if pdu_type in (Pdu.ASSOCIATE_RQ, Pdu.ASSOCIATE_AC) else _LONGEST_OTHER_BYTES


def is_reasonable(pdu_type: int, body: bytes | bytearray) -> bool:
    """Tell whether a PDU has so few parts that it can be decoded in a moment."""
    if pdu_type == Pdu.P_DATA:
        return _has_few(_fragments(body), _MOST_FRAGMENTS)
    if pdu_type in (Pdu.ASSOCIATE_RQ, Pdu.ASSOCIATE_AC):
        return _has_few(_items(body, _FIXED_BYTES, len(body)), _MOST_ITEMS) and _has_few(
            _sub_items(body), _MOST_SUB_ITEMS
        )
    return True


def _has_few(parts: Iterator[object], most: int) -> bool:
    return all(number < most for number, _ in enumerate(parts))


def _fragments(body: bytes | bytearray) -> Iterator[int]:
    position = 0
    while position + 4 <= len(body):
        yield position
        position += 4 + int.from_bytes(body[position : position + 4], "big")


def _items(body: bytes | bytearray, position: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield (type, start, end) of the items between two positions."""
    while position + 4 <= end:
        start = position + 4
        position = start + int.from_bytes(body[position + 2 : start], "big")
        yield body[start - 4], start, min(position, end)


def _sub_items(body: bytes | bytearray) -> Iterator[tuple[int, int, int]]:
    for kind, start, end in _items(body, _FIXED_BYTES, len(body)):
        if kind in _CONTEXT_ITEMS:
            yield from _items(body, start + _CONTEXT_HEADER_BYTES, end)
        elif kind == _USER_INFORMATION:
            yield from _items(body, start, end)
