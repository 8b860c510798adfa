"""How often somebody may do something: a bucket of tokens for each peer, refilled as time passes."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

_REMEMBERED = 4096


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at: float


class RateLimit:
    """Allows each peer `per_s` on average, and `burst` at once. Used by many threads."""

    def __init__(self, per_s: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s, self._burst, self._clock = per_s, max(burst, 1.0), clock
        self._lock = threading.Lock()
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def take(self, peer: str) -> bool:
        """Tell whether a peer may, now; if so, that counts."""
        with self._lock:
            bucket = self._bucket(peer)
            allowed = bucket.tokens >= 1
            bucket.tokens -= allowed
            return allowed

    def wait_s(self, peer: str) -> float:
        """Return how long a peer has to wait, which then may; that counts in any case."""
        with self._lock:
            bucket = self._bucket(peer)
            bucket.tokens -= 1
            return max(-bucket.tokens / self._per_s, 0.0)

    def _bucket(self, peer: str) -> _Bucket:
        now = self._clock()
        bucket = self._buckets.setdefault(peer, _Bucket(self._burst, now))
        self._buckets.move_to_end(peer)
        bucket.tokens = min(self._burst, bucket.tokens + (now - bucket.at) * self._per_s)
        bucket.at = now
        # Whoever was silent for longest has a full bucket, or soon would have.
        while len(self._buckets) > _REMEMBERED:
            self._buckets.popitem(last=False)
        return bucket
