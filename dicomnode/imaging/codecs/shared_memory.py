"""Memory that two processes see, for what is too large for a pipe: it has no name, and goes with the last of them."""

import contextlib
import fcntl
import mmap
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

_FIRST_BYTES = 32 << 20
"""A radiograph of 16 megapixels: what is touched of it is kept for the next one, what is larger is given back."""


class SharedMemory:
    """One frame at a time: the process that made this puts it in, the other one puts its samples in its place.

    It grows with what it must hold and never shrinks, which the kernel is told to see to: memory that another process
    could cut short would end this one where it reads. Raises: OSError or AttributeError where there is no such memory.
    """

    def __init__(self) -> None:
        descriptor = os.memfd_create("cxrnode-frame", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(descriptor, _FIRST_BYTES)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
            self._map = mmap.mmap(descriptor, _FIRST_BYTES)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor: int | None = descriptor

    @contextlib.contextmanager
    def lend(self) -> Iterator[int]:
        """Yield the descriptor by which another process is to see it, this once."""
        assert self._descriptor is not None  # noqa: S101 lent to one process
        try:
            yield self._descriptor
        finally:
            os.close(self._descriptor)
            self._descriptor = None

    def put(self, frame: bytes, room_bytes: int) -> int:
        """Write a frame, make room for at least so much in its place, and return how large the memory is then.

        Raises: OSError.
        """
        needed = max(len(frame), room_bytes)
        if needed > len(self._map):
            self._map.resize(-(-needed // mmap.PAGESIZE) * mmap.PAGESIZE)
        self._map[: len(frame)] = frame
        return len(self._map)

    def take(self, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        """Return a copy of the samples at its beginning, and give back what a usual frame does not need.

        Raises: ValueError where it cannot hold so many.
        """
        samples = np.ndarray(shape, dtype, self._map).copy()
        self._trim()
        return samples

    def close(self) -> None:
        """Let it go; what the other process still sees stays until that ends."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        self._map.close()

    def _trim(self) -> None:
        if len(self._map) > _FIRST_BYTES:
            self._map.madvise(mmap.MADV_REMOVE, _FIRST_BYTES)


def shared_memory() -> SharedMemory | None:
    """Return memory to share, or None where the system has none."""
    with contextlib.suppress(OSError, AttributeError):
        return SharedMemory()
    return None
