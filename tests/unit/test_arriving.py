"""A blob whose bytes come piece by piece: durable once adopted, and nothing is left of what was not."""

import errno
import os
import stat
from pathlib import Path
from typing import Any, NoReturn

import pytest

from dicomnode.domain.errors import DiskFull, StoreUnavailable
from dicomnode.store.blobs.local import Blobs, SystemCalls
from dicomnode.store.blobs.streamed import Arriving
from tests.support.processes import wait_until
from tests.support.stores import EXPLICIT_LE, association, at, image, open_store

PIECES = [b"head", memoryview(bytearray(b"fragment") * 400_000), b"tail"]
WHOLE = b"".join(PIECES)
LIMIT_S = 60


def prepared(folder: Path, minimum_free_bytes: int = 0, **calls: Any) -> Blobs:
    return Blobs(
        folder / "blobs",
        folder / "unclaimed",
        minimum_free_bytes=minimum_free_bytes,
        calls=SystemCalls(**calls) if calls else None,
    ).prepare()


def arrived(blobs: Blobs) -> Arriving:
    arriving = blobs.arriving()
    for piece in PIECES:
        arriving.write(piece)
    return arriving


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def failing(code: int) -> Any:
    def fail(*_: Any) -> NoReturn:
        raise OSError(code, os.strerror(code))

    return fail


def test_pieces_make_the_same_blob_as_their_whole(tmp_path: Path) -> None:
    blobs = prepared(tmp_path)
    arriving = arrived(blobs)
    name = blobs.write(arriving)
    arriving.discard()
    assert name == prepared(tmp_path / "other").write(WHOLE)
    assert blobs.read(name) == WHOLE
    assert len(arriving) == len(WHOLE)
    assert len(files(tmp_path / "blobs")) == 1


def test_its_bytes_are_synced_before_it_has_a_name_and_its_name_before_it_is_adopted(tmp_path: Path) -> None:
    calls: list[str] = []

    def fsync(descriptor: int) -> None:
        calls.append("sync folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "sync file")
        if calls[-1] == "sync file":
            assert os.fstat(descriptor).st_size == len(WHOLE)

    def replace(source: Path, target: Path) -> None:
        calls.append("rename")
        source.replace(target)

    blobs = prepared(tmp_path, fsync=fsync, replace=replace)
    calls.clear()
    blobs.write(arrived(blobs))
    assert calls == ["sync file", "sync folder", "rename", "sync folder"]


def test_nothing_is_left_of_what_is_abandoned(tmp_path: Path) -> None:
    blobs = prepared(tmp_path)
    arriving = arrived(blobs)
    arriving.abandon()
    wait_until(lambda: files(tmp_path / "blobs") == [], LIMIT_S, "the removal of the file")
    with pytest.raises(StoreUnavailable):
        blobs.write(arriving)
    arriving.discard()


def test_nothing_is_left_of_what_is_discarded(tmp_path: Path) -> None:
    blobs = prepared(tmp_path)
    arrived(blobs).discard()
    assert files(tmp_path / "blobs") == []


def test_the_end_of_a_connection_takes_nothing_from_who_adopts(tmp_path: Path) -> None:
    blobs = prepared(tmp_path)
    arriving = arrived(blobs)
    arriving.seal()
    arriving.abandon()
    assert arriving.path.read_bytes() == WHOLE


@pytest.mark.parametrize("call", ["write", "fsync"])
@pytest.mark.parametrize(("code", "error"), [(errno.ENOSPC, DiskFull), (errno.EIO, StoreUnavailable)])
def test_what_the_disk_refuses_is_refused_and_leaves_nothing(
    tmp_path: Path, call: str, code: int, error: type[Exception]
) -> None:
    prepared(tmp_path)
    blobs = Blobs(
        tmp_path / "blobs",
        tmp_path / "unclaimed",
        minimum_free_bytes=0,
        calls=SystemCalls(**{call: failing(code)}),  # type: ignore[arg-type]
    )
    arriving = arrived(blobs)
    with pytest.raises(error):
        blobs.write(arriving)
    arriving.discard()
    assert files(tmp_path / "blobs") == []


def test_a_disk_that_is_nearly_full_takes_no_large_object(tmp_path: Path) -> None:
    blobs = prepared(tmp_path, minimum_free_bytes=5_000, free_bytes=lambda _: 4_999)
    arriving = arrived(blobs)
    with pytest.raises(DiskFull):
        blobs.write(arriving)
    arriving.discard()
    assert files(tmp_path / "blobs") == []


def test_an_instance_that_arrived_in_pieces_is_the_studys_like_any_other(tmp_path: Path) -> None:
    with open_store(tmp_path / "store") as store:
        arriving = store.reception.arriving()
        for piece in PIECES:
            arriving.write(piece)
        store.reception.accept(image(), EXPLICIT_LE, arriving, association(), at(0))
        arriving.discard()
        store.reception.association_released("one", at(1))
        job = store.inbox.claim(at(60))
        assert job is not None
        (instance,) = job.instances
        assert instance.size_bytes == len(WHOLE)
        assert store.blobs.read_instance(instance) == WHOLE
        again = store.reception.accept(image(), EXPLICIT_LE, WHOLE, association("two"), at(61))
        assert again.kind == "duplicate"


def test_what_a_crash_left_half_written_is_removed_at_the_next_start(tmp_path: Path) -> None:
    with open_store(tmp_path / "store") as store:
        arriving = store.reception.arriving()
        arriving.write(b"the first piece")
        wait_until(arriving.path.exists, LIMIT_S, "the begin of the file")
        left = arriving.path.read_bytes(), arriving.path
        arriving.discard()
        left[1].write_bytes(left[0])
    open_store(tmp_path / "store").close()
    assert not left[1].exists()
