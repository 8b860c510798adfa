"""The loop of the node: a thread that takes one step after the other while there is work, and rests when there is none.

The worker, the senders, Storage Commitment, retention and the audit trail are steps of loops of this kind.
"""

import logging
import threading
from collections.abc import Callable
from datetime import datetime
from typing import Any

from dicomnode.domain.errors import CxrNodeError
from dicomnode.telemetry import where_raised

log = logging.getLogger(__name__)

# Other processes change the store (`cxrnode queue retry`), so a loop looks for work even when nothing is due.
POLL_S = 1.0
_SHORTEST_REST_S = 0.01


class Loop:
    """Calls `step` again and again on a thread of its own, and goes on whatever it raises.

    `step` does one batch and returns how much it did, 0 for nothing. `next_due` returns when there is work again, if
    that is known. `about` is added to the loop's log events. `poll_s` is the longest rest.
    """

    def __init__(
        self,
        name: str,
        step: Callable[[], int],
        next_due: Callable[[], datetime | None],
        *,
        clock: Callable[[], datetime],
        about: dict[str, Any],
        poll_s: float = POLL_S,
    ) -> None:
        self._name, self._step, self._next_due = name, step, next_due
        self._clock, self._about, self._poll_s = clock, about, poll_s
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def name(self) -> str:
        """The name of its thread."""
        return self._name

    @property
    def running(self) -> bool:
        """Whether its thread is alive."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Start the thread."""
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Look for work now rather than at the next poll."""
        self._wake.set()

    def stop(self, drain_s: float | None = 30.0) -> bool:
        """Let the current step finish, then end the thread; tell whether it ended within `drain_s` (None: wait)."""
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
        """Return for how long nothing is due; at most `poll_s`."""
        try:
            due = self._next_due()
        except CxrNodeError:
            return self._poll_s
        if due is None:
            return self._poll_s
        return min(max((due - self._clock()).total_seconds(), _SHORTEST_REST_S), self._poll_s)

    def _step_or_log(self) -> int:
        try:
            return self._step()
        except CxrNodeError as error:
            log.warning("store-unavailable", extra={**self._about, "cause": str(error)})
        except Exception as error:  # noqa: BLE001 if the thread ended, studies or results would wait unnoticed
            # Without the error's message, which may quote a data set.
            log.error("loop-failed", extra={**self._about, "raised": where_raised(error)})  # noqa: TRY400
        return 0
