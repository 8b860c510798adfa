"""The loop that delivers results to one destination: outbox, Storage SCU or STOW-RS, outbox."""

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from dicomnode.domain.delivery import Accepted, Delivery, DeliveryState, NoAnswer, Refused, RetryPolicy, StoreOutcome
from dicomnode.domain.errors import Transient
from dicomnode.domain.instance import InstanceRef
from dicomnode.loop import Loop
from dicomnode.net.scu.circuit_breaker import CircuitBreaker
from dicomnode.net.scu.outgoing import BatchSender, Outgoing
from dicomnode.settings.delivery import DeliverySettings

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Result:
    delivery: Delivery
    outcome: StoreOutcome
    sent_as: InstanceRef | None = None


class DeliveryQueue(Protocol):
    """Where deliveries wait, and where what became of them is written."""

    def claim(self, destination: str, limit: int, now: datetime) -> tuple[Delivery, ...]:
        """Take up to `limit` deliveries that are due. Raises: StoreUnavailable."""

    def read(self, delivery: Delivery) -> bytes:
        """Return the Part 10 bytes of a delivery. Raises: BlobDamaged, StoreUnavailable."""

    def next_due(self, destination: str) -> datetime | None:
        """Return when the next delivery is due. Raises: StoreUnavailable."""

    def retry_requested(self, destination: str, since: datetime) -> bool:
        """Tell whether an operator has asked for another try since then. Raises: StoreUnavailable."""

    def bring_forward(self, destination: str, now: datetime) -> None:
        """Make what waits since the destination could not be reached due now. Raises: StoreUnavailable."""

    def postpone(self, destination: str, until: datetime) -> None:
        """Make nothing due before the destination is tried again. Raises: StoreUnavailable."""

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
        """Write what became of a delivery and return its state; one to be tried again waits by `policy`.

        Raises: StoreUnavailable.
        """


class Sender:
    """Delivers to one destination in a thread of its own, so that a dead destination holds up no other.

    `transfer` is the way there; `randomness` returns a number in [0, 1). `commit_within_s`: the destination is asked
    whether it keeps what it took, and to answer within this time; `delivered` is then called after every batch.
    `is_there` finds out whether a destination that could not be reached is back, without sending anything.
    """

    def __init__(
        self,
        name: str,
        transfer: BatchSender,
        outbox: DeliveryQueue,
        settings: DeliverySettings,
        *,
        clock: Callable[[], datetime],
        randomness: Callable[[], float],
        commit_within_s: float | None = None,
        delivered: Callable[[], None] | None = None,
        is_there: Callable[[], bool] | None = None,
    ) -> None:
        self._name, self._transfer, self._outbox = name, transfer, outbox
        self._batch, self._policy = settings.batch, settings.retry.policy()
        self._clock, self._randomness = clock, randomness
        self._commit_within_s, self._delivered, self._is_there = commit_within_s, delivered, is_there
        self._kept: deque[_Result] = deque()
        self.breaker = CircuitBreaker(
            name,
            "store",
            self._policy,
            retry_requested=lambda since: outbox.retry_requested(name, since),
            clock=clock,
            randomness=randomness,
        )
        self.loop = Loop(
            f"sender-{name}",
            self.deliver_due,
            lambda: self.breaker.not_before(outbox.next_due(name)),
            clock=clock,
            about={"destination": name},
        )

    @property
    def name(self) -> str:
        """The destination's name in the outbox."""
        return self._name

    def deliver_due(self) -> int:
        """Deliver one batch of what is due and return how many deliveries were tried.

        To a destination that has failed in a row nothing is tried for a while, then one delivery.
        Raises: StoreUnavailable.
        """
        self._record_kept()
        allowed = self.breaker.allows(self._batch) or self._allowed_by_probe()
        deliveries = self._outbox.claim(self._name, allowed, self._clock()) if allowed else ()
        if not deliveries:
            self._postpone()
            return 0
        reported: dict[int, StoreOutcome] = {}

        def report(position: int, outcome: StoreOutcome, sent_as: InstanceRef | None) -> None:
            reported[position] = outcome
            self._record(_Result(delivery=deliveries[position], outcome=outcome, sent_as=sent_as))

        try:
            self._transfer([self._outgoing(delivery) for delivery in deliveries], report=report)
        finally:
            # After an unknown failure nothing may stay claimed for ever: what has no outcome is tried again.
            for position in range(len(deliveries)):
                if position not in reported:
                    report(position, NoAnswer(cause="internal error while sending"), None)
            self._judge(tuple(reported.values()))
            if self._delivered is not None:
                self._delivered()
        return len(deliveries)

    def _allowed_by_probe(self) -> int:
        """Find out, when that is due and something waits, whether the destination is back; return what may be tried."""
        if self._is_there is None or not self.breaker.is_probe_due() or self._outbox.next_due(self._name) is None:
            return 0
        is_back = self._is_there()
        self.breaker.probed(is_back=is_back)
        if is_back:
            self._outbox.bring_forward(self._name, self._clock())
        return self.breaker.allows(self._batch)

    def _postpone(self) -> None:
        """While the destination is left alone, have the store say when each delivery is really tried next."""
        retry_at, due = self.breaker.state.retry_at, self._outbox.next_due(self._name)
        if retry_at is not None and due is not None and due < retry_at:
            self._outbox.postpone(self._name, retry_at)

    def _judge(self, outcomes: Sequence[StoreOutcome]) -> None:
        """Tell from the outcomes of a batch whether the destination does its work: a refusal for good is work too."""
        failures = [outcome for outcome in outcomes if not (isinstance(outcome, Accepted) or outcome.permanent)]
        if len(failures) < len(outcomes):
            if self.breaker.answered():
                self._bring_forward()
            return
        asked_s = (outcome.retry_after_s or 0.0 for outcome in failures if isinstance(outcome, Refused))
        is_unreachable = all(isinstance(outcome, NoAnswer) for outcome in failures)
        self.breaker.failed(failures[0].cause, max(asked_s, default=0.0), is_unreachable=is_unreachable)

    def _bring_forward(self) -> None:
        try:
            self._outbox.bring_forward(self._name, self._clock())
        except Transient as error:
            # They go when they are due: later, and no less surely.
            log.warning("outbox-unavailable", extra={"destination": self._name, "cause": str(error)})

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
            commit_within_s=self._commit_within_s,
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
            "destination": self._name,
            "study": result.delivery.ref.study,
            "instance": (result.sent_as or result.delivery.ref).sop_instance,
            "kind": result.delivery.kind,
            "attempt": result.delivery.attempts,
        }
