"""The parts of a node that metrics, probes and the page of quality read."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from dicomnode.bundle.reader import Bundle
from dicomnode.monitoring.health import Running, Verdict, ready
from dicomnode.monitoring.quality import QualityReport, quality_report
from dicomnode.settings.node import Settings
from dicomnode.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class MonitoredNode:
    """A running node as monitoring reads it."""

    settings: Settings
    store: Store
    bundle: Bundle
    operating_point: str
    running: Running
    clock: Callable[[], datetime]

    def readiness(self) -> Verdict:
        """Check that the node can take, analyse and keep a study now."""
        return ready(self.running, self.store, self.bundle, self.settings)

    def report(self) -> QualityReport:
        """Compare the last weeks with former ones and with the bundle.

        Raises: StoreUnavailable.
        """
        identity = self.bundle.identity
        return quality_report(
            self.store.watching, self.bundle.manifest, identity.bundle_hash, self.operating_point, self.clock()
        )
