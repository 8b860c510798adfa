"""Studies as people look for them: the search index, a page of a list, and the images and results of one study.

A patient's number and an accession number are stored as HMACs under a key of the store's own. The key lies in a file
beside the database, so a copy of the database alone, as in a backup or a support case, reveals no number, not even to
someone who tries all of them.
"""

import hashlib
import hmac
import json
import os
import secrets
import stat
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from dicomnode.domain.answer import RejectionReason, ResultKind, Subject
from dicomnode.domain.errors import ConfigurationError
from dicomnode.domain.instance import InstanceRef, StoredInstance
from dicomnode.domain.job import JobState
from dicomnode.domain.summary import StudySummary
from dicomnode.store.engine import Connection, Database, Row
from dicomnode.store.events import EventKind
from dicomnode.store.row_mapping import to_ref, to_stored_instance, to_summary, to_text, to_time

Kind = Literal["patient", "accession"]

_KEY_BYTES = 32

_NOTE = "INSERT INTO study_key (kind, digest, study) VALUES (?, ?, ?) ON CONFLICT DO NOTHING"

_FORGET = "DELETE FROM study_key WHERE study = ?"


class SearchIndex:
    """Digests of the numbers by which studies are found."""

    def __init__(self, key: bytes) -> None:
        """`key` is used for nothing else."""
        self._key = key

    @classmethod
    def of(cls, file: Path, *, create: bool) -> "SearchIndex | None":
        """Read the key; if there is none, make one with `create`, or return None without.

        Raises: ConfigurationError.
        """
        try:
            if create and not file.exists():
                _write_synced(file, secrets.token_bytes(_KEY_BYTES))
            key = file.read_bytes() if file.exists() else b""
        except OSError as error:
            raise ConfigurationError(f"the key {file} can be neither read nor made: {error.strerror}") from error
        if key and len(key) != _KEY_BYTES:
            raise ConfigurationError(
                f"{file} is not a key of this store; without it a new one is made, and studies answered before are "
                "found by their UID and date only"
            )
        return cls(key) if key else None

    def note(self, connection: Connection, study: str, subjects: Iterable[Subject]) -> None:
        """Enter a study under the numbers of its patient and order, in the caller's transaction."""
        for subject in subjects:
            for kind, value in subject.items():
                connection.execute(_NOTE, (kind, self.digest(kind, value), study))

    def digest(self, kind: str, value: str) -> str:
        """Return the digest of a number; neither case nor surrounding spaces matter."""
        return hmac.new(self._key, f"{kind}\0{value.strip().casefold()}".encode(), hashlib.sha256).hexdigest()


def forget(connection: Connection, study: str) -> None:
    """Remove a study from the search index, in the caller's transaction."""
    connection.execute(_FORGET, (study,))


def _write_synced(file: Path, key: bytes) -> None:
    """Write a key completely or not at all, readable for the store's owner only."""
    half = file.with_suffix(".new")
    descriptor = os.open(half, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, stat.S_IRUSR | stat.S_IWUSR)
    try:
        os.write(descriptor, key)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    half.replace(file)


_EVENTS_LOOKED_AT = 50_000

# Later versions begin later, so a study was received when its first version began.
_RECEIVED_AT = "(SELECT first_instance_at FROM job AS first WHERE first.study = job.study AND first.version = 1)"

# Of each study the newest version; the primary key is the order of arrival, so a page is one walk of an index.
_STUDIES = """
SELECT job.*, (SELECT COUNT(*) FROM instance WHERE instance.study = job.study AND current = 1) AS images,
    EXISTS (SELECT 1 FROM instance WHERE instance.study = job.study AND current = 1 AND purged_at IS NULL) AS kept,
    {received_at} AS received_at,
    (SELECT json_group_array(DISTINCT calling_ae) FROM study_sender WHERE study_sender.study = job.study) AS senders,
    (SELECT json_group_array(DISTINCT reason) FROM rejection WHERE rejection.job_id = job.job_id) AS reasons
FROM job
WHERE {conditions} AND NOT EXISTS (
    SELECT 1 FROM job AS newer WHERE newer.study = job.study AND newer.version > job.version
)
ORDER BY job_id DESC LIMIT :limit
"""

_OF_NUMBER = """
SELECT study FROM study_key WHERE kind = 'patient' AND digest = :any_patient
UNION ALL SELECT study FROM study_key WHERE kind = 'accession' AND digest = :any_accession
"""

IMAGES = """
SELECT instance.*, association.calling_ae FROM instance JOIN association USING (association_id)
WHERE instance.study = ? AND instance.current = 1 ORDER BY instance.instance_id
"""

RESULTS = """
SELECT result.*, (
    SELECT MAX(version) FROM job_result JOIN job USING (job_id) WHERE job_result.result_id = result.result_id
) AS version FROM result WHERE study = ? ORDER BY result_id
"""

# A result names the same patient as its image, and a report is smaller than an image.
SMALLEST = """
SELECT study, blob, MIN(size_bytes) FROM (
    SELECT study, blob, size_bytes FROM instance
    WHERE study IN (SELECT value FROM json_each(:studies)) AND current = 1 AND purged_at IS NULL
    UNION ALL
    SELECT study, blob, size_bytes FROM result
    WHERE study IN (SELECT value FROM json_each(:studies)) AND purged_at IS NULL
) GROUP BY study
"""

SUMMARY = "SELECT summary FROM job WHERE study = ? AND summary IS NOT NULL ORDER BY version DESC LIMIT 1"

LATEST_EVENTS = "SELECT at, kind FROM event ORDER BY event_id DESC LIMIT ?"


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyQuery:
    """Which studies to list; an absent or empty condition admits every study.

    `number`: of a patient or of an order. `since` is inclusive, `until` exclusive; both are times of reception.
    """

    study: str = ""
    number: str = ""
    subject: Subject = field(default_factory=Subject)
    states: tuple[JobState, ...] = ()
    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyEntry:
    """A study in a list, by the newest version of its answer.

    `number` orders the list; the next page begins after it. `is_kept`: whether the bytes of its images are there.
    """

    number: int
    study: str
    version: int
    state: JobState
    images: int
    is_kept: bool
    senders: tuple[str, ...]
    reasons: tuple[RejectionReason, ...]
    received_at: datetime
    changed_at: datetime
    last_error: str | None
    summary: StudySummary


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageEntry:
    """A received image; `fate`: answered, rejected or unmentioned, or None while it is owed."""

    instance: StoredInstance
    fate: str | None
    is_purged: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultEntry:
    """A result of a study, of the newest version that it belongs to."""

    ref: InstanceRef
    kind: ResultKind
    prefix: str
    version: int
    blob: str
    size_bytes: int
    derived_from: tuple[str, ...]
    created_at: datetime
    is_purged: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Recent:
    """What happened since a time: events by kind, and answers by the minute, the oldest first."""

    events: Mapping[EventKind, int]
    answers_by_minute: tuple[int, ...]


class Studies:
    """Reads the studies of one store."""

    def __init__(self, database: Database, search: SearchIndex | None) -> None:
        self._database, self._search = database, search

    def page(self, query: StudyQuery, *, limit: int, before: int | None = None) -> tuple[StudyEntry, ...]:
        """Return a page of studies, the newest first; `before` is the number of the last one of the page before.

        Raises: StoreUnavailable.
        """
        conditions, parameters = self._conditions(query)
        if before is not None:
            conditions.append("job.job_id < :before")
            parameters["before"] = before
        statement = _STUDIES.format(received_at=_RECEIVED_AT, conditions=" AND ".join(conditions or ["1"]))
        with self._database.reading() as connection:
            rows = connection.execute(statement, parameters | {"limit": limit}).fetchall()
        return tuple(map(_to_study, rows))

    def images_of(self, study: str) -> tuple[ImageEntry, ...]:
        """Return the current images of a study, in the order of their arrival.

        Raises: StoreUnavailable.
        """
        with self._database.reading() as connection:
            rows = connection.execute(IMAGES, (study,)).fetchall()
        return tuple(
            ImageEntry(instance=to_stored_instance(row), fate=row["fate"], is_purged=row["purged_at"] is not None)
            for row in rows
        )

    def results_of(self, study: str) -> tuple[ResultEntry, ...]:
        """Return the results of a study, the oldest first.

        Raises: StoreUnavailable.
        """
        with self._database.reading() as connection:
            return tuple(map(_to_result, connection.execute(RESULTS, (study,)).fetchall()))

    def smallest_of(self, studies: Sequence[str]) -> dict[str, str]:
        """Return the blob of the smallest object that is kept of each of these studies, if there is one.

        Raises: StoreUnavailable.
        """
        with self._database.reading() as connection:
            rows = connection.execute(SMALLEST, {"studies": json.dumps(list(studies))}).fetchall()
        return {row["study"]: row["blob"] for row in rows}

    def summary_of(self, study: str) -> StudySummary:
        """Return the summary of the newest answered version; an empty one, if there is none.

        Raises: StoreUnavailable.
        """
        with self._database.reading() as connection:
            row = connection.execute(SUMMARY, (study,)).fetchone()
        return to_summary(row) if row is not None else StudySummary()

    def recent(self, now: datetime, *, minutes: int = 60) -> Recent:
        """Return what happened in the last minutes; of very many events, the newest.

        Raises: StoreUnavailable.
        """
        since = to_text(now - timedelta(minutes=minutes))
        counts: Counter[EventKind] = Counter()
        answers = [0] * minutes
        with self._database.reading() as connection:
            for row in connection.execute(LATEST_EVENTS, (_EVENTS_LOOKED_AT,)):
                if row["at"] < since:
                    break
                kind = EventKind(row["kind"])
                counts[kind] += 1
                if kind in (EventKind.ANSWERED, EventKind.REJECTED):
                    age = int((now - to_time(row["at"])).total_seconds() // 60)
                    answers[minutes - 1 - min(max(age, 0), minutes - 1)] += 1
        return Recent(events=counts, answers_by_minute=tuple(answers))

    def _digest(self, kind: str, value: str) -> str:
        return self._search.digest(kind, value) if self._search is not None else ""

    def _conditions(self, query: StudyQuery) -> tuple[list[str], dict[str, Any]]:
        conditions: list[str] = []
        parameters: dict[str, Any] = {}
        if query.study:
            conditions.append("job.study = :study")
            parameters["study"] = query.study
        for kind, value in query.subject.items():
            conditions.append(f"job.study IN (SELECT study FROM study_key WHERE kind = '{kind}' AND digest = :{kind})")
            parameters[kind] = self._digest(kind, value)
        if query.number:
            conditions.append(f"job.study IN ({_OF_NUMBER})")
            for kind in ("patient", "accession"):
                parameters[f"any_{kind}"] = self._digest(kind, query.number)
        if query.states:
            names = [f"state_{number}" for number in range(len(query.states))]
            conditions.append(f"job.state IN ({', '.join(f':{name}' for name in names)})")
            parameters |= dict(zip(names, query.states, strict=True))
        for name, sign, moment in (("since", ">=", query.since), ("until", "<", query.until)):
            if moment is not None:
                conditions.append(f"{_RECEIVED_AT} {sign} :{name}")
                parameters[name] = to_text(moment)
        return conditions, parameters


def _to_study(row: Row) -> StudyEntry:
    return StudyEntry(
        number=row["job_id"],
        study=row["study"],
        version=row["version"],
        state=JobState(row["state"]),
        images=row["images"],
        is_kept=bool(row["kept"]),
        senders=tuple(json.loads(row["senders"])),
        reasons=tuple(map(RejectionReason, json.loads(row["reasons"]))),
        received_at=to_time(row["received_at"]),
        changed_at=to_time(row["changed_at"]),
        last_error=row["last_error"],
        summary=to_summary(row),
    )


def _to_result(row: Row) -> ResultEntry:
    return ResultEntry(
        ref=to_ref(row),
        kind=ResultKind(row["kind"]),
        prefix=row["prefix"],
        version=row["version"],
        blob=row["blob"],
        size_bytes=row["size_bytes"],
        derived_from=tuple(json.loads(row["derived_from"])),
        created_at=to_time(row["created_at"]),
        is_purged=row["purged_at"] is not None,
    )
