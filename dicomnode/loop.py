"""A thread that does one thing again and again: as long as there is work, and when it is woken, due, or has rested."""

import logging
import threading
from collections.abc import Callable
from datetime import datetime
from typing import Any

from dicomnode.domain.errors import CxrNodeError
from dicomnode.telemetry import where_raised

log = logging.getLogger(__name__)

# Other processes change the store (`cxrnode queue retry`), so a loop looks even when nothing is due.
POLL_S = 1.0
_SHORTEST_REST_S = 0.01


class Loop:
    """Runs `step` on a thread of its own, and survives whatever it raises.

    `step` does one batch and returns how much it did, 0 for nothing; `next_due` returns when there is work again, if
    that is known; `about` is what the log says of the loop.
    """

    def __init__(
        self,
        name: str,
        step: Callable[[], int],
        next_due: Callable[[], datetime | None],
        *,
        clock: Callable[[], datetime],
        about: dict[str, Any],
    ) -> None:
        self._name, self._step, self._next_due = name, step, next_due
        self._clock, self._about = clock, about
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def name(self) -> str:
        """What its thread is called."""
        return self._name

    @property
    def running(self) -> bool:
        """Whether the loop is alive."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Begin in the background."""
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Look for work now rather than at the next poll."""
        self._wake.set()

    def stop(self, drain_s: float = 30.0) -> bool:
        """Finish the step at hand, then end; tell whether that was within `drain_s`."""
        self._stopping.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(drain_s)
        return not self.running

    def _run(self) -> None:
        while not self._stopping.is_set():
            if not self._step_or_log():
                self._wake.wait(self._rest_s())
                self._wake.clear()

    def _rest_s(self) -> float:
        """Return how long nothing is due, at most until the next poll."""
        try:
            due = self._next_due()
        except CxrNodeError:
            return POLL_S
        if due is None:
            return POLL_S
        return min(max((due - self._clock()).total_seconds(), _SHORTEST_REST_S), POLL_S)

    def _step_or_log(self) -> int:
        try:
            return self._step()
        except CxrNodeError as error:
            log.warning("store-unavailable", extra={**self._about, "cause": str(error)})
        except Exception as error:  # noqa: BLE001 a destination without its loop would lose results silently
            # Without its message, which may quote the data set.
            log.error("loop-failed", extra={**self._about, "raised": where_raised(error)})  # noqa: TRY400
        return 0
