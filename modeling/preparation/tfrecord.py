"""TFRecord files and `tf.train.Example` messages, read and written without TensorFlow.

A file is a sequence of length, checksum, bytes, checksum. Sources: tensorflow/core/lib/io/record_writer.h, with CRC-32C
(RFC 3720 B.4), rotated and offset; tensorflow/core/example/example.proto and feature.proto. The message types live in a
descriptor pool of their own, so that they never clash with TensorFlow's in one process.
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import google_crc32c
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from dicomnode.domain.errors import ConfigurationError

_LENGTH = struct.Struct("<Q")
_CHECKSUM = struct.Struct("<I")
_MASK_DELTA = 0xA282EAD8


def framed(payload: bytes) -> bytes:
    """Return the bytes of one record in a file."""
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


FeatureValues = Sequence[bytes] | Sequence[int] | Sequence[float]

_PACKAGE = "cxrnode.example"
_FIELD = descriptor_pb2.FieldDescriptorProto
_LISTS = (
    ("bytes_list", "BytesList", _FIELD.TYPE_BYTES),
    ("float_list", "FloatList", _FIELD.TYPE_FLOAT),
    ("int64_list", "Int64List", _FIELD.TYPE_INT64),
)


def encode(features: Mapping[str, FeatureValues]) -> bytes:
    """Return the serialised example; the same features give the same bytes.

    The type of a feature follows its first value; a feature without values is left out.
    """
    example = _example_type()()
    for name, values in features.items():
        if values:
            getattr(example.features.feature[name], _list_for(values[0])).value.extend(values)
    serialised: bytes = example.SerializeToString(deterministic=True)
    return serialised


def decode(payload: bytes) -> dict[str, list[Any]]:
    """Return the features of a serialised example: lists of bytes, float or int by name.

    Raises: ConfigurationError when the payload is no example.
    """
    example = _example_type()()
    try:
        example.ParseFromString(payload)
    except DecodeError as error:
        raise ConfigurationError("a record holds no tf.train.Example") from error
    return {name: _values_of(feature) for name, feature in example.features.feature.items()}


def _list_for(value: object) -> str:
    if isinstance(value, bytes):
        return "bytes_list"
    return "int64_list" if isinstance(value, int) else "float_list"


def _values_of(feature: Any) -> list[Any]:
    kind = feature.WhichOneof("kind")
    return [] if kind is None else list(getattr(feature, kind).value)


@cache
def _example_type() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="cxrnode/example.proto", package=_PACKAGE, syntax="proto3")
    for _, type_name, value_type in _LISTS:
        value = file.message_type.add(name=type_name).field.add(
            name="value", number=1, type=value_type, label=_FIELD.LABEL_REPEATED
        )
        value.options.packed = value_type != _FIELD.TYPE_BYTES
    _add_feature(file)
    _add_features(file)
    example = file.message_type.add(name="Example")
    _add_message_field(example, "features", 1, "Features")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.Example"))


def _add_feature(file: Any) -> None:
    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, (field_name, type_name, _) in enumerate(_LISTS, start=1):
        _add_message_field(feature, field_name, number, type_name).oneof_index = 0


def _add_features(file: Any) -> None:
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=_FIELD.TYPE_STRING, label=_FIELD.LABEL_OPTIONAL)
    _add_message_field(entry, "value", 2, "Feature")
    _add_message_field(features, "feature", 1, "Features.FeatureEntry").label = _FIELD.LABEL_REPEATED


def _add_message_field(message: Any, name: str, number: int, type_name: str) -> Any:
    return message.field.add(
        name=name,
        number=number,
        type=_FIELD.TYPE_MESSAGE,
        type_name=f".{_PACKAGE}.{type_name}",
        label=_FIELD.LABEL_OPTIONAL,
    )
