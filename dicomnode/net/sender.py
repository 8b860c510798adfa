"""The loop that delivers results to one destination: outbox, Storage SCU, outbox."""

import logging
import threading
import traceback
from collections.abc import Callable
from datetime import datetime
from typing import Any, Protocol

from dicomnode.domain.errors import CxrNodeError
from dicomnode.domain.job import Accepted, Delivery, Destination, NoAnswer, RetryPolicy, StoreOutcome
from dicomnode.net.scu import Fallback, Outgoing, send
from dicomnode.settings import DeliverySettings

log = logging.getLogger(__name__)

_POLL_S = 1.0


class Outbox(Protocol):
    """Where deliveries wait, and where what became of them is written."""

    def claim(self, destination: str, limit: int, now: datetime) -> tuple[Delivery, ...]:
        """Take up to `limit` deliveries that are due. Raises: StoreUnavailable."""

    def read(self, delivery: Delivery) -> bytes:
        """Return the Part 10 bytes of a delivery. Raises: BlobDamaged, StoreUnavailable."""

    def record(
        self, delivery: Delivery, outcome: StoreOutcome, *, now: datetime, policy: RetryPolicy, randomness: float
    ) -> object:
        """Write what became of a delivery; one that is to be tried again waits by `policy`.

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
        deliveries = self._outbox.claim(self._destination.name, self._settings.batch, self._clock())
        if not deliveries:
            return 0
        recorded: set[int] = set()

        def report(position: int, outcome: StoreOutcome) -> None:
            recorded.add(position)
            self._record(deliveries[position], outcome)

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
            for position in range(len(deliveries)):
                if position not in recorded:
                    self._record(deliveries[position], NoAnswer(cause="internal error while sending"))
        return len(deliveries)

    def _run(self) -> None:
        while not self._stopping.is_set():
            if not self._deliver_or_log():
                self._wake.wait(_POLL_S)
                self._wake.clear()

    def _deliver_or_log(self) -> int:
        try:
            return self.deliver_due()
        except CxrNodeError as error:
            log.warning("outbox-unavailable", extra={"destination": self._destination.name, "cause": str(error)})
        except Exception as error:  # noqa: BLE001 a destination without its sender would lose results silently
            place = "".join(traceback.format_tb(error.__traceback__))
            log.error(  # noqa: TRY400 the message of an unknown error may quote the data set
                "sending-failed",
                extra={"destination": self._destination.name, "error": type(error).__name__, "traceback": place},
            )
        return 0

    def _outgoing(self, delivery: Delivery) -> Outgoing:
        return Outgoing(
            sop_class=delivery.ref.sop_class,
            transfer_syntax=delivery.transfer_syntax,
            read=lambda: self._outbox.read(delivery),
        )

    def _record(self, delivery: Delivery, outcome: StoreOutcome) -> None:
        now = self._clock()
        about: dict[str, Any] = {
            "destination": self._destination.name,
            "study": delivery.ref.study,
            "instance": delivery.ref.sop_instance,
            "kind": delivery.kind,
            "attempt": delivery.attempts,
        }
        try:
            self._outbox.record(delivery, outcome, now=now, policy=self._policy, randomness=self._randomness())
        except CxrNodeError as error:
            # The claim stands until the store releases it; the object is then sent again, which the peer recognises.
            log.warning("outbox-unavailable", extra={**about, "cause": str(error)})
            return
        if isinstance(outcome, Accepted):
            log.info("instance-delivered", extra={**about, "warning": outcome.warning})
        elif outcome.permanent or self._policy.exhausted((now - delivery.created_at).total_seconds()):
            log.error("delivery-dead", extra={**about, "cause": outcome.cause})
        else:
            log.warning("delivery-deferred", extra={**about, "cause": outcome.cause})
