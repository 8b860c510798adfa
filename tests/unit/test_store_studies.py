"""Studies as people look for them, and numbers that the database does not tell."""

import sqlite3
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from dicomnode.domain.answer import RejectionReason, ResultKind, Subject
from dicomnode.domain.errors import ConfigurationError
from dicomnode.domain.job import JobState
from dicomnode.domain.summary import StudySummary
from dicomnode.settings.node import AssemblySettings, RetentionSettings, StoreSettings
from dicomnode.store import Store
from dicomnode.store.events import EventKind
from dicomnode.store.studies import StudyQuery
from tests.support.stores import QUIET_S, accept, answer, at, claim, open_store, rejection_of_all, to

ANNA = Subject(patient_id="ANNA-4711", accession_number="ORDER-0815")


def received(store: Store, study: str, seconds: float = 0.0) -> None:
    accept(store, study, 1, seconds=seconds, over=study)
    store.reception.association_released(study, at(seconds + 1))


def answered(store: Store, study: str, seconds: float = 0.0, subject: Subject = ANNA) -> None:
    received(store, study, seconds)
    job = claim(store, seconds + 10)
    store.inbox.finish(job, replace(answer(job), subjects=frozenset({subject})), to("archive"), at(seconds + 11))


def rejected(store: Store, study: str, seconds: float = 0.0) -> None:
    received(store, study, seconds)
    job = claim(store, seconds + 10)
    store.inbox.finish(job, rejection_of_all(job), to("archive"), at(seconds + 11))


def found(store: Store, **wanted: object) -> list[str]:
    return [entry.study for entry in store.studies.page(StudyQuery(**wanted), limit=50)]  # type: ignore[arg-type]


def test_pages_go_from_the_newest_to_the_oldest_without_gap_or_repetition(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        for number in range(7):
            received(store, f"1.{number}", number)
        seen: list[str] = []
        before = None
        while page := store.studies.page(StudyQuery(), limit=3, before=before):
            seen += [entry.study for entry in page]
            before = page[-1].number
            received(store, f"2.{len(seen)}", 100)  # what arrives meanwhile moves no page
    assert seen == [f"1.{number}" for number in reversed(range(7))]


def test_a_study_is_listed_once_with_its_newest_version(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        answered(store, "1.1")
        accept(store, "1.1", 2, seconds=20)
        (entry,) = store.studies.page(StudyQuery(), limit=10)
    assert (entry.version, entry.state, entry.images, entry.senders) == (2, JobState.COLLECTING, 2, ("MODALITY",))


def test_studies_are_found_by_patient_order_uid_outcome_and_date(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        answered(store, "1.1")
        answered(store, "1.2", 100, Subject(patient_id="BERT", accession_number="ORDER-1"))
        rejected(store, "1.3", 200)
        assert found(store, subject=Subject(patient_id=" anna-4711 ")) == ["1.1"]
        assert found(store, subject=Subject(accession_number="ORDER-0815")) == ["1.1"]
        assert found(store, subject=Subject(patient_id="ANNA-4711", accession_number="ORDER-1")) == []
        assert found(store, subject=Subject(patient_id="ORDER-0815")) == []
        assert found(store, subject=Subject(patient_id="ANNA-471%")) == []
        assert found(store, number="ANNA-4711") == found(store, number="order-0815") == ["1.1"]
        assert found(store, number="ANNA") == []
        assert found(store, study="1.2") == ["1.2"]
        assert found(store, states=(JobState.REJECTED,)) == ["1.3"]
        assert found(store, states=(JobState.DONE, JobState.REJECTED)) == ["1.3", "1.2", "1.1"]
        assert found(store, since=at(100)) == ["1.3", "1.2"]
        assert found(store, since=at(50), until=at(200)) == ["1.2"]


def test_no_number_stands_in_the_database_nor_can_be_tried_without_the_key(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        answered(store, "1.1")
    for file in tmp_path.glob("store.db*"):
        assert b"4711" not in file.read_bytes()
        assert b"0815" not in file.read_bytes()
    assert stat.S_IMODE((tmp_path / "search.key").stat().st_mode) == 0o600
    with open_store(tmp_path) as again:
        assert found(again, subject=ANNA) == ["1.1"]
    (tmp_path / "search.key").unlink()
    with open_store(tmp_path) as without:
        assert found(without, subject=ANNA) == []


def test_a_key_that_is_none_is_refused(tmp_path: Path) -> None:
    with open_store(tmp_path):
        pass
    (tmp_path / "search.key").write_bytes(b"short")
    with pytest.raises(ConfigurationError, match="not a key of this store"):
        open_store(tmp_path)


def test_a_study_whose_images_are_purged_is_found_by_nobodys_number(tmp_path: Path) -> None:
    store = Store.open(
        StoreSettings(path=tmp_path, minimum_free_bytes=0),
        AssemblySettings(quiet_s=QUIET_S),
        exclusive=True,
        retention=RetentionSettings(images_days=0),
    )
    with store:
        received(store, "1.1")
        job = claim(store, 10)
        rejection = replace(rejection_of_all(job), subjects=frozenset({ANNA}))
        store.inbox.finish(job, rejection, to("archive"), at(11))
        assert found(store, subject=ANNA) == ["1.1"]
        store.retention.purge(at(20))
        assert found(store, subject=ANNA) == []
        assert found(store) == ["1.1"]
        assert [entry.is_purged for entry in store.studies.images_of("1.1")] == [True]


def test_what_there_is_of_a_study(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        answered(store, "1.1")
        rejected(store, "1.2", 50)
        (image,) = store.studies.images_of("1.1")
        assert (image.instance.ref.sop_instance, image.fate, image.is_purged) == ("1.1.2.1", "answered", False)
        kinds = [(entry.kind, entry.version) for entry in store.studies.results_of("1.1")]
        assert kinds == [(ResultKind.STRUCTURED_REPORT, 1), (ResultKind.SECONDARY_CAPTURE, 1)]
        (entry,) = store.studies.page(StudyQuery(study="1.2"), limit=1)
        assert entry.reasons == (RejectionReason.LATERAL_VIEW,)
        assert store.studies.summary_of("1.9") == StudySummary()


def test_what_happened_in_the_last_hour(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        answered(store, "1.1")
        rejected(store, "1.2", 3600)
        recent = store.studies.recent(at(3700))
    assert (recent.events[EventKind.REJECTED], recent.events.get(EventKind.ANSWERED, 0)) == (1, 0)
    assert (len(recent.answers_by_minute), sum(recent.answers_by_minute)) == (60, 1)
    assert recent.answers_by_minute[-2] == 1


def test_a_page_and_a_search_use_indices(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        answered(store, "1.1")
    connection = sqlite3.connect(tmp_path / "store.db")
    plan = " ".join(
        row[3]
        for row in connection.execute(
            "EXPLAIN QUERY PLAN SELECT * FROM job WHERE job.study IN (SELECT study FROM study_key WHERE kind = "
            "'patient' AND digest = 'x') AND NOT EXISTS (SELECT 1 FROM job AS newer WHERE newer.study = job.study AND "
            "newer.version > job.version) ORDER BY job_id DESC LIMIT 5"
        )
    )
    connection.close()
    assert "SEARCH study_key" in plan
    assert "SCAN study_key" not in plan
    assert "SCAN newer" not in plan
