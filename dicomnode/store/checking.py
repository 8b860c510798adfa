"""Whether a store that no node runs on keeps its promise: database, blobs, and the books, each read whole."""

import contextlib
import hashlib
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dicomnode.domain.errors import ConfigurationError, StoreDamaged
from dicomnode.store.database import Database, migrations
from dicomnode.store.ledger import Ledger
from dicomnode.store.places import BLOBS, DATABASE, QUARANTINE

_CHUNK = 1 << 20

NAMED = "SELECT blob FROM instance WHERE purged_at IS NULL UNION SELECT blob FROM result WHERE purged_at IS NULL"

INSTANCES = "SELECT COUNT(*) FROM instance"
ARRIVALS = "SELECT COUNT(*) FROM event WHERE kind IN ('received', 'replaced')"
STUDIES = "SELECT COUNT(DISTINCT study) FROM instance"

# One report per set of results and version; what is answered or rejected owes no image an answer.
ANSWERED_TWICE = """
SELECT job.study FROM job_result JOIN job USING (job_id) JOIN result USING (result_id)
WHERE result.kind = 'sr' GROUP BY job.job_id, result.prefix HAVING COUNT(*) > 1
"""
WITHOUT_JOB = "SELECT study FROM instance WHERE current = 1 AND study NOT IN (SELECT study FROM job)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was looked at: how much of it there is, and how much of that is wrong."""

    name: str
    examined: int
    wrong: int
    detail: str


def check_store(path: Path) -> tuple[Check, ...]:
    """Check a store whose lock the caller holds. Reads every byte of it.

    Raises: ConfigurationError (of a newer version, or another program's), StoreUnavailable.
    """
    try:
        with opened(path) as database:
            return (
                _check_pages(database),
                *_check_blobs(path, database),
                _check_arrivals(database),
                _check_balance(database),
                _check_answers(database),
            )
    except StoreDamaged:
        return (Check(name="database", examined=1, wrong=1, detail="missing or damaged: --repair rebuilds it"),)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Database]:
    """Open the database of a store, brought up to date.

    Raises: StoreDamaged, also when it is missing; ConfigurationError, StoreUnavailable.
    """
    if not (path / DATABASE).is_file():
        raise StoreDamaged(f"the store {path} has no database")
    with contextlib.closing(Database(path / DATABASE)) as database:
        database.migrate(migrations())
        yield database


def damaged_blobs(path: Path, database: Database) -> tuple[int, tuple[str, ...], tuple[str, ...]]:
    """Return how many blobs rows name, which of them are missing, and which no longer match their digest.

    One that lies in quarantine is counted, and is neither: its study says what it wants.
    """
    with database.reading() as connection:
        names = [row["blob"] for row in connection.execute(NAMED)]
    missing, damaged = [], []
    for name in names:
        try:
            if digest_of(blob_path(path, name)) != name:
                damaged.append(name)
        except FileNotFoundError:
            if not (path / QUARANTINE / name).exists():
                missing.append(name)
    return len(names), tuple(missing), tuple(damaged)


def blob_path(path: Path, name: str) -> Path:
    """Return where the blob of that name lies in a store."""
    return path / BLOBS / name[:2] / name


def digest_of(file: Path) -> str:
    """Return the SHA-256 of a file. Raises: FileNotFoundError; ConfigurationError when it cannot be read."""
    digest = hashlib.sha256()
    try:
        with file.open("rb") as opened_file:
            while chunk := opened_file.read(_CHUNK):
                digest.update(chunk)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def _check_pages(database: Database) -> Check:
    with database.reading() as connection:
        pages = int(connection.execute("PRAGMA page_count").fetchone()[0])
        found = [row[0] for row in connection.execute("PRAGMA integrity_check(100)").fetchall()]
        dangling = connection.execute("PRAGMA foreign_key_check").fetchall()
    faults = [] if found == ["ok"] else found
    if faults:
        raise StoreDamaged("the database is damaged")
    return Check(name="database pages", examined=pages, wrong=len(dangling), detail="rows that refer to nothing")


def _check_blobs(path: Path, database: Database) -> Iterator[Check]:
    examined, missing, damaged = damaged_blobs(path, database)
    yield Check(name="blobs of rows", examined=examined, wrong=len(missing), detail=_shown("missing", missing))
    yield Check(name="digests", examined=examined, wrong=len(damaged), detail=_shown("damaged", damaged))
    with database.reading() as connection:
        named = {row["blob"] for row in connection.execute(NAMED)}
    present = [file.name for file in (path / BLOBS).rglob("*") if file.is_file()]
    strays = tuple(name for name in present if name not in named)
    yield Check(name="files of blobs", examined=len(present), wrong=len(strays), detail=_shown("without a row", strays))


def _check_arrivals(database: Database) -> Check:
    """Every image that the ledger says was accepted has a row, and none has a row without having come."""
    with database.reading() as connection:
        rows, arrivals = _count(connection, INSTANCES), _count(connection, ARRIVALS)
    detail = f"{arrivals} in the ledger, {rows} rows"
    return Check(name="accepted images", examined=arrivals, wrong=abs(arrivals - rows), detail=detail)


def _check_balance(database: Database) -> Check:
    balance = Ledger(database).balance()
    counts = {name: getattr(balance, name) for name in balance.__slots__}
    detail = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    return Check(name="fates of images", examined=sum(counts.values()), wrong=balance.unaccounted, detail=detail)


def _check_answers(database: Database) -> Check:
    with database.reading() as connection:
        studies = _count(connection, STUDIES)
        twice = {row["study"] for row in connection.execute(ANSWERED_TWICE)}
        never = {row["study"] for row in connection.execute(WITHOUT_JOB)}
    detail = _shown("without exactly one answer or job", tuple(twice | never))
    return Check(name="studies", examined=studies, wrong=len(twice | never), detail=detail)


def _count(connection: sqlite3.Connection, statement: str) -> int:
    return int(connection.execute(statement).fetchone()[0])


def _shown(what: str, names: tuple[str, ...]) -> str:
    return f"{what}: {', '.join(name[:16] for name in names[:3])}{', …' if len(names) > 3 else ''}" if names else ""
