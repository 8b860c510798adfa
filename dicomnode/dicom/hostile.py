"""What libraries raise and say when they meet damaged or hostile data: one list, for all that handles peers' bytes."""

import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import InvalidOperation

from pydicom.errors import BytesLengthException, InvalidDicomError

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


@contextmanager
def quiet() -> Iterator[None]:
    """Drop the warnings of libraries, which quote values of the data set."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
