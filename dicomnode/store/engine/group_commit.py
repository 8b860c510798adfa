"""One transaction for all who wait to commit at the same time, since a commit costs its sync and not its rows.

Whoever comes while nobody commits does so at once and alone; who comes meanwhile waits, and the first of those commits
for all. So nobody is held back for company, and under load a commit serves as many as there are associations.
"""

import sqlite3
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from dicomnode.domain.errors import CxrNodeError
from dicomnode.store.engine.sqlite import Database

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class _Member(Generic[T]):
    """What one caller wants written; `answers` holds what that gave, once it is durable."""

    work: Callable[[sqlite3.Connection], T]
    answers: tuple[T] | None = None


class GroupCommit:
    """Commits the work of callers on many threads."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._leading = threading.Lock()
        self._waiting: list[_Member[object]] = []

    def commit(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do something within a transaction and return what it gave, once it is durable.

        `work` may be done twice, the first time undone: it only writes rows. It may be called on another thread.
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
        """Commit for all of a group, or for none: what fails in company is tried alone, by whom it belongs to."""
        try:
            with self._database.transaction() as connection:
                answers = [member.work(connection) for member in group]
        except (CxrNodeError, sqlite3.Error):
            return
        for member, answer in zip(group, answers, strict=True):
            member.answers = (answer,)
