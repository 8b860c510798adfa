"""The parts of a node that metrics, probes and the page of quality read."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from dicomnode.bundle.reader import Bundle
from dicomnode.monitoring.drift import Change
from dicomnode.monitoring.health import Running, Verdict, ready
from dicomnode.monitoring.quality import QualityReport, quality_report
from dicomnode.settings.node import Settings
from dicomnode.store import Store
from dicomnode.web.alarms import Alarm, AlarmKind

_REPORT_FOR = timedelta(minutes=5)


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


class RecentReport:
    """The comparison of a node, made anew every five minutes at most, since it changes slowly. Many threads may ask."""

    def __init__(self, monitored: MonitoredNode) -> None:
        self._monitored = monitored
        self._lock = threading.Lock()
        self._report: QualityReport | None = None

    def report(self) -> QualityReport:
        """Return the comparison.

        Raises: StoreUnavailable.
        """
        now = self._monitored.clock()
        with self._lock:
            if self._report is None or not timedelta() <= now - self._report.made_at < _REPORT_FOR:
                self._report = self._monitored.report()
            return self._report

    def alarms(self) -> tuple[Alarm, ...]:
        """Return an alarm if the scores of findings differ largely from this site's first weeks.

        Raises: StoreUnavailable.
        """
        drifted = [entry.label.replace("_", " ") for entry in self.report().findings if entry.change is Change.LARGE]
        if not drifted:
            return ()
        text = f"The scores of {', '.join(drifted)} differ largely from this site's first weeks with this model."
        return (Alarm(kind=AlarmKind.DRIFT, text=text),)
