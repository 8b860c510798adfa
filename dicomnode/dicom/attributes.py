"""Read single values from a data set of unknown quality: what cannot be read is absent, and nothing is said aloud."""

import math
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import InvalidOperation
from typing import Any

from pydicom import Dataset
from pydicom.datadict import tag_for_keyword
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence

HOSTILE_DATA_RAISES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    BufferError,
    BytesLengthException,
    EOFError,
    ImportError,
    InvalidDicomError,
    InvalidOperation,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    RuntimeError,
    SystemError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)
"""What pydicom, NumPy and the decoders raise on damaged or hostile data.

RecursionError is a RuntimeError and UnicodeError a ValueError. A message of these may quote the data set, so none is
passed on.
"""

_LONGEST_TEXT = 1024
_NUMBER = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")


@contextmanager
def quiet() -> Iterator[None]:
    """Drop the warnings of libraries, which quote values of the data set."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def values(ds: Dataset, keyword: str) -> tuple[Any, ...]:
    """Return the values of an element, empty when it is absent, empty, or cannot be read.

    Raises: KeyError for a keyword that DICOM does not know, since that is a mistake in this program.
    """
    tag = tag_for_keyword(keyword)
    if tag is None:
        raise KeyError(keyword)
    with quiet():
        try:
            value = ds[tag].value if tag in ds else None
            held = tuple(value) if isinstance(value, MultiValue | list | tuple) else (value,)
        except HOSTILE_DATA_RAISES:
            return ()
    if isinstance(value, Sequence):  # what an element is sent as is the peer's choice, and items are no values
        return ()
    return tuple(one for one in held if one is not None and not (isinstance(one, str | bytes) and not one))


def texts(ds: Dataset, keyword: str) -> tuple[str, ...]:
    """Return an element's values as stripped text, each cut at 1024 characters; bytes are no text."""
    with quiet():
        try:
            return tuple(
                stripped
                for one in values(ds, keyword)
                if not isinstance(one, bytes | Dataset) and (stripped := str(one)[:_LONGEST_TEXT].strip(" \0\r\n\t"))
            )
        except HOSTILE_DATA_RAISES:
            return ()


def text(ds: Dataset, keyword: str) -> str:
    """Return an element's first value as text, empty when there is none."""
    found = texts(ds, keyword)
    return found[0] if found else ""


def numbers(ds: Dataset, keyword: str) -> tuple[float, ...]:
    """Return an element's values as finite numbers; empty when one of them is not."""
    found = []
    for one in values(ds, keyword):
        match = _NUMBER.fullmatch(str(one).strip(" \0")) if not isinstance(one, bytes) else None
        if match is None or not math.isfinite(float(match[0])):
            return ()
        found.append(float(match[0]))
    return tuple(found)


def number(ds: Dataset, keyword: str) -> float | None:
    """Return an element's first value as a finite number."""
    found = numbers(ds, keyword)
    return found[0] if found else None


def integer(ds: Dataset, keyword: str) -> int | None:
    """Return an element's first value as an integer."""
    found = number(ds, keyword)
    return int(found) if found is not None and found == int(found) else None


def items(ds: Dataset, keyword: str) -> tuple[Dataset, ...]:
    """Return the items of a sequence."""
    tag = tag_for_keyword(keyword)
    if tag is None:
        raise KeyError(keyword)
    with quiet():
        try:
            value = ds[tag].value if tag in ds else None
            return tuple(value) if isinstance(value, Sequence) else ()
        except HOSTILE_DATA_RAISES:
            return ()
