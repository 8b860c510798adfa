"""Real file systems that fill up and refuse: nothing that was promised is lost, and all goes on afterwards."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from dicomnode.domain.errors import ConfigurationError, DiskFull, StoreUnavailable
from dicomnode.store.ledger import Balance
from dicomnode.store.repair import check_store
from tests.support.stores import accept, answer, at, claim, image, open_store, part10, to

pytestmark = pytest.mark.crash

SMALL, LARGE = "size=1m", "size=16m"


def mount(*words: str) -> str:
    """Run mount, and return what it complained of."""
    done = subprocess.run(["mount", *words], capture_output=True, text=True, check=False)
    return done.stderr.strip() if done.returncode else ""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if complaint := mount("-t", "tmpfs", "-o", SMALL, "tmpfs", str(folder)):
        pytest.skip(f"no file system can be mounted here: {complaint}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_fills_refuses_and_keeps_what_it_promised(disk: Path) -> None:
    promised, refused = [], 0
    with open_store(disk / "store") as store:
        for number in range(1, 60):
            try:
                accept(store, number=number, content=bytes([number]) * 50_000)
            except (DiskFull, StoreUnavailable):
                refused += 1
            else:
                promised.append(number)
        assert refused > 20
        assert store.ledger.balance() == Balance(pending=len(promised))
    assert mount("-o", f"remount,{LARGE}", str(disk)) == ""
    with open_store(disk / "store") as again:
        again.inbox.recover(at(60), maximum_attempts=5)
        accept(again, number=100, seconds=61)
        job = claim(again, 100)
        read = {stored.ref.sop_instance: again.blobs.read_instance(stored) for stored in job.instances}
        expected = {image(number=n).sop_instance: part10(image(number=n), bytes([n]) * 50_000) for n in promised}
        assert read == expected | {image(number=100).sop_instance: part10(image(number=100))}
        again.inbox.finish(job, answer(job), to("PACS"), at(101))
    assert [check for check in check_store(disk / "store") if check.wrong] == []


def test_a_disk_that_becomes_read_only_is_said_to_be_and_loses_nothing(disk: Path) -> None:
    with open_store(disk / "store") as store:
        accept(store)
    assert mount("-o", "remount,ro", str(disk)) == ""
    with pytest.raises((ConfigurationError, StoreUnavailable), match="Read-only file system"):
        open_store(disk / "store")
    assert mount("-o", "remount,rw", str(disk)) == ""
    with open_store(disk / "store") as store:
        assert store.ledger.balance() == Balance(pending=1)
    assert [check for check in check_store(disk / "store") if check.wrong] == []
