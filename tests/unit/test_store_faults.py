"""Power is cut, calls fail, disks fill: what was promised is there, and what was not promised does no harm."""

import errno
import os
import shutil
import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from dicomnode.domain.errors import BlobDamaged, DiskFull, StoreUnavailable
from dicomnode.domain.job import JobState
from dicomnode.store import Store
from dicomnode.store.blobs.local import SystemCalls
from dicomnode.store.ledger import Balance
from dicomnode.store.reception import ReceiptKind
from dicomnode.store.repair import check_store
from tests.support.stores import QUIET_S, accept, answer, at, claim, image, open_store, part10, to


class PowerCut(BaseException):
    """The machine stops here: nothing of the process may handle it."""


class Disk:
    """A file system that keeps, after a loss of power, exactly what was synced.

    A file's bytes survive if the file was synced; its name survives if its folder was synced afterwards.
    """

    def __init__(self) -> None:
        self._content: dict[int, bytes] = {}
        self._entries: dict[Path, dict[str, int]] = {}
        self.calls: list[str] = []
        self.cut_at: int | None = None

    def system_calls(self) -> SystemCalls:
        return SystemCalls(write=self._write, fsync=self._fsync, replace=self._replace, free_bytes=lambda _: 10**12)

    def survivors(self, store: Path, to: Path) -> None:
        """Lay out below `to` what is left of the store; SQLite syncs its own files."""
        to.mkdir()
        for name in ("store.db", "store.db-wal"):
            if (store / name).exists():
                shutil.copy(store / name, to / name)
        self._restore(store / "blobs", to / "blobs")

    def _restore(self, folder: Path, to: Path) -> None:
        to.mkdir()
        for name, inode in self._entries.get(folder, {}).items():
            if (folder / name).is_dir():
                self._restore(folder / name, to / name)
            else:
                (to / name).write_bytes(self._content.get(inode, b""))

    def _step(self, name: str) -> None:
        if self.cut_at == len(self.calls):
            raise PowerCut
        self.calls.append(name)

    def _write(self, descriptor: int, data: memoryview) -> int:
        self._step("write")
        return os.write(descriptor, data)

    def _replace(self, source: Path, target: Path) -> None:
        self._step("rename")
        source.replace(target)

    def _fsync(self, descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        self._step("sync folder" if is_folder else "sync file")
        if is_folder:
            self._entries[path] = {entry.name: entry.stat().st_ino for entry in path.iterdir()}
        else:
            self._content[os.fstat(descriptor).st_ino] = path.read_bytes()


ACCEPTING = ["sync folder", "write", "sync file", "rename", "sync folder"]
"""What one accept does to the file system, in order: a new folder's entry, the bytes, their name."""


def opened(tmp_path: Path) -> tuple[Store, Disk]:
    disk = Disk()
    store = open_store(tmp_path / "store", calls=disk.system_calls())
    disk.calls.clear()
    return store, disk


def after_power_cut(tmp_path: Path, disk: Disk) -> Store:
    disk.survivors(tmp_path / "store", tmp_path / "after")
    return open_store(tmp_path / "after")


def failing(code: int) -> Callable[..., int]:
    def call(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    return call


def test_accepting_syncs_the_bytes_then_names_them_then_syncs_the_name(tmp_path: Path) -> None:
    store, disk = opened(tmp_path)
    with store:
        accept(store)
    assert disk.calls == ACCEPTING


def test_power_loss_after_rename_keeps_the_promise(tmp_path: Path) -> None:
    store, disk = opened(tmp_path)
    with store:
        accept(store)
        with after_power_cut(tmp_path, disk) as after:
            (stored,) = claim(after, QUIET_S).instances
            assert after.blobs.read_instance(stored) == part10(image())


@pytest.mark.parametrize("step", range(len(ACCEPTING)), ids=[f"before {i} {name}" for i, name in enumerate(ACCEPTING)])
def test_power_loss_before_the_commit_promises_nothing_and_does_no_harm(tmp_path: Path, step: int) -> None:
    store, disk = opened(tmp_path)
    with store:
        disk.cut_at = step
        with pytest.raises(PowerCut):
            accept(store)
        with after_power_cut(tmp_path, disk) as after:
            assert after.ledger.balance() == Balance()
            assert accept(after).kind is ReceiptKind.NEW


def test_the_bytes_are_durable_before_there_is_a_row(tmp_path: Path) -> None:
    store, disk = opened(tmp_path)
    with store:
        rows: list[int] = []
        keep = disk.calls.append

        def look(name: str) -> None:
            with open_store(tmp_path / "store", exclusive=False) as beside:
                rows.append(beside.ledger.balance().pending)
            keep(name)

        disk.calls = _Watched(look)
        accept(store)
        assert rows == [0, 0, 0, 0, 0]
        assert store.ledger.balance() == Balance(pending=1)


class _Watched(list[str]):
    def __init__(self, look: Callable[[str], None]) -> None:
        super().__init__()
        self.append = look  # type: ignore[method-assign]


def test_power_loss_while_finishing_gives_the_same_answer_once(tmp_path: Path) -> None:
    store, disk = opened(tmp_path)
    with store:
        accept(store)
        job = claim(store, QUIET_S)
        disk.cut_at = len(disk.calls) + 8
        with pytest.raises(PowerCut):
            store.inbox.finish(job, answer(job), to("PACS"), at(3))
        with after_power_cut(tmp_path, disk) as after:
            after.inbox.recover(at(60), maximum_attempts=5)
            again = claim(after, 60)
            after.inbox.finish(again, answer(again), to("PACS"), at(61))
            sent = after.outbox.claim("PACS", 10, at(62))
            assert {d.ref.sop_instance for d in sent} == {r.ref.sop_instance for r in answer(job).results}
            assert len(sent) == 2
            assert all(after.outbox.read(delivery) for delivery in sent)


def test_power_loss_after_finishing_keeps_the_results(tmp_path: Path) -> None:
    store, disk = opened(tmp_path)
    with store:
        accept(store)
        job = claim(store, QUIET_S)
        store.inbox.finish(job, answer(job), to("PACS"), at(3))
        with after_power_cut(tmp_path, disk) as after:
            assert [after.outbox.read(d) for d in after.outbox.claim("PACS", 10, at(4))] == [
                result.part10 for result in answer(job).results
            ]


@pytest.mark.parametrize(
    ("call", "code", "error"),
    [
        ("write", errno.ENOSPC, DiskFull),
        ("write", errno.EROFS, StoreUnavailable),
        ("fsync", errno.EIO, StoreUnavailable),
        ("fsync", errno.ENOSPC, DiskFull),
        ("replace", errno.EIO, StoreUnavailable),
    ],
)
def test_an_image_that_cannot_be_written_is_not_promised(
    tmp_path: Path, call: str, code: int, error: type[Exception]
) -> None:
    open_store(tmp_path / "store").close()
    calls = SystemCalls(**{call: failing(code)})  # type: ignore[arg-type]
    with open_store(tmp_path / "store", exclusive=False, calls=calls) as store:
        with pytest.raises(error):
            accept(store)
        assert store.ledger.balance() == Balance()


def test_below_the_configured_free_space_nothing_is_accepted_and_nothing_is_lost(tmp_path: Path) -> None:
    free = [10_000]
    calls = SystemCalls(free_bytes=lambda _: free[0])
    with open_store(tmp_path / "store", calls=calls, minimum_free_bytes=5_000) as store:
        accept(store, number=1)
        free[0] = 5_000
        with pytest.raises(DiskFull):
            accept(store, number=2)
        free[0] = 10_000
        assert accept(store, number=2).kind is ReceiptKind.NEW
        assert store.ledger.balance() == Balance(pending=2)


def test_a_commit_that_is_refused_promises_nothing_and_leaves_no_bytes(tmp_path: Path) -> None:
    with open_store(tmp_path / "store", busy_timeout_s=0.05) as store:
        other = sqlite3.connect(tmp_path / "store" / "store.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable):
            accept(store)
        other.close()
        assert store.ledger.balance() == Balance()
        assert [path for path in (tmp_path / "store" / "blobs").rglob("*") if path.is_file()] == []
    assert [check.name for check in check_store(tmp_path / "store") if check.wrong] == []
    with open_store(tmp_path / "store") as again:
        assert accept(again).kind is ReceiptKind.NEW


def test_a_disk_that_fills_while_finishing_leaves_the_study_to_be_tried_again(tmp_path: Path) -> None:
    free = [10_000]
    calls = SystemCalls(free_bytes=lambda _: free[0])
    with open_store(tmp_path / "store", calls=calls, minimum_free_bytes=5_000) as store:
        accept(store)
        job = claim(store, QUIET_S)
        free[0] = 0
        with pytest.raises(DiskFull):
            store.inbox.finish(job, answer(job), to("PACS"), at(3))
        store.inbox.fail(job, "DiskFull", at(10), at(3))
        free[0] = 10_000
        again = claim(store, 10)
        store.inbox.finish(again, answer(again), to("PACS"), at(11))
        assert store.ledger.jobs_of("1.1")[0].state is JobState.DONE


def test_an_answer_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    """The second result breaks a rule of the schema: the first must leave no trace either."""
    with open_store(tmp_path / "store") as store:
        accept(store)
        job = claim(store, QUIET_S)
        connection = sqlite3.connect(tmp_path / "store" / "store.db")
        connection.execute(
            "CREATE TRIGGER fault BEFORE INSERT ON result WHEN NEW.kind = 'sc' BEGIN SELECT RAISE(ABORT, 'fault'); END"
        )
        connection.commit()
        with pytest.raises(sqlite3.IntegrityError, match="fault"):
            store.inbox.finish(job, answer(job), to("PACS"), at(3))
        assert store.ledger.deliveries_of("1.1") == ()
        assert store.ledger.jobs_of("1.1")[0].state is JobState.WORKING
        connection.execute("DROP TRIGGER fault")
        connection.commit()
        connection.close()
        store.inbox.finish(job, answer(job), to("PACS"), at(3))
        assert len(store.ledger.deliveries_of("1.1")) == 2


def test_bytes_that_rotted_are_noticed_and_a_repeated_reception_heals_them(tmp_path: Path) -> None:
    with open_store(tmp_path / "store") as store:
        accept(store)
        (stored,) = claim(store, QUIET_S).instances
        (tmp_path / "store" / "blobs" / stored.blob[:2] / stored.blob).write_bytes(b"rotten")
        with pytest.raises(BlobDamaged):
            store.blobs.read_instance(stored)
        assert accept(store, seconds=5).kind is ReceiptKind.DUPLICATE
        assert store.blobs.read_instance(stored) == part10(image())
