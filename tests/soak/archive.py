"""An archive that misbehaves: it refuses for a while, aborts in the middle, is slow, and is not there at all."""

import random
import threading
import time
from collections import Counter
from typing import Any

from tests.support.archives import Archive

OUT_OF_RESOURCES = 0xA700
FAULTS = {"refused": 0.05, "aborted": 0.02, "slow": 0.02, "lost": 0.02}
"""How often each happens, per object. Lost: the archive stored it, and the node never hears so."""


class FaultyArchive(Archive):
    """Counts in `injected` what it did on purpose; what it did store is in `datasets`, as ever."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.injected: Counter[str] = Counter()
        self._random = random.Random(seed)
        self._choosing = threading.Lock()

    def away(self, seconds: float) -> None:
        """Be unreachable for a while."""
        self.injected["away"] += 1
        self.__exit__(None, None, None)
        time.sleep(seconds)
        self.__enter__()

    def _store(self, event: Any) -> int:
        fault = self._fault()
        if fault == "refused":
            return OUT_OF_RESOURCES
        if fault == "aborted":
            event.assoc.abort()
            return OUT_OF_RESOURCES
        if fault == "slow":
            time.sleep(0.5)
        status = super()._store(event)
        if fault == "lost":
            event.assoc.abort()
        return status

    def _fault(self) -> str | None:
        with self._choosing:
            drawn = self._random.random()
            for name, share in FAULTS.items():
                if drawn < share:
                    self.injected[name] += 1
                    return name
                drawn -= share
        return None
