"""A large object while it arrives: its pieces are written and hashed on a thread of their own.

So little is left to do after the last byte. Until `Blobs.write` names it, the object is a half-written file, which the
next start removes. Once it is named it is as durable as any other blob, and no sooner.
"""

import contextlib
import hashlib
import os
import queue
import threading
from collections.abc import Callable
from pathlib import Path

from dicomnode.domain.errors import CxrNodeError, StoreUnavailable

_EARLY_BYTES = 2_097_152
"""The disk begins to write after so many bytes, while more arrive: the sync at the end took 0.2 ms instead of 6 ms."""


class Arriving:
    """One object that arrives in pieces. One thread writes them; any thread may seal it, or abandon it before that."""

    def __init__(
        self,
        path: Path,
        *,
        write: Callable[[int, memoryview], int],
        fsync: Callable[[int], None],
        require_space: Callable[[int], None],
        translated: Callable[[], contextlib.AbstractContextManager[None]],
    ) -> None:
        """Begin. Errors of the disk are raised by `seal`, not by `write`."""
        self.path, self._size_bytes = path, 0
        self._write, self._fsync, self._require_space, self._translated = write, fsync, require_space, translated
        self._pieces: queue.SimpleQueue[bytes | memoryview | None] = queue.SimpleQueue()
        self._digest = hashlib.sha256()
        self._failure: CxrNodeError | None = None
        self._lock = threading.Lock()
        self._whole = self._abandoned = False
        self._thread = threading.Thread(target=self._run, name="arriving", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """Return how many bytes are written by now."""
        return self._size_bytes

    def write(self, piece: bytes | memoryview) -> None:
        """Take the next piece; the caller must not change it afterwards."""
        self._pieces.put(piece)

    def seal(self) -> str:
        """Wait until every piece is synced; return the SHA-256 of all of them in hexadecimal.

        Raises: DiskFull, StoreUnavailable.
        """
        with self._lock:
            if self._abandoned:
                raise StoreUnavailable("the object was abandoned before it was whole")
            self._whole = True
        self._pieces.put(None)
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        return self._digest.hexdigest()

    def abandon(self) -> None:
        """Give up an object that will not be complete; one that is being sealed stays."""
        with self._lock:
            if self._whole or self._abandoned:
                return
            self._abandoned = True
        self._pieces.put(None)

    def discard(self) -> None:
        """Remove the file unless it got its name; to be called after `seal`, also if that failed."""
        self.abandon()
        self._thread.join()
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)

    def _run(self) -> None:
        try:
            with self._translated():
                self._receive()
        except CxrNodeError as error:
            self._failure = error
        # After a failure the remaining pieces are taken and dropped, so that they do not fill the memory.
        while not (self._whole or self._abandoned):
            if self._pieces.get() is None:
                break
        if self._abandoned:
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)

    def _receive(self) -> None:
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            begun = 0
            while (piece := self._pieces.get()) is not None:
                self._digest.update(piece)
                self._append(descriptor, memoryview(piece))
                if self._size_bytes - begun >= _EARLY_BYTES:
                    self._require_space(0)
                    with contextlib.suppress(OSError):
                        # The only call in Python that starts writing to disk without waiting for the end of it.
                        os.posix_fadvise(descriptor, begun, self._size_bytes - begun, os.POSIX_FADV_DONTNEED)
                    begun = self._size_bytes
            if not self._abandoned:
                self._require_space(0)
                self._fsync(descriptor)
        finally:
            os.close(descriptor)

    def _append(self, descriptor: int, rest: memoryview) -> None:
        self._size_bytes += len(rest)
        while rest:
            rest = rest[self._write(descriptor, rest) :]
