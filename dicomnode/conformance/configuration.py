"""The configuration parameters, read from the settings' own models."""

import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from dicomnode.conformance.markdown import code, section, table
from dicomnode.settings.node import Settings

_BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "min_length": "length ≥", "max_length": "length ≤"}
_SECURITY = (
    "tls",
    "networks",
    "_per_peer",
    "_per_s",
    "pending",
    "certificate",
    "client_key",
    "ca_file",
    "authentication",
    "secret",
    "token",
    "require_called_ae",
)


def configuration_sections(level: int) -> str:
    """Return one table of parameters for each section of the configuration."""
    return "".join(_sections(level, name, _model_of(field)) for name, field in Settings.model_fields.items())


def security_rows() -> list[tuple[str, str, str]]:
    """Return the parameters that concern security: name, kind, default."""
    found = []
    for name, field in Settings.model_fields.items():
        for path, entry in _leaves(name, _model_of(field)):
            if any(word in path for word in _SECURITY) or path.endswith("calling_ae_titles"):
                found.append((code(path), _kind(entry.annotation, entry.metadata), _default(entry)))
    return found


def _sections(level: int, path: str, model: type[BaseModel]) -> str:
    rows = [
        (code(name), _kind(field.annotation, field.metadata), _default(field))
        for name, field in model.model_fields.items()
    ]
    own = section(level, code(f"[{path}]"), _first_paragraphs(model), table(("Parameter", "Value", "Default"), rows))
    return own + "".join(_sections(level, below, inner) for below, inner in _inner(path, model))


def _inner(path: str, model: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    for name, field in model.model_fields.items():
        several = get_origin(field.annotation) is tuple
        for inner in _models(field.annotation):
            kind = inner.model_fields.get("kind")
            suffix = f" kind = {get_args(kind.annotation)[0]}" if kind is not None else ""
            yield f"{path}.{name}{' (several)' if several else ''}{suffix}", inner


def _leaves(path: str, model: type[BaseModel]) -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        inner = _models(field.annotation)
        if not inner:
            yield f"{path}.{name}", field
        for below in inner:
            yield from _leaves(f"{path}.{name}", below)


def _model_of(field: FieldInfo) -> type[BaseModel]:
    (model,) = _models(field.annotation)
    return model


def _models(annotation: Any) -> list[type[BaseModel]]:
    """Return the models that an annotation holds, however deep."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for entry in get_args(annotation) for model in _models(entry)]


def _kind(annotation: Any, metadata: list[Any]) -> str:
    """Return the values that an annotation allows, in words."""
    bounds = ", ".join(f"{sign} {value:,}".replace(",", " ") for entry in metadata for sign, value in _bounds(entry))
    return ", ".join(part for part in (_words(annotation), bounds) if part)


def _bounds(entry: Any) -> Iterator[tuple[str, float]]:
    for name, sign in _BOUNDS.items():
        value = getattr(entry, name, None)
        if value is not None:
            yield sign, value
    for inner in getattr(entry, "metadata", ()):
        yield from _bounds(inner)


def _words(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(arguments[0], list(arguments[1:]))
    if origin is Literal:
        return " or ".join(code(entry) for entry in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_words(entry) for entry in arguments))
    if origin is tuple:
        return f"list of {_words(arguments[0])}"
    if origin is dict:
        return f"table of {_words(arguments[1])} by {_words(arguments[0])}"
    return _simple(annotation)


def _simple(annotation: Any) -> str:
    names = {type(None): "absent", str: "text", int: "integer", float: "number", bool: "true or false"}
    if annotation in names:
        return names[annotation]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section of its own"
    values = getattr(annotation, "__members__", None)
    if values is not None:
        return " or ".join(code(member.value) for member in values.values())
    return "path" if annotation.__name__ == "Path" else str(annotation.__name__)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "as below"
    if value is None:
        return "absent"
    return code(_toml(value))


def _toml(value: Any) -> str:
    """Return a value as it stands in the configuration file."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, tuple | list | frozenset):
        return f"[{', '.join(_toml(entry) for entry in value)}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml(key)} = {_toml(entry)}" for key, entry in value.items()) + "}"
    return f'"{getattr(value, "value", value)}"'


def _first_paragraphs(model: type[BaseModel]) -> str:
    return "\n".join(line.strip() for line in (model.__doc__ or "").strip().splitlines())
