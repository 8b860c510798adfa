"""A clock that is set back: what was planned by its former time would wait until it is there again."""

import logging
import sqlite3
from datetime import datetime, timedelta

from dicomnode.store.rows import to_text

log = logging.getLogger(__name__)

PLANNED_IN_FUTURE = "UPDATE job SET due_at = :now WHERE due_at > :now AND changed_at > :now"
SENT_IN_FUTURE = "UPDATE delivery SET next_attempt_at = :now WHERE next_attempt_at > :now AND changed_at > :now"

_SET_BACK = timedelta(seconds=30)
"""Callers read the clock before they wait for each other, so it seems to go back a little all the time."""


class ClockWatch:
    """Notices, from one call to the next, that the clock was set back."""

    def __init__(self) -> None:
        self._seen: datetime | None = None

    def look(self, connection: sqlite3.Connection, now: datetime) -> None:
        """Make what was planned by a former time due now, in the caller's transaction."""
        if self._seen is not None and now < self._seen - _SET_BACK:
            log.warning("clock-set-back")
            plan_anew(connection, now)
        self._seen = now


def plan_anew(connection: sqlite3.Connection, now: datetime) -> None:
    """Make due now what was planned at a time that is still to come, in the caller's transaction."""
    for statement in (PLANNED_IN_FUTURE, SENT_IN_FUTURE):
        connection.execute(statement, {"now": to_text(now)})
