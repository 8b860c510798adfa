"""Claims and pages stay quick when there are many studies: no statement on the path reads a whole table."""

import sqlite3
from collections.abc import Iterator

import pytest

from dicomnode.store import commitments, composition, jobs, ledger, reception
from dicomnode.store import counters as tallies
from dicomnode.store import counters as watching
from dicomnode.store import deliveries as outbox
from dicomnode.store import jobs as answers
from dicomnode.store import jobs as assembly
from dicomnode.store import jobs as inbox
from dicomnode.store import operator as actions
from tests.support.stores import open_store

ON_THE_PATH = {
    "reception.HELD": reception.HELD,
    "reception.OWN_RESULT": reception.OWN_RESULT,
    "reception.RELEASE": reception.RELEASE,
    "reception.HELD_BY": reception.HELD_BY,
    "inbox.CLAIM": inbox.CLAIM,
    "jobs.CONTENTS": jobs.CONTENTS,
    "jobs.PREDECESSORS": jobs.PREDECESSORS,
    "jobs.SENDERS": jobs.SENDERS,
    "jobs.EXPECTED": jobs.EXPECTED,
    "inbox.PUT_BACK": inbox.PUT_BACK,
    "inbox.CLOSE": inbox.CLOSE,
    "answers.CLOSE_ANSWERED": answers.CLOSE_ANSWERED,
    "inbox.IN_WORK": inbox.IN_WORK,
    "inbox.NEXT_DUE": inbox.NEXT_DUE,
    "assembly.OPEN_JOB": assembly.OPEN_JOB,
    "assembly.NEW_JOB": assembly.NEW_JOB,
    "assembly.SUPERSEDE_OLDER": assembly.SUPERSEDE_OLDER,
    "assembly.TAKE_OVER": assembly.TAKE_OVER,
    "assembly.ASSEMBLY": assembly.ASSEMBLY,
    "assembly.CONTRIBUTORS": assembly.CONTRIBUTORS,
    "answers.RESULT_ID": answers.RESULT_ID,
    "answers.SEAL": answers.SEAL,
    "outbox.CLAIM": outbox.CLAIM,
    "outbox.CLAIMED": outbox.CLAIMED,
    "outbox.VERSION": outbox.VERSION,
    "outbox.SENDING": outbox.SENDING,
    "outbox.NEXT_DUE": outbox.NEXT_DUE,
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
    "tallies.MARK": tallies.MARK,
    "tallies.KNOWN_CALLER": tallies.KNOWN_CALLER,
    "tallies.CALLERS": tallies.CALLERS,
    "tallies.TIMES": tallies.TIMES,
    "watching.WAITING_JOBS": watching.WAITING_JOBS,
    "watching.OPEN_DELIVERIES": watching.OPEN_DELIVERIES,
    "watching.OVERDUE": watching.OVERDUE,
    "composition.NAMED": composition._NAMED,
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


@pytest.mark.parametrize("name", ["inbox.CLAIM", "outbox.CLAIM", "ledger.JOBS_IN_STATE", "ledger.DELIVERIES_IN_STATE"])
def test_claims_and_pages_need_no_sorting(connection: sqlite3.Connection, name: str) -> None:
    assert [step for step in plan(connection, ON_THE_PATH[name]) if "TEMP B-TREE" in step] == []


def test_the_plan_of_a_scan_is_recognised(connection: sqlite3.Connection) -> None:
    assert any(step.startswith("SCAN") for step in plan(connection, "SELECT * FROM job WHERE last_error = 'x'"))
