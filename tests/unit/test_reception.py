"""What accepting an image means: new, known already, other content, another study's, or the node's own result."""

from datetime import datetime

import pytest

from dicomnode.domain.delivery import Accepted, RetryPolicy
from dicomnode.domain.errors import UidMismatch
from dicomnode.domain.instance import InstanceRef
from dicomnode.domain.job import JobState
from dicomnode.store import Store
from dicomnode.store.events import EventKind
from dicomnode.store.ledger import Balance
from dicomnode.store.reception import Receipt, ReceiptKind
from tests.support.stores import (
    EXPLICIT_LE,
    QUIET_S,
    accept,
    association,
    at,
    claim,
    finished,
    image,
    kinds,
    part10,
    states,
)


def test_a_new_image_is_promised_and_its_bytes_are_there(store: Store) -> None:
    assert accept(store) == Receipt(kind=ReceiptKind.NEW, study="1.1", version=1)
    (stored,) = claim(store, QUIET_S).instances
    assert stored.ref == image()
    assert (stored.calling_ae, stored.transfer_syntax, stored.received_at) == ("MODALITY", EXPLICIT_LE, at(0))
    assert store.blobs.read_instance(stored) == part10(image())
    assert stored.size_bytes == len(part10(image()))


def test_the_same_bytes_again_are_a_duplicate_and_no_work(store: Store) -> None:
    accept(store)
    finished(store, QUIET_S)
    assert accept(store, seconds=10).kind is ReceiptKind.DUPLICATE
    assert store.inbox.claim(at(1000)) is None
    assert kinds(store)[-1] is EventKind.DUPLICATE


def test_other_bytes_under_the_same_uid_make_a_new_version_with_the_newest_content(store: Store) -> None:
    accept(store, content=b"first")
    finished(store, QUIET_S)
    assert accept(store, content=b"corrected", seconds=10) == Receipt(kind=ReceiptKind.REPLACED, study="1.1", version=2)
    job = claim(store, 10 + QUIET_S)
    assert [store.blobs.read_instance(stored) for stored in job.instances] == [part10(image(), b"corrected")]
    assert EventKind.REPLACED in kinds(store)


def test_the_former_content_of_a_replaced_image_stays_in_the_store(store: Store) -> None:
    accept(store, content=b"first")
    (former,) = claim(store, QUIET_S).instances
    accept(store, content=b"corrected", seconds=10)
    assert store.blobs.read_instance(former) == part10(image(), b"first")


def test_content_replaced_before_it_was_looked_at_is_accounted_for(store: Store) -> None:
    accept(store, content=b"first")
    accept(store, content=b"corrected", seconds=1)
    finished(store, 1 + QUIET_S)
    assert states(store) == [JobState.DONE]
    assert store.ledger.balance() == Balance(answered=1, replaced=1)


def test_content_that_returns_to_what_it_was_is_current_again(store: Store) -> None:
    for seconds, content in enumerate([b"first", b"second", b"first"]):
        accept(store, content=content, seconds=seconds)
    job = claim(store, 2 + QUIET_S)
    assert [store.blobs.read_instance(stored) for stored in job.instances] == [part10(image(), b"first")]


def test_a_sop_instance_held_under_another_study_is_refused_and_the_ledger_says_why(store: Store) -> None:
    accept(store, "1.1", 1)
    moved = InstanceRef(study="1.9", series="1.9.2", sop_class=image().sop_class, sop_instance="1.1.2.1")
    with pytest.raises(UidMismatch, match=r"already held in study 1\.1"):
        store.reception.accept(moved, EXPLICIT_LE, b"moved", association(), at(1))
    assert kinds(store, "1.9") == [EventKind.REFUSED]
    assert store.ledger.balance() == Balance(pending=1)


def test_the_nodes_own_result_coming_back_is_no_work(store: Store) -> None:
    accept(store)
    own = finished(store, QUIET_S, "PACS").results[0]
    receipt = store.reception.accept(own.ref, EXPLICIT_LE, own.part10 + b" repacked", association("pacs"), at(20))
    assert receipt == Receipt(kind=ReceiptKind.DUPLICATE, study="1.1", version=None)
    assert store.inbox.claim(at(1000)) is None
    assert kinds(store)[-1] is EventKind.OWN_RESULT_RETURNED


def test_a_fallback_that_was_sent_in_a_results_place_coming_back_is_no_work(store: Store) -> None:
    accept(store)
    finished(store, QUIET_S, "PACS")
    sent = InstanceRef(study="1.1", series="1.1.7", sop_class="1.2.840.10008.5.1.4.1.1.88.33", sop_instance="1.1.7.7")
    delivery = store.outbox.claim("PACS", 1, at(3))[0]
    store.outbox.record(delivery, Accepted(), at(3), RetryPolicy(), 0.5, sent_as=sent)
    assert store.reception.accept(sent, EXPLICIT_LE, b"fallback", association(), at(20)).kind is ReceiptKind.DUPLICATE
    assert store.inbox.claim(at(1000)) is None


def test_a_time_without_a_zone_is_a_fault_of_the_caller(store: Store) -> None:
    with pytest.raises(ValueError, match="without a zone"):
        store.inbox.claim(datetime(2025, 1, 1))  # noqa: DTZ001
