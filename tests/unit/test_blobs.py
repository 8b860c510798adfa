"""Bytes on disk: durable after `write`, verified on `read`, nobody's path but the node's own."""

import errno
import os
import stat
from collections.abc import Callable, Collection
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from dicomnode.domain.errors import BlobDamaged, DiskFull, StoreUnavailable
from dicomnode.store.blobs.local import BlobNames, Blobs, Inventory, SystemCalls

DATA = b"the bytes of one radiograph"
NAME = "2ef2d53bf9aaa9a7a6fb8bfb4b6f1c3c9b1b0f1cbe2ef9f62c4e7d9c8d7c2f10"


def prepared(tmp_path: Path, *, calls: SystemCalls | None = None, minimum_free_bytes: int = 0) -> Blobs:
    root, unclaimed = tmp_path / "blobs", tmp_path / "unclaimed"
    return Blobs(root, unclaimed, minimum_free_bytes=minimum_free_bytes, calls=calls).prepare()


def files(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()]


def naming(
    images: Collection[str] = (), results: Collection[str] = (), purged: Collection[str] = ()
) -> Callable[[str], BlobNames]:
    """Return what rows name, by prefix, for `Blobs.reconcile`."""

    def names_of(prefix: str) -> BlobNames:
        def of(names: Collection[str]) -> frozenset[str]:
            return frozenset(name for name in names if name.startswith(prefix))

        return BlobNames(images=of(images), results=of(results), purged=of(purged))

    return names_of


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
    with pytest.raises(DiskFull, match="1001 B must stay free"):
        short.write(DATA)
    assert files(tmp_path / "short") == []


def test_half_written_files_are_swept(tmp_path: Path) -> None:
    blobs = prepared(tmp_path)
    name = blobs.write(DATA)
    (tmp_path / "blobs" / name[:2] / f"{name}.77-0.part").write_bytes(b"half")
    (tmp_path / "blobs" / "stray.77-0.part").write_bytes(b"stray")
    found = blobs.reconcile(naming(images={name}))
    assert found == Inventory(partial=2, unclaimed=0, missing=0)
    assert files(tmp_path) == [tmp_path / "blobs" / name[:2] / name]


def test_a_blob_without_a_row_is_set_aside_and_not_destroyed(tmp_path: Path) -> None:
    blobs = prepared(tmp_path)
    name = blobs.write(DATA)
    assert blobs.reconcile(naming()) == Inventory(partial=0, unclaimed=1, missing=0)
    assert (tmp_path / "unclaimed" / name).read_bytes() == DATA
    assert files(tmp_path) == []


def test_a_row_without_a_blob_is_counted(tmp_path: Path) -> None:
    blobs = prepared(tmp_path)
    found = blobs.reconcile(naming(results={NAME}))
    assert found == Inventory(partial=0, unclaimed=0, missing=1)


def test_an_acknowledged_image_without_a_row_is_counted_and_never_removed(tmp_path: Path) -> None:
    blobs = prepared(tmp_path)
    kept, stray = blobs.write(DATA), blobs.write(b"never acknowledged")
    blobs.acknowledge(kept)
    assert blobs.reconcile(naming()) == Inventory(unclaimed=1, acknowledged=1)
    assert blobs.remove_unclaimed(datetime.now(UTC) + timedelta(days=1)) == 1
    assert blobs.acknowledged_without_row() == (tmp_path / "unclaimed" / kept,)
    assert not (tmp_path / "unclaimed" / stray).exists()


def test_an_image_whose_row_was_committed_before_it_was_marked_is_marked_at_the_next_start(tmp_path: Path) -> None:
    blobs = prepared(tmp_path)
    image, result = blobs.write(DATA), blobs.write(b"a result")
    blobs.reconcile(naming(images={image}, results={result}))
    assert blobs.reconcile(naming()) == Inventory(unclaimed=1, acknowledged=1)


def test_a_file_that_a_volume_driver_made_writable_for_a_group_counts_as_acknowledged(tmp_path: Path) -> None:
    """Kubernetes' fsGroup makes every file of a volume readable and writable for a group."""
    blobs = prepared(tmp_path)
    name = blobs.write(DATA)
    (tmp_path / "blobs" / name[:2] / name).chmod(0o660)
    assert blobs.reconcile(naming()) == Inventory(acknowledged=1)


def test_the_file_of_a_purged_row_is_removed_although_it_was_acknowledged(tmp_path: Path) -> None:
    blobs = prepared(tmp_path)
    name = blobs.write(DATA)
    blobs.acknowledge(name)
    assert blobs.reconcile(naming(purged={name})) == Inventory()
    assert files(tmp_path) == []


def test_staged_bytes_have_no_name_until_they_are_written_and_are_written_once(tmp_path: Path) -> None:
    written: list[int] = []

    def write(descriptor: int, data: memoryview) -> int:
        written.append(os.write(descriptor, data))
        return written[-1]

    blobs = prepared(tmp_path, calls=SystemCalls(write=write))
    staged = blobs.stage(DATA)
    with pytest.raises(BlobDamaged):
        blobs.read(staged.name)
    assert blobs.write(DATA, staged) == staged.name
    assert blobs.read(staged.name) == DATA
    assert sum(written) == len(DATA)
    blobs.discard(staged)
    assert blobs.read(staged.name) == DATA, "what was written stays"


@pytest.mark.parametrize("how", ["discarded", "started again"])
def test_staged_bytes_that_are_not_needed_are_removed(tmp_path: Path, how: str) -> None:
    blobs = prepared(tmp_path)
    staged = blobs.stage(DATA)
    assert len(files(tmp_path)) == 1
    if how == "discarded":
        blobs.discard(staged)
    else:
        assert prepared(tmp_path).reconcile(naming()).partial == 1
    assert files(tmp_path) == []


def test_bytes_that_cannot_be_staged_leave_no_file_and_can_be_written_later(tmp_path: Path) -> None:
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


def test_staged_bytes_whose_file_is_gone_are_written_again(tmp_path: Path) -> None:
    blobs = prepared(tmp_path)
    staged = blobs.stage(DATA)
    for file in files(tmp_path):
        file.unlink()
    assert blobs.read(blobs.write(DATA, staged)) == DATA
