"""What operations and quality watch: counts by week, latencies, what waits, and how each destination fares.

Everything here is small, however many studies the store holds; nothing names a patient or a study.
"""

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from dicomnode.bundle.scores import SCORE_BOUNDS
from dicomnode.domain.job import JobState, Stage
from dicomnode.results.summary import Summary
from dicomnode.store.database import Database
from dicomnode.store.rows import to_optional_time, to_summary, to_text, to_time
from dicomnode.store.tallies import LATENCY_BOUNDS_S

WAITING_JOBS = """
SELECT state, COUNT(*) AS count, MIN(first_instance_at) AS since FROM job
WHERE state IN ('collecting', 'waiting', 'working', 'dead') GROUP BY state
"""

OPEN_DELIVERIES = """
SELECT destination, SUM(state <> 'dead') AS waiting, SUM(state = 'sending') AS sending, SUM(state = 'dead') AS dead,
    MIN(CASE WHEN state <> 'dead' THEN waiting_since END) AS since
FROM delivery WHERE state IN ('waiting', 'sending', 'dead') GROUP BY destination
"""

OVERDUE = "SELECT destination, COUNT(*) AS count FROM commitment WHERE state = 'overdue' GROUP BY destination"

TALLIES = "SELECT * FROM destination_tally"

LATENCIES = "SELECT stage, bound, count, seconds FROM latency"

OUTCOMES = "SELECT outcome, SUM(studies) AS count FROM weekly_study GROUP BY outcome"

IMAGES = "SELECT week, calling_ae, outcome, images FROM weekly_image ORDER BY week, calling_ae, outcome"

SCORES = """
SELECT week, label, bound, images, above, undetermined, total FROM weekly_score
WHERE bundle = :bundle AND point = :point ORDER BY week, label, bound
"""

SCORE_TOTALS = """
SELECT '' AS week, label, bound, SUM(images) AS images, SUM(above) AS above, SUM(undetermined) AS undetermined,
    SUM(total) AS total
FROM weekly_score WHERE bundle = :bundle AND point = :point GROUP BY label, bound
"""

IMAGE_TOTALS = """
SELECT '' AS week, calling_ae, outcome, SUM(images) AS images FROM weekly_image GROUP BY calling_ae, outcome
"""

RESULTS = """
SELECT job_id, study, version, state, changed_at, first_instance_at, summary,
    (SELECT json_group_array(calling_ae) FROM study_sender WHERE study_sender.study = job.study) AS senders
FROM job WHERE state IN ('done', 'rejected', 'dead') AND changed_at >= :since AND changed_at < :until
    AND job_id > :after ORDER BY job_id LIMIT 500
"""

PROBE = "UPDATE instance SET tallied = tallied WHERE instance_id = -1"

UNANSWERED = (JobState.COLLECTING, JobState.WAITING, JobState.WORKING, JobState.DEAD)


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """How many there are in a state, and since when the oldest of them exists."""

    count: int = 0
    since: datetime | None = None

    def age_s(self, now: datetime) -> float | None:
        """Return for how long the oldest has existed; none is younger than now, whatever the clock says."""
        return None if self.since is None else max(0.0, (now - self.since).total_seconds())


@dataclass(frozen=True, slots=True, kw_only=True)
class DestinationFigures:
    """What waits for a destination, some of it being sent, and what came of the attempts so far."""

    name: str
    waiting: Waiting = Waiting()
    sending: int = 0
    dead: int = 0
    overdue_commitments: int = 0
    delivered: int = 0
    failed: int = 0
    failures_in_row: int = 0
    last_delivered_at: datetime | None = None
    last_failed_at: datetime | None = None

    @property
    def is_up(self) -> bool | None:
        """Whether the last attempt succeeded; None before the first."""
        if not self.delivered and not self.failed:
            return None
        return self.failures_in_row == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """A histogram: how many took up to each of `LATENCY_BOUNDS_S`, each counted in one bin, and their sum."""

    counts: tuple[int, ...]
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WeeklyImages:
    """Images of a week from one caller with one end: `ANALYSED`, or a reason of rejection."""

    week: str
    calling_ae: str
    outcome: str
    images: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WeeklyScores:
    """Scores of a label in a week: in bins by `SCORE_BOUNDS`, at or above the threshold, and their sum."""

    week: str
    label: str
    counts: tuple[int, ...]
    above: int
    undetermined: int
    total: float

    @property
    def images(self) -> int:
        """How many images were scored."""
        return sum(self.counts)


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyResult:
    """How one version of a study's answer ended."""

    study: str
    version: int
    state: JobState
    received_at: datetime
    ended_at: datetime
    senders: tuple[str, ...]
    summary: Summary


@dataclass(frozen=True, slots=True, kw_only=True)
class Operations:
    """The state of work at one moment. `jobs`: all of `UNANSWERED`; `outcomes`: how versions of answers ended, ever."""

    jobs: Mapping[JobState, Waiting]
    destinations: Mapping[str, DestinationFigures]
    outcomes: Mapping[str, int]
    latencies: Mapping[Stage, Latency]

    @property
    def dead_deliveries(self) -> int:
        """How many deliveries failed for good."""
        return sum(entry.dead for entry in self.destinations.values())

    @property
    def dead(self) -> int:
        """How many dead letters there are: studies and deliveries that failed for good."""
        return self.jobs[JobState.DEAD].count + self.dead_deliveries

    @property
    def waiting(self) -> Waiting:
        """The studies and deliveries together that are neither at their end nor dead letters."""
        parts = [found for state, found in self.jobs.items() if state is not JobState.DEAD]
        parts += [entry.waiting for entry in self.destinations.values()]
        since = min((part.since for part in parts if part.since is not None), default=None)
        return Waiting(count=sum(part.count for part in parts), since=since)

    def destinations_with(self, configured: Sequence[str]) -> tuple[DestinationFigures, ...]:
        """Return the configured destinations in their order, tried or not, then the others by name."""
        names = dict.fromkeys([*configured, *sorted(self.destinations)])
        return tuple(self.destinations.get(name) or DestinationFigures(name=name) for name in names)


class Watching:
    """Reads what is watched."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def operations(self) -> Operations:
        """Return the state of work.

        Raises: StoreUnavailable.
        """
        with self._database.reading() as connection:
            jobs = {row["state"]: _waiting(row) for row in connection.execute(WAITING_JOBS).fetchall()}
            return Operations(
                jobs={state: jobs.get(state, Waiting()) for state in UNANSWERED},
                destinations=_destinations(connection),
                outcomes={row["outcome"]: row["count"] for row in connection.execute(OUTCOMES).fetchall()},
                latencies=_latencies(connection),
            )

    def images(self) -> tuple[WeeklyImages, ...]:
        """Return the images by week, caller and end.

        Raises: StoreUnavailable.
        """
        with self._database.reading() as connection:
            return _images(connection.execute(IMAGES).fetchall())

    def image_totals(self) -> tuple[WeeklyImages, ...]:
        """Return the images of all weeks together, whose name is empty.

        Raises: StoreUnavailable.
        """
        with self._database.reading() as connection:
            return _images(connection.execute(IMAGE_TOTALS).fetchall())

    def scores(self, bundle_hash: str, point: str) -> tuple[WeeklyScores, ...]:
        """Return the scores of one bundle at one operating point by week and label.

        Raises: StoreUnavailable.
        """
        with self._database.reading() as connection:
            return _by_label(connection.execute(SCORES, {"bundle": bundle_hash, "point": point}).fetchall())

    def score_totals(self, bundle_hash: str, point: str) -> tuple[WeeklyScores, ...]:
        """Return the scores of all weeks together, whose name is empty.

        Raises: StoreUnavailable.
        """
        with self._database.reading() as connection:
            return _by_label(connection.execute(SCORE_TOTALS, {"bundle": bundle_hash, "point": point}).fetchall())

    def results(self, since: datetime, until: datetime) -> Iterator[StudyResult]:
        """Yield every answer that was given between two times, the oldest first.

        Raises: StoreUnavailable.
        """
        asked: dict[str, Any] = {"since": to_text(since), "until": to_text(until), "after": 0}
        while True:
            with self._database.reading() as connection:
                rows = connection.execute(RESULTS, asked).fetchall()
            yield from map(_result, rows)
            if not rows:
                return
            asked["after"] = rows[-1]["job_id"]

    def probe(self) -> None:
        """Take the write lock and give it back, having changed nothing.

        Raises: StoreUnavailable, DiskFull.
        """
        with self._database.transaction() as connection:
            connection.execute(PROBE)


def _waiting(row: sqlite3.Row) -> Waiting:
    return Waiting(count=row["count"], since=to_time(row["since"]))


def _destinations(connection: sqlite3.Connection) -> dict[str, DestinationFigures]:
    """Return the figures of every destination that ever was tried, or that something waits for."""
    found: dict[str, dict[str, Any]] = {}
    for row in connection.execute(TALLIES).fetchall():
        found[row["destination"]] = {
            "delivered": row["delivered"],
            "failed": row["failed"],
            "failures_in_row": row["failures_in_row"],
            "last_delivered_at": to_optional_time(row["last_delivered_at"]),
            "last_failed_at": to_optional_time(row["last_failed_at"]),
        }
    for row in connection.execute(OPEN_DELIVERIES).fetchall():
        waiting = Waiting(count=row["waiting"], since=to_optional_time(row["since"]))
        facts = {"waiting": waiting, "sending": row["sending"], "dead": row["dead"]}
        found.setdefault(row["destination"], {}).update(facts)
    for row in connection.execute(OVERDUE).fetchall():
        found.setdefault(row["destination"], {})["overdue_commitments"] = row["count"]
    return {name: DestinationFigures(name=name, **facts) for name, facts in sorted(found.items())}


def _latencies(connection: sqlite3.Connection) -> dict[Stage, Latency]:
    counts: dict[Stage, dict[float, int]] = {}
    seconds: dict[Stage, float] = {}
    for row in connection.execute(LATENCIES).fetchall():
        stage = Stage(row["stage"])
        counts.setdefault(stage, {})[row["bound"]] = row["count"]
        seconds[stage] = seconds.get(stage, 0.0) + row["seconds"]
    return {
        stage: Latency(counts=tuple(bins.get(bound, 0) for bound in LATENCY_BOUNDS_S), seconds=seconds[stage])
        for stage, bins in counts.items()
    }


def _images(rows: list[sqlite3.Row]) -> tuple[WeeklyImages, ...]:
    names = ("week", "calling_ae", "outcome", "images")
    return tuple(WeeklyImages(**{name: row[name] for name in names}) for row in rows)


def _by_label(rows: list[sqlite3.Row]) -> tuple[WeeklyScores, ...]:
    found: dict[tuple[str, str], list[sqlite3.Row]] = {}
    for row in rows:
        found.setdefault((row["week"], row["label"]), []).append(row)
    return tuple(_scores(week, label, bins) for (week, label), bins in found.items())


def _scores(week: str, label: str, rows: list[sqlite3.Row]) -> WeeklyScores:
    counts = {row["bound"]: row["images"] for row in rows}
    return WeeklyScores(
        week=week,
        label=label,
        counts=tuple(counts.get(bound, 0) for bound in SCORE_BOUNDS),
        above=sum(row["above"] for row in rows),
        undetermined=sum(row["undetermined"] for row in rows),
        total=sum(row["total"] for row in rows),
    )


def _result(row: sqlite3.Row) -> StudyResult:
    return StudyResult(
        study=row["study"],
        version=row["version"],
        state=JobState(row["state"]),
        received_at=to_time(row["first_instance_at"]),
        ended_at=to_time(row["changed_at"]),
        senders=tuple(json.loads(row["senders"])),
        summary=to_summary(row),
    )
