"""The lock of a store: one node per store. The operating system releases it however the node ends."""

import fcntl
import os
import platform
from pathlib import Path
from typing import Self

from dicomnode.domain.errors import ConfigurationError


class StoreLock:
    """The exclusive right to run a node on a store; it lasts while the file is open."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def acquire(cls, path: Path) -> Self:
        """Take the lock; if another process holds it, the error names that process.

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
        """Release the lock. The file stays: if it were removed, two nodes could lock two different files."""
        os.close(self._descriptor)


def is_held(path: Path) -> bool:
    """Tell whether a process holds a store's lock, without trying the lock where /proc/locks can be read.

    Trying the lock takes it for a moment, and a node that starts in that moment would be refused.
    """
    try:
        inode = path.stat().st_ino
        locks = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    except OSError:
        return path.exists() and _is_refused(path)
    return any(" FLOCK " in line and f":{inode} " in line for line in locks)


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
