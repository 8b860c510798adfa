"""Bytes on disk: durable once `write` returns, verified whenever they are read.

A blob is named by the SHA-256 of its bytes and lies in one of 256 folders, `blobs/ab/ab12…`. No name is ever made of a
peer's string. The order that makes a blob durable is temporary file, fsync, rename, fsync of the folder; the folder's
own entry was made durable when this process first used it.
"""

import contextlib
import errno
import hashlib
import itertools
import logging
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Self

from dicomnode.domain.errors import BlobDamaged, DiskFull, StoreUnavailable
from dicomnode.domain.instance import StoredInstance
from dicomnode.store.blobs.streamed import Arriving

log = logging.getLogger(__name__)

_NAME = re.compile(r"[0-9a-f]{64}")
_PARTIAL = ".part"
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})


def _free_bytes(folder: Path) -> int:
    """Return the bytes an unprivileged process may still write to the folder's file system."""
    facts = os.statvfs(folder)
    return facts.f_bavail * facts.f_frsize


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemCalls:
    """The calls that durability rests on, as values, so that a test can watch them and make them fail."""

    write: Callable[[int, memoryview], int] = os.write
    fsync: Callable[[int], None] = os.fsync
    replace: Callable[[Path, Path], None] = os.replace
    free_bytes: Callable[[Path], int] = _free_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """What opening found: half-written files removed, blobs without a row set aside, rows without a blob."""

    partial: int
    unclaimed: int
    missing: int


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Raise what the file system refused as an error of the node's own tree."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        if error.errno in _NO_SPACE:
            raise DiskFull(f"the file system refused to store more: {reason}") from error
        raise StoreUnavailable(f"the blob folder could not be used: {reason}") from error


class Blobs:
    """The blob folder of one store."""

    def __init__(
        self, root: Path, unclaimed: Path, *, minimum_free_bytes: int, calls: SystemCalls | None = None
    ) -> None:
        """`unclaimed` is where `reconcile` sets aside what no row names; both folders must lie on one file system."""
        self._root, self._unclaimed = root, unclaimed
        self._minimum_free_bytes = minimum_free_bytes
        self._calls = calls or SystemCalls()
        self._serial = itertools.count()
        self._durable_folders: set[str] = set()
        self._staged: dict[str, Path] = {}

    def prepare(self) -> Self:
        """Create the folders and make their entries durable.

        Raises: DiskFull, StoreUnavailable.
        """
        with _translated():
            for folder in (self._root, self._unclaimed):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._sync_folder(folder.parent)
        return self

    def write(self, data: bytes | Arriving) -> str:
        """Make bytes, or what has arrived, durable and return their name.

        Raises: DiskFull, StoreUnavailable. After an error nothing is promised.
        """
        if isinstance(data, Arriving):
            return self._name(data.path, data.seal())
        name = hashlib.sha256(data).hexdigest()
        partial = self._staged.pop(name, None) or self._write_synced(name, data)
        try:
            return self._name(partial, name)
        except BaseException:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise

    def arriving(self) -> Arriving:
        """Begin a blob whose bytes come piece by piece; `write` gives it its name, `discard` removes it."""
        return Arriving(
            self._root / f"{os.getpid()}-{next(self._serial)}{_PARTIAL}",
            write=self._calls.write,
            fsync=self._calls.fsync,
            require_space=self._require_space,
            translated=_translated,
        )

    def stage(self, data: bytes) -> str:
        """Write bytes that may be wanted soon; `write` then has only to name them, `unstage` removes them.

        Returns the name that they will have. Until then they are a half-written file, which the next start removes.
        Raises: DiskFull, StoreUnavailable.
        """
        name = hashlib.sha256(data).hexdigest()
        if name not in self._staged:
            self._staged[name] = self._write_synced(name, data)
        return name

    def unstage(self, name: str) -> None:
        """Remove what was staged under that name, unless it was written since."""
        if (staged := self._staged.pop(name, None)) is not None:
            with contextlib.suppress(OSError):
                staged.unlink(missing_ok=True)

    def close(self) -> None:
        """Remove what is staged still."""
        for name in tuple(self._staged):
            self.unstage(name)

    def ensure(self, name: str, data: bytes | Arriving) -> None:
        """Write the bytes of that name again if they were removed since; a write transaction keeps them from going.

        Raises: DiskFull, StoreUnavailable; also for what arrived, whose bytes are not at hand: its sender tries again.
        """
        if self._path(name).exists():
            return
        if isinstance(data, Arriving):
            raise StoreUnavailable("the same image was removed while it came again")
        self.write(data)

    def remove(self, name: str) -> None:
        """Remove the bytes of that name, if they are there.

        Raises: StoreUnavailable.
        """
        with _translated():
            self._path(name).unlink(missing_ok=True)

    def remove_unclaimed(self, before: datetime) -> int:
        """Remove what was set aside before this time and return how many files that were.

        Raises: StoreUnavailable.
        """
        removed = 0
        with _translated():
            for stray in self._unclaimed.iterdir():
                # A file's change time is when it was renamed.
                if stray.stat().st_ctime < before.timestamp():
                    stray.unlink(missing_ok=True)
                    removed += 1
        return removed

    def read(self, name: str) -> bytes:
        """Return the bytes of a blob, verified.

        Raises: BlobDamaged, StoreUnavailable.
        """
        with _translated():
            try:
                data = self._path(name).read_bytes()
            except FileNotFoundError as error:
                raise BlobDamaged(f"blob {name[:12]} is missing") from error
        if hashlib.sha256(data).hexdigest() != name:
            raise BlobDamaged(f"blob {name[:12]} no longer matches its SHA-256")
        return data

    def read_instance(self, instance: StoredInstance) -> bytes:
        """Return the Part 10 bytes of a received instance, verified.

        Raises: BlobDamaged, StoreUnavailable.
        """
        return self.read(instance.blob)

    def reconcile(
        self, named: Callable[[str], set[str]], purged: Callable[[str], set[str]] = lambda _: set()
    ) -> Inventory:
        """Compare the folder with the rows; only the process that owns the store may do so.

        `named` returns the blobs that rows need, by the first two characters, and `purged` those that they are done
        with: what a crash left of these is removed. A blob without a row was never promised (power was lost before the
        commit), but it may also be the last copy if an operator replaced the database: it is set aside, not removed.

        Raises: StoreUnavailable.
        """
        partial = unclaimed = missing = 0
        with _translated():
            for stray in self._root.glob(f"*{_PARTIAL}"):
                stray.unlink()
                partial += 1
            for prefix in (f"{number:02x}" for number in range(256)):
                present, removed = self._sweep(prefix)
                expected = named(prefix)
                strays = present - expected
                for name in strays & (done := purged(prefix)):
                    self._path(name).unlink()
                for name in strays - done:
                    self._calls.replace(self._path(name), self._unclaimed / name)
                partial += removed
                unclaimed += len(strays - done)
                missing += len(expected - present)
        found = Inventory(partial=partial, unclaimed=unclaimed, missing=missing)
        if partial or unclaimed:
            log.warning("blobs-unclaimed", extra={"partial": partial, "set_aside": unclaimed})
        if missing:
            log.error("blobs-missing", extra={"missing": missing})
        return found

    def _sweep(self, prefix: str) -> tuple[set[str], int]:
        """Return the blobs of one folder, having removed its half-written files, and how many those were."""
        folder, present, removed = self._root / prefix, set(), 0
        if not folder.is_dir():
            return set(), 0
        for name in os.listdir(folder):  # noqa: PTH208 names suffice, and there may be thousands
            if name.endswith(_PARTIAL):
                (folder / name).unlink()
                removed += 1
            elif _NAME.fullmatch(name):
                present.add(name)
        return present, removed

    def _name(self, partial: Path, name: str) -> str:
        """Give synced bytes their name, durably, and return it."""
        with _translated():
            folder = self._durable_folder(name[:2])
            self._calls.replace(partial, folder / name)
            self._sync_folder(folder)
        return name

    def _path(self, name: str) -> Path:
        if _NAME.fullmatch(name) is None:
            raise ValueError("a blob is named by a SHA-256 in lower-case hexadecimal")
        return self._root / name[:2] / name

    def _require_space(self, size_bytes: int) -> None:
        free = self._calls.free_bytes(self._root)
        if free - size_bytes < self._minimum_free_bytes:
            raise DiskFull(f"{free} bytes are free; {self._minimum_free_bytes} are to be kept free")

    def _durable_folder(self, prefix: str) -> Path:
        """Return a folder whose own entry is durable.

        That a folder exists does not mean so: a former process may have died between mkdir and fsync.
        """
        folder = self._root / prefix
        if prefix not in self._durable_folders:
            folder.mkdir(mode=0o700, exist_ok=True)
            self._sync_folder(self._root)
            self._durable_folders.add(prefix)
        return folder

    def _write_synced(self, name: str, data: bytes) -> Path:
        """Write and sync bytes in the folder of their name, and return the file, which has not got it yet."""
        with _translated():
            self._require_space(len(data))
            partial = self._durable_folder(name[:2]) / f"{name}.{os.getpid()}-{next(self._serial)}{_PARTIAL}"
            try:
                self._write_all(partial, data)
            except BaseException:
                with contextlib.suppress(OSError):
                    partial.unlink(missing_ok=True)
                raise
        return partial

    def _write_all(self, path: Path, data: bytes) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[self._calls.write(descriptor, rest) :]
            self._calls.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _sync_folder(self, folder: Path) -> None:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self._calls.fsync(descriptor)
        finally:
            os.close(descriptor)
