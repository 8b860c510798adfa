"""Values of attributes as peers send them: absent, empty, repeated, of the wrong form.

These functions are the only ones that take values out of a received data set. None raises for anything a peer can send:
what cannot be understood is absent. None logs or warns, since a message could quote patient data.
"""

import math
import re
from datetime import date
from functools import cache
from typing import Any

from pydicom import Dataset
from pydicom.datadict import dictionary_VM, tag_for_keyword
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag

from dicomnode.dicom.hostile import HOSTILE_DATA_RAISES, quiet
from dicomnode.dicom.writing import is_code_string

_LONGEST_TEXT = 1024
_NUMBER = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
# White space between words, then escape sequences of ISO 2022 that pydicom leaves in decoded text (intermediates, then
# final), and control characters. Those above ASCII stay: they are letters of a character set that nobody declared.
_BREAK, _NO_TEXT = re.compile(r"[\t\n\f\r]+"), re.compile(r"\x1b[ -/]*[0-~]|[\x00-\x1f\x7f]")
_TIME = re.compile(r"([01][0-9]|2[0-3])([0-5][0-9](([0-5][0-9]|60)(\.[0-9]{1,6})?)?)?")
_DATE = re.compile(r"([0-9]{4})([.\-/]?)([0-9]{2})\2([0-9]{2})")


def values(ds: Dataset, keyword: str) -> tuple[Any, ...]:
    """Return the values of an element, empty when it is absent, empty, or cannot be read.

    Empty values are left out. Items of a sequence are no values.
    Raises: KeyError for a keyword that DICOM does not know, since that is a mistake in this program.
    """
    return tuple(value for value in _positions(ds, keyword) if not _is_empty(value))


def texts(ds: Dataset, keyword: str) -> tuple[str, ...]:
    """Return an element's values as text without control characters, each cut at 1024 characters.

    No text of a radiograph may lawfully be as long. Bytes are no text.
    """
    read = values(ds, keyword)
    if not read:
        return ()
    with quiet():
        try:
            found = (_clean(str(value)) for value in read if not isinstance(value, bytes | Dataset))
            return tuple(entry for entry in found if entry)
        except HOSTILE_DATA_RAISES:
            return ()


def text(ds: Dataset, keyword: str) -> str:
    r"""Return an element as one text, empty when there is none.

    An attribute that may have several values gives its first one. One that must have a single value is returned whole:
    a backslash in it is either part of an identifier, as in `12\34`, or makes a coded value ambiguous, and neither
    may be hidden by taking the first part. Source: PS3.5 6.2, 6.4.
    """
    found = texts(ds, keyword)
    if not found:
        return ""
    return "\\".join(found)[:_LONGEST_TEXT] if _is_single(keyword) else found[0]


def code_string(ds: Dataset, keyword: str) -> str:
    """Return a code string (CS) that may stand in a new object, in capitals, or "". Source: PS3.5 6.2."""
    value = text(ds, keyword).upper()
    return value if is_code_string(value) else ""


def numbers(ds: Dataset, keyword: str) -> tuple[float, ...]:
    """Return an element's values as finite numbers; empty when one of them is none.

    Empty values at the end are left out; one before a number makes the list unreadable, since every position counts.
    """
    found = list(_positions(ds, keyword))
    while found and _is_empty(found[-1]):
        found.pop()
    read = [_finite(value) for value in found]
    return tuple(value for value in read if value is not None) if None not in read else ()


def number(ds: Dataset, keyword: str) -> float | None:
    """Return an element's first value as a finite number."""
    found = numbers(ds, keyword)
    return found[0] if found else None


def integer(ds: Dataset, keyword: str) -> int | None:
    """Return an element's first value as an integer; a fraction is none."""
    found = number(ds, keyword)
    return int(found) if found is not None and found == int(found) else None


def day(ds: Dataset, keyword: str) -> date | None:
    """Return a date (DA), also in the form of ACR-NEMA, YYYY.MM.DD, and with `-` or `/`. Source: PS3.5 6.2."""
    match = _DATE.fullmatch(text(ds, keyword))
    try:
        return date(int(match[1]), int(match[3]), int(match[4])) if match else None
    except ValueError:
        return None


def time_of_day(ds: Dataset, keyword: str) -> str:
    """Return a time (TM) in the form of the standard, also where colons stand in it, or "". Source: PS3.5 6.2."""
    compact = text(ds, keyword).replace(":", "")
    return compact if _TIME.fullmatch(compact) else ""


def items(ds: Dataset, keyword: str) -> tuple[Dataset, ...]:
    """Return the items of a sequence."""
    value = _value(ds, keyword)
    if not isinstance(value, Sequence):
        return ()
    with quiet():
        try:
            return tuple(value)
        except HOSTILE_DATA_RAISES:
            return ()


@cache
def _tag(keyword: str) -> BaseTag:
    tag = tag_for_keyword(keyword)
    if tag is None:
        raise KeyError(keyword)
    return BaseTag(tag)


@cache
def _is_single(keyword: str) -> bool:
    return dictionary_VM(_tag(keyword)) == "1"


def _value(ds: Dataset, keyword: str) -> Any:
    tag = _tag(keyword)
    if tag not in ds:
        return None
    with quiet():
        try:
            return ds[tag].value
        except HOSTILE_DATA_RAISES:
            return None


def _positions(ds: Dataset, keyword: str) -> tuple[Any, ...]:
    """Return every value in its place, those that are empty too."""
    value = _value(ds, keyword)
    if value is None or isinstance(value, Sequence):  # the sender chooses the VR, and items are no values
        return ()
    return tuple(value) if isinstance(value, MultiValue | list | tuple) else (value,)


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str | bytes) and not value)


def _clean(value: str) -> str:
    return _NO_TEXT.sub("", _BREAK.sub(" ", value[:_LONGEST_TEXT].strip(" \0\r\n\t"))).strip(" ")


def _finite(value: Any) -> float | None:
    if isinstance(value, bytes):
        return None
    try:
        match = _NUMBER.fullmatch(str(value).strip(" \0"))
    except HOSTILE_DATA_RAISES:
        return None
    return float(match[0]) if match and math.isfinite(float(match[0])) else None
