"""The one frame that encapsulated Pixel Data holds, whatever its offset table says. Source: PS3.5 A.4."""

import struct

from dicomnode.domain.errors import UndecodablePixels

_ITEM, _SEQUENCE_END = 0xE000, 0xE0DD
_ITEM_GROUP = 0xFFFE
_CODESTREAM_STARTS = (b"\xff\xd8\xff", b"\xff\x4f\xff\x51", b"\x00\x00\x00\x0cjP  ")


def single_frame(data: bytes) -> bytes:
    """Return the frame of encapsulated Pixel Data that holds one.

    All fragments belong to a single frame, so the Basic Offset Table is not needed, and a wrong one does no harm.
    A table that is missing is not needed either, and a codestream without any items is taken as it is.
    Raises: UndecodablePixels when the items make no sense or hold nothing.
    """
    if data.startswith(_CODESTREAM_STARTS):
        return data
    fragments = _items(data)
    if len(fragments) > 1 and not fragments[0].startswith(_CODESTREAM_STARTS):
        fragments = fragments[1:]
    frame = fragments[0] if len(fragments) == 1 else b"".join(fragments)
    if not frame:
        raise UndecodablePixels("the encapsulated Pixel Data holds no frame")
    return frame


def _items(data: bytes) -> list[bytes]:
    """Return the values of the items up to the delimiter, or to the end of the data where there is none."""
    found, position = [], 0
    while position + 8 <= len(data):
        group, element, length = struct.unpack_from("<HHL", data, position)
        position += 8
        if group != _ITEM_GROUP or element not in (_ITEM, _SEQUENCE_END):
            raise UndecodablePixels("the compressed Pixel Data is not divided into items")
        if element == _SEQUENCE_END:
            break
        if position + length > len(data):
            raise UndecodablePixels("the compressed Pixel Data ends within an item")
        found.append(data[position : position + length])
        position += length
    if not found:
        raise UndecodablePixels("the encapsulated Pixel Data holds no frame")
    return found
