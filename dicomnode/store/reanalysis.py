"""Another analysis of a study whose answer is finished, because an operator asks for it: a new version of the answer.

It speaks of the same images, so a model and settings that are the same make results with the same UIDs, which the store
knows: nothing is sent again. Where they differ, the results are new, and the report names the former one. Until the new
version is answered, every image keeps the fate that the former one gave it.
"""

import sqlite3
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from dicomnode.domain.job import JobState
from dicomnode.store.assembly import NEW_JOB
from dicomnode.store.rows import EventKind, record, to_text

STATES = "SELECT state FROM job WHERE study = ? ORDER BY version DESC"

KEPT = "SELECT EXISTS (SELECT 1 FROM instance WHERE study = ? AND current = 1 AND purged_at IS NULL)"

_UNFINISHED = frozenset({JobState.COLLECTING, JobState.WAITING, JobState.WORKING})
_ANSWERED = frozenset({JobState.DONE, JobState.REJECTED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Reanalysis:
    """What came of asking: the version that will be the answer, or why there will be none."""

    study: str
    version: int | None
    why_not: str = ""


def why_not_again(newest: JobState, others: Collection[JobState], *, kept: bool) -> str:
    """Return why a study cannot be analysed again, or nothing if it can.

    `newest` is the state of the newest version of its answer, `others` those of the former ones; `kept`: an image of it
    is there.
    """
    if not _UNFINISHED.isdisjoint({newest, *others}):
        return "it is being received or analysed now"
    if newest not in _ANSWERED:
        return "its last analysis failed or was given up: try that one again"
    if not kept:
        return "its images were removed by the rules of retention: send them again"
    return ""


def analyse_again(connection: sqlite3.Connection, study: str, by: str, now: datetime) -> Reanalysis:
    """Open a new version of a study's answer, due now, in the caller's transaction; `by`: who asks, and where."""
    newest, *others = (JobState(row["state"]) for row in connection.execute(STATES, (study,)).fetchall())
    kept = bool(connection.execute(KEPT, (study,)).fetchone()[0])
    if why_not := why_not_again(newest, others, kept=kept):
        return Reanalysis(study=study, version=None, why_not=why_not)
    facts = {"study": study, "state": JobState.WAITING, "now": to_text(now)}
    version = int(connection.execute(NEW_JOB, facts).fetchone()["version"])
    record(connection, now, study, version, EventKind.VERSION_OPENED, f"{by} asked for another analysis")
    return Reanalysis(study=study, version=version)
