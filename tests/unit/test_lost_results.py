"""A result whose bytes are lost before every destination has them is made again, or says what the operator can do."""

from pathlib import Path

import pytest

from dicomnode.domain.answer import ResultKind
from dicomnode.domain.delivery import Accepted, DeliveryState, NoAnswer, RetryPolicy
from dicomnode.domain.errors import BlobDamaged
from dicomnode.domain.job import JobState
from dicomnode.settings.node import AssemblySettings
from dicomnode.store import Store
from dicomnode.store.events import EventKind
from dicomnode.store.ledger import describe
from dicomnode.store.operator import AllDead, Changed, OfStudy, OneDelivery
from dicomnode.store.repair import check_store, opened, repair
from tests.support.stores import (
    QUIET_S,
    accept,
    answer,
    at,
    claim,
    finished,
    kinds,
    open_store,
    result,
    states,
    to,
)

POLICY = RetryPolicy()


def blob_files(folder: Path) -> set[Path]:
    return {file for file in (folder / "blobs").rglob("*") if file.is_file()}


def answered(store: Store, *destinations: str) -> None:
    accept(store)
    finished(store, QUIET_S, *(destinations or ("PACS",)))


def lose(store: Store, folder: Path, how: str = "loss") -> str:
    """Lose the bytes of the study's report; return its SOP Instance UID."""
    report = next(entry for entry in store.studies.results_of("1.1") if entry.kind is ResultKind.STRUCTURED_REPORT)
    file = folder / "blobs" / report.blob[:2] / report.blob
    file.unlink() if how == "loss" else file.write_bytes(b"rotten")
    return report.ref.sop_instance


def deliver(store: Store, seconds: float, destination: str = "PACS") -> None:
    """Send what is due as a sender does: what cannot be read is given up."""
    for delivery in store.outbox.claim(destination, 10, at(seconds)):
        try:
            store.outbox.read(delivery)
            store.outbox.record(delivery, Accepted(), at(seconds), POLICY, 0.5)
        except BlobDamaged as error:
            outcome = NoAnswer(cause=f"BlobDamaged: {error}", permanent=True)
            store.outbox.record(delivery, outcome, at(seconds), POLICY, 0.5)


def delivery_states(store: Store) -> dict[str, DeliveryState]:
    return {entry.sop_instance: entry.state for entry in store.ledger.deliveries_of("1.1")}


def dead_delivery(store: Store) -> int:
    return next(entry.delivery_id for entry in store.ledger.deliveries_of("1.1") if entry.state is DeliveryState.DEAD)


def reanswered(store: Store, seconds: float, content: bytes = b"again ") -> None:
    """Answer the open version with the same results, whose bytes differ, as the times in them do."""
    job = claim(store, seconds)
    given = answer(job)
    changed = tuple(
        type(entry)(**{name: getattr(entry, name) for name in entry.__slots__} | {"part10": content + entry.part10})
        for entry in given.results
    )
    given = type(given)(results=changed, rejections=(), summary=given.summary, analysed=given.analysed)
    store.inbox.finish(job, given, to("PACS"), at(seconds))


@pytest.mark.parametrize("how", ["loss", "rot"])
def test_a_lost_result_is_a_dead_letter_that_says_how_it_is_made_again(store: Store, tmp_path: Path, how: str) -> None:
    answered(store)
    uid = lose(store, tmp_path / "store", how)
    deliver(store, 10)
    assert delivery_states(store)[uid] is DeliveryState.DEAD
    (entry,) = [entry for entry in store.ledger.deliveries_of("1.1") if entry.sop_instance == uid]
    assert "`cxrnode queue retry` makes the result again" in str(entry.last_error)


@pytest.mark.parametrize("how", ["retry", "retry all", "reanalyse", "send again"])
def test_a_lost_result_is_made_again_and_delivered(tmp_path: Path, how: str) -> None:
    with open_store(tmp_path / "store") as store:
        answered(store)
        uid = lose(store, tmp_path / "store")
        deliver(store, 10)
        if how == "retry":
            selection = OneDelivery(delivery_id=dead_delivery(store))
            assert store.ledger.retry(selection, at(20)) == Changed(jobs=1, deliveries=0)
        elif how == "retry all":
            assert store.ledger.retry(AllDead(), at(20)).jobs == 1
        elif how == "reanalyse":
            assert store.ledger.analyse_again("1.1", "anna", at(20)).version == 2
        else:
            accept(store, seconds=20)
        reanswered(store, 30)
        assert store.studies.results_of("1.1")[0].ref.sop_instance == uid
        deliver(store, 40)
        assert set(delivery_states(store).values()) == {DeliveryState.DELIVERED}
        assert EventKind.RESULT_REPLACED in kinds(store)
        assert states(store) == [JobState.DONE, JobState.DONE]
    assert [check.name for check in check_store(tmp_path / "store") if check.wrong] == []


def test_only_the_deliveries_that_failed_for_the_loss_are_taken_up_again(store: Store, tmp_path: Path) -> None:
    answered(store, "PACS", "OTHER")
    for delivery in store.outbox.claim("OTHER", 10, at(5)):
        store.outbox.record(delivery, NoAnswer(cause="refused for good", permanent=True), at(5), POLICY, 0.5)
    lose(store, tmp_path / "store")
    deliver(store, 10)
    store.ledger.analyse_again("1.1", "anna", at(20))
    reanswered(store, 30)
    found = {(entry.destination, entry.state) for entry in store.ledger.deliveries_of("1.1")}
    assert found == {
        ("PACS", DeliveryState.DELIVERED),
        ("PACS", DeliveryState.WAITING),
        ("OTHER", DeliveryState.DEAD),
    }


def test_a_retry_of_a_lost_result_whose_images_are_purged_changes_nothing(store: Store, tmp_path: Path) -> None:
    answered(store)
    lose(store, tmp_path / "store")
    deliver(store, 10)
    with store._database.transaction() as connection:
        connection.execute("UPDATE instance SET purged_at = '2025'")
    assert store.ledger.retry(OfStudy(study="1.1"), at(20)) == Changed(jobs=0, deliveries=0)
    accept(store, seconds=30)
    reanswered(store, 40)
    deliver(store, 50)
    assert set(delivery_states(store).values()) == {DeliveryState.DELIVERED}


@pytest.mark.parametrize("how", ["loss", "rot"])
def test_repair_has_a_lost_result_made_again(tmp_path: Path, how: str) -> None:
    with open_store(tmp_path) as store:
        answered(store)
        uid = lose(store, tmp_path, how)
    with opened(tmp_path) as database:
        assert repair(tmp_path, database, AssemblySettings(), lambda _: None, at(20)).written_off == 1
    assert [check.name for check in check_store(tmp_path) if check.wrong] == []
    with open_store(tmp_path) as store:
        assert delivery_states(store)[uid] is DeliveryState.DEAD
        opened_for = [describe(event) for event in store.ledger.explain("1.1")][-1]
        assert opened_for == "a result that is not delivered yet was lost"
        reanswered(store, 30)
        deliver(store, 40)
        assert set(delivery_states(store).values()) == {DeliveryState.DELIVERED}
    assert [check.name for check in check_store(tmp_path) if check.wrong] == []


def test_the_same_results_made_again_leave_no_bytes_and_the_first_ones_stay(tmp_path: Path) -> None:
    with open_store(tmp_path / "store") as store:
        answered(store)
        deliver(store, 10)
        before = {file: file.read_bytes() for file in blob_files(tmp_path / "store")}
        store.ledger.analyse_again("1.1", "anna", at(20))
        reanswered(store, 30)
        assert {file: file.read_bytes() for file in blob_files(tmp_path / "store")} == before
        assert store.outbox.claim("PACS", 10, at(40)) == ()
    assert {check.name: check.wrong for check in check_store(tmp_path / "store") if check.wrong} == {}


def test_the_answer_to_a_job_that_was_dropped_meanwhile_leaves_no_bytes(store: Store, tmp_path: Path) -> None:
    accept(store)
    job = claim(store, QUIET_S)
    before = blob_files(tmp_path / "store")
    store.inbox.fail(job, "for now", None, at(5))
    store.inbox.finish(job, answer(job), to("PACS"), at(6))
    assert blob_files(tmp_path / "store") == before


def test_staged_results_of_an_unchanged_answer_are_not_named(store: Store, tmp_path: Path) -> None:
    answered(store)
    store.ledger.analyse_again("1.1", "anna", at(20))
    job = claim(store, 20)
    staged = tuple(store.blobs.stage(b"new " + entry.part10) for entry in answer(job).results)
    store.inbox.finish(job, answer(job), to("PACS"), at(21), staged)
    for blob in staged:
        store.blobs.discard(blob)
    assert len(blob_files(tmp_path / "store")) == 3


def test_a_result_of_the_job_is_what_the_store_names(store: Store) -> None:
    accept(store)
    job = claim(store, QUIET_S)
    given = result(job, ResultKind.STRUCTURED_REPORT)
    staged = store.blobs.stage(given.part10)
    single = type(answer(job))(results=(given,), rejections=(), summary=answer(job).summary)
    store.inbox.finish(job, single, to("PACS"), at(5), (staged,))
    (delivery,) = store.outbox.claim("PACS", 10, at(6))
    assert store.outbox.read(delivery) == given.part10
    assert not staged.path.exists()
