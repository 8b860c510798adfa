"""The Store Instances Response Module of STOW-RS, in JSON or XML, of which nothing but the reasons is read.

Source: PS3.18 10.5.3 and Annex I; PS3.18 F.2 (JSON), PS3.19 A.1 (Native DICOM Model).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from email import message_from_bytes, policy
from typing import Any
from xml.parsers import expat

from dicomnode.net.scu.http import HttpAnswer

_JSON = frozenset({"application/dicom+json", "application/json"})
_DICOM_XML = "application/dicom+xml"
_XML = frozenset({_DICOM_XML, "application/xml", "text/xml"})
_MULTIPART = "multipart/related"

_FAILED, _OTHER_FAILURES, _REFERENCED = "00081198", "0008119A", "00081199"
_FAILURE_REASON, _WARNING_REASON = "00081197", "00081196"
_LARGEST_REASON = 0xFFFF
_MOST_NESTED = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreResponse:
    """What a response says of the one instance that was sent.

    `failure`: its Failure Reason, 0 if it failed without one that can be read; None if it did not fail.
    """

    failure: int | None = None
    warning: int | None = None


def read_response(answer: HttpAnswer) -> StoreResponse | None:
    """Read the body of an answer, which may be empty; None when no DICOMweb service can have written it."""
    if not answer.body:
        return StoreResponse()
    media_type, body = answer.media_type, answer.body
    if media_type == _MULTIPART:
        media_type, body = _first_part(answer)
    if media_type in _JSON:
        module = _from_json(body)
    elif media_type in _XML:
        module = _from_xml(body, is_dicom=media_type == _DICOM_XML)
    else:
        module = None
    return _response(module) if module is not None else None


def _response(module: Mapping[str, Any]) -> StoreResponse:
    failed = [*_items(module, _FAILED), *_items(module, _OTHER_FAILURES)]
    warnings = (_number(item, _WARNING_REASON) for item in _items(module, _REFERENCED))
    return StoreResponse(
        failure=_number(failed[0], _FAILURE_REASON) or 0 if failed else None,
        warning=next((warning for warning in warnings if warning), None),
    )


def _items(module: Mapping[str, Any], tag: str) -> list[Mapping[str, Any]]:
    return [entry if isinstance(entry, Mapping) else {} for entry in _values(module, tag)]


def _number(item: Mapping[str, Any], tag: str) -> int | None:
    """Return the first value of an element as an unsigned number of 16 bits, None when it is none."""
    value = next(iter(_values(item, tag)), None)
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    # In XML every number is text; in JSON some servers write it so.
    text = str(value).strip().removesuffix(".0")
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(_LARGEST_REASON))):
        return None
    return int(text) if int(text) <= _LARGEST_REASON else None


def _values(item: Mapping[str, Any], tag: str) -> list[Any]:
    element = item.get(tag)
    values = element.get("Value") if isinstance(element, Mapping) else None
    return values if isinstance(values, list) else []


def _from_json(body: bytes) -> Mapping[str, Any] | None:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return None
    # Some servers wrap the module in an array, as answers to queries are.
    if isinstance(found, list):
        found = found[0] if found else {}
    return found if isinstance(found, Mapping) else None


def _from_xml(body: bytes, *, is_dicom: bool) -> Mapping[str, Any] | None:
    """Return the Native DICOM Model in the shape that JSON has; `is_dicom` where the media type says that it is one."""
    model = _NativeModel()
    try:
        model.read(body)
    except (expat.ExpatError, _NotDicom, ValueError, LookupError):
        return None
    return model.module if is_dicom or model.root == "NativeDicomModel" else None


class _NotDicom(Exception):
    """The document is none of the model."""


class _NativeModel:
    """Builds the module of the elements of a document, as they come."""

    def __init__(self) -> None:
        self.module: dict[str, Any] = {}
        self.root = ""
        self._open: list[dict[str, Any]] = [self.module]
        self._text: list[str] | None = None

    def read(self, body: bytes) -> None:
        """Read a document. Raises: expat.ExpatError, _NotDicom."""
        parser = expat.ParserCreate()
        parser.StartElementHandler, parser.EndElementHandler = self._begin, self._end
        parser.CharacterDataHandler, parser.StartDoctypeDeclHandler = self._characters, _refuse_declaration
        parser.Parse(body, True)  # noqa: FBT003 the parser's own signature

    def _begin(self, name: str, attributes: dict[str, str]) -> None:
        if len(self._open) > _MOST_NESTED:
            raise _NotDicom
        local, here = name.rpartition(":")[2], self._open[-1]
        self.root = self.root or local
        if local == "DicomAttribute":
            inner: dict[str, Any] = {"Value": []}
            here[attributes.get("tag", "").upper()] = inner
        elif local == "Item":
            inner = {}
            here.setdefault("Value", []).append(inner)
        else:
            inner = here
            self._text = [] if local == "Value" else None
        self._open.append(inner)

    def _end(self, _: str) -> None:
        inner = self._open.pop()
        if self._text is not None:
            inner.setdefault("Value", []).append("".join(self._text).strip())
            self._text = None

    def _characters(self, text: str) -> None:
        if self._text is not None:
            self._text.append(text)


def _refuse_declaration(*_: object) -> None:
    raise _NotDicom


def _first_part(answer: HttpAnswer) -> tuple[str, bytes]:
    """Return media type and body of the first part of a multipart answer."""
    head = f"Content-Type: {answer.headers.get('Content-Type', '')}\r\n\r\n".encode("latin-1", errors="replace")
    message = message_from_bytes(head + answer.body, policy=policy.compat32)
    part = message.get_payload(0) if message.is_multipart() else message
    payload: Any = part.get_payload(decode=True) if not isinstance(part, str) else None
    return (part.get_content_type(), payload) if isinstance(payload, bytes) and not isinstance(part, str) else ("", b"")
