"""A store that was written before events carried facts: its events are told, audited and counted as before."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from dicomnode.domain.audit import AuditKind, InstanceTransfer
from dicomnode.store import Store
from dicomnode.store.engine import Database, migrations
from dicomnode.store.events import EventKind, LedgerEvent
from dicomnode.store.ledger import sentence
from dicomnode.store.row_mapping import to_text
from tests.support.stores import at, open_store

THEN, LATER = to_text(at(0)), to_text(at(60))
SR, SC = "1.2.840.10008.5.1.4.1.1.88.34", "1.2.840.10008.5.1.4.1.1.7"

ROWS = f"""
INSERT INTO association VALUES ('a', 'CT at ER', 'CXRNODE', '10.0.0.7', '{THEN}', '{THEN}');
INSERT INTO job VALUES (1, '1.1', 1, 'done', 1, NULL, '{THEN}', '{THEN}', '{THEN}', NULL, '{{}}');
INSERT INTO instance (instance_id, job_id, study, series, sop_class, sop_instance, transfer_syntax, blob, size_bytes,
    association_id, received_at, current, fate, tallied)
VALUES (1, 1, '1.1', '1.1.2', '1.2.840.10008.5.1.4.1.1.1', '1.1.2.1', '1.2.840.10008.1.2.1', '{"a" * 64}', 14, 'a',
    '{THEN}', 1, 'answered', 1);
INSERT INTO result (result_id, study, series, sop_class, sop_instance, kind, prefix, transfer_syntax, blob, size_bytes,
    derived_from, created_at)
VALUES (1, '1.1', '1.1.9', '{SR}', '1.1.9.1', 'sr', '', '1.2.840.10008.1.2.1', '{"b" * 64}', 1, '[]', '{THEN}'),
    (2, '1.1', '1.1.8', '{SC}', '1.1.8.1', 'sc', '', '1.2.840.10008.1.2.1', '{"c" * 64}', 1, '[]', '{THEN}');
INSERT INTO job_result VALUES (1, 1), (1, 2);
INSERT INTO delivery (delivery_id, result_id, destination, state, attempts, next_attempt_at, created_at, waiting_since,
    changed_at, sent_sop_class, sent_sop_instance)
VALUES (1, 1, 'PACS', 'delivered', 1, NULL, '{THEN}', '{THEN}', '{THEN}', '1.2.840.10008.5.1.4.1.1.88.33', '1.1.9.7'),
    (2, 2, 'PACS', 'waiting', 0, '{LATER}', '{THEN}', '{LATER}', '{LATER}', NULL, NULL);
INSERT INTO destination_tally (destination, delivered, failed) VALUES ('PACS', 1, 4);
INSERT INTO audit_cursor VALUES (1, 0);
"""

TEXTS = {
    EventKind.RECEIVED: "1.1.2.1 came from CT at ER at 10.0.0.7",
    EventKind.REPLACED: "1.1.2.1 came again with other content from CT at ER at 10.0.0.7",
    EventKind.DUPLICATE: "1.1.2.1 came again, unchanged, from CT at ER at ::1",
    EventKind.OWN_RESULT_RETURNED: "1.1.9.1, a result of this node, came from PACS at 10.0.0.9",
    EventKind.REFUSED: "1.1.2.9 is already held in study 1.3",
    EventKind.VERSION_OPENED: "the study is new",
    EventKind.CLAIMED: "attempt 2, 13 instance(s)",
    EventKind.INTERRUPTED: "the node stopped during attempt 4",
    EventKind.SUPERSEDED: "version 2 takes over its images",
    EventKind.DEAD: "ValueError",
    EventKind.IMAGE_REJECTED: "1.1.2.1: lateral-view: View Position says so: LL",
    EventKind.IMAGE_UNMENTIONED: "1.1.2.1 is neither in a result nor rejected",
    EventKind.QUEUED: "sc-finding 1.1.8.1 for PACS of ward 3",
    EventKind.DELIVERED: "sr 1.1.9.1 to PACS: stored, with warning B00AH, as 1.2.840.10008.5.1.4.1.1.88.33 1.1.9.7",
    EventKind.DELIVERY_DEFERRED: "sc 1.1.8.1 to PACS: attempt 1: refused; next attempt in 30 s",
    EventKind.DELIVERY_INTERRUPTED: "1.1.8.1 to PACS of ward 3: the node stopped during attempt 2",
    EventKind.DELIVERY_DEAD: "sc 1.1.8.1 to PACS: C001: cannot understand; given up after 9 attempt(s)",
    EventKind.COMMITMENT_REQUESTED: "sr 1.1.9.1 at PACS: asked in transaction 2.25.77",
    EventKind.COMMITTED: "sr 1.1.9.1 at PACS: the destination keeps it",
}

DELIVERY = {"result_kind": "sc", "sop_instance": "1.1.8.1", "destination": "PACS"}
FACTS = {
    EventKind.RECEIVED: {"sop_instance": "1.1.2.1", "calling_ae": "CT at ER", "peer_address": "10.0.0.7"},
    EventKind.REPLACED: {"sop_instance": "1.1.2.1", "calling_ae": "CT at ER", "peer_address": "10.0.0.7"},
    EventKind.DUPLICATE: {"sop_instance": "1.1.2.1", "calling_ae": "CT at ER", "peer_address": "::1"},
    EventKind.OWN_RESULT_RETURNED: {"sop_instance": "1.1.9.1", "calling_ae": "PACS", "peer_address": "10.0.0.9"},
    EventKind.REFUSED: {"sop_instance": "1.1.2.9", "held_in_study": "1.3"},
    EventKind.VERSION_OPENED: {},
    EventKind.CLAIMED: {"attempt": 2, "instances": 13},
    EventKind.INTERRUPTED: {"attempt": 4},
    EventKind.SUPERSEDED: {"by_version": 2},
    EventKind.DEAD: {"cause": "ValueError"},
    EventKind.IMAGE_REJECTED: {
        "sop_instance": "1.1.2.1",
        "reason": "lateral-view",
        "detail": "View Position says so: LL",
    },
    EventKind.IMAGE_UNMENTIONED: {"sop_instance": "1.1.2.1"},
    EventKind.QUEUED: {"result_kind": "sc-finding", "sop_instance": "1.1.8.1", "destination": "PACS of ward 3"},
    EventKind.DELIVERED: {
        "result_kind": "sr",
        "sop_instance": "1.1.9.1",
        "destination": "PACS",
        "warning": 0xB00A,
        "sent_sop_class": "1.2.840.10008.5.1.4.1.1.88.33",
        "sent_sop_instance": "1.1.9.7",
    },
    EventKind.DELIVERY_DEFERRED: DELIVERY,
    EventKind.DELIVERY_INTERRUPTED: {"sop_instance": "1.1.8.1", "destination": "PACS of ward 3", "attempt": 2},
    EventKind.DELIVERY_DEAD: DELIVERY | {"cause": "C001: cannot understand; given up after 9 attempt(s)"},
    EventKind.COMMITMENT_REQUESTED: {
        "result_kind": "sr",
        "sop_instance": "1.1.9.1",
        "destination": "PACS",
        "transaction_uid": "2.25.77",
    },
    EventKind.COMMITTED: {"result_kind": "sr", "sop_instance": "1.1.9.1", "destination": "PACS"},
}


def write_former_store(folder: Path, events: list[tuple[str, str]]) -> None:
    """Write a store with the schema before events had facts, by literal rows."""
    folder.mkdir()
    with closing(Database(folder / "store.db")) as former:
        former.migrate(migrations()[:6])
    with closing(sqlite3.connect(folder / "store.db")) as connection:
        connection.executescript(ROWS)
        statement = "INSERT INTO event (at, study, version, kind, detail) VALUES (?, '1.1', 1, ?, ?)"
        connection.executemany(statement, [(THEN, kind, text) for kind, text in events])
        connection.commit()


@pytest.fixture
def migrated(tmp_path: Path) -> Iterator[Store]:
    write_former_store(tmp_path / "store", [(kind.value, text) for kind, text in TEXTS.items()])
    with open_store(tmp_path / "store") as store:
        yield store


def told(store: Store) -> dict[EventKind, LedgerEvent]:
    return {event.kind: event for event in store.ledger.explain("1.1")}


@pytest.mark.parametrize("kind", TEXTS)
def test_the_text_of_an_old_event_is_turned_into_facts_and_told_as_it_was(migrated: Store, kind: EventKind) -> None:
    event = told(migrated)[kind]
    assert {name: value for name, value in event.facts.items() if value is not None} == FACTS[kind]
    assert TEXTS[kind] in sentence(event)


def test_the_audit_trail_goes_on_over_events_of_the_former_version(migrated: Store) -> None:
    while migrated.audit.gather(at(120)):
        pass
    transfers = [
        (record.kind, record.about)
        for record in migrated.audit.pending(50)
        if isinstance(record.about, InstanceTransfer)
    ]
    received = [about for kind, about in transfers if kind is AuditKind.RECEIVED]
    assert [(about.peer, about.address, about.action) for about in received] == [
        ("CT at ER", "10.0.0.7", "C"),
        ("CT at ER", "10.0.0.7", "U"),
        ("CT at ER", "::1", "R"),
        ("PACS", "10.0.0.9", "R"),
    ]
    sent = [about for kind, about in transfers if kind is AuditKind.SENT]
    assert [(about.peer, about.instances, about.failure) for about in sent] == [
        ("PACS", {"1.2.840.10008.5.1.4.1.1.88.33": ["1.1.9.7"]}, ""),
        ("PACS", {SC: ["1.1.8.1"]}, "C001: cannot understand; given up after 9 attempt(s)"),
    ]


def test_a_text_that_cannot_be_taken_apart_is_told_and_tells_the_audit_trail_nothing(tmp_path: Path) -> None:
    odd = [
        ("received", "came"),
        ("delivered", "sr"),
        ("delivery-dead", "BlobDamaged: blob abc is damaged: have it sent again, then retry"),
        ("image-rejected", "unclear"),
        ("refused", ""),
    ]
    write_former_store(tmp_path / "store", odd)
    with open_store(tmp_path / "store") as store:
        events = store.ledger.explain("1.1")
        assert [(event.kind.value, event.former_text, dict(event.facts)) for event in events] == [
            (kind, text, {}) for kind, text in odd
        ]
        assert all(text in sentence(event) for event, (_, text) in zip(events, odd, strict=True))
        while store.audit.gather(at(120)):
            pass
        assert store.audit.pending(50) == ()


def test_counters_and_a_retry_that_was_asked_for_are_kept(migrated: Store) -> None:
    figures = migrated.watching.operations().destinations["PACS"]
    assert (figures.delivered, figures.failed) == (1, 4)
    assert migrated.outbox.retry_requested("PACS", at(59))
    assert not migrated.outbox.retry_requested("PACS", at(60))


def test_the_ledger_is_append_only_and_its_numbers_go_on(migrated: Store, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "store" / "store.db")) as connection:
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            connection.execute("UPDATE event SET facts = '{}'")
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            connection.execute("DELETE FROM event")
        connection.execute("INSERT INTO event (at, study, kind) VALUES ('', '1.1', 'committed')")
        [(last,)] = connection.execute("SELECT MAX(event_id) FROM event")
        assert last == len(TEXTS) + 1
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
