"""Every event of the ledger can be told in a sentence made of its facts."""

import json
from datetime import UTC, datetime

import pytest

from dicomnode.store.engine import Connection
from dicomnode.store.events import FACTS, EventKind, LedgerEvent, OpenedFor, record
from dicomnode.store.ledger import describe, sentence

VALUES: dict[str, object] = {
    "attempt": 2,
    "after_purge": True,
    "asked_by": "anna, on the page,",
    "audit_pending": True,
    "blob": "ab" * 32,
    "by_version": 3,
    "calling_ae": "MODALITY",
    "calling_aes": ["MODALITY"],
    "cause": "connection refused",
    "days": 7.0,
    "destination": "PACS",
    "detail": "a lateral view",
    "files": 2,
    "former_state": "dead",
    "given_up": True,
    "given_up_after": 9,
    "held_in_study": "1.3",
    "instances": 2,
    "known_results": 2,
    "opened_for": OpenedFor.OPERATOR,
    "peer_address": "10.0.0.7",
    "reason": "lateral-view",
    "rejected_images": 1,
    "result_kind": "sr",
    "results": 2,
    "retry_in_s": 30,
    "sent_sop_class": "1.2.9",
    "sent_sop_instance": "1.2.9.1",
    "sop_instance": "1.2.3",
    "transaction_uid": "2.25.1",
    "warning": 0xB007,
    "what": "result(s)",
}


def event(kind: EventKind, **facts: object) -> LedgerEvent:
    return LedgerEvent(at=datetime(2026, 1, 2, tzinfo=UTC), study="1.2", version=1, kind=kind, facts=facts)


@pytest.mark.parametrize("kind", EventKind)
def test_there_is_a_sentence_for_every_event_with_all_of_its_facts(kind: EventKind) -> None:
    facts = {name: VALUES[name] for name in FACTS[kind]}
    told = sentence(event(kind, **json.loads(json.dumps(facts))))
    assert told.endswith(".")
    assert "None" not in told
    assert "{" not in told


@pytest.mark.parametrize("reason", OpenedFor)
def test_a_version_says_why_it_was_opened(reason: OpenedFor) -> None:
    facts = {"opened_for": reason, "asked_by": "anna"}
    assert len(sentence(event(EventKind.VERSION_OPENED, **facts))) > 40


def test_a_warning_is_shown_as_the_standard_writes_it() -> None:
    delivered = {"result_kind": "sr", "sop_instance": "1.2", "destination": "PACS"}
    assert (
        describe(event(EventKind.DELIVERED, **delivered, warning=0xB007))
        == "sr 1.2 to PACS: stored, with warning B007H"
    )
    assert describe(event(EventKind.DELIVERED, **delivered)) == "sr 1.2 to PACS: stored"


def test_an_event_of_a_former_version_is_told_as_it_was_written() -> None:
    old = LedgerEvent(
        at=datetime(2026, 1, 2, tzinfo=UTC),
        study="1.2",
        version=1,
        kind=EventKind.DELIVERY_DEFERRED,
        facts={},
        former_text="sr 1.2 to PACS: attempt 1: refused; next attempt in 30 s",
    )
    assert sentence(old) == (
        "A delivery failed and will be tried again: sr 1.2 to PACS: attempt 1: refused; next attempt in 30 s."
    )


def test_a_fact_that_its_kind_does_not_have_is_refused() -> None:
    class Nowhere(Connection):
        pass

    with pytest.raises(ValueError, match="no fact colour"):
        record(Nowhere(), datetime(2026, 1, 2, tzinfo=UTC), "1.2", 1, EventKind.DEAD, colour="red")  # type: ignore[abstract]
