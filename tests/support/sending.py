"""A sender with an outbox in memory, and a destination that slams its door."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from pydicom import uid as uids

from dicomnode.domain.answer import ResultKind
from dicomnode.domain.delivery import Delivery, DeliveryState, Destination, NoAnswer, Refused, RetryPolicy, StoreOutcome
from dicomnode.domain.errors import StoreUnavailable
from dicomnode.domain.instance import InstanceRef
from dicomnode.net.scu.sender import Sender
from dicomnode.net.scu.storage import send
from dicomnode.settings.delivery import DeliverySettings, RetrySettings
from tests.support.dimse import EXPLICIT, renamed
from tests.support.make import build, encode

CR = str(uids.ComputedRadiographyImageStorage)
START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
SETTINGS = DeliverySettings(
    connect_timeout_s=1, response_timeout_s=2, batch=2, retry=RetrySettings(first_delay_s=0.2, max_delay_s=0.2)
)


class MemoryOutbox:
    """Deliveries in memory, by the rules of the store's outbox."""

    def __init__(self, *names: str, refuse_record: int = 0) -> None:
        part10 = encode(build("cr", rows=64, columns=64))
        self._lock = threading.Lock()
        self._bytes = {number: renamed(part10, str(number)) for number in range(len(names))}
        self._due: dict[int, datetime | None] = {}
        self._attempts = dict.fromkeys(range(len(names)), 0)
        self._names = names
        self._refuse_record = refuse_record
        self.states: dict[int, DeliveryState] = dict.fromkeys(range(len(names)), DeliveryState.WAITING)
        self.outcomes: list[StoreOutcome] = []
        self.urged_at: datetime | None = None

    def claim(self, destination: str, limit: int, now: datetime) -> tuple[Delivery, ...]:
        with self._lock:
            waiting = [
                number
                for number, state in self.states.items()
                if state is DeliveryState.WAITING
                and self._names[number] == destination
                and (self._due.get(number) or START) <= now
            ]
            due = sorted(waiting, key=lambda number: (self._due.get(number) or START, number))[:limit]
            for number in due:
                self.states[number] = DeliveryState.SENDING
                self._attempts[number] += 1
            return tuple(self._delivery(number) for number in due)

    def next_due(self, destination: str) -> datetime | None:
        names = [name == destination for name in self._names]
        waiting = [number for number, state in self.states.items() if state is DeliveryState.WAITING and names[number]]
        return min((self._due.get(number) or START for number in waiting), default=None)

    def request_retry(self, number: int) -> None:
        """Ask for another try of a delivery, as an operator does."""
        with self._lock:
            self._due[number] = self.urged_at = datetime.now(UTC)

    def bring_forward(self, destination: str, now: datetime) -> None:
        with self._lock:
            for number, due in self._due.items():
                if self._names[number] == destination and due is not None:
                    self._due[number] = min(due, now)

    def postpone(self, destination: str, until: datetime) -> None:
        with self._lock:
            for number, state in self.states.items():
                if self._names[number] == destination and state is DeliveryState.WAITING:
                    self._due[number] = max(self._due.get(number) or START, until)

    def retry_requested(self, destination: str, since: datetime) -> bool:
        return self.urged_at is not None and self.urged_at > since

    def read(self, delivery: Delivery) -> bytes:
        return self._bytes[delivery.delivery_id]

    def record(
        self,
        delivery: Delivery,
        outcome: StoreOutcome,
        now: datetime,
        policy: RetryPolicy,
        randomness: float,
        sent_as: InstanceRef | None = None,
        commit_within_s: float | None = None,
    ) -> DeliveryState:
        with self._lock:
            if self._refuse_record:
                self._refuse_record -= 1
                raise StoreUnavailable("the database is locked")
            self.outcomes.append(outcome)
            state = DeliveryState.DELIVERED
            if isinstance(outcome, Refused | NoAnswer):
                state = DeliveryState.DEAD if outcome.permanent else DeliveryState.WAITING
                self._due[delivery.delivery_id] = now + timedelta(seconds=policy.delay_s(delivery.attempts, randomness))
            self.states[delivery.delivery_id] = state
            return state

    def all_are(self, state: DeliveryState) -> bool:
        return set(self.states.values()) == {state}

    def _delivery(self, number: int) -> Delivery:
        return Delivery(
            delivery_id=number,
            destination=self._names[number],
            ref=InstanceRef(study="1.2", series="1.2.3", sop_class=CR, sop_instance=f"1.2.3.{number}"),
            kind=ResultKind.SECONDARY_CAPTURE,
            transfer_syntax=EXPLICIT,
            blob=str(number),
            attempts=self._attempts[number],
            created_at=START,
        )


@contextmanager
def running(
    outbox: MemoryOutbox, destination: Destination, settings: DeliverySettings = SETTINGS, **options: Any
) -> Iterator[Sender]:
    sender = Sender(
        destination.name,
        partial(send, destination, calling_ae="CXRNODE", settings=settings),
        outbox,
        settings,
        clock=lambda: datetime.now(UTC),
        randomness=lambda: 0.5,
        **options,
    )
    sender.loop.start()
    try:
        yield sender
    finally:
        assert sender.loop.stop(10)
