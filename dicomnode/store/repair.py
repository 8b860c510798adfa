"""Whether a store that no node runs on keeps its promise: database, blobs, and the books, each read whole.

Bringing a damaged store back to a state that a node can run on. Nothing is deleted: what is damaged is moved aside.

A database that is damaged or gone is built anew from the blobs: every image is received again, in the order of the
files, so its study is answered again. The results are the same instances, since their UIDs derive from the images. What
only the database knew is lost: the ledger's past, who sent what (unless it can still be read), and what was delivered.

A blob that is damaged goes to `quarantine/`. If an answer is owed for it, its study becomes a dead letter.
"""

import contextlib
import hashlib
import os
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from dicomnode.domain.errors import ConfigurationError, StoreDamaged, StoreUnavailable, UidMismatch
from dicomnode.domain.instance import AssociationInfo, InstanceRef
from dicomnode.settings.node import AssemblySettings
from dicomnode.store.blobs.local import Blobs
from dicomnode.store.composition import reconcile
from dicomnode.store.engine.sqlite import Database, migrations
from dicomnode.store.jobs import Inbox
from dicomnode.store.layout import BLOBS, DATABASE, QUARANTINE, UNCLAIMED
from dicomnode.store.ledger import Ledger
from dicomnode.store.reception import Reception
from dicomnode.store.row_mapping import EventKind, record, to_text

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


Identify = Callable[[bytes], tuple[InstanceRef, str] | None]
"""From Part 10 bytes to an image's UIDs and transfer syntax; None for what is no received image."""

_REBUILT = "rebuilt.db"
_UNKNOWN = AssociationInfo(association_id="rebuilt", calling_ae="UNKNOWN", called_ae="UNKNOWN", peer_address="")

SENDERS = "SELECT sop_instance, association.* FROM instance JOIN association USING (association_id)"

OWED = """
SELECT DISTINCT job_id, job.study, version, job.state FROM instance JOIN job USING (job_id)
WHERE blob = ? AND purged_at IS NULL AND fate IS NULL AND current = 1 AND state IN ('collecting', 'waiting', 'dead')
"""
# The table of moves knows no way from waiting to dead but through work.
TAKE_JOB = "UPDATE job SET state = 'working', due_at = NULL WHERE job_id = :id AND state IN ('collecting', 'waiting')"
BURY_JOB = """
UPDATE job SET state = 'dead', due_at = NULL, last_error = :cause, changed_at = :now
WHERE job_id = :id AND state = 'working'
"""
GIVE_UP_IMAGES = """
UPDATE instance SET purged_at = :now WHERE blob = :blob AND purged_at IS NULL
    AND (fate IS NOT NULL OR current = 0 OR job_id NOT IN (SELECT job_id FROM job WHERE state = 'dead'))
RETURNING study
"""

UNSENT = """
SELECT delivery_id, study FROM delivery JOIN result USING (result_id) WHERE blob = ? AND delivery.state = 'waiting'
"""
TAKE_DELIVERY = "UPDATE delivery SET state = 'sending', next_attempt_at = NULL WHERE delivery_id = :id"
BURY_DELIVERY = "UPDATE delivery SET state = 'dead', last_error = :cause, changed_at = :now WHERE delivery_id = :id"
GIVE_UP_RESULTS = """
UPDATE result SET purged_at = :now WHERE blob = :blob AND purged_at IS NULL
    AND NOT EXISTS (SELECT 1 FROM delivery WHERE delivery.result_id = result.result_id AND delivery.state = 'dead')
RETURNING study
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebuilt:
    """What a new database was made of, and where the former one is now (None: there was none)."""

    images: int
    studies: int
    former: Path | None


def rebuild(path: Path, assembly: AssemblySettings, identify: Identify, now: datetime) -> Rebuilt:
    """Build the database anew from the blobs, in a file that takes the former one's place when it is whole.

    The caller holds the store's lock. Raises: StoreUnavailable, DiskFull.
    """
    new = path / _REBUILT
    with _translated(path):
        for leftover in path.glob(f"{_REBUILT}*"):  # of a repair that was interrupted
            leftover.unlink()
    senders = _salvaged_senders(path / DATABASE)
    studies: set[str] = set()
    images = 0
    with contextlib.closing(Database(new)) as database:
        database.migrate(migrations())
        blobs = Blobs(path / BLOBS, path / UNCLAIMED, minimum_free_bytes=0).prepare()
        reception = Reception(database, blobs, assembly)
        for data, moment in _intact(path):
            found = identify(data)
            if found is None:
                continue
            ref, transfer_syntax = found
            sender = senders.get(ref.sop_instance, _UNKNOWN)
            with contextlib.suppress(UidMismatch):  # it was refused when it came, too
                reception.accept(ref, transfer_syntax, data, sender, moment)
                studies.add(ref.study)
                images += 1
    with _translated(path):
        former = _move_aside(path, now)
        new.replace(path / DATABASE)
        _sync(path)
    return Rebuilt(images=images, studies=len(studies), former=former)


def quarantine(path: Path, database: Database, assembly: AssemblySettings, now: datetime) -> int:
    """Move damaged blobs aside, say in the books what that means, set strays aside; return how many were damaged.

    The caller holds the store's lock. Raises: StoreUnavailable.
    """
    blobs = Blobs(path / BLOBS, path / UNCLAIMED, minimum_free_bytes=0).prepare()
    # As at a start: nothing is in work, since nobody is there.
    Inbox(database, blobs, assembly).recover(now, maximum_attempts=1_000_000)
    _, missing, damaged = damaged_blobs(path, database)
    folder = path / QUARANTINE
    with _translated(path):
        folder.mkdir(mode=0o700, exist_ok=True)
        for name in damaged:
            blob_path(path, name).replace(folder / name)
        for name in missing:
            (folder / name).touch(mode=0o600)  # so that it is known to be
        _sync(folder)
    for name in (*missing, *damaged):
        with database.transaction() as connection:
            _write_off(connection, name, now)
    reconcile(database, blobs)
    return len(missing) + len(damaged)


def _write_off(connection: sqlite3.Connection, name: str, now: datetime) -> None:
    """Make what is owed for a damaged blob a dead letter; what is owed no more is as good as purged."""
    cause = f"BlobDamaged: blob {name[:12]} is damaged: have it sent again, then retry"
    facts = {"blob": name, "now": to_text(now), "cause": cause}
    for row in connection.execute(OWED, (name,)).fetchall():
        connection.execute(TAKE_JOB, {"id": row["job_id"]})
        connection.execute(BURY_JOB, {"id": row["job_id"], "cause": cause, "now": facts["now"]})
        record(connection, now, row["study"], row["version"], EventKind.DEAD, cause)
    for row in connection.execute(UNSENT, (name,)).fetchall():
        connection.execute(TAKE_DELIVERY, {"id": row["delivery_id"]})
        connection.execute(BURY_DELIVERY, {"id": row["delivery_id"], "cause": cause, "now": facts["now"]})
        record(connection, now, row["study"], None, EventKind.DELIVERY_DEAD, cause)
    for statement in (GIVE_UP_IMAGES, GIVE_UP_RESULTS):
        for row in connection.execute(statement, {"blob": name, "now": facts["now"]}).fetchall():
            detail = f"the bytes of blob {name[:12]}, which nothing is owed for, were damaged and are gone"
            record(connection, now, row["study"], None, EventKind.PURGED, detail)


def _intact(path: Path) -> Iterator[tuple[bytes, datetime]]:
    """Yield the bytes of every blob that matches its name, oldest first, with the time of its file."""
    folders = (path / BLOBS, path / UNCLAIMED)
    with _translated(path):
        files = [file for folder in folders if folder.is_dir() for file in folder.rglob("*") if file.is_file()]
        dated = sorted((file.stat().st_mtime_ns, file) for file in files)
    for modified, file in dated:
        if digest_of(file) == file.name:
            with _translated(path):
                data = file.read_bytes()
            yield data, datetime.fromtimestamp(modified / 1e9, UTC)


def _salvaged_senders(database: Path) -> dict[str, AssociationInfo]:
    """Return who sent which SOP instance, as far as a damaged database still tells."""
    senders: dict[str, AssociationInfo] = {}
    if not database.is_file():
        return senders
    with contextlib.suppress(sqlite3.Error), contextlib.closing(_open_to_read(database)) as connection:
        for row in connection.execute(SENDERS):
            senders[row["sop_instance"]] = AssociationInfo(
                association_id=row["association_id"],
                calling_ae=row["calling_ae"],
                called_ae=row["called_ae"],
                peer_address=row["peer_address"],
            )
    return senders


def _open_to_read(database: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)
    connection.row_factory = sqlite3.Row
    return connection


def _move_aside(path: Path, now: datetime) -> Path | None:
    """Move the former database, with its log, into a folder of its own."""
    files = [path / f"{DATABASE}{ending}" for ending in ("", "-wal", "-shm")]
    present = [file for file in files if file.exists()]
    if not present:
        return None
    folder = path / f"damaged-{now.astimezone(UTC):%Y%m%dT%H%M%S%f}"
    folder.mkdir(mode=0o700)
    for file in present:
        file.replace(folder / file.name)
    return folder


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreUnavailable(f"the store {path} could not be used: {error.strerror}") from error
