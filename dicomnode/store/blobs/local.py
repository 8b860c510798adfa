"""Blobs in a local folder: durable once `write` returns, verified whenever they are read.

A blob is named by the SHA-256 of its bytes and lies in one of 256 folders, `blobs/ab/ab12…`. No name is ever made of a
peer's string. The order that makes a blob durable is temporary file, fsync, rename, fsync of the folder; the folder's
own entry was made durable when this process first used it.

The file mode says whether a blob is an image that was acknowledged to its sender: 0600 until its row is committed, then
0400 (`acknowledge`). So even without its row, as after the restore of an older database, an acknowledged image is known
as one and is never removed; bytes that were not acknowledged may be. A volume driver may make every file writable for
a group (Kubernetes' fsGroup), which hides the mark: such files count as acknowledged too.
"""

import contextlib
import errno
import hashlib
import itertools
import logging
import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Self

from dicomnode.domain.errors import BlobDamaged, DiskFull, StoreUnavailable
from dicomnode.domain.instance import StoredInstance
from dicomnode.formatting import format_size
from dicomnode.store.blobs.streamed import Arriving

log = logging.getLogger(__name__)

_NAME = re.compile(r"[0-9a-f]{64}")
_ACKNOWLEDGED_MODE = 0o400
_CHUNK_BYTES = 1 << 20
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
class StagedBlob:
    """Bytes that are synced in a file without their name; `Blobs.write` names them, `Blobs.discard` removes them."""

    name: str
    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobNames:
    """The blobs that rows name: of received images, of results, and of rows whose bytes are purged."""

    images: frozenset[str] = frozenset()
    results: frozenset[str] = frozenset()
    purged: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """What `reconcile` found, as numbers of files.

    `partial`: half-written, removed. `unclaimed`: without a row and never acknowledged, set aside. `acknowledged`:
    images without a row that were acknowledged, set aside. `missing`: named by a row and not there.
    """

    partial: int = 0
    unclaimed: int = 0
    acknowledged: int = 0
    missing: int = 0


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Raise an error of the file system as one of the node's own."""
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
        """`unclaimed` is where `reconcile` puts files that no row names; both folders must lie on one file system."""
        self._root, self._unclaimed = root, unclaimed
        self._minimum_free_bytes = minimum_free_bytes
        self._calls = calls or SystemCalls()
        self._serial = itertools.count()
        self._durable_folders: set[str] = set()

    def prepare(self) -> Self:
        """Create the folders and make their entries durable.

        Raises: DiskFull, StoreUnavailable.
        """
        with _translated():
            for folder in (self._root, self._unclaimed):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._sync_folder(folder.parent)
        return self

    def write(self, data: bytes | Arriving, staged: StagedBlob | None = None) -> str:
        """Make bytes durable and return their name; `staged`: the same bytes, if they are synced in a file already.

        Raises: DiskFull, StoreUnavailable. After an error nothing is promised.
        """
        if isinstance(data, Arriving):
            return self._name(data.path, data.seal())
        if staged is not None and staged.path.exists():
            partial, name = staged.path, staged.name
        else:
            name = hashlib.sha256(data).hexdigest()
            partial = self._write_synced(name, data)
        try:
            return self._name(partial, name)
        except BaseException:
            _remove_quietly(partial)
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

    def stage(self, data: bytes) -> StagedBlob:
        """Write and sync bytes that may soon be needed, without naming them.

        The file counts as half-written: the next start removes it. Raises: DiskFull, StoreUnavailable.
        """
        name = hashlib.sha256(data).hexdigest()
        return StagedBlob(name=name, path=self._write_synced(name, data))

    def discard(self, staged: StagedBlob) -> None:
        """Remove staged bytes, if they were not named."""
        _remove_quietly(staged.path)

    def acknowledge(self, name: str) -> None:
        """Mark a blob as an image whose reception is about to be acknowledged; its row must be committed.

        Raises: StoreUnavailable.
        """
        with _translated():
            self._path(name).chmod(_ACKNOWLEDGED_MODE)

    def exists(self, name: str) -> bool:
        """Tell whether there are bytes of that name, intact or not."""
        return self._path(name).exists()

    def is_intact(self, name: str) -> bool:
        """Tell whether the bytes of that name are there and match it. Raises: StoreUnavailable."""
        digest = hashlib.sha256()
        with _translated():
            try:
                with self._path(name).open("rb") as file:
                    while chunk := file.read(_CHUNK_BYTES):
                        digest.update(chunk)
            except FileNotFoundError:
                return False
        return digest.hexdigest() == name

    def ensure(self, name: str, data: bytes | Arriving) -> None:
        """Write the bytes of that name again if they were removed; the caller's write transaction keeps them there.

        Raises: DiskFull, StoreUnavailable. StoreUnavailable also for `Arriving`, whose bytes are gone: the sender then
        sends the image again.
        """
        if self._path(name).exists():
            return
        if isinstance(data, Arriving):
            raise StoreUnavailable("the same image was removed while it was received again")
        self.write(data)

    def remove(self, name: str) -> None:
        """Remove the bytes of that name, if they are there.

        Raises: StoreUnavailable.
        """
        with _translated():
            self._path(name).unlink(missing_ok=True)

    def acknowledged_without_row(self) -> tuple[Path, ...]:
        """Return the files of acknowledged images that were set aside because no row names them.

        An image that was sent again since is not among them. Raises: StoreUnavailable.
        """
        with _translated():
            if not self._unclaimed.is_dir():
                return ()
            return tuple(sorted(file for file in self._unclaimed.iterdir() if self._is_only_copy(file)))

    def remove_unclaimed(self, before: datetime) -> int:
        """Remove files that were set aside before this time, but no acknowledged images; return their number.

        Raises: StoreUnavailable.
        """
        removed = 0
        with _translated():
            for stray in self._unclaimed.iterdir():
                # A file's change time is when it was renamed.
                if stray.stat().st_ctime < before.timestamp() and not self._is_only_copy(stray):
                    stray.unlink(missing_ok=True)
                    removed += 1
        return removed

    def _is_only_copy(self, file: Path) -> bool:
        """Tell whether a file that was set aside is an acknowledged image that the store does not have otherwise."""
        return is_acknowledged(file) and not self._path(file.name).exists()

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

    def reconcile(self, names_of: Callable[[str], BlobNames]) -> Inventory:
        """Compare the folder with the rows; only the process that owns the store may do so.

        `names_of` returns the blobs that rows name whose names begin with two characters. Files of purged rows are
        removed: a crash left them. A file without a row is set aside: it was not promised if power was lost before the
        commit, but it may be the last copy if the database was replaced by an older one. A file that was set aside and
        that a row names now is brought back.

        Raises: StoreUnavailable.
        """
        partial, found = 0, Inventory()
        with _translated():
            for stray in self._root.glob(f"*{_PARTIAL}"):
                stray.unlink()
                partial += 1
            for prefix in (f"{number:02x}" for number in range(256)):
                swept = self._reconcile_folder(prefix, names_of(prefix))
                found = Inventory(
                    partial=found.partial + swept.partial,
                    unclaimed=found.unclaimed + swept.unclaimed,
                    acknowledged=found.acknowledged + swept.acknowledged,
                    missing=found.missing + swept.missing,
                )
        found = replace(found, partial=found.partial + partial)
        _log_inventory(found)
        return found

    def _reconcile_folder(self, prefix: str, names: BlobNames) -> Inventory:
        folder, expected = self._root / prefix, names.images | names.results
        modes, partial = _sweep(folder)
        for name in names.images & {name for name, mode in modes.items() if not _is_marked(mode)}:
            # Committed by a former version, or power was lost before the mode was on disk.
            (folder / name).chmod(_ACKNOWLEDGED_MODE)
        strays = modes.keys() - expected
        for name in strays & names.purged:
            (folder / name).unlink()
        set_aside = strays - names.purged
        for name in set_aside:
            self._calls.replace(folder / name, self._unclaimed / name)
        acknowledged = sum(_is_marked(modes[name]) for name in set_aside)
        missing = sum(not self._reclaim(name) for name in expected - modes.keys())
        return Inventory(
            partial=partial,
            unclaimed=len(set_aside) - acknowledged,
            acknowledged=acknowledged,
            missing=missing,
        )

    def _reclaim(self, name: str) -> bool:
        """Bring back a file that was set aside while another database was in use; tell whether there was one."""
        if not (self._unclaimed / name).exists():
            return False
        self._name(self._unclaimed / name, name)
        return True

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
            raise DiskFull(f"{format_size(free)} free; {format_size(self._minimum_free_bytes)} must stay free")

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


def is_blob_name(name: str) -> bool:
    """Tell whether a file's name is one that the node gives to blobs."""
    return _NAME.fullmatch(name) is not None


def is_acknowledged(file: Path) -> bool:
    """Tell whether a blob's file is an image that was, or may have been, acknowledged to its sender."""
    return is_blob_name(file.name) and _is_marked(file.stat().st_mode)


def _is_marked(mode: int) -> bool:
    """Tell whether the mode of a file marks an acknowledged image, or may hide that mark."""
    return not mode & stat.S_IWUSR or bool(mode & stat.S_IWGRP)


def _sweep(folder: Path) -> tuple[dict[str, int], int]:
    """Return the modes of the blobs in a folder, having removed half-written files, and the number of those."""
    modes: dict[str, int] = {}
    removed = 0
    if not folder.is_dir():
        return modes, removed
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(_PARTIAL):
                os.unlink(entry.path)  # noqa: PTH108 there may be thousands of entries
                removed += 1
            elif _NAME.fullmatch(entry.name):
                modes[entry.name] = stat.S_IMODE(entry.stat(follow_symlinks=False).st_mode)
    return modes, removed


def _log_inventory(found: Inventory) -> None:
    if found.partial or found.unclaimed:
        log.warning("blobs-unclaimed", extra={"partial": found.partial, "set_aside": found.unclaimed})
    if found.acknowledged:
        log.error("acknowledged-images-without-row", extra={"images": found.acknowledged})
    if found.missing:
        log.error("blobs-missing", extra={"missing": found.missing})


def _remove_quietly(file: Path) -> None:
    with contextlib.suppress(OSError):
        file.unlink(missing_ok=True)
