"""A finished study is analysed again: one more version of its answer, and never a result twice."""

import os
import pwd
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dicomnode.bundle.reader import open_bundle
from dicomnode.cli.main import app
from dicomnode.domain.answer import StudyAnswer
from dicomnode.domain.delivery import Accepted, DeliveryState, RetryPolicy
from dicomnode.domain.errors import UnknownStudy
from dicomnode.domain.job import Job, JobState
from dicomnode.settings.node import EligibilitySettings
from dicomnode.store import Store
from dicomnode.store.events import EventKind
from dicomnode.store.ledger import conclusion, describe
from dicomnode.store.operator import OfStudy
from dicomnode.store.repair import check_store
from dicomnode.store.studies import StudyQuery
from tests.support.bundles import make_bundle
from tests.support.make import build
from tests.support.stores import QUIET_S, accept, answer, at, claim, open_store, rejection_of_all, to
from tests.support.web import Web

POLICY = RetryPolicy(jitter=0)
LATER = 40 * 86_400.0


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path / "store") as opened:
        yield opened


def finish(store: Store, said: StudyAnswer, job: Job, seconds: float, *destinations: str) -> None:
    store.inbox.finish(job, said, to(*destinations), at(seconds))


def answered(store: Store, study: str = "1.1") -> None:
    accept(store, study)
    job = claim(store, QUIET_S)
    finish(store, answer(job), job, 3, "PACS")
    deliver(store, 4)


def rejected(store: Store, study: str = "1.1") -> None:
    accept(store, study)
    job = claim(store, QUIET_S)
    finish(store, rejection_of_all(job), job, 3, "PACS")


def deliver(store: Store, seconds: float) -> int:
    """Deliver what is due and return how much that was."""
    due = store.outbox.claim("PACS", 100, at(seconds))
    for delivery in due:
        store.outbox.record(delivery, Accepted(), at(seconds), POLICY, 0.5)
    return len(due)


def states(store: Store, study: str = "1.1") -> list[JobState]:
    return [entry.state for entry in store.ledger.jobs_of(study)]


def test_a_finished_study_gets_another_version_that_is_due_at_once(store: Store) -> None:
    answered(store)
    asked = store.ledger.analyse_again("1.1", "anna, on the page,", at(60))
    assert (asked.version, asked.why_not) == (2, "")
    assert states(store) == [JobState.DONE, JobState.WAITING]
    job = claim(store, 60)
    assert (job.version, len(job.instances), job.attempts) == (2, 1, 1)
    assert [ref.sop_instance for ref in job.predecessors] == [answer(job).results[0].ref.sop_instance]


def test_a_study_stays_one_that_was_received_when_it_was(store: Store) -> None:
    answered(store)
    before = store.studies.page(StudyQuery(), limit=2)
    store.ledger.analyse_again("1.1", "anna", at(86_400))
    after = store.studies.page(StudyQuery(until=at(60)), limit=2)
    assert [entry.received_at for entry in after] == [entry.received_at for entry in before] == [at(0)]
    assert [entry.version for entry in after] == [2]


def test_who_asked_stands_in_the_ledger_and_in_the_story(store: Store) -> None:
    answered(store)
    store.ledger.analyse_again("1.1", "anna, on the page,", at(60))
    told = store.ledger.explain("1.1")[-1]
    assert (told.kind, told.version) == (EventKind.VERSION_OPENED, 2)
    assert describe(told) == "anna, on the page, asked for another analysis"
    assert "an operator asked" in conclusion(store.ledger.jobs_of("1.1"), store.ledger.deliveries_of("1.1"))


def test_results_that_come_out_the_same_are_not_sent_again_and_the_ledger_says_so(store: Store) -> None:
    answered(store)
    before = store.ledger.deliveries_of("1.1")
    store.ledger.analyse_again("1.1", "anna", at(60))
    job = claim(store, 60)
    finish(store, answer(job), job, 61, "PACS")
    assert deliver(store, 62) == 0
    assert store.ledger.deliveries_of("1.1") == before
    assert states(store) == [JobState.DONE, JobState.DONE]
    assert "2 of the results were made before" in describe(store.ledger.explain("1.1")[-1])


def test_a_destination_that_is_new_gets_what_the_others_have(store: Store) -> None:
    answered(store)
    store.ledger.analyse_again("1.1", "anna", at(60))
    job = claim(store, 60)
    finish(store, answer(job), job, 61, "PACS", "ARCHIVE")
    assert deliver(store, 62) == 0
    assert len(store.outbox.claim("ARCHIVE", 100, at(62))) == 2


def test_a_rejected_study_may_get_findings_after_all(store: Store) -> None:
    rejected(store)
    store.ledger.analyse_again("1.1", "anna", at(60))
    assert store.ledger.balance().rejected == 1, "it keeps its fate until it has another"
    job = claim(store, 60)
    finish(store, answer(job), job, 61, "PACS")
    assert deliver(store, 62) == 2
    balance = store.ledger.balance()
    assert (balance.answered, balance.rejected) == (1, 0)


def test_an_analysis_that_fails_leaves_the_former_answer_in_place(store: Store) -> None:
    answered(store)
    store.ledger.analyse_again("1.1", "anna", at(60))
    store.inbox.fail(claim(store, 60), "broken", None, at(61))
    assert states(store) == [JobState.DONE, JobState.DEAD]
    assert store.ledger.balance().answered == 1
    assert "try that one again" in store.ledger.analyse_again("1.1", "anna", at(62)).why_not
    assert store.ledger.retry(OfStudy(study="1.1"), at(63)).jobs == 1


def test_a_study_in_work_or_still_arriving_is_left_alone(store: Store) -> None:
    accept(store)
    why_not = "it is being received or analysed now"
    assert store.ledger.analyse_again("1.1", "anna", at(1)).why_not == why_not
    job = claim(store, QUIET_S)
    assert store.ledger.analyse_again("1.1", "anna", at(3)).why_not == why_not
    finish(store, answer(job), job, 4)
    assert store.ledger.analyse_again("1.1", "anna", at(5)).version == 2
    assert store.ledger.analyse_again("1.1", "anna", at(6)).why_not == why_not, "twice is once"
    assert len(states(store)) == 2


def test_a_study_that_was_given_up_is_brought_back_by_a_retry_instead(store: Store) -> None:
    accept(store)
    store.ledger.drop(OfStudy(study="1.1"), at(1))
    assert "try that one again" in store.ledger.analyse_again("1.1", "anna", at(2)).why_not


def test_a_study_whose_images_are_gone_cannot_be_analysed_again(store: Store) -> None:
    rejected(store)
    store.retention.purge(at(LATER))
    asked = store.ledger.analyse_again("1.1", "anna", at(LATER))
    assert (asked.version, asked.why_not) == (
        None,
        "its images were removed by the rules of retention: send them again",
    )
    assert states(store) == [JobState.REJECTED]


def test_the_images_of_a_study_that_is_to_be_analysed_again_are_kept(store: Store) -> None:
    rejected(store)
    store.ledger.analyse_again("1.1", "anna", at(LATER))
    store.retention.purge(at(LATER))
    assert store.blobs.read_instance(claim(store, LATER).instances[0])


def test_an_image_that_arrives_meanwhile_joins_that_version(store: Store) -> None:
    answered(store)
    store.ledger.analyse_again("1.1", "anna", at(60))
    accept(store, "1.1", 2, seconds=60.5)
    assert store.inbox.claim(at(61)) is None
    job = claim(store, 60.5 + QUIET_S)
    assert (job.version, len(job.instances)) == (2, 2)


def test_a_study_nobody_sent_is_unknown(store: Store) -> None:
    with pytest.raises(UnknownStudy):
        store.ledger.analyse_again("9.9", "anna", at(0))


def test_what_fails_half_way_leaves_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    answered(store)
    told = store.ledger.explain("1.1")

    def fails(*_: object, **facts: object) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr("dicomnode.store.operator.record", fails)
    with pytest.raises(Exception, match="disk I/O error"):
        store.ledger.analyse_again("1.1", "anna", at(60))
    assert states(store) == [JobState.DONE]
    assert store.ledger.explain("1.1") == told


# With a model


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    with Web(tmp_path, bundle=open_bundle(make_bundle(tmp_path / "first"))) as made:
        yield made


def reanalyse(web: Web, study: str) -> None:
    assert web.store.ledger.analyse_again(study, "anna", web.clock()).version is not None
    web.clock.advance(seconds=1)
    web.answer()


def sent(web: Web) -> list[str]:
    """Deliver what is due and return the UIDs."""
    due = web.store.outbox.claim("pacs", 100, web.clock())
    for delivery in due:
        web.store.outbox.record(delivery, Accepted(), web.clock(), POLICY, 0.5)
    return [delivery.ref.sop_instance for delivery in due]


def test_the_same_model_makes_the_same_objects_and_another_model_others_beside_them(web: Web, tmp_path: Path) -> None:
    study = "1.2.826.0.1.1"
    web.answer(build("dx", rows=256, columns=224, study_uid=study))
    first = sent(web)
    reanalyse(web, study)
    assert first
    assert not sent(web)
    assert [check.detail for check in check_store(tmp_path / "store") if check.wrong] == []
    named = {one.blob for one in web.store.studies.results_of(study)}
    named |= {one.instance.blob for one in web.store.studies.images_of(study)}
    assert {file.name for file in (tmp_path / "store" / "blobs").rglob("*") if file.is_file()} == named
    with Web(tmp_path / "other", bundle=open_bundle(make_bundle(tmp_path / "newer", seed=9))) as other:
        web.pipeline = other.pipeline
        reanalyse(web, study)
        second = sent(web)
    assert len(second) == len(first)
    assert not set(second) & set(first)
    report = next(one for one in web.store.studies.results_of(study) if one.version == 3 and one.kind.value == "sr")
    assert first[0].encode() in web.store.blobs.read(report.blob), "the new report names the former one"


def test_a_setting_that_rejected_a_study_is_changed_and_it_gets_findings(web: Web) -> None:
    study, eligibility = "1.2.826.0.1.2", web.pipeline.eligibility
    web.pipeline = replace(web.pipeline, eligibility=EligibilitySettings(minimum_side=2000))
    web.answer(build("dx", rows=256, columns=224, study_uid=study))
    assert states(web.store, study) == [JobState.REJECTED]
    web.pipeline = replace(web.pipeline, eligibility=eligibility)
    reanalyse(web, study)
    assert states(web.store, study) == [JobState.REJECTED, JobState.DONE]
    assert {entry.state for entry in web.store.ledger.deliveries_of(study)} == {DeliveryState.WAITING}


# From the terminal


def queue(tmp_path: Path, *arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["queue", *arguments, "--store", str(tmp_path / "store")])
    return done.exit_code, " ".join(done.output.split())


def test_a_study_is_analysed_again_from_the_terminal(store: Store, tmp_path: Path) -> None:
    answered(store)
    assert queue(tmp_path, "reanalyse", "1.1") == (0, "1 studies will be analysed again")
    who = pwd.getpwuid(os.getuid()).pw_name
    assert describe(store.ledger.explain("1.1")[-1]) == f"{who}, at a terminal, asked for another analysis"
    code, said = queue(tmp_path, "reanalyse", "1.1")
    assert code == 1
    assert "1.1 is not analysed again: it is being received or analysed now" in said


def test_every_rejected_study_whose_images_are_kept_is_analysed_again(store: Store, tmp_path: Path) -> None:
    rejected(store, "1.9")
    store.retention.purge(at(LATER))
    for study in ("1.1", "1.2"):
        rejected(store, study)
    answered(store, "1.3")
    assert queue(tmp_path, "reanalyse", "--all-rejected") == (0, "2 studies will be analysed again")
    assert [states(store, study)[-1] for study in ("1.1", "1.2", "1.3", "1.9")] == [
        JobState.WAITING,
        JobState.WAITING,
        JobState.DONE,
        JobState.REJECTED,
    ]


@pytest.mark.parametrize("arguments", [(), ("1.1", "--all-rejected"), ("not a uid",)])
def test_what_is_not_clear_is_asked_for(store: Store, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    answered(store)
    assert queue(tmp_path, "reanalyse", *arguments)[0] != 0
    assert states(store) == [JobState.DONE]
