"""Many associations at once, two claimers at once: every image once, every job once."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

from dicomnode.domain.delivery import Accepted, RetryPolicy
from dicomnode.domain.errors import UidMismatch
from dicomnode.domain.instance import InstanceRef
from dicomnode.store import Store
from dicomnode.store.ledger import Balance
from dicomnode.store.reception import ReceiptKind
from tests.support.stores import CR, EXPLICIT_LE, accept, answer, association, at, claim, open_store, to

THREADS = 8


def test_eight_associations_sending_at_once_lose_nothing(tmp_path: Path) -> None:
    with open_store(tmp_path / "store") as store:
        start = Barrier(THREADS)

        def send(thread: int) -> None:
            name = f"association {thread}"
            start.wait()
            store.reception.association_opened(name, at(0))
            for number in range(6):
                accept(store, f"1.{number % 3}", thread * 100 + number, over=name)
            store.reception.association_released(name, at(1))

        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(send, range(THREADS)))
        assert store.ledger.balance() == Balance(pending=THREADS * 6)
        jobs = [claim(store, 10) for _ in range(3)]
        assert sorted((job.study, job.version, len(job.instances)) for job in jobs) == [
            ("1.0", 1, 16),
            ("1.1", 1, 16),
            ("1.2", 1, 16),
        ]


def test_the_same_image_over_eight_associations_is_stored_once(tmp_path: Path) -> None:
    with open_store(tmp_path / "store") as store:
        start = Barrier(THREADS)

        def send(thread: int) -> ReceiptKind:
            start.wait()
            return accept(store, over=f"association {thread}").kind

        with ThreadPoolExecutor(THREADS) as pool:
            kinds = Counter(pool.map(send, range(THREADS)))
        assert kinds == {ReceiptKind.NEW: 1, ReceiptKind.DUPLICATE: THREADS - 1}
        assert store.ledger.balance() == Balance(pending=1)


def test_one_sop_instance_sent_under_many_studies_at_once_belongs_to_one(tmp_path: Path) -> None:
    with open_store(tmp_path / "store") as store:
        start = Barrier(THREADS)

        def send(thread: int) -> str:
            ref = InstanceRef(study=f"1.{thread}", series="1.9", sop_class=CR, sop_instance="1.9.9")
            start.wait()
            try:
                return store.reception.accept(ref, EXPLICIT_LE, b"bytes", association(f"{thread}"), at(0)).kind
            except UidMismatch:
                return "refused"

        with ThreadPoolExecutor(THREADS) as pool:
            outcomes = Counter(pool.map(send, range(THREADS)))
        assert outcomes == {"new": 1, "refused": THREADS - 1}
        assert store.ledger.balance() == Balance(pending=1)


def claimed_by(store: Store, start: Barrier) -> list[str]:
    start.wait()
    studies = []
    while (job := store.inbox.claim(at(60))) is not None:
        studies.append(job.study)
    return studies


def test_two_connections_never_claim_the_same_study(tmp_path: Path) -> None:
    with open_store(tmp_path / "store") as store, open_store(tmp_path / "store", exclusive=False) as beside:
        for number in range(20):
            accept(store, f"1.{number}")
        start = Barrier(2)
        with ThreadPoolExecutor(2) as pool:
            first, second = pool.map(lambda opened: claimed_by(opened, start), [store, beside])
        assert sorted(first + second) == sorted(f"1.{number}" for number in range(20))


def test_two_connections_never_claim_the_same_delivery(tmp_path: Path) -> None:
    with open_store(tmp_path / "store") as store, open_store(tmp_path / "store", exclusive=False) as beside:
        for number in range(10):
            accept(store, f"1.{number}")
        while (job := store.inbox.claim(at(60))) is not None:
            store.inbox.finish(job, answer(job), to("PACS"), at(60))
        start = Barrier(2)

        def send(opened: Store) -> list[int]:
            start.wait()
            sent = []
            while taken := opened.outbox.claim("PACS", 3, at(60)):
                for delivery in taken:
                    opened.outbox.record(delivery, Accepted(), at(60), RetryPolicy(), 0.5)
                    sent.append(delivery.delivery_id)
            return sent

        with ThreadPoolExecutor(2) as pool:
            first, second = pool.map(send, [store, beside])
        assert len(first + second) == len(set(first + second)) == 20
        assert store.ledger.balance() == Balance(answered=10)


def test_the_ledger_can_be_read_while_images_arrive(tmp_path: Path) -> None:
    with open_store(tmp_path / "store") as store, open_store(tmp_path / "store", exclusive=False) as beside:

        def send(thread: int) -> None:
            for number in range(8):
                accept(store, "1.1", thread * 100 + number)

        with ThreadPoolExecutor(3) as pool:
            sending = [pool.submit(send, thread) for thread in range(2)]
            seen = [0]
            while not all(done.done() for done in sending):
                seen.append(beside.ledger.balance().pending)
            for done in sending:
                done.result()
        assert seen == sorted(seen)
        assert beside.ledger.balance() == Balance(pending=16)
