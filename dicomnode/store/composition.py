"""The parts of the store, opened and closed together."""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from dicomnode.domain.errors import ConfigurationError, StoreUnavailable
from dicomnode.settings.node import AssemblySettings, RetentionSettings, StoreSettings
from dicomnode.store.audit import AuditOutbox
from dicomnode.store.blob_references import reconcile
from dicomnode.store.blobs.local import Blobs, SystemCalls
from dicomnode.store.commitments import Commitments
from dicomnode.store.counters import Statistics, Watching
from dicomnode.store.deliveries import Outbox
from dicomnode.store.engine import Database, migrations
from dicomnode.store.engine.lock import StoreLock
from dicomnode.store.jobs import Inbox
from dicomnode.store.layout import BLOBS, DATABASE, LOCK, SEARCH_KEY, UNCLAIMED
from dicomnode.store.ledger import Ledger
from dicomnode.store.reception import Reception
from dicomnode.store.retention import Retention
from dicomnode.store.studies import SearchIndex, Studies


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """The parts of one store, in one folder: `store.db`, `blobs/`, and `unclaimed/` for files without a row."""

    reception: Reception
    inbox: Inbox
    outbox: Outbox
    commitments: Commitments
    retention: Retention
    ledger: Ledger
    audit: AuditOutbox
    statistics: Statistics
    studies: Studies
    watching: Watching
    blobs: Blobs
    _database: Database
    _lock: StoreLock | None

    @classmethod
    def open(
        cls,
        settings: StoreSettings,
        assembly: AssemblySettings,
        *,
        exclusive: bool,
        retention: RetentionSettings | None = None,
        audited: bool = False,
        calls: SystemCalls | None = None,
        busy_timeout_s: float = 10.0,
    ) -> Self:
        """Open the store.

        `exclusive`: for a node, which creates, checks and reconciles the store; other commands open it beside the node.
        `audited`: retention waits for the audit trail, which must then run.

        Raises: ConfigurationError (in use by another node, of a newer version, damaged, absent, or not writable),
        DiskFull, StoreUnavailable.
        """
        with contextlib.ExitStack() as opened:
            lock = _own(settings.path, opened) if exclusive else None
            if not exclusive:
                _require_store(settings.path)
            database = Database(settings.path / DATABASE, busy_timeout_s=busy_timeout_s)
            opened.callback(database.close)
            blobs = _blobs(settings, calls)
            search = SearchIndex.of(settings.path / SEARCH_KEY, create=exclusive)
            if exclusive:
                _prepare(database, blobs, settings.path)
            else:
                _bring_up_to_date(database, settings.path)
            store = cls(
                reception=Reception(database, blobs, assembly),
                inbox=Inbox(database, blobs, assembly, search),
                studies=Studies(database, search),
                outbox=Outbox(database, blobs),
                commitments=Commitments(database),
                retention=Retention(database, blobs, retention or RetentionSettings(), audited=audited),
                ledger=Ledger(database),
                audit=AuditOutbox(database),
                statistics=Statistics(database, settings.path),
                watching=Watching(database, blobs),
                blobs=blobs,
                _database=database,
                _lock=lock,
            )
            opened.pop_all()
        return store

    def close(self) -> None:
        """Close the database and let another node have the store."""
        self._database.close()
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _own(path: Path, opened: contextlib.ExitStack) -> StoreLock:
    """Create the store's folder and take its lock."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"the store {path} cannot be created: {error.strerror}; "
            "choose another folder (store.path, --store), or let the user who runs the node write there"
        ) from error
    lock = StoreLock.acquire(path / LOCK)
    opened.callback(lock.release)
    return lock


def _blobs(settings: StoreSettings, calls: SystemCalls | None) -> Blobs:
    return Blobs(
        settings.path / BLOBS, settings.path / UNCLAIMED, minimum_free_bytes=settings.minimum_free_bytes, calls=calls
    )


def _require_store(path: Path) -> None:
    if not (path / DATABASE).is_file():
        raise ConfigurationError(
            f"there is no store at {path}: name the node's with --store or --config; its first start makes it"
        )


def _prepare(database: Database, blobs: Blobs, path: Path) -> None:
    """Migrate the database, read every page of it once, and compare blobs with rows."""
    database.migrate(migrations())
    database.check()
    try:
        for folder in (path, path.parent):
            _sync(folder)
    except OSError as error:
        raise StoreUnavailable(f"the store {path} cannot be made durable: {error.strerror}") from error
    reconcile(database, blobs.prepare())


def _bring_up_to_date(database: Database, path: Path) -> None:
    """Migrate an older store; only while no node runs on it."""
    if database.is_current(migrations()):
        return
    lock = StoreLock.acquire(path / LOCK)
    try:
        database.migrate(migrations())
    finally:
        lock.release()


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
