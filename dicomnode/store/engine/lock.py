"""One node per store: a lock that the operating system releases however its holder ends."""

import fcntl
import os
import platform
from pathlib import Path
from typing import Self

from dicomnode.domain.errors import ConfigurationError


class StoreLock:
    """The exclusive right to run a node on a store, held while the file stays open."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def acquire(cls, path: Path) -> Self:
        """Take the lock or say who holds it.

        Raises: ConfigurationError.
        """
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise ConfigurationError(f"the store {path.parent} is not writable: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {platform.node()}".encode(), 0)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 200, 0).decode(errors="replace") or "another process"
            os.close(descriptor)
            raise ConfigurationError(f"the store {path.parent} is in use by {holder}") from error
        except OSError as error:
            os.close(descriptor)
            raise ConfigurationError(f"the store {path.parent} cannot be locked: {error.strerror}") from error
        return cls(descriptor)

    def release(self) -> None:
        """Give the lock back. The file stays, since removing it would let two nodes lock two files."""
        os.close(self._descriptor)


def is_held(path: Path) -> bool:
    """Tell whether somebody holds a store's lock, as far as possible without touching it.

    To try the lock would take it for a moment, and a node that starts at that moment would not.
    """
    try:
        inode = path.stat().st_ino
        held = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    except OSError:
        return path.exists() and _is_refused(path)
    return any(" FLOCK " in line and f":{inode} " in line for line in held)


def _is_refused(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
