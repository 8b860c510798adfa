"""The TFRecord container: length, checksum, bytes, checksum.

Source: tensorflow/core/lib/io/record_writer.h; the checksum is CRC-32C (RFC 3720 B.4), rotated and offset.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import google_crc32c

from dicomnode.domain.errors import ConfigurationError

_LENGTH = struct.Struct("<Q")
_CHECKSUM = struct.Struct("<I")
_MASK_DELTA = 0xA282EAD8


def framed(payload: bytes) -> bytes:
    """Return one record as it stands in a file."""
    length = _LENGTH.pack(len(payload))
    return length + _CHECKSUM.pack(_masked_crc(length)) + payload + _CHECKSUM.pack(_masked_crc(payload))


def frames(path: Path) -> Iterator[bytes]:
    """Yield the payload of each record of a file, every checksum verified.

    Raises: ConfigurationError, naming the file and the record, when the file is cut short or damaged.
    """
    number = 0
    with _opened(path) as file:
        size = path.stat().st_size
        while (length := _next_length(file, path, number, size)) is not None:
            payload = _exactly(file, length, path, number)
            if _CHECKSUM.unpack(_exactly(file, _CHECKSUM.size, path, number))[0] != _masked_crc(payload):
                raise ConfigurationError(f"{path} is damaged: the checksum of record {number} does not agree")
            yield payload
            number += 1


def count_frames(path: Path) -> int:
    """Return how many records a file holds, reading their lengths only.

    Raises: ConfigurationError when the file is cut short or a length is damaged.
    """
    number = 0
    with _opened(path) as file:
        size = path.stat().st_size
        while (length := _next_length(file, path, number, size)) is not None:
            file.seek(length + _CHECKSUM.size, 1)
            number += 1
    return number


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error


def _next_length(file: BinaryIO, path: Path, number: int, size: int) -> int | None:
    """Return the length of the payload that follows, or None at the end of the file."""
    raw = file.read(_LENGTH.size)
    if not raw:
        return None
    if len(raw) < _LENGTH.size:
        raise _cut_short(path, number)
    if _CHECKSUM.unpack(_exactly(file, _CHECKSUM.size, path, number))[0] != _masked_crc(raw):
        raise ConfigurationError(
            f"{path} is damaged, or no TFRecord file: the length of record {number} does not agree"
        )
    length: int = _LENGTH.unpack(raw)[0]
    if file.tell() + length + _CHECKSUM.size > size:
        raise _cut_short(path, number)
    return length


def _exactly(file: BinaryIO, length: int, path: Path, number: int) -> bytes:
    raw = file.read(length)
    if len(raw) < length:
        raise _cut_short(path, number)
    return raw


def _cut_short(path: Path, number: int) -> ConfigurationError:
    return ConfigurationError(f"{path} is cut short within record {number}")


def _masked_crc(data: bytes) -> int:
    crc: int = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & 0xFFFFFFFF
