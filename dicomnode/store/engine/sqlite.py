"""The SQLite engine: opening, migrating, transactions, checks, and what SQLite's errors mean to a caller.

A commit is durable when `transaction` ends: write-ahead log, `synchronous=FULL`. The writers of this process wait for
one connection, because SQLite admits one writer at a time and a lock is fairer than its busy handler. Readers take
connections of their own from a pool. Nothing else in the store commits.
"""

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path

from dicomnode.domain.errors import ConfigurationError, DiskFull, StoreDamaged, StoreUnavailable
from dicomnode.store.engine.connection import Connection, Row

APPLICATION_ID = 0x4358524E
"""'CXRN', written into the file by the first migration."""

_OLDEST_SQLITE = (3, 37, 0)
_REMEDY = "`cxrnode store check --repair` moves it aside and rebuilds it from the stored images"
_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_REFUSED = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_INTERRUPT,
    }
)


def engine_version() -> str:
    """Return the engine's name and version."""
    return f"SQLite {sqlite3.sqlite_version}"


def migrations() -> tuple[str, ...]:
    """Return the schema's scripts in order; the place of a script is the version it leads to."""
    folder = files("dicomnode.store.engine") / "schema" / "sqlite"
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".sql"))
    return tuple((folder / name).read_text(encoding="utf-8") for name in names)


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    """Raise SQLite's errors as the node's own; a violated constraint is a fault of the program and stays."""
    try:
        yield
    except sqlite3.Error as error:
        code = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
        if code in _DAMAGED:
            raise StoreDamaged(f"the database {path} is damaged: {_REMEDY}") from error
        if code == sqlite3.SQLITE_FULL:
            raise DiskFull("the database could not grow") from error
        if code in _REFUSED:
            raise StoreUnavailable(f"the database refused: {getattr(error, 'sqlite_errorname', 'unknown')}") from error
        raise


class Database:
    """Connections to one store's database."""

    def __init__(self, path: Path, *, busy_timeout_s: float = 10.0) -> None:
        """Open or create the file; `migrate` or `require_current` must follow.

        Raises: ConfigurationError, StoreUnavailable.
        """
        if sqlite3.sqlite_version_info < _OLDEST_SQLITE:
            raise ConfigurationError(f"SQLite {sqlite3.sqlite_version} is too old: 3.37 or newer is needed")
        self._path, self._busy_timeout_s = path, busy_timeout_s
        self._writing = threading.Lock()
        self._pool_lock = threading.Lock()
        self._idle: list[sqlite3.Connection] = []
        self._closed = False
        try:
            # SQLite gives its log and index files the mode of the database.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        except OSError as error:
            raise ConfigurationError(f"the database {path} is not writable: {error.strerror}") from error
        self._writer = self._connect()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Yield the write connection; what was written is durable after the block, and undone if the block raised.

        Raises: StoreUnavailable, DiskFull, ConfigurationError (a damaged file).
        """
        with self._writing, _translated(self._path):
            if self._closed:
                raise StoreUnavailable("the store is closed")
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield self._writer
                self._writer.execute("COMMIT")
            except BaseException:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """Yield a connection whose reads all see the same state of the store.

        Raises: StoreUnavailable, ConfigurationError (a damaged file).
        """
        with _translated(self._path):
            connection = self._borrow()
            try:
                connection.execute("BEGIN")
                yield connection
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                self._give_back(connection)

    @contextlib.contextmanager
    def without_writers(self) -> Iterator[Connection]:
        """Yield a connection to read with, while no thread of this process writes.

        Unlike `transaction` it does not wait for other processes. Raises: StoreUnavailable, ConfigurationError.
        """
        with self._writing, self.reading() as connection:
            yield connection

    def migrate(self, scripts: Sequence[str]) -> None:
        """Bring the schema to the newest version, each script in a transaction of its own.

        Raises: ConfigurationError (a newer or foreign file, or a damaged one), StoreUnavailable.
        """
        with self._writing, _translated(self._path):
            version = self._known_version(len(scripts))
            for number, script in enumerate(scripts[version:], start=version + 1):
                try:
                    self._writer.executescript(f"BEGIN IMMEDIATE;\n{script}\nPRAGMA user_version = {number};\nCOMMIT;")
                except sqlite3.Error:
                    if self._writer.in_transaction:
                        self._writer.execute("ROLLBACK")
                    raise

    def is_current(self, scripts: Sequence[str]) -> bool:
        """Tell whether the schema is that of these scripts.

        Raises: ConfigurationError (a newer or foreign file, or a damaged one), StoreUnavailable.
        """
        with self._writing, _translated(self._path):
            return self._known_version(len(scripts)) == len(scripts)

    def check(self) -> None:
        """Read every page once.

        Raises: ConfigurationError, if the file is damaged.
        """
        with self.reading() as connection:
            verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if verdict != "ok":
            raise StoreDamaged(f"the database {self._path} is damaged: {_REMEDY}")

    def examine(self) -> tuple[int, int]:
        """Examine every page, index and reference; return the number of pages and of rows that refer to nothing.

        Raises: StoreDamaged; StoreUnavailable.
        """
        with self.reading() as connection:
            pages = int(connection.execute("PRAGMA page_count").fetchone()[0])
            found = [row[0] for row in connection.execute("PRAGMA integrity_check(100)").fetchall()]
            dangling = connection.execute("PRAGMA foreign_key_check").fetchall()
        if found != ["ok"]:
            raise StoreDamaged(f"the database {self._path} is damaged: {_REMEDY}")
        return pages, len(dangling)

    def schema_version(self) -> int:
        """Return how many migrations the database has gone through. Raises: StoreUnavailable."""
        with self.reading() as connection:
            return int(connection.execute("PRAGMA user_version").fetchone()[0])

    def close(self) -> None:
        """Close every connection, which writes the log into the file; later calls raise StoreUnavailable."""
        with self._writing, self._pool_lock:
            self._closed = True
            self._writer.close()
            for connection in self._idle:
                connection.close()
            self._idle.clear()

    def _known_version(self, newest: int) -> int:
        version = int(self._writer.execute("PRAGMA user_version").fetchone()[0])
        owner = int(self._writer.execute("PRAGMA application_id").fetchone()[0])
        empty = self._writer.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone() is None
        if owner != APPLICATION_ID and not (owner == 0 and version == 0 and empty):
            raise ConfigurationError(f"{self._path} is the database of another program")
        if version > newest:
            raise ConfigurationError(
                f"the store {self._path.parent} was written by a newer version (schema {version}, known {newest})"
            )
        return version

    def _connect(self) -> sqlite3.Connection:
        with _translated(self._path):
            # Autocommit: transactions are begun and ended in plain sight above.
            connection = sqlite3.connect(
                self._path, timeout=self._busy_timeout_s, isolation_level=None, check_same_thread=False
            )
            try:
                connection.row_factory = sqlite3.Row
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = FULL")
                connection.execute("PRAGMA foreign_keys = ON")
            except sqlite3.Error:
                connection.close()
                raise
            return connection

    def _borrow(self) -> sqlite3.Connection:
        with self._pool_lock:
            if self._closed:
                raise StoreUnavailable("the store is closed")
            if self._idle:
                return self._idle.pop()
        return self._connect()

    def _give_back(self, connection: sqlite3.Connection) -> None:
        with self._pool_lock:
            if self._closed:
                connection.close()
            else:
                self._idle.append(connection)


def read_what_is_readable(path: Path, statement: str) -> Iterator[Row]:
    """Yield the rows of a query of a damaged database, up to the first that cannot be read."""
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
    except sqlite3.Error:
        return
    with contextlib.closing(connection), contextlib.suppress(sqlite3.Error):
        connection.row_factory = sqlite3.Row
        yield from connection.execute(statement)
