"""Whether a store keeps its promise, and its repair. A node must not run on the store meanwhile.

`check_store` reads the database, every blob and the ledger completely.

The repair deletes nothing that was acknowledged; what is damaged is moved aside:

- `rebuild`: a database that is damaged or missing is built again from the blobs. Every image is received again, in the
  order of the files, so its study is answered again. The results are the same instances, since their UIDs derive from
  the images. What only the database knew is lost: the former ledger, who sent what (unless it can still be read), and
  what was delivered.
- `take_in`: acknowledged images without a row, as after the restore of an older database, are received again.
- `write_off`: a blob that is damaged goes to `quarantine/`. If an answer is owed for an image, its study becomes a dead
  letter. If a result was still to be delivered, it is made again from the images, if they are there.
"""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from dicomnode.domain.errors import ConfigurationError, StoreDamaged, StoreUnavailable, UidMismatch
from dicomnode.domain.instance import AssociationInfo, InstanceRef
from dicomnode.settings.node import AssemblySettings
from dicomnode.store.blob_references import NAMES, reconcile
from dicomnode.store.blobs.local import Blobs, is_acknowledged, is_blob_name
from dicomnode.store.deliveries import LOST_RESULT
from dicomnode.store.engine import Connection, Database, Row, migrations, read_what_is_readable
from dicomnode.store.events import EventKind, record
from dicomnode.store.jobs import Inbox
from dicomnode.store.layout import BLOBS, DATABASE, QUARANTINE, UNCLAIMED
from dicomnode.store.ledger import Ledger
from dicomnode.store.operator import OneDelivery, retry
from dicomnode.store.reception import Reception
from dicomnode.store.row_mapping import to_text

_CHUNK_BYTES = 1 << 20

# The check

_INSTANCES = "SELECT COUNT(*) FROM instance"
_ARRIVALS = "SELECT COUNT(*) FROM event WHERE kind IN ('received', 'replaced')"
_STUDIES = "SELECT COUNT(DISTINCT study) FROM instance"

# One report per set of results and version.
_ANSWERED_TWICE = """
SELECT job.study FROM job_result JOIN job USING (job_id) JOIN result USING (result_id)
WHERE result.kind = 'sr' GROUP BY job.job_id, result.prefix HAVING COUNT(*) > 1
"""
_WITHOUT_JOB = "SELECT study FROM instance WHERE current = 1 AND study NOT IN (SELECT study FROM job)"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreCheck:
    """One thing that was checked: how much of it there is, and how much of that is wrong."""

    name: str
    examined: int
    wrong: int
    detail: str


def check_store(path: Path) -> tuple[StoreCheck, ...]:
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
        return (StoreCheck(name="database", examined=1, wrong=1, detail="missing or damaged: --repair rebuilds it"),)


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

    A blob in quarantine counts as neither: its study is a dead letter that says what to do.
    """
    with database.reading() as connection:
        names = [row["blob"] for row in connection.execute(NAMES)]
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
            while chunk := opened_file.read(_CHUNK_BYTES):
                digest.update(chunk)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def _check_pages(database: Database) -> StoreCheck:
    pages, dangling = database.examine()
    return StoreCheck(name="database pages", examined=pages, wrong=dangling, detail="rows that refer to nothing")


def _check_blobs(path: Path, database: Database) -> Iterator[StoreCheck]:
    examined, missing, damaged = damaged_blobs(path, database)
    yield StoreCheck(name="blobs of rows", examined=examined, wrong=len(missing), detail=_list("missing", missing))
    yield StoreCheck(name="digests", examined=examined, wrong=len(damaged), detail=_list("damaged", damaged))
    with database.reading() as connection:
        named = {row["blob"] for row in connection.execute(NAMES)}
    present = _files(path / BLOBS)
    strays = [file for file in present if file.name not in named]
    foreign = tuple(file.name for file in strays if not (is_blob_name(file.name) or file.name.endswith(".part")))
    # Never acknowledged: the image was refused, or was being received when the process ended.
    unpromised = sum(not is_acknowledged(file) for file in strays) - len(foreign)
    detail = _list("not written by the node", foreign)
    if unpromised:
        detail += f"{'; ' if detail else ''}{unpromised} never acknowledged, which the next start sets aside"
    yield StoreCheck(name="files of blobs", examined=len(present), wrong=len(foreign), detail=detail)
    lost = [file for file in (*strays, *_files(path / UNCLAIMED)) if is_acknowledged(file) and file.name not in named]
    yield StoreCheck(
        name="images without a row",
        examined=len(lost),
        wrong=len(lost),
        detail="acknowledged, as after the restore of an older database: --repair takes them in" if lost else "",
    )


def _files(folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file()]


def _check_arrivals(database: Database) -> StoreCheck:
    """Compare the images that the ledger says were received with the rows of images."""
    with database.reading() as connection:
        rows, arrivals = _count(connection, _INSTANCES), _count(connection, _ARRIVALS)
    detail = f"{arrivals} in the ledger, {rows} rows"
    return StoreCheck(name="accepted images", examined=arrivals, wrong=abs(arrivals - rows), detail=detail)


def _check_balance(database: Database) -> StoreCheck:
    balance = Ledger(database).balance()
    counts = {name: getattr(balance, name) for name in balance.__slots__}
    detail = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    return StoreCheck(name="fates of images", examined=sum(counts.values()), wrong=balance.unaccounted, detail=detail)


def _check_answers(database: Database) -> StoreCheck:
    with database.reading() as connection:
        studies = _count(connection, _STUDIES)
        twice = {row["study"] for row in connection.execute(_ANSWERED_TWICE)}
        never = {row["study"] for row in connection.execute(_WITHOUT_JOB)}
    detail = _list("without exactly one answer or job", tuple(twice | never))
    return StoreCheck(name="studies", examined=studies, wrong=len(twice | never), detail=detail)


def _count(connection: Connection, statement: str) -> int:
    return int(connection.execute(statement).fetchone()[0])


def _list(what: str, names: tuple[str, ...]) -> str:
    return f"{what}: {', '.join(name[:16] for name in names[:3])}{', …' if len(names) > 3 else ''}" if names else ""


# The repair

Identify = Callable[[bytes], tuple[InstanceRef, str] | None]
"""From Part 10 bytes to an image's UIDs and transfer syntax; None for anything but a received image."""

_REBUILT = "rebuilt.db"
_UNKNOWN = AssociationInfo(association_id="rebuilt", calling_ae="UNKNOWN", called_ae="UNKNOWN", peer_address="")

_SENDERS = "SELECT sop_instance, association.* FROM instance JOIN association USING (association_id)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebuilt:
    """What a new database was made of, and where the former one is now (None: there was none)."""

    images: int
    studies: int
    former: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Repaired:
    """What a repair did, as numbers of files.

    `written_off`: damaged or missing blobs. `taken_in`: acknowledged images without a row. `quarantined`: acknowledged
    files without a row that hold no readable image, or one that newer content has replaced; they are in quarantine.
    """

    written_off: int = 0
    taken_in: int = 0
    quarantined: int = 0


def rebuild(path: Path, assembly: AssemblySettings, identify: Identify, now: datetime) -> Rebuilt:
    """Build the database again from the blobs, in a file that replaces the former one when it is complete.

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
        reception = Reception(database, _blobs(path), assembly)
        for file, moment in _by_age(path / BLOBS, path / UNCLAIMED):
            image = _read_image(file, identify)
            if image is None:
                continue
            if _receive(reception, image, senders.get(image.ref.sop_instance, _UNKNOWN), moment):
                studies.add(image.ref.study)
                images += 1
    with _translated(path):
        former = _move_aside(path, now)
        new.replace(path / DATABASE)
        _sync(path)
    return Rebuilt(images=images, studies=len(studies), former=former)


def repair(path: Path, database: Database, assembly: AssemblySettings, identify: Identify, now: datetime) -> Repaired:
    """Write off damaged blobs, take in acknowledged images without a row, and set other files without a row aside.

    The caller holds the store's lock. Raises: StoreUnavailable, DiskFull.
    """
    blobs = _blobs(path)
    # As at a start: no job is in work, since no node runs.
    Inbox(database, blobs, assembly).recover(now, maximum_attempts=1_000_000)
    reconcile(database, blobs)
    written_off = _write_off_damaged(path, database, now)
    taken_in, quarantined = _take_in(path, database, blobs, Reception(database, blobs, assembly), identify)
    return Repaired(written_off=written_off, taken_in=taken_in, quarantined=quarantined)


def _blobs(path: Path) -> Blobs:
    return Blobs(path / BLOBS, path / UNCLAIMED, minimum_free_bytes=0).prepare()


# Acknowledged images without a row

_CURRENT_SINCE = "SELECT received_at FROM instance WHERE sop_instance = ? AND current = 1"

_SENDER_OF_STUDY = """
SELECT association.* FROM instance JOIN association USING (association_id)
WHERE instance.study = ? ORDER BY instance_id DESC LIMIT 1
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Image:
    """An image in a blob's file."""

    ref: InstanceRef
    transfer_syntax: str
    part10: bytes


def _take_in(path: Path, database: Database, blobs: Blobs, reception: Reception, identify: Identify) -> tuple[int, int]:
    """Receive acknowledged images that have no row; return how many, and how many files are in quarantine instead."""
    taken_in = quarantined = 0
    set_aside = set(blobs.acknowledged_without_row())
    with database.reading() as connection:
        named = {row["blob"] for row in connection.execute(NAMES)}
    for file, moment in _by_age(path / UNCLAIMED):
        if file.name in named and blobs.exists(file.name):  # it was sent again since
            with _translated(path):
                file.unlink(missing_ok=True)
        elif file not in set_aside:
            continue
        elif _take_in_file(file, database, reception, identify, moment):
            taken_in += 1
            with _translated(path):
                file.unlink(missing_ok=True)
        else:
            _quarantine(path, file)
            quarantined += 1
    return taken_in, quarantined


def _take_in_file(file: Path, database: Database, reception: Reception, identify: Identify, moment: datetime) -> bool:
    """Receive the image in a file; tell whether the file holds one that is not replaced by newer content."""
    image = _read_image(file, identify)
    if image is None:
        return False
    with database.reading() as connection:
        current = connection.execute(_CURRENT_SINCE, (image.ref.sop_instance,)).fetchone()
        sender = connection.execute(_SENDER_OF_STUDY, (image.ref.study,)).fetchone()
    if current is not None and current["received_at"] > to_text(moment):
        return False
    return _receive(reception, image, _UNKNOWN if sender is None else _to_association(sender), moment)


def _read_image(file: Path, identify: Identify) -> _Image | None:
    """Return the image in a blob's file; None if the file is damaged or holds no received image."""
    if digest_of(file) != file.name:
        return None
    with _translated(file):
        data = file.read_bytes()
    found = identify(data)
    return None if found is None else _Image(ref=found[0], transfer_syntax=found[1], part10=data)


def _receive(reception: Reception, image: _Image, sender: AssociationInfo, moment: datetime) -> bool:
    """Receive an image as if it arrived at a moment; tell whether it was received.

    Raises: StoreUnavailable, DiskFull.
    """
    try:
        reception.accept(image.ref, image.transfer_syntax, image.part10, sender, moment)
    except UidMismatch:  # it was refused when it was sent, too
        return False
    return True


def _to_association(row: Row) -> AssociationInfo:
    return AssociationInfo(
        association_id=row["association_id"],
        calling_ae=row["calling_ae"],
        called_ae=row["called_ae"],
        peer_address=row["peer_address"],
    )


def _by_age(*folders: Path) -> Iterator[tuple[Path, datetime]]:
    """Yield every blob's file, the oldest first, with the time at which it was written."""
    with _translated(folders[0]):
        files = [file for folder in folders if folder.is_dir() for file in folder.rglob("*") if file.is_file()]
        dated = sorted((file.stat().st_mtime_ns, file) for file in files)
    for modified, file in dated:
        yield file, datetime.fromtimestamp(modified / 1e9, UTC)


# Damaged and missing blobs

_OWED = """
SELECT DISTINCT job_id, job.study, version, job.state FROM instance JOIN job USING (job_id)
WHERE blob = ? AND purged_at IS NULL AND fate IS NULL AND current = 1 AND state IN ('collecting', 'waiting', 'dead')
"""
# The table of moves leads from waiting to dead only through work.
_TAKE_JOB = "UPDATE job SET state = 'working', due_at = NULL WHERE job_id = :id AND state IN ('collecting', 'waiting')"
_BURY_JOB = """
UPDATE job SET state = 'dead', due_at = NULL, last_error = :cause, changed_at = :now
WHERE job_id = :id AND state = 'working'
"""
_GIVE_UP_IMAGES = """
UPDATE instance SET purged_at = :now WHERE blob = :blob AND purged_at IS NULL
    AND (fate IS NOT NULL OR current = 0 OR job_id NOT IN (SELECT job_id FROM job WHERE state = 'dead'))
RETURNING study
"""

_UNDELIVERED = """
SELECT delivery_id, delivery.state, delivery.destination, study, kind, sop_instance
FROM delivery JOIN result USING (result_id) WHERE blob = ? AND delivery.state IN ('waiting', 'dead')
"""
_MARK_LOST = """
UPDATE result SET lost_at = :now WHERE blob = :blob AND purged_at IS NULL AND lost_at IS NULL
    AND EXISTS (SELECT 1 FROM delivery WHERE delivery.result_id = result.result_id AND state IN ('waiting', 'dead'))
"""
_TAKE_DELIVERY = """
UPDATE delivery SET state = 'sending', next_attempt_at = NULL WHERE delivery_id = :id AND state = 'waiting'
"""
_BURY_DELIVERY = """
UPDATE delivery SET state = 'dead', last_error = :cause, changed_at = :now WHERE delivery_id = :id AND state = 'sending'
"""
_GIVE_UP_RESULTS = """
UPDATE result SET purged_at = :now WHERE blob = :blob AND purged_at IS NULL AND lost_at IS NULL RETURNING study
"""


def _write_off_damaged(path: Path, database: Database, now: datetime) -> int:
    """Move damaged blobs to quarantine and write down what follows; return the number of damaged and missing ones."""
    _, missing, damaged = damaged_blobs(path, database)
    for name in damaged:
        _quarantine(path, blob_path(path, name))
    folder = path / QUARANTINE
    with _translated(path):
        folder.mkdir(mode=0o700, exist_ok=True)
        for name in missing:
            (folder / name).touch(mode=0o600)  # so that the next check knows that it was dealt with
        _sync(folder)
    for name in (*missing, *damaged):
        with database.transaction() as connection:
            _write_off(connection, name, now)
    return len(missing) + len(damaged)


def _write_off(connection: Connection, name: str, now: datetime) -> None:
    """Make what is owed for a damaged blob a dead letter; mark the blob as purged if nothing is owed for it."""
    cause = f"BlobDamaged: blob {name[:12]} is damaged: have it sent again, then retry"
    parameters = {"blob": name, "now": to_text(now), "cause": cause}
    for row in connection.execute(_OWED, (name,)).fetchall():
        connection.execute(_TAKE_JOB, {"id": row["job_id"]})
        connection.execute(_BURY_JOB, {"id": row["job_id"], "cause": cause, "now": parameters["now"]})
        record(connection, now, row["study"], row["version"], EventKind.DEAD, cause=cause)
    connection.execute(_MARK_LOST, {"blob": name, "now": parameters["now"]})
    for row in connection.execute(_UNDELIVERED, (name,)).fetchall():
        _bury_delivery(connection, row, now)
        retry(connection, OneDelivery(delivery_id=row["delivery_id"]), now)
    for statement in (_GIVE_UP_IMAGES, _GIVE_UP_RESULTS):
        for row in connection.execute(statement, {"blob": name, "now": parameters["now"]}).fetchall():
            record(connection, now, row["study"], None, EventKind.WRITTEN_OFF, blob=name)


def _bury_delivery(connection: Connection, row: Row, now: datetime) -> None:
    """Make a waiting delivery of a lost result a dead letter."""
    connection.execute(_TAKE_DELIVERY, {"id": row["delivery_id"]})
    parameters = {"id": row["delivery_id"], "cause": LOST_RESULT, "now": to_text(now)}
    if connection.execute(_BURY_DELIVERY, parameters).rowcount:
        facts = {name: row[name] for name in ("sop_instance", "destination")}
        record(
            connection,
            now,
            row["study"],
            None,
            EventKind.DELIVERY_DEAD,
            result_kind=row["kind"],
            cause=LOST_RESULT,
            **facts,
        )


def _quarantine(path: Path, file: Path) -> None:
    """Move a file to quarantine."""
    with _translated(path):
        (path / QUARANTINE).mkdir(mode=0o700, exist_ok=True)
        file.replace(path / QUARANTINE / file.name)


# The former database


def _salvaged_senders(database: Path) -> dict[str, AssociationInfo]:
    """Return who sent which SOP instance, as far as a damaged database can be read."""
    if not database.is_file():
        return {}
    return {row["sop_instance"]: _to_association(row) for row in read_what_is_readable(database, _SENDERS)}


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
