"""Whether a destination is worth trying at all: after failures in a row it is left alone, then tried with one thing.

Every delivery has its own delays; without this, a thousand of them would knock at a dead destination in their turn.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from dicomnode.domain.delivery import RetryPolicy

log = logging.getLogger(__name__)

_OPENS_AFTER = 2
"""One failure may be that of an object; two in a row, of batches that differ, are the destination's."""
_PROBE_EVERY_S = 30.0
"""How soon it is found out that a destination which could not be reached is back."""
_LONGEST_PAUSE_S = 3600.0
"""No peer's wish to be left alone is heeded for longer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitState:
    """What is known of a destination: closed (tried freely), open (left alone), or due for a trial with one thing.

    `failures` are those in a row; `failed_at` is the last one's time, `retry_at` the end of the pause, if there is one.
    `probe_at`: when it is to be found out, within the pause, whether a destination that could not be reached is back.
    """

    failures: int = 0
    failed_at: datetime | None = None
    retry_at: datetime | None = None
    probe_at: datetime | None = None

    @property
    def is_open(self) -> bool:
        """Whether the destination is not tried freely."""
        return self.retry_at is not None

    def allows(self, now: datetime, wanted: int) -> int:
        """Return how many things may be tried now: all, none, or one to see whether the destination is back."""
        if self.retry_at is None or self.failed_at is None:
            return wanted
        # Before the failure: the clock was set back, and waiting for it to catch up would be no use.
        return 0 if self.failed_at <= now < self.retry_at else min(wanted, 1)

    def failed(
        self,
        now: datetime,
        policy: RetryPolicy,
        randomness: float,
        asked_s: float = 0.0,
        *,
        is_unreachable: bool = False,
    ) -> "CircuitState":
        """Return what follows from a failure; the destination may have asked to be left alone for `asked_s`."""
        failures = self.failures + 1
        if failures < _OPENS_AFTER:
            return CircuitState(failures=failures, failed_at=now)
        delay_s = policy.delay_s(failures - _OPENS_AFTER + 1, randomness)
        pause = timedelta(seconds=max(delay_s, min(asked_s, _LONGEST_PAUSE_S)))
        probe_at = now + timedelta(seconds=_PROBE_EVERY_S) if is_unreachable else None
        return replace(self, failures=failures, failed_at=now, retry_at=now + pause, probe_at=probe_at)

    def is_probe_due(self, now: datetime) -> bool:
        """Tell whether it is to be found out now if the destination is back."""
        return self.probe_at is not None and self.probe_at <= now

    def probed(self, now: datetime, *, is_back: bool) -> "CircuitState":
        """Return what follows from a probe: a trial at once, or another probe later."""
        if is_back:
            return replace(self, retry_at=now, probe_at=None)
        return replace(self, probe_at=now + timedelta(seconds=_PROBE_EVERY_S))


class CircuitBreaker:
    """Keeps the circuit of one destination, and tells the log when it opens and closes. Read by any thread."""

    def __init__(
        self,
        destination: str,
        service: str,
        policy: RetryPolicy,
        *,
        retry_requested: Callable[[datetime], bool],
        clock: Callable[[], datetime],
        randomness: Callable[[], float],
    ) -> None:
        """`service` is what is asked of the destination, for the log.

        `retry_requested` tells whether an operator has asked for a trial since a time.
        """
        self._about = {"destination": destination, "service": service}
        self._policy, self._retry_requested, self._clock, self._randomness = policy, retry_requested, clock, randomness
        self._lock = threading.Lock()
        self._state = CircuitState()

    @property
    def state(self) -> CircuitState:
        """What is known now."""
        with self._lock:
            return self._state

    def allows(self, wanted: int) -> int:
        """Return how many things may be tried now: one at least where an operator asked for it since the failure."""
        circuit = self.state
        allowed = circuit.allows(self._clock(), wanted)
        if not allowed and circuit.failed_at is not None and self._retry_requested(circuit.failed_at):
            return min(wanted, 1)
        return allowed

    def not_before(self, due: datetime | None) -> datetime | None:
        """Return when what is due then may be tried, or whether it may is to be found out."""
        state = self.state
        if due is None or state.retry_at is None:
            return due
        tried_at = max(due, state.retry_at)
        return tried_at if state.probe_at is None else min(tried_at, state.probe_at)

    def is_probe_due(self) -> bool:
        """Tell whether it is to be found out now if the destination is back."""
        return self.state.is_probe_due(self._clock())

    def probed(self, *, is_back: bool) -> None:
        """Take note of a probe."""
        with self._lock:
            self._state = self._state.probed(self._clock(), is_back=is_back)
        log.debug("destination-probed", extra=self._about | {"is_back": is_back})

    def answered(self) -> bool:
        """Take note that the destination does its work; tell whether it was left alone before."""
        was_open = self.state.is_open
        with self._lock:
            self._state = CircuitState()
        if was_open:
            log.info("destination-available", extra=self._about)
        return was_open

    def failed(self, cause: str, asked_s: float = 0.0, *, is_unreachable: bool = False) -> None:
        """Take note that the destination could not be reached, or took nothing."""
        before = self.state
        after = before.failed(self._clock(), self._policy, self._randomness(), asked_s, is_unreachable=is_unreachable)
        with self._lock:
            self._state = after
        if after.is_open and after.retry_at is not None:
            level = logging.DEBUG if before.is_open else logging.WARNING
            about = {"cause": cause, "failures": after.failures, "next_try": after.retry_at.isoformat()}
            log.log(level, "destination-unavailable", extra=self._about | about)
