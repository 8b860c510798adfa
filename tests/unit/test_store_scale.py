"""Claims and pages stay quick when there are many studies: no statement on the path reads a whole table."""

import sqlite3
from collections.abc import Iterator

import pytest

from dicomnode.store import associations, blob_references, commitments, counters, deliveries, jobs, ledger, reception
from dicomnode.store import operator as actions
from tests.support.stores import open_store

ON_THE_PATH = {
    "reception.CURRENT": reception.CURRENT,
    "reception.OWN_RESULT": reception.OWN_RESULT,
    "reception.LOST_RESULT": reception.LOST_RESULT,
    "associations.RELEASE": associations.RELEASE,
    "reception.COLLECTING_FROM": reception.COLLECTING_FROM,
    "jobs.CLAIM": jobs.CLAIM,
    "jobs.CONTENTS": jobs.CONTENTS,
    "jobs.PREDECESSORS": jobs.PREDECESSORS,
    "jobs.SENDERS": jobs.SENDERS,
    "jobs.EXPECTED": jobs.EXPECTED,
    "jobs.PUT_BACK": jobs.PUT_BACK,
    "jobs.CLOSE": jobs.CLOSE,
    "jobs.CLOSE_ANSWERED": jobs.CLOSE_ANSWERED,
    "jobs.IN_WORK": jobs.IN_WORK,
    "jobs.NEXT_DUE": jobs.NEXT_DUE,
    "jobs.OPEN_JOB": jobs.OPEN_JOB,
    "jobs.NEW_JOB": jobs.NEW_JOB,
    "jobs.SUPERSEDE_OLDER": jobs.SUPERSEDE_OLDER,
    "jobs.TAKE_OVER": jobs.TAKE_OVER,
    "jobs.ASSEMBLY": jobs.ASSEMBLY,
    "jobs.RESULT": jobs.RESULT,
    "jobs.SEAL": jobs.SEAL,
    "deliveries.CLAIM": deliveries.CLAIM,
    "deliveries.CLAIMED": deliveries.CLAIMED,
    "deliveries.VERSION": deliveries.VERSION,
    "deliveries.SENDING": deliveries.SENDING,
    "deliveries.NEXT_DUE": deliveries.NEXT_DUE,
    "deliveries.RETRY_REQUESTED": deliveries.RETRY_REQUESTED,
    "commitments.RETRY_REQUESTED": commitments.RETRY_REQUESTED,
    "commitments.OVERDUE": commitments.OVERDUE,
    "commitments.CLAIM": commitments.CLAIM,
    "commitments.OF_TRANSACTION": commitments.OF_TRANSACTION,
    "commitments.ENTRY": commitments.ENTRY,
    "commitments.NEXT_DUE": commitments.NEXT_DUE.split("FROM (", 1)[1].split("UNION ALL", 1)[0],
    "commitments.NEXT_DEADLINE": commitments.NEXT_DUE.split("UNION ALL", 1)[1].rstrip().removesuffix(")"),
    "ledger.UNCOMMITTED": ledger.UNCOMMITTED,
    "ledger.JOBS_IN_STATE": ledger.JOBS_IN_STATE,
    "ledger.JOBS_OF_STUDY": ledger.JOBS_OF_STUDY,
    "ledger.DELIVERIES_IN_STATE": ledger.DELIVERIES_IN_STATE,
    "ledger.DELIVERIES_OF_STUDY": ledger.DELIVERIES_OF_STUDY,
    "ledger.REJECTIONS": ledger.REJECTIONS,
    "ledger.EVENTS": ledger.EVENTS,
    "ledger.KNOWN": ledger.KNOWN,
    "actions.JOBS_OF_STUDY": actions.JOBS_OF_STUDY,
    "actions.DEAD_JOBS": actions.DEAD_JOBS,
    "actions.DELIVERIES_OF_STUDY": actions.DELIVERIES_OF_STUDY,
    "actions.DEAD_DELIVERIES": actions.DEAD_DELIVERIES,
    "counters.MARK": counters.MARK,
    "counters.KNOWN_CALLER": counters.KNOWN_CALLER,
    "counters.CALLERS": counters.CALLERS,
    "counters.TIMES": counters.TIMES,
    "counters.WAITING_JOBS": counters.WAITING_JOBS,
    "counters.OPEN_DELIVERIES": counters.OPEN_DELIVERIES,
    "counters.OVERDUE": counters.OVERDUE,
    "blob_references.NAMES_OF_PREFIX": blob_references.NAMES_OF_PREFIX,
}
NAMES = ("now", "study", "version", "job_id", "sop_instance", "blob", "received_at", "fate", "state", "cause", "due_at")
NAMES += ("association_id", "summary", "heir", "former", "destination", "limit", "after", "low", "high")
NAMES += ("transaction_uid", "again_at", "given_up_before", "week", "calling_ae", "since", "most", "most_images")


def plan(connection: sqlite3.Connection, statement: str) -> list[str]:
    arguments: object = ("x",) if "?" in statement else dict.fromkeys(NAMES, "x") if ":" in statement else ()
    rows = connection.execute(f"EXPLAIN QUERY PLAN {statement}", arguments)  # type: ignore[arg-type]
    return [row[3] for row in rows.fetchall()]


@pytest.fixture(scope="module")
def connection(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sqlite3.Connection]:
    path = tmp_path_factory.mktemp("scale")
    open_store(path).close()
    opened = sqlite3.connect(path / "store.db")
    yield opened
    opened.close()


@pytest.mark.parametrize("name", ON_THE_PATH)
def test_a_statement_on_the_path_searches_and_does_not_scan(connection: sqlite3.Connection, name: str) -> None:
    steps = plan(connection, ON_THE_PATH[name])
    assert steps
    assert [step for step in steps if step.startswith("SCAN") and "CONSTANT ROW" not in step] == []


@pytest.mark.parametrize(
    "name", ["jobs.CLAIM", "deliveries.CLAIM", "ledger.JOBS_IN_STATE", "ledger.DELIVERIES_IN_STATE"]
)
def test_claims_and_pages_need_no_sorting(connection: sqlite3.Connection, name: str) -> None:
    assert [step for step in plan(connection, ON_THE_PATH[name]) if "TEMP B-TREE" in step] == []


def test_the_plan_of_a_scan_is_recognised(connection: sqlite3.Connection) -> None:
    assert any(step.startswith("SCAN") for step in plan(connection, "SELECT * FROM job WHERE last_error = 'x'"))
