"""`tf.train.Example` messages without TensorFlow.

Source: tensorflow/core/example/example.proto and feature.proto. The message types live in a descriptor pool of their
own, so that they never clash with TensorFlow's in one process.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from dicomnode.domain.errors import ConfigurationError

Values = Sequence[bytes] | Sequence[int] | Sequence[float]

_PACKAGE = "cxrnode.example"
_FIELD = descriptor_pb2.FieldDescriptorProto
_LISTS = (
    ("bytes_list", "BytesList", _FIELD.TYPE_BYTES),
    ("float_list", "FloatList", _FIELD.TYPE_FLOAT),
    ("int64_list", "Int64List", _FIELD.TYPE_INT64),
)


def encode(features: Mapping[str, Values]) -> bytes:
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
