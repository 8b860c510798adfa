"""Growth: what a study and a page of the ledger cost in a store of 10 to 100,000 studies.

The store is filled by its own statements, many studies to a transaction and without their bytes; what is timed is the
ordinary way, with bytes, syncs and a transaction for each step.
"""

import os
import sqlite3
import statistics
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path

from benchmarks.bench import Bench, milliseconds, seconds
from benchmarks.picture import curves
from benchmarks.table import Goal, Row
from dicomnode.domain.delivery import Accepted, DeliveryState, RetryPolicy
from dicomnode.domain.job import JobState
from dicomnode.domain.routing import Recipient, Route
from dicomnode.store import Store
from dicomnode.store.layout import DATABASE
from tests.support.stores import accept, answer, at, claim, open_store

SIZES = (10, 100, 1_000, 10_000, 100_000)
TIMED = 9
MODEL = "1.8.4444444444"
"""The study of which the others are copies."""
POLICY = RetryPolicy(first_delay_s=30, factor=2, max_delay_s=600, give_up_after_s=86_400)
ROUTE = Route(recipients=(Recipient(name="pacs"),))


def measure(bench: Bench) -> Iterator[Row]:
    with ExitStack() as opened:
        stores = {size: opened.enter_context(open_store(bench.folder / f"{size}")) for size in SIZES}
        for size, store in stores.items():
            _one_study(store, 1, MODEL)
            _fill(bench.folder / f"{size}" / DATABASE, size)
        # What filling left to be written is not to be waited for by those who are timed.
        os.sync()
        numbers = count(2)
        studies = bench.interleaved({str(size): _studies(store, numbers) for size, store in stores.items()}, "ms")
        pages = bench.interleaved({str(size): milliseconds(_page(store)) for size, store in stores.items()}, "ms")
    first, last = str(SIZES[0]), str(SIZES[-1])
    for size in list(studies)[1:]:
        goal = Goal(at_most=1.25) if size == last else None
        what = f"a study among {int(size):,}"
        yield Row(what=what, ours=studies[size], peer=f"among {first}", theirs=studies[first], goal=goal)
    for size, taken in pages.items():
        goal = Goal(at_most=50, unit="ms") if size == last else None
        yield Row(what=f"a page of the ledger among {int(size):,} studies", ours=taken, goal=goal)
    lines = {"a study, received to delivered": studies, "a page of the ledger": pages}
    curves(
        "growth",
        {name: {int(size): measured.median for size, measured in line.items()} for name, line in lines.items()},
    )
    bench.note("![what a study and a page of the ledger cost as the store grows](../docs/growth.svg)")


def _studies(store: Store, numbers: Iterator[int]) -> Callable[[], float]:
    """Return a contender that measures the median of a few studies, so that a single database checkpoint does not
    count.
    """
    return lambda: statistics.median(1000 * _one_study(store, next(numbers)) for _ in range(TIMED))


def _page(store: Store) -> Callable[[], object]:
    """Return what `cxrnode queue list` and the first page ask of the ledger."""

    def work() -> None:
        store.watching.operations()
        store.ledger.jobs([JobState.DONE], limit=100)
        store.ledger.deliveries([DeliveryState.DELIVERED], limit=100)
        store.ledger.explain(MODEL)

    return work


def _one_study(store: Store, number: int, study: str = "") -> float:
    """Return how long the store takes for one study: received, claimed, answered, delivered."""
    study, now = study or f"1.9.{number}", 10.0 * number

    def work() -> None:
        accept(store, study, over=study, seconds=now)
        store.reception.association_released(study, at(now))
        job = claim(store, now + 5)
        store.inbox.finish(job, answer(job), ROUTE, at(now + 6))
        for delivery in store.outbox.claim("pacs", 10, at(now + 7)):
            store.outbox.record(delivery, Accepted(), at(now + 8), POLICY, 0.5)

    return seconds(work)


_COPIED = ("association", "job", "instance", "study_sender", "result", "job_result", "delivery", "event")
_NUMBERS = frozenset({"job_id", "instance_id", "result_id", "delivery_id"})
_APART = 10


COPIES = """
CREATE TEMP TABLE copy AS
WITH RECURSIVE number(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM number WHERE i < :last)
SELECT i, :apart * i AS apart FROM number
"""


def _fill(database: Path, size: int) -> None:
    """Copy the model study's rows until there are so many studies."""
    connection = sqlite3.connect(database, isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(COPIES, {"last": size - 1, "apart": _APART})
        for table in _COPIED:
            _copy(connection, table)
        connection.execute("COMMIT")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    finally:
        connection.close()


def _copy(connection: sqlite3.Connection, table: str) -> None:
    columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})") if row[1] != "event_id"]
    values = ", ".join(_value(table, column) for column in columns)
    of_model = f"SELECT job_id FROM job WHERE study = '{MODEL}'"
    results = f"SELECT result_id FROM result WHERE study = '{MODEL}'"
    where = {
        "association": f"association_id = '{MODEL}'",
        "job_result": f"job_id IN ({of_model})",
        "delivery": f"result_id IN ({results})",
    }.get(table, f"study = '{MODEL}'")
    connection.execute(
        f"INSERT INTO {table} ({', '.join(columns)}) SELECT {values} FROM {table} AS model JOIN temp.copy WHERE {where}"
    )


def _value(table: str, column: str) -> str:
    if column in _NUMBERS:
        return f"model.{column} + copy.apart"
    if column == "blob":
        return "lower(hex(randomblob(32)))"
    if (table, column) == ("result", "sop_instance"):
        return "'2.25.' || (9000000000 + model.result_id + copy.apart)"
    if column in ("study", "association_id", "series", "sop_instance", "detail"):
        return f"replace(model.{column}, '{MODEL}', '1.8.' || (5000000000 + copy.i))"
    return f"model.{column}"
