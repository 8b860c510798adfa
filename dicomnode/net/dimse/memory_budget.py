"""A bound on the bytes of incomplete and unanswered messages in memory, over all associations together."""

import threading


class MemoryBudget:
    """Shares a bound among connections so that none can starve another. Used by many threads.

    Half of the bound is divided evenly: every connection may always hold its share of that. What it holds beyond comes
    out of the other half, first come, first served.
    """

    def __init__(self, bound: int, connections: int) -> None:
        self._share = bound // (2 * connections)
        self._common = bound // 2
        self._lock = threading.Lock()
        self._beyond: dict[object, int] = {}

    def hold(self, owner: object, size_bytes: int) -> bool:
        """Set the number of bytes that `owner` holds; tell whether that is within the bound, else change nothing."""
        beyond = max(size_bytes - self._share, 0)
        with self._lock:
            former = self._beyond.pop(owner, 0)
            allowed = beyond <= former or sum(self._beyond.values()) + beyond <= self._common
            if kept := beyond if allowed else former:
                self._beyond[owner] = kept
        return allowed

    def release(self, owner: object) -> None:
        """Remove an owner that holds nothing any more."""
        with self._lock:
            self._beyond.pop(owner, None)
