"""Counting as it happens, in the transaction of what is counted, so that the counts and the books never differ.

An image enters once, when it is first answered or rejected, however many versions speak of it. What is counted names no
patient, no study and no image, and stays when they are purged.
"""

import math
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from dicomnode.bundle.scores import score_bound
from dicomnode.domain.instance import StoredInstance
from dicomnode.domain.job import Accepted, Delivery, Job, JobState, Stage, StoreOutcome, StudyAnswer
from dicomnode.results.summary import SaidFinding, read_summary
from dicomnode.store.rows import to_text, to_time

ANALYSED = "analysed"
OTHER_CALLERS = "(others)"
MOST_CALLERS = 64
"""AE titles that are told apart within a week: whoever may connect chooses them."""

LATENCY_BOUNDS_S = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0,
    14400.0, 86400.0, math.inf,
)  # fmt: skip

OUTCOMES = {JobState.DONE: "answered", JobState.REJECTED: "rejected", JobState.DEAD: "dead"}

MARK = """
UPDATE instance SET tallied = 1
WHERE sop_instance = :sop_instance AND blob = :blob AND received_at = :received_at AND tallied = 0
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
INSERT INTO destination_tally (destination, delivered, last_delivered_at) VALUES (:destination, 1, :now)
ON CONFLICT DO UPDATE SET delivered = delivered + 1, failures_in_row = 0, last_delivered_at = :now
"""

ADD_FAILED = """
INSERT INTO destination_tally (destination, failed, failures_in_row, last_failed_at) VALUES (:destination, 1, 1, :now)
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


def times_of_attempt(connection: sqlite3.Connection, job_id: int) -> AttemptTimes | None:
    """Return the times of a job in work, before it is closed; None when it is not in work."""
    row = connection.execute(TIMES, (job_id,)).fetchone()
    if row is None:
        return None
    return AttemptTimes(
        first_instance_at=to_time(row["first_instance_at"]),
        last_instance_at=to_time(row["last_instance_at"]),
        claimed_at=to_time(row["changed_at"]),
    )


def tally_answer(
    connection: sqlite3.Connection, job: Job, answer: StudyAnswer, times: AttemptTimes, now: datetime
) -> None:
    """Count the images of an answer that were not counted yet, their scores, and what took how long."""
    week = week_of(now)
    ends = {entry.source.sop_instance: entry.reason.value for entry in answer.rejections}
    spoken_of = {uid for result in answer.results for uid in result.derived_from} | set(answer.analysed)
    ends = dict.fromkeys(spoken_of, ANALYSED) | ends
    counted = {
        instance.ref.sop_instance
        for instance in job.instances
        if (end := ends.get(instance.ref.sop_instance)) is not None and _count(connection, week, instance, end)
    }
    for facts in _scores(answer, counted):
        connection.execute(ADD_SCORE, facts | {"week": week})
    seconds = dict(answer.seconds) | {
        Stage.RECEIVE: _elapsed_s(times.first_instance_at, times.last_instance_at),
        Stage.WAIT: _elapsed_s(times.last_instance_at, times.claimed_at),
        Stage.ANSWER: _elapsed_s(times.last_instance_at, now),
    }
    tally_latencies(connection, seconds)


def tally_end(connection: sqlite3.Connection, state: JobState, now: datetime) -> None:
    """Count how a version of an answer ended."""
    connection.execute(ADD_STUDY, {"week": week_of(now), "outcome": OUTCOMES[state]})


def tally_attempt(
    connection: sqlite3.Connection, delivery: Delivery, outcome: StoreOutcome, begun_at: datetime, now: datetime
) -> None:
    """Count an attempt to deliver, which began at `begun_at`."""
    accepted = isinstance(outcome, Accepted)
    facts = {"destination": delivery.destination, "now": to_text(now)}
    connection.execute(ADD_DELIVERED if accepted else ADD_FAILED, facts)
    seconds = {Stage.SEND: _elapsed_s(begun_at, now)}
    if accepted:
        seconds[Stage.DELIVER] = _elapsed_s(delivery.created_at, now)
    tally_latencies(connection, seconds)


def tally_latencies(connection: sqlite3.Connection, seconds: Mapping[Stage, float]) -> None:
    """Count how long stages took."""
    for stage, taken_s in seconds.items():
        bound = next(bound for bound in LATENCY_BOUNDS_S if taken_s <= bound)
        connection.execute(ADD_LATENCY, {"stage": stage.value, "bound": bound, "seconds": taken_s})


def _count(connection: sqlite3.Connection, week: str, instance: StoredInstance, outcome: str) -> bool:
    """Count an image unless it was; tell whether it is counted now."""
    image = {
        "sop_instance": instance.ref.sop_instance,
        "blob": instance.blob,
        "received_at": to_text(instance.received_at),
    }
    if not connection.execute(MARK, image).rowcount:
        return False
    facts = {"week": week, "calling_ae": instance.calling_ae, "outcome": outcome}
    if connection.execute(KNOWN_CALLER, facts).fetchone() is None:
        callers = connection.execute(CALLERS, facts).fetchone()[0]
        facts["calling_ae"] = instance.calling_ae if callers < MOST_CALLERS else OTHER_CALLERS
    connection.execute(ADD_IMAGE, facts)
    return True


def _scores(answer: StudyAnswer, counted: set[str]) -> Iterator[dict[str, object]]:
    """Yield what is to be counted of the scores of these images."""
    summary = read_summary(answer.summary)
    if summary.model is None:
        return
    for image in summary.images:
        if image.sop_instance in counted:
            for finding in image.labels():
                yield _score(finding) | {"bundle": summary.model.bundle_hash}


def _score(finding: SaidFinding) -> dict[str, object]:
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
