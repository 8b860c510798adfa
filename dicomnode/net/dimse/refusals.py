"""Refused peers: counted, and logged at a limited rate, so that a peer cannot fill the disk with log lines."""

import logging
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

log = logging.getLogger(__name__)

# Between two lines about the same thing and the same peer.
_QUIET_S = 10.0
_REMEMBERED = 1024


@dataclass(slots=True)
class _Told:
    at: float
    since: int = 0


class Refusals:
    """Counts refusals by event and reason. Used by many threads."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, *, alert: Callable[[str, str, str], None] | None = None
    ) -> None:
        """`alert` is told of each refusal: the peer's address, its calling AE title or nothing, event and reason."""
        self._clock, self._alert = clock, alert
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, str]] = Counter()
        self._told: OrderedDict[tuple[str, str, str], _Told] = OrderedDict()

    @property
    def counts(self) -> Mapping[tuple[str, str], int]:
        """Return the number of refusals by event and reason."""
        with self._lock:
            return dict(self._counts)

    def note(self, event: str, reason: str, peer: str, **about: Any) -> None:
        """Count a refusal, and log it unless the same was logged within 10 s; `times` counts those not logged."""
        with self._lock:
            self._counts[event, reason] += 1
            times = self._times((event, reason, peer))
        if self._alert is not None:
            self._alert(peer, str(about.get("calling_ae", "")), f"{event}: {reason}")
        if times:
            log.warning(event, extra={"peer": peer, "reason": reason, "times": times, **about})

    def _times(self, key: tuple[str, str, str]) -> int:
        """Return the number of refusals that a log line stands for, 0 when none is to be written."""
        now = self._clock()
        told = self._told.get(key)
        if told is not None and now - told.at < _QUIET_S:
            told.since += 1
            return 0
        self._told[key] = _Told(at=now)
        self._told.move_to_end(key)
        while len(self._told) > _REMEMBERED:
            self._told.popitem(last=False)
        return 1 + (told.since if told is not None else 0)
