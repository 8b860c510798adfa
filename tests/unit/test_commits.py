"""Rows of many callers in one transaction: nobody is answered before it is durable, and nobody pays for another."""

import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from dicomnode.domain.errors import StoreUnavailable, UidMismatch
from dicomnode.store.engine.group_commit import GroupCommit
from dicomnode.store.engine.sqlite import Database
from tests.support.processes import wait_until

LIMIT_S = 60


class Held:
    """A database that stops before every commit until it may go on; `failures` are raised there, one a commit."""

    def __init__(self, path: Path) -> None:
        self.database = Database(path)
        with self.database.transaction() as connection:
            connection.execute("CREATE TABLE entry (name TEXT)")
        self.commits = 0
        self.failures: list[Exception] = []
        self.reached, self.go_on = threading.Event(), threading.Event()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        with self.database.transaction() as connection:
            yield connection
            self.reached.set()
            assert self.go_on.wait(LIMIT_S)
            if self.failures:
                raise self.failures.pop(0)
        self.commits += 1

    def entries(self) -> list[str]:
        with self.database.reading() as connection:
            return sorted(row["name"] for row in connection.execute("SELECT name FROM entry"))


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Held]:
    found = Held(tmp_path / "store.db")
    yield found
    found.go_on.set()
    found.database.close()


def adding(name: str, refusal: Exception | None = None) -> Any:
    def work(connection: sqlite3.Connection) -> str:
        connection.execute("INSERT INTO entry VALUES (?)", (name,))
        if refusal is not None:
            raise refusal
        return name

    return work


def begin(held: Held, pool: ThreadPoolExecutor, *works: Any) -> list[Future[Any]]:
    """Have one commit under way, alone, and the others waiting behind it."""
    commits = GroupCommit(held)  # type: ignore[arg-type]
    futures = [pool.submit(commits.commit, works[0])]
    assert held.reached.wait(LIMIT_S)
    futures += [pool.submit(commits.commit, work) for work in works[1:]]
    wait_until(lambda: len(commits._waiting) == len(works) - 1, LIMIT_S, "that all the others wait")
    return futures


def test_who_waits_is_committed_together_and_nobody_is_answered_before(held: Held) -> None:
    with ThreadPoolExecutor(5) as pool:
        futures = begin(held, pool, *(adding(name) for name in "abcde"))
        assert not any(future.done() for future in futures)
        assert held.entries() == []
        held.go_on.set()
        assert [future.result(LIMIT_S) for future in futures] == list("abcde")
    assert held.commits == 2
    assert held.entries() == list("abcde")


def test_a_commit_that_fails_takes_nobody_along_who_waited_behind_it(held: Held) -> None:
    with ThreadPoolExecutor(3) as pool:
        first, *others = begin(held, pool, adding("a"), adding("b"), adding("c"))
        held.failures = [StoreUnavailable("the first does not get through")]
        held.go_on.set()
        with pytest.raises(StoreUnavailable):
            first.result(LIMIT_S)
        assert [future.result(LIMIT_S) for future in others] == ["b", "c"]
    assert held.entries() == ["b", "c"]


def test_one_that_fails_fails_alone_and_leaves_nothing(held: Held) -> None:
    with ThreadPoolExecutor(4) as pool:
        futures = begin(held, pool, adding("a"), adding("b"), adding("refused", UidMismatch("no")), adding("d"))
        held.go_on.set()
        with pytest.raises(UidMismatch):
            futures[2].result(LIMIT_S)
        assert [futures[number].result(LIMIT_S) for number in (0, 1, 3)] == ["a", "b", "d"]
    assert held.entries() == ["a", "b", "d"]


def test_a_broken_rule_of_one_is_no_others_either(held: Held) -> None:
    broken = sqlite3.IntegrityError("a rule of the schema")
    with ThreadPoolExecutor(3) as pool:
        futures = begin(held, pool, adding("a"), adding("broken", broken), adding("c"))
        held.go_on.set()
        with pytest.raises(sqlite3.IntegrityError):
            futures[1].result(LIMIT_S)
        assert futures[2].result(LIMIT_S) == "c"
    assert held.entries() == ["a", "c"]


def test_a_commit_that_the_disk_refuses_answers_nobody_of_its_group(held: Held) -> None:
    with ThreadPoolExecutor(3) as pool:
        first, *others = begin(held, pool, adding("a"), adding("b"), adding("c"))
        refused = StoreUnavailable("the disk refused")
        held.failures = [refused] * 4  # the first, the group, and each of it alone
        held.go_on.set()
        for future in (first, *others):
            with pytest.raises(StoreUnavailable):
                future.result(LIMIT_S)
    assert held.commits == 0
    assert held.entries() == []


def test_who_comes_alone_is_not_held_back(held: Held) -> None:
    held.go_on.set()
    commits = GroupCommit(held)  # type: ignore[arg-type]
    assert commits.commit(adding("a")) == "a"
    assert commits.commit(adding("b")) == "b"
    assert held.commits == 2
