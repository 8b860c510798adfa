"""After the restore of an older database no acknowledged image vanishes: counted, an alarm, taken in again."""

import shutil
from datetime import timedelta
from pathlib import Path

import pytest

from dicomnode.domain.instance import InstanceRef
from dicomnode.settings.node import AssemblySettings, RetentionSettings, StoreSettings
from dicomnode.store import Store
from dicomnode.store.ledger import Balance
from dicomnode.store.repair import Repaired, check_store, opened, repair
from tests.support.stores import (
    CR,
    EXPLICIT_LE,
    QUIET_S,
    accept,
    answer,
    association,
    at,
    finished,
    image,
    open_store,
    part10,
    to,
)

ASSEMBLY = AssemblySettings(quiet_s=QUIET_S)


def identify(data: bytes) -> tuple[InstanceRef, str] | None:
    """Read what `tests.support.stores.part10` writes; results are no images."""
    uid, bar, _ = data.partition(b"|")
    study = uid.decode().rpartition(".2.")[0]
    ref = InstanceRef(study=study, series=f"{study}.2", sop_class=CR, sop_instance=uid.decode())
    return (ref, EXPLICIT_LE) if bar else None


def wrong(path: Path) -> dict[str, int]:
    return {check.name: check.wrong for check in check_store(path) if check.wrong}


def repaired(path: Path) -> Repaired:
    with opened(path) as database:
        return repair(path, database, ASSEMBLY, identify, at(10_000))


@pytest.fixture
def restored(tmp_path: Path) -> Path:
    """A store whose database is older than its images: 1.1 is in it, 1.2 (answered) and 1.3 (owed) came later."""
    path = tmp_path / "store"
    with open_store(path) as store:
        accept(store, "1.1", calling_ae="CT")
        finished(store, QUIET_S, "PACS")
    shutil.copy(path / "store.db", tmp_path / "older.db")
    with open_store(path) as store:
        accept(store, "1.1", 2, seconds=100)
        accept(store, "1.2", seconds=100, over="two")
        finished(store, 110, "PACS")
        finished(store, 110, "PACS")
        accept(store, "1.3", seconds=120, over="three")
    shutil.copy(tmp_path / "older.db", path / "store.db")
    return path


def test_a_check_counts_acknowledged_images_that_the_database_does_not_know(restored: Path) -> None:
    assert wrong(restored) == {"images without a row": 3}


def test_a_running_node_counts_them_too_and_a_check_after_it_does(
    restored: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with open_store(restored) as store:
        assert store.watching.operations().images_without_row == 3
    (logged,) = [record for record in caplog.records if record.message == "acknowledged-images-without-row"]
    assert (logged.levelname, logged.images) == ("ERROR", 3)
    with open_store(restored, exclusive=False) as beside:
        assert beside.watching.operations().images_without_row == 3
    assert wrong(restored) == {"images without a row": 3}


@pytest.mark.parametrize("started", [False, True])
def test_repair_takes_them_in_and_they_are_answered(restored: Path, started: bool) -> None:
    if started:
        open_store(restored).close()
    assert repaired(restored) == Repaired(taken_in=3)
    assert wrong(restored) == {}
    assert list((restored / "unclaimed").glob("*")) != []  # results, which were acknowledged to nobody
    with open_store(restored) as store:
        assert store.watching.operations().images_without_row == 0
        studies = set()
        while (job := store.inbox.claim(at(10**9))) is not None:
            store.inbox.finish(job, answer(job), to("PACS"), at(10**9))
            studies.add((job.study, len(job.instances), *sorted(sender.calling_ae for sender in job.senders)))
        assert studies == {("1.1", 2, "CT"), ("1.2", 1, "UNKNOWN"), ("1.3", 1, "UNKNOWN")}
        assert store.ledger.balance() == Balance(pending=4)
    assert wrong(restored) == {}
    assert repaired(restored) == Repaired()


def test_an_image_that_was_sent_again_meanwhile_is_not_taken_in_twice(restored: Path) -> None:
    with open_store(restored) as store:
        accept(store, "1.3", seconds=500, over="four")
        assert store.watching.operations().images_without_row == 2
    assert wrong(restored) == {"images without a row": 2}
    assert repaired(restored) == Repaired(taken_in=2)
    assert wrong(restored) == {}
    with open_store(restored) as store:
        assert len(store.studies.images_of("1.3")) == 1
        assert store.blobs.acknowledged_without_row() == ()


def test_older_content_does_not_replace_what_was_sent_after_the_restore(restored: Path) -> None:
    later = at(0) + timedelta(days=36_500)  # after the files were written
    with open_store(restored) as store:
        ref = image("1.3")
        store.reception.accept(ref, EXPLICIT_LE, part10(ref, b"corrected"), association("late"), later)
    assert repaired(restored) == Repaired(taken_in=2, quarantined=1)
    assert wrong(restored) == {}
    with open_store(restored) as store:
        (entry,) = store.studies.images_of("1.3")
        assert store.blobs.read(entry.instance.blob) == part10(image("1.3"), b"corrected")


@pytest.mark.parametrize("how", ["start", "repair"])
def test_files_that_were_set_aside_for_an_older_database_come_back_with_the_newer_one(
    restored: Path, tmp_path: Path, how: str
) -> None:
    newer = tmp_path / "newer"
    shutil.copytree(restored, newer)
    repaired(newer)
    open_store(restored).close()
    shutil.copy(newer / "store.db", restored / "store.db")
    if how == "start":
        with open_store(restored) as store:
            assert store.blobs.acknowledged_without_row() == ()
    else:
        assert repaired(restored) == Repaired()
    assert wrong(restored) == {}


def test_retention_never_removes_an_acknowledged_image_without_a_row(restored: Path) -> None:
    at_once = RetentionSettings(images_days=0.0, results_days=0.0)
    with Store.open(StoreSettings(path=restored), ASSEMBLY, exclusive=True, retention=at_once) as store:
        before = store.blobs.acknowledged_without_row()
        store.retention.purge(at(10**9))
        assert store.blobs.acknowledged_without_row() == before
        assert len(before) == 3
        assert set((restored / "unclaimed").iterdir()) == set(before)


def test_bytes_that_were_never_acknowledged_are_no_fault(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        accept(store)
        store.blobs.write(b"power was lost before the commit")
    assert wrong(tmp_path) == {}
    with open_store(tmp_path) as store:
        assert store.watching.operations().images_without_row == 0
    assert wrong(tmp_path) == {}
    assert len(list((tmp_path / "unclaimed").iterdir())) == 1
