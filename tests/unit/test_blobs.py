"""Bytes on disk: durable after `write`, verified on `read`, nobody's path but the node's own."""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from dicomnode.domain.errors import BlobDamaged, DiskFull, StoreUnavailable
from dicomnode.store.blobs.local import Blobs, Inventory, SystemCalls

DATA = b"the bytes of one radiograph"
NAME = "2ef2d53bf9aaa9a7a6fb8bfb4b6f1c3c9b1b0f1cbe2ef9f62c4e7d9c8d7c2f10"


def prepared(tmp_path: Path, *, calls: SystemCalls | None = None, minimum_free_bytes: int = 0) -> Blobs:
    root, unclaimed = tmp_path / "blobs", tmp_path / "unclaimed"
    return Blobs(root, unclaimed, minimum_free_bytes=minimum_free_bytes, calls=calls).prepare()


def files(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()]


def failing(code: int) -> Callable[..., int]:
    def call(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    return call


def fails_on_folders(descriptor: int) -> None:
    if stat.S_ISDIR(os.fstat(descriptor).st_mode):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    os.fsync(descriptor)


def test_bytes_come_back_as_they_were_written(tmp_path: Path) -> None:
    blobs = prepared(tmp_path)
    name = blobs.write(DATA)
    assert blobs.read(name) == DATA


def test_an_empty_blob_is_a_blob(tmp_path: Path) -> None:
    blobs = prepared(tmp_path)
    assert blobs.read(blobs.write(b"")) == b""


def test_a_blob_is_named_by_its_sha256_and_lies_in_a_folder_of_its_first_two_characters(tmp_path: Path) -> None:
    name = prepared(tmp_path).write(b"abc")
    assert name == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert files(tmp_path) == [tmp_path / "blobs" / "ba" / name]


def test_nobody_but_the_owner_may_read_a_blob(tmp_path: Path) -> None:
    blobs = prepared(tmp_path)
    path = tmp_path / "blobs" / "ba" / blobs.write(b"abc")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in (path.parent, path.parent.parent)} == {0o700}


def test_the_same_bytes_twice_are_one_blob(tmp_path: Path) -> None:
    blobs = prepared(tmp_path)
    assert blobs.write(DATA) == blobs.write(DATA)
    assert len(files(tmp_path)) == 1


def test_writing_again_heals_a_damaged_blob(tmp_path: Path) -> None:
    blobs = prepared(tmp_path)
    name = blobs.write(DATA)
    (tmp_path / "blobs" / name[:2] / name).write_bytes(b"rotten")
    blobs.write(DATA)
    assert blobs.read(name) == DATA


def test_a_file_system_that_writes_a_byte_at_a_time_loses_none(tmp_path: Path) -> None:
    blobs = prepared(tmp_path, calls=SystemCalls(write=lambda descriptor, rest: os.write(descriptor, rest[:1])))
    assert blobs.read(blobs.write(DATA)) == DATA


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    blobs = prepared(tmp_path)
    name = blobs.write(DATA)
    (tmp_path / "blobs" / name[:2] / name).write_bytes(DATA[:-1] + bytes([DATA[-1] ^ 1]))
    with pytest.raises(BlobDamaged, match="no longer matches"):
        blobs.read(name)


def test_a_missing_blob_is_damage_and_not_a_crash(tmp_path: Path) -> None:
    blobs = prepared(tmp_path)
    with pytest.raises(BlobDamaged, match="missing"):
        blobs.read(NAME)


@pytest.mark.parametrize("name", ["../../etc/passwd", "", "ab", NAME.upper(), NAME + "0", f"{NAME[:-1]}\n"])
def test_nothing_but_a_sha256_is_a_name(tmp_path: Path, name: str) -> None:
    blobs = prepared(tmp_path)
    with pytest.raises(ValueError, match="SHA-256"):
        blobs.read(name)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_said_to_be_full_and_leaves_no_file(tmp_path: Path, code: int) -> None:
    blobs = prepared(tmp_path, calls=SystemCalls(write=failing(code)))
    with pytest.raises(DiskFull):
        blobs.write(DATA)
    assert files(tmp_path) == []


@pytest.mark.parametrize("code", [errno.EROFS, errno.EIO, errno.EACCES])
def test_a_file_system_that_refuses_is_unavailable_and_leaves_no_file(tmp_path: Path, code: int) -> None:
    blobs = prepared(tmp_path, calls=SystemCalls(write=failing(code)))
    with pytest.raises(StoreUnavailable):
        blobs.write(DATA)
    assert files(tmp_path) == []


def test_a_failed_fsync_of_the_file_promises_nothing_and_leaves_no_file(tmp_path: Path) -> None:
    prepared(tmp_path).write(DATA)
    calls = SystemCalls(fsync=failing(errno.EIO))
    blobs = Blobs(tmp_path / "blobs", tmp_path / "unclaimed", minimum_free_bytes=0, calls=calls)
    with pytest.raises(StoreUnavailable):
        blobs.write(b"other")
    assert len(files(tmp_path)) == 1


def test_a_failed_fsync_of_the_folder_promises_nothing(tmp_path: Path) -> None:
    prepared(tmp_path)
    calls = SystemCalls(fsync=fails_on_folders)
    blobs = Blobs(tmp_path / "blobs", tmp_path / "unclaimed", minimum_free_bytes=0, calls=calls)
    with pytest.raises(StoreUnavailable):
        blobs.write(DATA)


def test_a_failed_rename_leaves_no_file(tmp_path: Path) -> None:
    blobs = prepared(tmp_path, calls=SystemCalls(replace=failing(errno.EIO)))
    with pytest.raises(StoreUnavailable):
        blobs.write(DATA)
    assert files(tmp_path) == []


def test_free_space_is_kept(tmp_path: Path) -> None:
    calls = SystemCalls(free_bytes=lambda _: 1000 + len(DATA))
    assert prepared(tmp_path / "enough", calls=calls, minimum_free_bytes=1000).write(DATA)
    short = prepared(tmp_path / "short", calls=calls, minimum_free_bytes=1001)
    with pytest.raises(DiskFull, match="1001 are to be kept free"):
        short.write(DATA)
    assert files(tmp_path / "short") == []


def test_half_written_files_are_swept(tmp_path: Path) -> None:
    blobs = prepared(tmp_path)
    name = blobs.write(DATA)
    (tmp_path / "blobs" / name[:2] / f"{name}.77-0.part").write_bytes(b"half")
    (tmp_path / "blobs" / "stray.77-0.part").write_bytes(b"stray")
    found = blobs.reconcile(lambda prefix: {name} if name.startswith(prefix) else set())
    assert found == Inventory(partial=2, unclaimed=0, missing=0)
    assert files(tmp_path) == [tmp_path / "blobs" / name[:2] / name]


def test_a_blob_without_a_row_is_set_aside_and_not_destroyed(tmp_path: Path) -> None:
    blobs = prepared(tmp_path)
    name = blobs.write(DATA)
    assert blobs.reconcile(lambda _: set()) == Inventory(partial=0, unclaimed=1, missing=0)
    assert (tmp_path / "unclaimed" / name).read_bytes() == DATA
    assert files(tmp_path) == []


def test_a_row_without_a_blob_is_counted(tmp_path: Path) -> None:
    blobs = prepared(tmp_path)
    found = blobs.reconcile(lambda prefix: {NAME} if NAME.startswith(prefix) else set())
    assert found == Inventory(partial=0, unclaimed=0, missing=1)


def test_what_was_staged_has_no_name_until_it_is_written_and_is_written_once(tmp_path: Path) -> None:
    written: list[int] = []

    def write(descriptor: int, data: memoryview) -> int:
        written.append(os.write(descriptor, data))
        return written[-1]

    blobs = prepared(tmp_path, calls=SystemCalls(write=write))
    name = blobs.stage(DATA)
    with pytest.raises(BlobDamaged):
        blobs.read(name)
    assert blobs.write(DATA) == name
    assert blobs.read(name) == DATA
    assert sum(written) == len(DATA)
    blobs.unstage(name)
    assert blobs.read(name) == DATA, "what was written stays"


@pytest.mark.parametrize("how", ["unstaged", "closed", "started again"])
def test_what_was_staged_in_vain_is_removed(tmp_path: Path, how: str) -> None:
    blobs = prepared(tmp_path)
    name = blobs.stage(DATA)
    assert len(files(tmp_path)) == 1
    if how == "unstaged":
        blobs.unstage(name)
    elif how == "closed":
        blobs.close()
    else:
        assert prepared(tmp_path).reconcile(lambda _: set()).partial == 1
    assert files(tmp_path) == []


def test_what_cannot_be_staged_leaves_no_file_and_can_be_written_later(tmp_path: Path) -> None:
    codes = [errno.ENOSPC]

    def write(descriptor: int, data: memoryview) -> int:
        if codes:
            raise OSError(codes.pop(), "no")
        return os.write(descriptor, data)

    blobs = prepared(tmp_path, calls=SystemCalls(write=write))
    with pytest.raises(DiskFull):
        blobs.stage(DATA)
    assert files(tmp_path) == []
    assert blobs.read(blobs.write(DATA)) == DATA


def test_what_was_staged_and_went_is_written_at_the_next_try(tmp_path: Path) -> None:
    blobs = prepared(tmp_path)
    blobs.stage(DATA)
    for file in files(tmp_path):
        file.unlink()
    with pytest.raises(StoreUnavailable):
        blobs.write(DATA)
    assert blobs.read(blobs.write(DATA)) == DATA


def test_the_same_bytes_staged_twice_are_one_file(tmp_path: Path) -> None:
    blobs = prepared(tmp_path)
    assert blobs.stage(DATA) == blobs.stage(DATA)
    assert len(files(tmp_path)) == 1
    blobs.close()
    assert files(tmp_path) == []
