"""What the store makes of routes: who sent a study, which results go where, and what happens without a route."""

from dataclasses import replace

from dicomnode.domain.answer import ResultKind, StudyAnswer
from dicomnode.domain.instance import StudySender
from dicomnode.domain.job import JobState
from dicomnode.domain.routing import Recipient, Route
from dicomnode.store import Store
from dicomnode.store.events import EventKind
from dicomnode.store.ledger import Balance
from dicomnode.store.operator import OneJob
from tests.support.stores import QUIET_S, accept, answer, at, claim, result, to

SR, SC = ResultKind.STRUCTURED_REPORT, ResultKind.SECONDARY_CAPTURE
NOWHERE = Route(recipients=(), unrouted=(StudySender(calling_ae="MODALITY", called_ae="CXRNODE"),))


def queued(store: Store, study: str = "1.1") -> list[tuple[str, str]]:
    return [(entry.destination, entry.kind.value) for entry in store.ledger.deliveries_of(study)]


def titles(store: Store, seconds: float) -> set[str]:
    return {sender.calling_ae for sender in claim(store, seconds).senders}


def test_a_job_names_everybody_who_sent_something_of_its_study(store: Store) -> None:
    accept(store, number=1, calling_ae="PACS_A")
    accept(store, number=2, over="two", calling_ae="PACS_B", seconds=1)
    accept(store, study="1.2", over="three", calling_ae="PACS_C")
    assert titles(store, QUIET_S) == {"PACS_C"}
    assert titles(store, 1 + QUIET_S) == {"PACS_A", "PACS_B"}


def test_a_late_image_from_another_peer_sends_the_new_version_to_both(store: Store) -> None:
    accept(store, calling_ae="PACS_A")
    job = claim(store, QUIET_S)
    store.inbox.finish(job, answer(job), to("A"), at(3))
    accept(store, number=2, over="two", calling_ae="PACS_B", seconds=10)
    assert titles(store, 10 + QUIET_S) == {"PACS_A", "PACS_B"}


def test_a_peer_that_sends_only_what_is_held_gets_the_same_results(store: Store) -> None:
    accept(store, calling_ae="PACS_A")
    first = claim(store, QUIET_S)
    store.inbox.finish(first, answer(first), to("A"), at(3))
    accept(store, over="two", calling_ae="PACS_B", seconds=10)
    accept(store, over="two", calling_ae="PACS_B", seconds=11)
    second = claim(store, 10 + QUIET_S)
    assert {sender.calling_ae for sender in second.senders} == {"PACS_A", "PACS_B"}
    store.inbox.finish(second, answer(second), to("A", "B"), at(13))
    assert queued(store) == [("A", "sr"), ("A", "sc"), ("B", "sr"), ("B", "sc")], "nobody gets anything twice"
    assert store.inbox.claim(at(400)) is None


def test_a_duplicate_from_a_known_sender_opens_no_version(store: Store) -> None:
    accept(store)
    job = claim(store, QUIET_S)
    store.inbox.finish(job, answer(job), to("A"), at(3))
    accept(store, over="two", seconds=10)
    assert store.inbox.claim(at(400)) is None


def test_each_destination_gets_what_it_wants_and_nothing_else(store: Store) -> None:
    accept(store)
    job = claim(store, QUIET_S)
    sr, sc = answer(job).results
    prefixed = replace(
        result(job, SR), ref=replace(sr.ref, sop_instance="1.1.77"), prefix="AI ", part10=b"another result"
    )
    recipients = (
        Recipient(name="all"),
        Recipient(name="report", outputs=frozenset({SR})),
        Recipient(name="prefix", series_description_prefix="AI "),
    )
    said = StudyAnswer(results=(sr, sc, prefixed), rejections=())
    store.inbox.finish(job, said, Route(recipients=recipients), at(3))
    assert sorted(queued(store)) == [("all", "sc"), ("all", "sr"), ("prefix", "sr"), ("report", "sr")]
    assert [entry.sop_instance for entry in store.ledger.deliveries_of("1.1") if entry.destination == "prefix"] == [
        "1.1.77"
    ]
    accept(store, number=2, seconds=10)
    newer = claim(store, 10 + QUIET_S)
    assert [ref.sop_instance for ref in newer.predecessors_for("AI ")] == ["1.1.77"]
    assert [ref.sop_instance for ref in newer.predecessors_for("")] == [sr.ref.sop_instance]


def test_an_analysed_image_of_which_nothing_was_wanted_is_answered(store: Store) -> None:
    accept(store)
    job = claim(store, QUIET_S)
    uid = job.instances[0].ref.sop_instance
    said = StudyAnswer(results=(), rejections=(), analysed=(uid,))
    store.inbox.finish(job, said, to("PACS"), at(3))
    assert store.ledger.balance() == Balance(answered=1)
    assert [entry.state for entry in store.ledger.jobs_of("1.1")] == [JobState.DONE]


def test_results_without_a_route_stay_as_a_dead_letter_that_names_the_sender(store: Store) -> None:
    accept(store)
    job = claim(store, QUIET_S)
    store.inbox.finish(job, answer(job), NOWHERE, at(3))
    (entry,) = store.ledger.jobs_of("1.1")
    assert entry.state is JobState.DEAD
    assert entry.last_error is not None
    assert "MODALITY" in entry.last_error
    assert store.ledger.explain("1.1")[-1].kind is EventKind.UNROUTED
    assert queued(store) == []
    assert store.ledger.balance() == Balance(dead=1)


def test_results_without_a_route_go_out_once_there_is_one_and_an_operator_tries_again(store: Store) -> None:
    accept(store)
    job = claim(store, QUIET_S)
    store.inbox.finish(job, answer(job), NOWHERE, at(3))
    store.ledger.retry(OneJob(job_id=job.job_id), at(10))
    again = claim(store, 10)
    store.inbox.finish(again, answer(again), to("PACS"), at(11))
    assert queued(store) == [("PACS", "sr"), ("PACS", "sc")]
    assert store.ledger.balance() == Balance(pending=1)
    assert [entry.last_error for entry in store.ledger.jobs_of("1.1")] == [None]


def test_rejections_need_no_route(store: Store) -> None:
    from tests.support.stores import rejection_of_all

    accept(store)
    job = claim(store, QUIET_S)
    store.inbox.finish(job, rejection_of_all(job), NOWHERE, at(3))
    assert [entry.state for entry in store.ledger.jobs_of("1.1")] == [JobState.REJECTED]
