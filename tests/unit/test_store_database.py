"""Opening, migrating, refusing, and what the database itself enforces."""

import hashlib
import os
import re
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest

from dicomnode.domain.commitment import CommitmentState
from dicomnode.domain.delivery import Accepted, DeliveryState, RetryPolicy
from dicomnode.domain.errors import ConfigurationError, DiskFull, StoreUnavailable
from dicomnode.domain.instance import StudySender
from dicomnode.domain.job import JobState
from dicomnode.store.engine.sqlite import Database, migrations
from dicomnode.store.ledger import Balance
from dicomnode.store.operator import OneJob
from dicomnode.store.row_mapping import to_text
from tests.support.stores import QUIET_S, accept, answer, at, claim, image, open_store, part10, to

FIRST = "PRAGMA application_id = 1129861710; CREATE TABLE note (text TEXT) STRICT;"
SECOND = "ALTER TABLE note ADD COLUMN written_at TEXT;"


DIGEST = hashlib.sha256(part10(image("1.1", 1))).hexdigest()
THEN = to_text(at(0))
# An answered study with a report on its way, as a node of the first schema left it.
OF_THE_FIRST_SCHEMA = f"""
INSERT INTO association VALUES ('a', 'MODALITY', 'CXRNODE', '10.0.0.7', '{THEN}', '{THEN}');
INSERT INTO job VALUES (1, '1.1', 1, 'done', 1, NULL, '{THEN}', '{THEN}', '{THEN}', NULL, '{{}}');
INSERT INTO instance VALUES (1, 1, '1.1', '1.1.2', '1.2.840.10008.5.1.4.1.1.1', '1.1.2.1', '1.2.840.10008.1.2.1',
    '{DIGEST}', 14, 'a', '{THEN}', 1, 'answered');
INSERT INTO result VALUES (1, '1.1', '1.1.9', '1.2.840.10008.5.1.4.1.1.88.34', '1.1.9.1', 'sr', '1.2.840.10008.1.2.1',
    'b', 1, '[]', '{THEN}');
INSERT INTO job_result VALUES (1, 1);
INSERT INTO delivery VALUES (1, 1, 'PACS', 'waiting', 0, '{THEN}', '{THEN}', '{THEN}', '{THEN}', NULL, NULL, NULL, NULL)
"""


def table(path: Path, statement: str) -> list[tuple[object, ...]]:
    connection = sqlite3.connect(path)
    try:
        return connection.execute(statement).fetchall()
    finally:
        connection.close()


def database(tmp_path: Path, *scripts: str) -> Database:
    opened = Database(tmp_path / "test.db", busy_timeout_s=0.05)
    opened.migrate(scripts or (FIRST,))
    return opened


def test_commits_are_synced_and_rules_are_enforced(tmp_path: Path) -> None:
    opened = database(tmp_path)
    with opened.transaction() as connection:
        pragmas = {
            name: connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    opened.close()
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 50}


def test_a_transaction_that_raises_leaves_nothing(tmp_path: Path) -> None:
    opened = database(tmp_path)

    def half_done() -> None:
        with opened.transaction() as connection:
            connection.execute("INSERT INTO note VALUES ('half')")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        half_done()
    with opened.reading() as connection:
        assert connection.execute("SELECT COUNT(*) FROM note").fetchone()[0] == 0
    opened.close()


def test_a_reader_sees_one_state_while_a_writer_commits(tmp_path: Path) -> None:
    opened = database(tmp_path)
    with opened.reading() as reader:
        assert reader.execute("SELECT COUNT(*) FROM note").fetchone()[0] == 0
        with opened.transaction() as writer:
            writer.execute("INSERT INTO note VALUES ('new')")
        assert reader.execute("SELECT COUNT(*) FROM note").fetchone()[0] == 0
    with opened.reading() as reader:
        assert reader.execute("SELECT COUNT(*) FROM note").fetchone()[0] == 1
    opened.close()


def test_a_database_that_stays_busy_is_unavailable(tmp_path: Path) -> None:
    opened = database(tmp_path)
    other = sqlite3.connect(tmp_path / "test.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable, match="SQLITE_BUSY"), opened.transaction():
        pass
    other.close()
    with opened.transaction() as connection:
        connection.execute("INSERT INTO note VALUES ('after all')")
    opened.close()


def test_a_read_only_database_is_unavailable(tmp_path: Path) -> None:
    opened = database(tmp_path)
    with opened.transaction() as connection:
        connection.execute("PRAGMA query_only = ON")
    with pytest.raises(StoreUnavailable, match="SQLITE_READONLY"), opened.transaction() as connection:
        connection.execute("INSERT INTO note VALUES ('refused')")
    opened.close()


def test_a_database_that_cannot_grow_is_a_full_disk(tmp_path: Path) -> None:
    opened = database(tmp_path)
    with opened.transaction() as connection:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(DiskFull), opened.transaction() as connection:
        connection.execute("INSERT INTO note VALUES (?)", ("x" * 1_000_000,))
    with opened.reading() as connection:
        assert connection.execute("SELECT COUNT(*) FROM note").fetchone()[0] == 0
    opened.close()


def test_a_broken_rule_is_a_bug_and_not_bad_weather(tmp_path: Path) -> None:
    opened = database(tmp_path)
    with pytest.raises(sqlite3.IntegrityError), opened.transaction() as connection:
        connection.execute("INSERT INTO note VALUES (?)", (b"not text",))
    opened.close()


def test_a_closed_database_is_unavailable_to_stragglers(tmp_path: Path) -> None:
    opened = database(tmp_path)
    opened.close()
    with pytest.raises(StoreUnavailable, match="closed"), opened.transaction():
        pass
    with pytest.raises(StoreUnavailable, match="closed"), opened.reading():
        pass


def test_migrations_run_once_and_in_order(tmp_path: Path) -> None:
    database(tmp_path, FIRST).close()
    for _ in range(2):
        database(tmp_path, FIRST, SECOND).close()
    assert table(tmp_path / "test.db", "PRAGMA user_version") == [(2,)]
    assert table(tmp_path / "test.db", "SELECT text, written_at FROM note") == []


def test_a_migration_that_fails_leaves_the_former_version(tmp_path: Path) -> None:
    database(tmp_path, FIRST).close()
    broken = Database(tmp_path / "test.db")
    with pytest.raises(sqlite3.OperationalError, match="no such table"):
        broken.migrate((FIRST, "ALTER TABLE note ADD COLUMN half TEXT; DROP TABLE absent;"))
    broken.close()
    assert table(tmp_path / "test.db", "PRAGMA user_version") == [(1,)]
    assert table(tmp_path / "test.db", "SELECT name FROM pragma_table_info('note')") == [("text",)]


def test_a_store_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    open_store(tmp_path).close()
    connection = sqlite3.connect(tmp_path / "store.db")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(ConfigurationError, match="newer version"):
        open_store(tmp_path)
    with pytest.raises(ConfigurationError, match="newer version"):
        open_store(tmp_path, exclusive=False)


def test_the_database_of_another_program_is_refused(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "store.db")
    connection.execute("CREATE TABLE theirs (text TEXT)")
    connection.close()
    with pytest.raises(ConfigurationError, match="another program"):
        open_store(tmp_path)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "store.db").write_bytes(b"a letter to the editor " * 500)
    with pytest.raises(ConfigurationError, match="damaged"):
        open_store(tmp_path)


def damage(store: Path, name: str) -> None:
    """Overwrite the first page of a table or index."""
    [(page,)] = table(store / "store.db", f"SELECT rootpage FROM sqlite_master WHERE name = '{name}'")
    with (store / "store.db").open("r+b") as file:
        file.seek((int(str(page)) - 1) * 4096)
        file.write(b"\xff" * 4096)


def test_a_damaged_page_is_found_when_a_node_starts(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        accept(store)
    damage(tmp_path, "rejection")
    with pytest.raises(ConfigurationError, match="damaged"):
        open_store(tmp_path)


def test_a_page_that_is_damaged_later_is_said_to_be(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        accept(store)
    damage(tmp_path, "event_study")
    with open_store(tmp_path, exclusive=False) as beside, pytest.raises(ConfigurationError, match="damaged"):
        beside.ledger.explain("1.1")


def test_a_store_that_refused_to_open_is_not_left_locked(tmp_path: Path) -> None:
    (tmp_path / "store.db").write_bytes(b"a letter to the editor " * 500)
    with pytest.raises(ConfigurationError):
        open_store(tmp_path)
    (tmp_path / "store.db").unlink()
    open_store(tmp_path).close()


def test_a_second_node_is_refused_and_told_who_is_there(tmp_path: Path) -> None:
    with open_store(tmp_path), pytest.raises(ConfigurationError, match=rf"in use by process {os.getpid()} on "):
        open_store(tmp_path)
    open_store(tmp_path).close()


def test_a_look_beside_a_running_node_touches_none_of_its_files(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        accept(store)
        half_written = tmp_path / "blobs" / "00.part"
        half_written.write_bytes(b"the node is writing this")
        with open_store(tmp_path, exclusive=False) as beside:
            assert beside.ledger.balance().pending == 1
        assert half_written.exists()


def test_a_look_at_a_store_that_is_not_there_creates_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="there is no store"):
        open_store(tmp_path / "nowhere", exclusive=False)
    assert not (tmp_path / "nowhere").exists()


def test_a_store_where_no_folder_can_be_made_is_a_wrong_setting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ConfigurationError, match="cannot be created"):
        open_store(tmp_path / "file" / "store")


def test_an_older_store_beside_a_running_node_is_not_migrated(tmp_path: Path) -> None:
    with open_store(tmp_path):
        connection = sqlite3.connect(tmp_path / "store.db")
        connection.execute("PRAGMA user_version = 0")
        connection.close()
        with pytest.raises(ConfigurationError, match="in use"):
            open_store(tmp_path, exclusive=False)


def test_nobody_but_the_owner_may_look_into_a_store(tmp_path: Path) -> None:
    with open_store(tmp_path / "store") as store:
        accept(store)
        modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "store").rglob("*") if path.is_file()}
        assert modes == {0o600, 0o400}
        assert stat.S_IMODE((tmp_path / "store").stat().st_mode) == 0o700


def test_the_states_of_the_schema_are_those_of_the_domain() -> None:
    checks = re.findall(r"CHECK \(state IN\s*\(([^)]*)\)\)", "".join(migrations()))
    found = [set(re.findall(r"'([a-z]+)'", check)) for check in checks]
    expected = [set(JobState), set(DeliveryState), set(DeliveryState), set(CommitmentState)]
    assert found == [{state.value for state in states} for states in expected]


def test_every_move_is_between_known_states(tmp_path: Path) -> None:
    open_store(tmp_path).close()
    machines = {"job": set(JobState), "delivery": set(DeliveryState), "commitment": set(CommitmentState)}
    for machine, before, after in table(tmp_path / "store.db", "SELECT machine, before, after FROM move"):
        assert {before, after} <= machines[str(machine)]


def test_every_state_can_be_reached(tmp_path: Path) -> None:
    open_store(tmp_path).close()
    moves = table(tmp_path / "store.db", "SELECT machine, after FROM move")
    assert {after for machine, after in moves if machine == "job"} == set(JobState)
    assert {after for machine, after in moves if machine == "delivery"} == set(DeliveryState)
    assert {after for machine, after in moves if machine == "commitment"} == set(CommitmentState)


def test_a_store_of_the_first_schema_opens_and_goes_on(tmp_path: Path) -> None:
    with closing(Database(tmp_path / "store.db")) as former:
        former.migrate(migrations()[:1])
        with former.transaction() as connection:
            for statement in OF_THE_FIRST_SCHEMA.split(";"):
                connection.execute(statement)
    with open_store(tmp_path) as store:
        (delivery,) = store.outbox.claim("PACS", 10, at(3))
        assert (delivery.kind.value, delivery.ref.sop_instance) == ("sr", "1.1.9.1")
        store.outbox.record(delivery, Accepted(), at(4), RetryPolicy(), 0.5, commit_within_s=60)
        assert store.ledger.balance() == Balance(answered=1)
        assert len(store.commitments.claim("PACS", 10, "1.9", 60, at(5), RetryPolicy())) == 1
        accept(store, number=2, seconds=6)
        job = claim(store, 6 + QUIET_S)
        assert job.senders == {StudySender(calling_ae="MODALITY", called_ae="CXRNODE")}
        assert [ref.sop_instance for ref in job.predecessors] == ["1.1.9.1"]
        store.inbox.finish(job, answer(job), to("PACS"), at(9))
    assert table(tmp_path / "store.db", "PRAGMA foreign_key_check") == []
    assert table(tmp_path / "store.db", "PRAGMA integrity_check") == [("ok",)]


@pytest.mark.parametrize("state", ["working", "collecting", "dead", "done"])
def test_a_move_that_is_not_in_the_table_is_refused_by_the_database(tmp_path: Path, state: str) -> None:
    with open_store(tmp_path) as store:
        accept(store)
        job = claim(store, QUIET_S)
        store.inbox.fail(job, "broken", None, at(3))
        store.ledger.drop(OneJob(job_id=job.job_id), at(4))
    connection = sqlite3.connect(tmp_path / "store.db")
    due = "'2025'" if state == "collecting" else "NULL"
    with pytest.raises(sqlite3.IntegrityError, match="may not make this move"):
        connection.execute(f"UPDATE job SET state = '{state}', due_at = {due}")
    connection.close()
