"""Studies in, faults on all sides, and the books afterwards.

    python -m tests.soak --studies 2000 --kills 20

Modalities send; the archive refuses, aborts, loses its answer and goes away; the node is killed with SIGKILL at random
moments of the first half. Afterwards every acknowledged image must be accounted for, every study answered by what the
ledger says and by nothing else, and in the second half neither memory nor threads nor open files may grow.
"""

import random
import sqlite3
import time
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dicomnode.domain.delivery import DeliveryState
from dicomnode.domain.job import JobState
from dicomnode.settings.node import AssemblySettings, StoreSettings
from dicomnode.store import Store
from tests.soak.archive import FaultyArchive
from tests.soak.senders import Senders, Sent
from tests.soak.watch import Growth, Watch
from tests.support.bundles import make_bundle
from tests.support.processes import NodeProcess, free_port, wait_until

AWAY_S = 2.0
POLL_S = 0.1
DRAIN_S = 600.0
CONFIG = """
[scp]
bind = "127.0.0.1"
[assembly]
quiet_s = 0.2
[delivery]
batch = 10
[delivery.retry]
first_delay_s = 0.2
max_delay_s = 1.0
[work]
retry_delay_s = 0.1
maximum_attempts = 10
[store]
minimum_free_bytes = 0
[retention]
images_days = 0.0
results_days = 0.0
"""
ENDED = {JobState.DONE, JobState.REJECTED, JobState.SUPERSEDED}


@dataclass(frozen=True)
class Report:
    """What happened, and everything that is wrong with it."""

    studies: int
    acknowledged: int
    results: int
    kills: int
    injected: Counter[str]
    balance: str
    seconds: float
    growth: Growth
    faults: tuple[str, ...]


def soak(folder: Path, *, studies: int, kills: int, absences: int, seed: int) -> Report:
    """Run it in an empty folder. `kills` and `absences` (of the archive) happen while the first half is sent."""
    chance = random.Random(seed)
    bundle = make_bundle(folder / "bundle")
    watch = Watch()
    began = time.monotonic()
    with FaultyArchive(seed) as archive:
        node = NodeProcess(
            folder / "node", port=free_port(), bundle=bundle, send_to=[archive.peer], config=CONFIG
        ).start()
        senders = Senders(node.port, studies, seed=seed)
        watch.start()
        senders.start()
        for moment, what in _plan(chance, studies // 2, kills, absences):
            wait_until(partial(_have_sent, senders.sent, moment), DRAIN_S, f"{moment} studies sent")
            if what == "kill":
                time.sleep(chance.random())
                node.kill()
                node.start()
            else:
                archive.away(AWAY_S)
        watch.pid = node.pid
        senders.join()
        _drain(node)
        last = node.pid
        watch.stop()
        node.terminate()
        faults, balance, results = _audit(node, senders.sent, archive)
    growth = watch.growth(last)
    return Report(
        studies=studies,
        acknowledged=len(senders.sent.acknowledged),
        results=results,
        kills=kills,
        injected=archive.injected + senders.sent.counted,
        balance=balance,
        seconds=time.monotonic() - began,
        growth=growth,
        faults=tuple(faults),
    )


def _have_sent(sent: Sent, studies: int) -> bool:
    return len(sent.studies) >= studies


def _plan(chance: random.Random, studies: int, kills: int, absences: int) -> list[tuple[int, str]]:
    """Return after how many studies each thing happens, in order."""
    names = ["kill"] * kills + ["away"] * absences
    return sorted((chance.randint(1, max(1, studies)), name) for name in names)


def _drain(node: NodeProcess) -> None:
    """Wait until nothing is owed, as long as anything happens."""
    while owed := _owed(node):
        before = node.count("event")
        wait_until(partial(_moves, node, before), DRAIN_S, f"anything, with {owed} analyses and deliveries owed,")
        time.sleep(POLL_S)


def _owed(node: NodeProcess) -> int:
    jobs = node.count("job", "state IN ('collecting', 'waiting', 'working', 'dead')")
    return jobs + node.count("delivery", "state IN ('waiting', 'sending', 'dead')")


def _moves(node: NodeProcess, before: int) -> bool:
    return node.count("event") > before or not _owed(node)


def _audit(node: NodeProcess, sent: Sent, archive: FaultyArchive) -> tuple[list[str], str, int]:
    """Compare what was promised, what the books say, and what the archive holds."""
    faults: list[str] = []
    with sqlite3.connect(node.store / "store.db") as aside:
        held = {row[0] for row in aside.execute("SELECT sop_instance FROM instance")}
    if lost := set(sent.acknowledged) - held:
        faults.append(f"{len(lost)} acknowledged images are not in the store")
    with Store.open(StoreSettings(path=node.store), AssemblySettings(), exclusive=True) as store:
        balance = store.ledger.balance()
        owed = balance.pending + balance.dead + balance.dropped + balance.unaccounted
        if owed:
            faults.append(f"{owed} images have no answer: {balance}")
        delivered: set[str] = set()
        for study, kind in sent.studies.items():
            faults += _study_faults(store, study, kind, archive)
            delivered |= {entry.sop_instance for entry in store.ledger.deliveries_of(study)}
        if delivered != set(archive.datasets):
            difference = len(delivered ^ set(archive.datasets))
            faults.append(f"{difference} results are in the ledger or in the archive, but not in both")
        unclaimed = sum(1 for _ in (node.store / "unclaimed").iterdir())
        if unclaimed:
            faults.append(f"{unclaimed} blobs without a row")
    return faults, str(balance), len(archive.datasets)


def _study_faults(store: Store, study: str, kind: str, archive: FaultyArchive) -> list[str]:
    faults = []
    jobs = store.ledger.jobs_of(study)
    if {entry.state for entry in jobs} - ENDED:
        faults.append(f"{study} ({kind}) did not come to an end")
    if {entry.state for entry in store.ledger.deliveries_of(study)} - {DeliveryState.DELIVERED}:
        faults.append(f"{study} ({kind}) has results that were not delivered")
    reports = archive.of_study(study).get("SR", [])
    answered = kind not in ("a lateral", "damaged pixels")
    # A kill between its two images lets a study be answered for the first, and again for both.
    most = 2 if kind == "two images" else 1
    if not (1 <= len(reports) <= most if answered else not reports):
        faults.append(f"{study} ({kind}) has {len(reports)} reports")
    return faults
