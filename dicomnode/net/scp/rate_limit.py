"""A limit on how often each peer may do something: a bucket of tokens that fills up as time passes."""

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
    """Allows each peer `per_s` operations a second on average, and `burst` at once. Used by many threads."""

    def __init__(self, per_s: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s, self._burst, self._clock = per_s, max(burst, 1.0), clock
        self._lock = threading.Lock()
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def take(self, peer: str) -> bool:
        """Tell whether a peer may do one more operation now; if so, count it."""
        with self._lock:
            bucket = self._bucket(peer)
            allowed = bucket.tokens >= 1
            bucket.tokens -= allowed
            return allowed

    def wait_s(self, peer: str) -> float:
        """Count one more operation of a peer, and return how many seconds it has to wait before it."""
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
        # The bucket of the peer that was silent for longest is full, or nearly so.
        while len(self._buckets) > _REMEMBERED:
            self._buckets.popitem(last=False)
        return bucket
