"""Group commit: callers that wait to commit at the same time share one transaction.

The cost of a commit is its sync to the disk, not its rows. A caller that finds no commit in progress commits at once,
alone. Callers that come during a commit wait, and the first of them then commits for all. So no caller waits in order
that a group may form, and under load one commit serves as many callers as there are associations.
"""

import sqlite3
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from dicomnode.domain.errors import CxrNodeError
from dicomnode.store.engine.connection import Connection
from dicomnode.store.engine.sqlite import Database

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class _Member(Generic[T]):
    """What one caller wants to write; `answers` holds the return value once it is durable."""

    work: Callable[[Connection], T]
    answers: tuple[T] | None = None


class GroupCommit:
    """Commits the work of callers on many threads."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._leading = threading.Lock()
        self._waiting: list[_Member[object]] = []

    def commit(self, work: Callable[[Connection], T]) -> T:
        """Call `work` within a transaction and return its value once the transaction is durable.

        `work` may be called twice, the first call undone, and on another thread: it must write rows only.
        Raises: what `work` raises, StoreUnavailable, DiskFull.
        """
        member: _Member[T] = _Member(work)
        with self._lock:
            self._waiting.append(member)  # type: ignore[arg-type]  # each member keeps its own type of answer
        with self._leading:
            if member.answers is None and len(group := self._take()) > 1:
                self._commit_together(group)
            if member.answers is None:
                with self._database.transaction() as connection:
                    member.answers = (work(connection),)
        return member.answers[0]

    def _take(self) -> Sequence[_Member[object]]:
        with self._lock:
            group, self._waiting = self._waiting, []
        return group

    def _commit_together(self, group: Sequence[_Member[object]]) -> None:
        """Commit for a whole group or for none of it; if one member fails, each member then commits alone."""
        try:
            with self._database.transaction() as connection:
                answers = [member.work(connection) for member in group]
        except (CxrNodeError, sqlite3.Error):
            return
        for member, answer in zip(group, answers, strict=True):
            member.answers = (answer,)
