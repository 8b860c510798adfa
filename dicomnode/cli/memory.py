"""How the process of the node asks for memory, where its C library is glibc; with another, nothing is done."""

import contextlib
import ctypes

_M_MMAP_THRESHOLD = -3
_LARGE_BYTES = 4 << 20


def return_images_at_once() -> None:
    """Have what an image takes given back to the system as soon as it is let go.

    glibc would raise its threshold and keep such pieces. With five EfficientNet-B2 and images of 10 MB 445 MB stay
    resident instead of 680, at 3 ms more for each image.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)


def return_what_is_free() -> None:
    """Give back what is free now: after loading five EfficientNet-B2 165 of 345 MB, which glibc would keep."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
