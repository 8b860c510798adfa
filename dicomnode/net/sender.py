"""The loop that delivers results to one destination: outbox, Storage SCU, outbox."""

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from dicomnode.domain.errors import CxrNodeError, Transient
from dicomnode.domain.instance import InstanceRef
from dicomnode.domain.job import (
    Accepted,
    Delivery,
    DeliveryState,
    Destination,
    NoAnswer,
    RetryPolicy,
    StoreOutcome,
)
from dicomnode.net.scu import Fallback, Outgoing, send
from dicomnode.settings import DeliverySettings
from dicomnode.telemetry import where_raised

log = logging.getLogger(__name__)

# Other processes put deliveries back (`cxrnode queue retry`), so the loop looks even when nothing is due.
_POLL_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Result:
    delivery: Delivery
    outcome: StoreOutcome
    sent_as: InstanceRef | None = None


class Outbox(Protocol):
    """Where deliveries wait, and where what became of them is written."""

    def claim(self, destination: str, limit: int, now: datetime) -> tuple[Delivery, ...]:
        """Take up to `limit` deliveries that are due. Raises: StoreUnavailable."""

    def read(self, delivery: Delivery) -> bytes:
        """Return the Part 10 bytes of a delivery. Raises: BlobDamaged, StoreUnavailable."""

    def next_due(self, destination: str) -> datetime | None:
        """Return when the next delivery is due. Raises: StoreUnavailable."""

    def record(
        self,
        delivery: Delivery,
        outcome: StoreOutcome,
        now: datetime,
        policy: RetryPolicy,
        randomness: float,
        sent_as: InstanceRef | None = None,
    ) -> DeliveryState:
        """Write what became of a delivery and return its state; one to be tried again waits by `policy`.

        Raises: StoreUnavailable.
        """


class Sender:
    """Delivers to one destination in a thread of its own, so that a dead destination holds up no other.

    `randomness` returns a number in [0, 1).
    """

    def __init__(
        self,
        destination: Destination,
        outbox: Outbox,
        settings: DeliverySettings,
        *,
        calling_ae: str,
        clock: Callable[[], datetime],
        randomness: Callable[[], float],
        fallback: Fallback | None = None,
    ) -> None:
        self._destination = destination
        self._outbox = outbox
        self._settings = settings
        self._policy = settings.retry.policy()
        self._calling_ae = calling_ae
        self._clock = clock
        self._randomness = randomness
        self._fallback = fallback
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._kept: deque[_Result] = deque()

    @property
    def destination(self) -> Destination:
        """Where this sender delivers."""
        return self._destination

    @property
    def running(self) -> bool:
        """Whether the loop is alive."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Begin to deliver in the background."""
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name=f"sender-{self._destination.name}", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Look at the outbox now rather than at the next poll."""
        self._wake.set()

    def stop(self, drain_s: float = 30.0) -> bool:
        """Finish the batch at hand, then end; tell whether that was within `drain_s`."""
        self._stopping.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(drain_s)
        return not self.running

    def deliver_due(self) -> int:
        """Deliver one batch of what is due and return how many deliveries were tried.

        Raises: StoreUnavailable.
        """
        self._record_kept()
        deliveries = self._outbox.claim(self._destination.name, self._settings.batch, self._clock())
        if not deliveries:
            return 0
        reported: set[int] = set()

        def report(position: int, outcome: StoreOutcome, sent_as: InstanceRef | None) -> None:
            reported.add(position)
            self._record(_Result(delivery=deliveries[position], outcome=outcome, sent_as=sent_as))

        try:
            send(
                self._destination,
                [self._outgoing(delivery) for delivery in deliveries],
                calling_ae=self._calling_ae,
                settings=self._settings,
                fallback=self._fallback,
                report=report,
            )
        finally:
            # After an unknown failure nothing may stay claimed for ever: what has no outcome is tried again.
            for position, delivery in enumerate(deliveries):
                if position not in reported:
                    self._record(_Result(delivery=delivery, outcome=NoAnswer(cause="internal error while sending")))
        return len(deliveries)

    def _run(self) -> None:
        while not self._stopping.is_set():
            if not self._deliver_or_log():
                self._wake.wait(self._rest_s())
                self._wake.clear()

    def _rest_s(self) -> float:
        """Return how long nothing is due, at most until the next poll."""
        try:
            due = self._outbox.next_due(self._destination.name)
        except CxrNodeError:
            return _POLL_S
        return _POLL_S if due is None else min(max((due - self._clock()).total_seconds(), 0.01), _POLL_S)

    def _deliver_or_log(self) -> int:
        try:
            return self.deliver_due()
        except CxrNodeError as error:
            log.warning("outbox-unavailable", extra={"destination": self._destination.name, "cause": str(error)})
        except Exception as error:  # noqa: BLE001 a destination without its sender would lose results silently
            # Without its message, which may quote the data set.
            log.error(  # noqa: TRY400
                "sending-failed", extra={"destination": self._destination.name, "raised": where_raised(error)}
            )
        return 0

    def _outgoing(self, delivery: Delivery) -> Outgoing:
        return Outgoing(
            sop_class=delivery.ref.sop_class,
            transfer_syntax=delivery.transfer_syntax,
            read=lambda: self._outbox.read(delivery),
        )

    def _record(self, result: _Result) -> None:
        """Record a result; one that the store cannot take now is kept, and recorded before the next claim."""
        try:
            self._record_or_raise(result)
        except Transient as error:
            self._kept.append(result)
            log.warning("outbox-unavailable", extra={**self._about(result), "cause": str(error)})

    def _record_kept(self) -> None:
        while self._kept:
            self._record_or_raise(self._kept[0])
            self._kept.popleft()

    def _record_or_raise(self, result: _Result) -> None:
        state = self._outbox.record(
            result.delivery,
            result.outcome,
            now=self._clock(),
            policy=self._policy,
            randomness=self._randomness(),
            sent_as=result.sent_as,
        )
        about = self._about(result)
        if isinstance(result.outcome, Accepted):
            log.info("instance-delivered", extra={**about, "warning": result.outcome.warning})
        elif state is DeliveryState.DEAD:
            log.error("delivery-dead", extra={**about, "cause": result.outcome.cause})
        else:
            log.warning("delivery-deferred", extra={**about, "cause": result.outcome.cause})

    def _about(self, result: _Result) -> dict[str, Any]:
        return {
            "destination": self._destination.name,
            "study": result.delivery.ref.study,
            "instance": (result.sent_as or result.delivery.ref).sop_instance,
            "kind": result.delivery.kind,
            "attempt": result.delivery.attempts,
        }
