"""A process that is killed at each named step of accept and finish: what it promised is there, and nothing twice."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dicomnode.store.ledger import Balance
from dicomnode.store.reception import ReceiptKind
from tests.conftest import ROOT
from tests.support.stores import accept, answer, at, claim, image, open_store, part10, to

pytestmark = pytest.mark.crash

VICTIM = """
import os, signal, sys
from pathlib import Path
from dicomnode.store.blobs.local import SystemCalls
from tests.support.stores import QUIET_S, accept, answer, at, claim, open_store, to

path, action, victim, count = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
left = {"write": -1, "fsync": -1, "replace": -1, "none": -1}

def dying(name, call):
    def step(*arguments):
        if left[name] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left[name] -= 1
        return call(*arguments)
    return step

calls = SystemCalls(
    write=dying("write", os.write), fsync=dying("fsync", os.fsync), replace=dying("replace", os.replace)
)
store = open_store(path, calls=calls)
if action == "finish":
    accept(store)
    job = claim(store, QUIET_S)
left.update({victim: count})
if action == "accept":
    accept(store)
else:
    store.inbox.finish(job, answer(job), to("PACS"), at(3))
print("promised", flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""

STEPS = [("write", 0), ("fsync", 0), ("fsync", 1), ("replace", 0), ("fsync", 2), ("none", 0)]
"""Before the bytes, before a folder's entry, the bytes and their name are synced, before the rename, and never."""


def killed(path: Path, action: str, step: str, count: int) -> bool:
    """Run the action in a process that dies before a step; tell whether it had promised anything."""
    arguments = [sys.executable, "-c", VICTIM, str(path), action, step, str(count)]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    return "promised" in done.stdout


@pytest.mark.parametrize(("step", "count"), STEPS)
def test_killed_while_accepting_what_was_promised_is_stored(tmp_path: Path, step: str, count: int) -> None:
    promised = killed(tmp_path / "store", "accept", step, count)
    assert promised is (step == "none")
    with open_store(tmp_path / "store") as store:
        store.inbox.recover(at(60), maximum_attempts=5)
        assert store.ledger.balance() == (Balance(pending=1) if promised else Balance())
        assert accept(store, seconds=60).kind is (ReceiptKind.DUPLICATE if promised else ReceiptKind.NEW)
        (stored,) = claim(store, 100).instances
        assert store.blobs.read_instance(stored) == part10(image())


@pytest.mark.parametrize(("step", "count"), [("write", 1), ("replace", 1), ("fsync", 5), ("none", 0)])
def test_killed_while_finishing_the_study_is_answered_once(tmp_path: Path, step: str, count: int) -> None:
    promised = killed(tmp_path / "store", "finish", step, count)
    assert promised is (step == "none")
    with open_store(tmp_path / "store") as store:
        store.inbox.recover(at(60), maximum_attempts=5)
        if not promised:
            job = claim(store, 60)
            store.inbox.finish(job, answer(job), to("PACS"), at(61))
        assert store.inbox.claim(at(1000)) is None
        sent = store.outbox.claim("PACS", 10, at(100))
        assert len({delivery.ref.sop_instance for delivery in sent}) == len(sent) == 2
        assert all(store.outbox.read(delivery) for delivery in sent)
