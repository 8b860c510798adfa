"""`store check` finds what is wrong with a store, and `--repair` makes it one that a node can run on."""

import hashlib
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from dicomnode.domain.delivery import DeliveryState
from dicomnode.domain.errors import StoreDamaged
from dicomnode.domain.instance import InstanceRef
from dicomnode.domain.job import JobState
from dicomnode.settings.node import AssemblySettings
from dicomnode.store import Store
from dicomnode.store.events import EventKind
from dicomnode.store.ledger import Balance
from dicomnode.store.repair import blob_path, check_store, opened, rebuild, repair
from tests.support.processes import run_cxrnode
from tests.support.stores import CR, EXPLICIT_LE, QUIET_S, accept, answer, at, claim, image, open_store, part10, to

ASSEMBLY = AssemblySettings(quiet_s=QUIET_S)


def wrong(path: Path) -> dict[str, int]:
    return {check.name: check.wrong for check in check_store(path) if check.wrong}


def identify(data: bytes) -> tuple[InstanceRef, str] | None:
    """Read what `tests.support.stores.part10` writes; the results of `tests.support.stores` are no images."""
    uid, bar, _ = data.partition(b"|")
    if not bar:
        return None
    study = uid.decode().rpartition(".2.")[0]
    return InstanceRef(study=study, series=f"{study}.2", sop_class=CR, sop_instance=uid.decode()), EXPLICIT_LE


def rebuilt(path: Path, seconds: float = 100) -> None:
    rebuild(path, ASSEMBLY, identify, at(seconds))
    repaired(path, seconds)


def repaired(path: Path, seconds: float = 100) -> int:
    with opened(path) as database:
        return repair(path, database, ASSEMBLY, identify, at(seconds)).written_off


def finished(store: Store) -> None:
    """One study answered and its results delivered, another one owed."""
    accept(store)
    job = claim(store, QUIET_S)
    store.inbox.finish(job, answer(job), to("PACS"), at(3))
    accept(store, "1.2", seconds=4, over="two", calling_ae="OTHER")


def blob_of(path: Path, uid: str) -> Path:
    with closing(sqlite3.connect(path / "store.db")) as connection:
        statement = """
            SELECT blob FROM instance WHERE sop_instance = ?1 UNION SELECT blob FROM result WHERE sop_instance = ?1
        """
        [(name,)] = connection.execute(statement, (uid,)).fetchall()
    return path / "blobs" / name[:2] / name


def rot(blob: Path) -> None:
    """Change the bytes of a blob and nothing else of its file."""
    mode = blob.stat().st_mode
    blob.chmod(0o600)
    blob.write_bytes(b"rotten")
    blob.chmod(mode)


def damage_a_page(path: Path, name: str = "instance") -> None:
    with closing(sqlite3.connect(path / "store.db")) as connection:
        [(page,)] = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (name,)).fetchall()
    with (path / "store.db").open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(b"\xff" * 4096)


def test_a_sound_store_has_nothing_wrong(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        finished(store)
    checks = {check.name: check.examined for check in check_store(tmp_path)}
    assert wrong(tmp_path) == {}
    assert (checks["digests"], checks["accepted images"], checks["studies"]) == (4, 2, 2)


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        ("rot", {"digests": 1}),
        ("loss", {"blobs of rows": 1}),
        ("foreign file", {"files of blobs": 1}),
        ("forgotten", {"accepted images": 1}),
        ("no fate", {"fates of images": 1}),
        ("page", {"database": 1}),
        ("no database", {"database": 1}),
    ],
)
def test_every_fault_is_found_by_its_name(tmp_path: Path, fault: str, found: dict[str, int]) -> None:
    with open_store(tmp_path) as store:
        finished(store)
    blob = blob_of(tmp_path, image().sop_instance)
    match fault:
        case "rot":
            rot(blob)
        case "loss":
            blob.unlink()
        case "foreign file":
            (tmp_path / "blobs" / "notes.txt").write_bytes(b"not the node's")
        case "page":
            damage_a_page(tmp_path)
        case "no database":
            (tmp_path / "store.db").unlink()
        case _:
            change = {
                "forgotten": "INSERT INTO event (at, study, kind) VALUES ('', '1.9', 'received')",
                "no fate": "UPDATE instance SET fate = NULL WHERE study = '1.1'",
            }[fault]
            with closing(sqlite3.connect(tmp_path / "store.db")) as connection:
                connection.execute(change)
                connection.commit()
    assert wrong(tmp_path) == found


@pytest.mark.parametrize("fault", ["page", "no database", "no file of SQLite"])
def test_a_damaged_database_is_rebuilt_from_the_images(tmp_path: Path, fault: str) -> None:
    with open_store(tmp_path) as store:
        finished(store)
        first = {delivery.sop_instance for delivery in store.ledger.deliveries_of("1.1")}
    if fault == "page":
        damage_a_page(tmp_path)
        with pytest.raises(StoreDamaged, match="store check --repair"):
            open_store(tmp_path)
    elif fault == "no database":
        (tmp_path / "store.db").unlink()
    else:
        (tmp_path / "store.db").write_bytes(b"a letter to the editor " * 500)
    rebuilt(tmp_path)
    assert wrong(tmp_path) == {}
    assert len(list(tmp_path.glob("damaged-*/store.db"))) == (fault != "no database")
    with open_store(tmp_path) as store:
        assert store.ledger.balance() == Balance(pending=2)
        studies = {}
        while (job := store.inbox.claim(at(10**9))) is not None:
            store.inbox.finish(job, answer(job), to("PACS"), at(10**9))
            studies[job.study] = [store.blobs.read_instance(stored) for stored in job.instances]
        assert studies == {study: [part10(image(study))] for study in ("1.1", "1.2")}
        # The same images make the same results: the PACS gets no second one.
        assert {delivery.sop_instance for delivery in store.ledger.deliveries_of("1.1")} == first
    assert wrong(tmp_path) == {}


def test_a_rebuilt_store_knows_who_sent_what_if_that_can_be_read(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        finished(store)
    damage_a_page(tmp_path, "event_study")
    rebuilt(tmp_path)
    with open_store(tmp_path) as store:
        jobs = [claim(store, 10**9), claim(store, 10**9)]
        assert {sender.calling_ae for job in jobs for sender in job.senders} == {"MODALITY", "OTHER"}


def test_of_an_image_that_was_replaced_the_last_content_is_current_again(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        accept(store, content=b"first")
        accept(store, content=b"second", seconds=1)
    # A file system tells times apart by some milliseconds, which lie between two accepts of a network, not of a test.
    for seconds, content in enumerate((b"first", b"second")):
        blob = blob_path(tmp_path, hashlib.sha256(part10(image(), content)).hexdigest())
        os.utime(blob, (10**9 + seconds, 10**9 + seconds))
    (tmp_path / "store.db").unlink()
    rebuilt(tmp_path)
    with open_store(tmp_path) as store:
        (stored,) = claim(store, 10**9).instances
        assert store.blobs.read_instance(stored) == part10(image(), b"second")


def test_an_image_that_no_row_named_is_taken_in_when_the_database_was_lost(tmp_path: Path) -> None:
    """Someone started a node on an empty database: it set every blob aside."""
    with open_store(tmp_path) as store:
        finished(store)
    (tmp_path / "store.db").unlink()
    open_store(tmp_path).close()
    damage_a_page(tmp_path)
    rebuilt(tmp_path)
    with open_store(tmp_path) as store:
        assert store.ledger.balance() == Balance(pending=2)


def test_a_repair_that_was_cut_short_is_begun_anew(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        finished(store)
    (tmp_path / "store.db").unlink()
    (tmp_path / "rebuilt.db").write_bytes(b"half a database")
    rebuilt(tmp_path)
    assert wrong(tmp_path) == {}
    assert not list(tmp_path.glob("rebuilt.db*"))


@pytest.mark.parametrize("fault", ["rot", "loss"])
def test_a_study_whose_image_is_damaged_is_a_dead_letter_until_it_comes_again(tmp_path: Path, fault: str) -> None:
    with open_store(tmp_path) as store:
        finished(store)
    blob = blob_of(tmp_path, image("1.2").sop_instance)
    rot(blob) if fault == "rot" else blob.unlink()
    assert repaired(tmp_path) == 1
    assert (tmp_path / "quarantine" / blob.name).read_bytes() == (b"rotten" if fault == "rot" else b"")
    assert wrong(tmp_path) == {}
    with open_store(tmp_path) as store:
        (job,) = store.ledger.jobs({JobState.DEAD})
        assert job.study == "1.2"
        assert "have it sent again" in str(job.last_error)
        assert store.ledger.balance() == Balance(pending=1, dead=1)
        accept(store, "1.2", seconds=200, over="three")
        assert blob.read_bytes() == part10(image("1.2"))


def test_a_damaged_image_that_was_answered_is_written_off_and_received_anew(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        finished(store)
    rot(blob_of(tmp_path, image().sop_instance))
    repaired(tmp_path)
    assert wrong(tmp_path) == {}
    with open_store(tmp_path) as store:
        assert store.ledger.jobs({JobState.DEAD}) == ()
        assert store.ledger.explain("1.1")[-1].kind is EventKind.WRITTEN_OFF


def test_a_damaged_result_on_its_way_is_a_dead_letter(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        finished(store)
        first, second = store.ledger.deliveries_of("1.1")
    rot(blob_of(tmp_path, first.sop_instance))
    repaired(tmp_path)
    assert wrong(tmp_path) == {}
    with open_store(tmp_path) as store:
        states = {entry.sop_instance: entry.state for entry in store.ledger.deliveries_of("1.1")}
        assert states == {first.sop_instance: DeliveryState.DEAD, second.sop_instance: DeliveryState.WAITING}


def test_the_command_prints_a_table_repairs_and_refuses_beside_a_node(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        finished(store)
        beside = run_cxrnode("store", "check", "--store", str(tmp_path))
        assert beside.returncode == 2
        assert "in use by process" in beside.stderr
    rot(blob_of(tmp_path, image("1.2").sop_instance))
    found = run_cxrnode("store", "check", "--store", str(tmp_path))
    assert found.returncode == 1
    assert "digests" in found.stdout
    mended = run_cxrnode("store", "check", "--repair", "--store", str(tmp_path))
    assert mended.returncode == 0, mended.stdout + mended.stderr
    assert "1 damaged or missing" in mended.stdout
    nowhere = run_cxrnode("store", "check", "--store", str(tmp_path / "nowhere"))
    assert nowhere.returncode == 2
