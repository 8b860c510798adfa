"""Counts: made as things happen, and read by metrics, quality watch and support.

1. Counting, in the transaction of what is counted, so that counts and rows never differ. An image is counted once, when
   it is first answered or rejected, however many versions include it.
2. `Watching` reads the counts by week, the latencies, what waits, and the figures of each destination.
3. `Statistics` reads figures of the whole store for a support bundle.

No count names a patient, a study or an image, and counts stay when those are purged. Except for (3), reading takes the
same time however many studies the store holds.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from dicomnode.bundle.scores import SCORE_BOUNDS, score_bound
from dicomnode.domain.answer import Stage, StudyAnswer
from dicomnode.domain.delivery import Accepted, Delivery, StoreOutcome
from dicomnode.domain.errors import ConfigurationError
from dicomnode.domain.instance import StoredInstance
from dicomnode.domain.job import Job, JobState
from dicomnode.domain.summary import FindingSummary, StudySummary
from dicomnode.store.blobs.local import Blobs
from dicomnode.store.engine import Connection, Database, Row
from dicomnode.store.row_mapping import to_optional_time, to_summary, to_text, to_time

ANALYSED = "analysed"
OTHER_CALLERS = "(others)"
MOST_CALLERS = 64
"""So many AE titles are counted separately within a week; peers choose them, so there may be any number."""

LATENCY_BOUNDS_S = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0,
    14400.0, 86400.0, math.inf,
)  # fmt: skip

OUTCOMES = {JobState.DONE: "answered", JobState.REJECTED: "rejected", JobState.DEAD: "dead"}

MARK = """
UPDATE instance SET counted = 1
WHERE sop_instance = :sop_instance AND blob = :blob AND received_at = :received_at AND counted = 0
"""

KNOWN_CALLER = "SELECT 1 FROM weekly_image WHERE week = :week AND calling_ae = :calling_ae LIMIT 1"
CALLERS = "SELECT COUNT(DISTINCT calling_ae) FROM weekly_image WHERE week = :week"

ADD_IMAGE = """
INSERT INTO weekly_image (week, calling_ae, outcome, images) VALUES (:week, :calling_ae, :outcome, 1)
ON CONFLICT DO UPDATE SET images = images + 1
"""

ADD_STUDY = """
INSERT INTO weekly_study (week, outcome, studies) VALUES (:week, :outcome, 1)
ON CONFLICT DO UPDATE SET studies = studies + 1
"""

ADD_SCORE = """
INSERT INTO weekly_score (week, bundle, point, label, bound, images, above, undetermined, total)
VALUES (:week, :bundle, :point, :label, :bound, 1, :above, :undetermined, :total)
ON CONFLICT DO UPDATE SET images = images + 1, above = above + excluded.above,
    undetermined = undetermined + excluded.undetermined, total = total + excluded.total
"""

ADD_LATENCY = """
INSERT INTO latency (stage, bound, count, seconds) VALUES (:stage, :bound, 1, :seconds)
ON CONFLICT DO UPDATE SET count = count + 1, seconds = seconds + excluded.seconds
"""

TIMES = "SELECT first_instance_at, last_instance_at, changed_at FROM job WHERE job_id = ? AND state = 'working'"

ADD_DELIVERED = """
INSERT INTO destination_counter (destination, delivered, last_delivered_at) VALUES (:destination, 1, :now)
ON CONFLICT DO UPDATE SET delivered = delivered + 1, failures_in_row = 0, last_delivered_at = :now
"""

ADD_FAILED = """
INSERT INTO destination_counter (destination, failed, failures_in_row, last_failed_at) VALUES (:destination, 1, 1, :now)
ON CONFLICT DO UPDATE SET failed = failed + 1, failures_in_row = failures_in_row + 1, last_failed_at = :now
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptTimes:
    """When the images of a job in work came, and when the attempt at it began."""

    first_instance_at: datetime
    last_instance_at: datetime
    claimed_at: datetime


def week_of(moment: datetime) -> str:
    """Return the week of a time: its Monday, UTC."""
    day = moment.astimezone(UTC).date()
    return (day - timedelta(days=day.weekday())).isoformat()


def times_of_attempt(connection: Connection, job_id: int) -> AttemptTimes | None:
    """Return the times of a job in work, before it is closed; None when it is not in work."""
    row = connection.execute(TIMES, (job_id,)).fetchone()
    if row is None:
        return None
    return AttemptTimes(
        first_instance_at=to_time(row["first_instance_at"]),
        last_instance_at=to_time(row["last_instance_at"]),
        claimed_at=to_time(row["changed_at"]),
    )


def count_answer(connection: Connection, job: Job, answer: StudyAnswer, times: AttemptTimes, now: datetime) -> None:
    """Count the images of an answer that were not counted yet, their scores, and how long each stage took."""
    week = week_of(now)
    ends = {entry.source.sop_instance: entry.reason.value for entry in answer.rejections}
    mentioned = {uid for result in answer.results for uid in result.derived_from} | set(answer.analysed)
    ends = dict.fromkeys(mentioned, ANALYSED) | ends
    counted = {
        instance.ref.sop_instance
        for instance in job.instances
        if (end := ends.get(instance.ref.sop_instance)) is not None and _count_image(connection, week, instance, end)
    }
    for score in _scores_of_answer(answer, counted):
        connection.execute(ADD_SCORE, score | {"week": week})
    seconds = dict(answer.seconds) | {
        Stage.RECEIVE: _elapsed_s(times.first_instance_at, times.last_instance_at),
        Stage.WAIT: _elapsed_s(times.last_instance_at, times.claimed_at),
        Stage.ANSWER: _elapsed_s(times.last_instance_at, now),
    }
    count_latencies(connection, seconds)


def count_end(connection: Connection, state: JobState, now: datetime) -> None:
    """Count how a version of an answer ended."""
    connection.execute(ADD_STUDY, {"week": week_of(now), "outcome": OUTCOMES[state]})


def count_attempt(
    connection: Connection, delivery: Delivery, outcome: StoreOutcome, begun_at: datetime, now: datetime
) -> None:
    """Count an attempt to deliver, which began at `begun_at`."""
    accepted = isinstance(outcome, Accepted)
    parameters = {"destination": delivery.destination, "now": to_text(now)}
    connection.execute(ADD_DELIVERED if accepted else ADD_FAILED, parameters)
    seconds = {Stage.SEND: _elapsed_s(begun_at, now)}
    if accepted:
        seconds[Stage.DELIVER] = _elapsed_s(delivery.created_at, now)
    count_latencies(connection, seconds)


def count_latencies(connection: Connection, seconds: Mapping[Stage, float]) -> None:
    """Count how long stages took."""
    for stage, taken_s in seconds.items():
        bound = next(bound for bound in LATENCY_BOUNDS_S if taken_s <= bound)
        connection.execute(ADD_LATENCY, {"stage": stage.value, "bound": bound, "seconds": taken_s})


def _count_image(connection: Connection, week: str, instance: StoredInstance, outcome: str) -> bool:
    """Count an image unless it was counted before; tell whether it was counted now."""
    image = {
        "sop_instance": instance.ref.sop_instance,
        "blob": instance.blob,
        "received_at": to_text(instance.received_at),
    }
    if not connection.execute(MARK, image).rowcount:
        return False
    parameters = {"week": week, "calling_ae": instance.calling_ae, "outcome": outcome}
    if connection.execute(KNOWN_CALLER, parameters).fetchone() is None:
        callers = connection.execute(CALLERS, parameters).fetchone()[0]
        parameters["calling_ae"] = instance.calling_ae if callers < MOST_CALLERS else OTHER_CALLERS
    connection.execute(ADD_IMAGE, parameters)
    return True


def _scores_of_answer(answer: StudyAnswer, counted: set[str]) -> Iterator[dict[str, object]]:
    """Yield the scores of these images as rows to be counted."""
    summary = answer.summary
    if summary.model is None:
        return
    for image in summary.images:
        if image.sop_instance in counted:
            for finding in image.labels():
                yield _score(finding) | {"bundle": summary.model.bundle_hash}


def _score(finding: FindingSummary) -> dict[str, object]:
    return {
        "point": finding.operating_point,
        "label": finding.label,
        "bound": score_bound(finding.probability),
        "above": int(finding.probability >= finding.threshold),
        "undetermined": int(finding.presence == "undetermined"),
        "total": finding.probability,
    }


def _elapsed_s(since: datetime, until: datetime) -> float:
    """Return the seconds between two times; none, if the clock was set back in between."""
    return max(0.0, (until - since).total_seconds())


WAITING_JOBS = """
SELECT state, COUNT(*) AS count, MIN(first_instance_at) AS since FROM job
WHERE state IN ('collecting', 'waiting', 'working', 'dead') GROUP BY state
"""

OPEN_DELIVERIES = """
SELECT destination, SUM(state <> 'dead') AS waiting, SUM(state = 'sending') AS sending, SUM(state = 'dead') AS dead,
    MIN(CASE WHEN state <> 'dead' THEN waiting_since END) AS since
FROM delivery WHERE state IN ('waiting', 'sending', 'dead') GROUP BY destination
"""

NEXT_TRY = """
SELECT delivery_id, next_attempt_at FROM delivery WHERE destination = ? AND next_attempt_at IS NOT NULL
ORDER BY next_attempt_at, delivery_id LIMIT 1
"""

LAST_FAILURE = """
SELECT last_error FROM delivery
WHERE destination = ? AND state IN ('waiting', 'sending', 'dead') AND last_error IS NOT NULL
ORDER BY changed_at DESC LIMIT 1
"""

OVERDUE = "SELECT destination, COUNT(*) AS count FROM commitment WHERE state = 'overdue' GROUP BY destination"

_DESTINATION_COUNTERS = "SELECT * FROM destination_counter"

LATENCIES = "SELECT stage, bound, count, seconds FROM latency"

_OUTCOME_COUNTS = "SELECT outcome, SUM(studies) AS count FROM weekly_study GROUP BY outcome"

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

PROBE = "UPDATE instance SET counted = counted WHERE instance_id = -1"

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
    """What waits for a destination, some of it being sent, and what came of the attempts so far.

    Of a destination whose last attempt failed: `last_error` is the reason, `next_try_at` the time of the next attempt,
    and `next_delivery_id` the delivery that it is of.
    """

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
    last_error: str = ""
    next_try_at: datetime | None = None
    next_delivery_id: int | None = None

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
    summary: StudySummary


@dataclass(frozen=True, slots=True, kw_only=True)
class Operations:
    """The state of work at one moment.

    `jobs`: all states of `UNANSWERED`; `outcomes`: how versions of answers ended, since the store was made.
    `images_without_row`: acknowledged images that the database does not know, as after the restore of an older one.
    """

    jobs: Mapping[JobState, Waiting]
    destinations: Mapping[str, DestinationFigures]
    outcomes: Mapping[str, int]
    latencies: Mapping[Stage, Latency]
    images_without_row: int = 0

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
    """Reads what metrics, status and quality watch show."""

    def __init__(self, database: Database, blobs: Blobs) -> None:
        self._database, self._blobs = database, blobs

    def operations(self) -> Operations:
        """Return the state of work.

        Raises: StoreUnavailable.
        """
        images_without_row = len(self._blobs.acknowledged_without_row())
        with self._database.reading() as connection:
            jobs = {row["state"]: _waiting(row) for row in connection.execute(WAITING_JOBS).fetchall()}
            return Operations(
                jobs={state: jobs.get(state, Waiting()) for state in UNANSWERED},
                destinations=_destinations(connection),
                outcomes={row["outcome"]: row["count"] for row in connection.execute(_OUTCOME_COUNTS).fetchall()},
                latencies=_latencies(connection),
                images_without_row=images_without_row,
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
        parameters: dict[str, Any] = {"since": to_text(since), "until": to_text(until), "after": 0}
        while True:
            with self._database.reading() as connection:
                rows = connection.execute(RESULTS, parameters).fetchall()
            yield from map(_result, rows)
            if not rows:
                return
            parameters["after"] = rows[-1]["job_id"]

    def probe(self) -> None:
        """Take the write lock and give it back, having changed nothing.

        Raises: StoreUnavailable, DiskFull.
        """
        with self._database.transaction() as connection:
            connection.execute(PROBE)


def _waiting(row: Row) -> Waiting:
    return Waiting(count=row["count"], since=to_time(row["since"]))


def _destinations(connection: Connection) -> dict[str, DestinationFigures]:
    """Return the figures of every destination that was ever tried, or that a delivery waits for."""
    found: dict[str, dict[str, Any]] = {}
    for row in connection.execute(_DESTINATION_COUNTERS).fetchall():
        found[row["destination"]] = {
            "delivered": row["delivered"],
            "failed": row["failed"],
            "failures_in_row": row["failures_in_row"],
            "last_delivered_at": to_optional_time(row["last_delivered_at"]),
            "last_failed_at": to_optional_time(row["last_failed_at"]),
        }
    for row in connection.execute(OPEN_DELIVERIES).fetchall():
        waiting = Waiting(count=row["waiting"], since=to_optional_time(row["since"]))
        open_ones = {"waiting": waiting, "sending": row["sending"], "dead": row["dead"]}
        found.setdefault(row["destination"], {}).update(open_ones)
    for row in connection.execute(OVERDUE).fetchall():
        found.setdefault(row["destination"], {})["overdue_commitments"] = row["count"]
    for name, figures in found.items():
        if figures.get("failures_in_row"):
            figures.update(_failure(connection, name))
    return {name: DestinationFigures(name=name, **figures) for name, figures in sorted(found.items())}


def _failure(connection: Connection, destination: str) -> dict[str, Any]:
    """Return why the last attempt at a destination failed, and when the next one is due."""
    failed = connection.execute(LAST_FAILURE, (destination,)).fetchone()
    due = connection.execute(NEXT_TRY, (destination,)).fetchone()
    return {
        "last_error": failed["last_error"] if failed is not None else "",
        "next_try_at": to_time(due["next_attempt_at"]) if due is not None else None,
        "next_delivery_id": due["delivery_id"] if due is not None else None,
    }


def _latencies(connection: Connection) -> dict[Stage, Latency]:
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


def _images(rows: list[Row]) -> tuple[WeeklyImages, ...]:
    names = ("week", "calling_ae", "outcome", "images")
    return tuple(WeeklyImages(**{name: row[name] for name in names}) for row in rows)


def _by_label(rows: list[Row]) -> tuple[WeeklyScores, ...]:
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row["week"], row["label"]), []).append(row)
    return tuple(_scores(week, label, bins) for (week, label), bins in found.items())


def _scores(week: str, label: str, rows: list[Row]) -> WeeklyScores:
    counts = {row["bound"]: row["images"] for row in rows}
    return WeeklyScores(
        week=week,
        label=label,
        counts=tuple(counts.get(bound, 0) for bound in SCORE_BOUNDS),
        above=sum(row["above"] for row in rows),
        undetermined=sum(row["undetermined"] for row in rows),
        total=sum(row["total"] for row in rows),
    )


def _result(row: Row) -> StudyResult:
    return StudyResult(
        study=row["study"],
        version=row["version"],
        state=JobState(row["state"]),
        received_at=to_time(row["first_instance_at"]),
        ended_at=to_time(row["changed_at"]),
        senders=tuple(json.loads(row["senders"])),
        summary=to_summary(row),
    )


COUNTS = {
    "jobs_by_state": "SELECT state, COUNT(*) FROM job GROUP BY 1",
    "jobs_by_attempts": "SELECT attempts, COUNT(*) FROM job GROUP BY 1",
    "instances_by_fate": "SELECT COALESCE(fate, 'open'), COUNT(*) FROM instance GROUP BY 1",
    "instances_by_sop_class": "SELECT sop_class, COUNT(*) FROM instance GROUP BY 1",
    "instances_by_transfer_syntax": "SELECT transfer_syntax, COUNT(*) FROM instance GROUP BY 1",
    "rejections_by_reason": "SELECT reason, COUNT(*) FROM rejection GROUP BY 1",
    "results_by_kind": "SELECT kind, COUNT(*) FROM result GROUP BY 1",
    "deliveries_by_state": "SELECT state, COUNT(*) FROM delivery GROUP BY 1",
    "deliveries_by_last_status": "SELECT printf('%04X', last_status), COUNT(*) FROM delivery "
    "WHERE last_status IS NOT NULL GROUP BY 1",
    "commitments_by_state": "SELECT state, COUNT(*) FROM commitment GROUP BY 1",
    "events_by_kind": "SELECT kind, COUNT(*) FROM event GROUP BY 1",
}

SIZES = {
    "instances_bytes": "SELECT COALESCE(SUM(size_bytes), 0) FROM instance WHERE purged_at IS NULL",
    "results_bytes": "SELECT COALESCE(SUM(size_bytes), 0) FROM result WHERE purged_at IS NULL",
    "studies": "SELECT COUNT(DISTINCT study) FROM job",
    "open_associations": "SELECT COUNT(*) FROM association WHERE released_at IS NULL",
    "audit_records_waiting": "SELECT COUNT(*) FROM audit_record",
}

OLDEST = "SELECT MIN(first_instance_at) FROM job"

LAST_EVENTS = "SELECT at, study, version, kind FROM event ORDER BY event_id DESC LIMIT ?"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """An event of a study without its facts."""

    at: datetime
    study: str
    version: int | None
    kind: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Counts by name and value, sizes, and the newest steps, newest first. `sound`: every page can be read."""

    schema_version: int
    sound: bool
    counts: Mapping[str, Mapping[str, int]]
    sizes: Mapping[str, int]
    since: datetime | None
    steps: tuple[Step, ...]


class Statistics:
    """Reads the figures of one store."""

    def __init__(self, database: Database, folder: Path) -> None:
        self._database, self._folder = database, folder

    def figures(self, *, steps: int = 500) -> Figures:
        """Read the whole store once.

        Raises: ConfigurationError (too damaged to be read), StoreUnavailable.
        """
        with self._database.reading() as connection:
            return Figures(
                schema_version=self._database.schema_version(),
                sound=self._is_sound(),
                counts={name: _counted(connection, statement) for name, statement in COUNTS.items()},
                sizes={name: int(connection.execute(statement).fetchone()[0]) for name, statement in SIZES.items()}
                | self._files(),
                since=to_optional_time(connection.execute(OLDEST).fetchone()[0]),
                steps=tuple(_to_step(row) for row in connection.execute(LAST_EVENTS, (steps,)).fetchall()),
            )

    def _is_sound(self) -> bool:
        try:
            self._database.check()
        except ConfigurationError:
            return False
        return True

    def _files(self) -> dict[str, int]:
        """Return how many files there are, and their bytes, of blobs, of blobs set aside, and of the database."""
        found: dict[str, int] = {}
        for name, pattern in (("blob", "blobs/*/*"), ("unclaimed", "unclaimed/*"), ("database", "store.db*")):
            sizes = [path.stat().st_size for path in self._folder.glob(pattern) if path.is_file()]
            found |= {f"{name}_files": len(sizes), f"{name}_files_bytes": sum(sizes)}
        return found


def _counted(connection: Connection, statement: str) -> dict[str, int]:
    return {str(row[0]): int(row[1]) for row in connection.execute(statement).fetchall()}


def _to_step(row: Row) -> Step:
    return Step(at=to_time(row["at"]), study=row["study"], version=row["version"], kind=row["kind"])
