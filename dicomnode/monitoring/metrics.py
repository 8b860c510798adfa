"""The metrics that Prometheus reads. Most counts come from the store, so they survive a restart and agree with it.

Counts that only the process has (associations, refusals, threads) begin with its start. Labels are names of the node's
own, names from the configuration, and a bounded number of peers' AE titles. No metric names a patient, a study or an
image.
"""

import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import TypeVar

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from dicomnode import __version__
from dicomnode.bundle.scores import SCORE_BOUNDS
from dicomnode.domain.answer import Stage
from dicomnode.domain.errors import CxrNodeError
from dicomnode.monitoring.drift import Change
from dicomnode.monitoring.monitored_node import MonitoredNode, RecentReport
from dicomnode.monitoring.quality import QualityReport
from dicomnode.settings.node import Settings
from dicomnode.store.counters import (
    ANALYSED,
    LATENCY_BOUNDS_S,
    OTHER_CALLERS,
    OUTCOMES,
    DestinationFigures,
    Operations,
    WeeklyImages,
    WeeklyScores,
)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
MOST_LABELS = 20
"""The most peers, and half the most reasons of refusals, that have labels of their own."""

_LONGEST_TITLE = 16

Labels = TypeVar("Labels", bound=tuple[str, ...])


class Metrics:
    """The node's metrics in a registry of their own, apart from prometheus_client's global one."""

    def __init__(self, monitored: MonitoredNode) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(NodeCollector(monitored))
        ProcessCollector(registry=self._registry)

    def text(self) -> bytes:
        """Return every metric as Prometheus reads it."""
        return generate_latest(self._registry)


class NodeCollector(Collector):
    """Reads store and process at each scrape."""

    def __init__(self, monitored: MonitoredNode) -> None:
        self._monitored = monitored
        self._recent = RecentReport(monitored)

    def collect(self) -> Iterator[Metric]:
        """Yield every metric; if the store cannot be read, only those of the process and `cxrnode_store_readable`."""
        yield from self._process()
        readable = GaugeMetricFamily("cxrnode_store_readable", "Whether the store could be read for these metrics.")
        monitored, now = self._monitored, self._monitored.clock()
        watching, model = monitored.store.watching, monitored.bundle.identity.bundle_hash
        try:
            found = [
                *_operations(watching.operations(), monitored.settings, now),
                *_images(watching.image_totals()),
                *_scores(watching.score_totals(model, monitored.operating_point)),
                *_drift(self._recent.report()),
            ]
        except CxrNodeError:
            found = []
        readable.add_metric([], float(bool(found)))
        yield readable
        yield from found

    def _process(self) -> Iterator[Metric]:
        identity = self._monitored.bundle.identity
        yield _gauge("cxrnode_build_info", "The node's version; always 1.", ("version",), {(__version__,): 1.0})
        model = (identity.name, identity.version, identity.bundle_hash, self._monitored.operating_point)
        labels = ("name", "version", "hash", "operating_point")
        yield _gauge("cxrnode_model_info", "The model that is served; always 1.", labels, {model: 1.0})
        checks = {(check.name,): float(check.passed) for check in self._monitored.readiness().checks}
        yield _gauge("cxrnode_ready", "Whether a check of /readyz passes.", ("check",), checks)
        alive = {(name,): float(lives) for name, lives in self._monitored.running.threads().items()}
        yield _gauge("cxrnode_thread_alive", "Whether a loop of the node is alive.", ("thread",), alive)
        breakers = self._monitored.running.circuit_breakers_open()
        is_open = {(name,): float(value) for name, value in breakers.items()}
        text = "Whether deliveries to a destination are paused after consecutive failures."
        yield _gauge("cxrnode_destination_circuit_breaker_open", text, ("destination",), is_open)
        # The name in 0.1.0; it goes with the next release.
        text = "Former name of cxrnode_destination_circuit_breaker_open."
        yield _gauge("cxrnode_destination_circuit_open", text, ("destination",), is_open)
        yield from self._certificates()
        yield from self._associations()
        yield from self._disk()

    def _certificates(self) -> Iterator[Metric]:
        served = self._monitored.running.certificates()
        expires = {(of,): entry.expires_at.timestamp() for of, entry in served.items()}
        text = "Until when the certificate that is shown is valid, as Unix time."
        yield _gauge("cxrnode_certificate_expires_timestamp_seconds", text, ("of",), expires)
        current = {(of,): float(entry.is_current) for of, entry in served.items()}
        text = "Whether the certificate that is shown is the one in its files."
        yield _gauge("cxrnode_certificate_current", text, ("of",), current)

    def _associations(self) -> Iterator[Metric]:
        count = float(self._monitored.running.associations())
        yield _gauge("cxrnode_associations_open", "Associations that stand at present.", (), {(): count})
        accepted = float(self._monitored.running.accepted())
        yield _counter("cxrnode_associations_accepted", "Associations accepted since the start.", (), {(): accepted})
        refused = {
            (event, reason): float(times) for (event, reason), times in self._monitored.running.refused().items()
        }
        text = "Peers turned away since the start, by event and reason."
        yield _counter("cxrnode_refusals", text, ("event", "reason"), _bounded(refused))

    def _disk(self) -> Iterator[Metric]:
        least = float(self._monitored.settings.store.minimum_free_bytes)
        yield _gauge("cxrnode_disk_minimum_free_bytes", "Free disk that is never touched.", (), {(): least})
        try:
            disk = shutil.disk_usage(self._monitored.settings.store.path)
        except OSError:
            return
        yield _gauge("cxrnode_disk_free_bytes", "Free disk where the store is.", (), {(): float(disk.free)})
        yield _gauge("cxrnode_disk_total_bytes", "Size of the disk where the store is.", (), {(): float(disk.total)})


def sanitised(title: str) -> str:
    """Return a peer's AE title as a label: printable ASCII, at most 16 characters."""
    return "".join(c if c.isascii() and c.isprintable() else "?" for c in title[:_LONGEST_TITLE]) or "?"


def _operations(operations: Operations, settings: Settings, now: datetime) -> Iterator[Metric]:
    yield _latencies(operations)
    outcomes = {(name,): float(operations.outcomes.get(name, 0)) for name in OUTCOMES.values()}
    yield _counter("cxrnode_answers", "Versions of answers, by how they ended.", ("outcome",), outcomes)
    counts = {(state.value,): float(waiting.count) for state, waiting in operations.jobs.items()}
    yield _gauge("cxrnode_studies", "Studies that are not answered, by state.", ("state",), counts)
    text = "Acknowledged images that the database does not know, as after the restore of an older one."
    yield _gauge("cxrnode_images_without_row", text, (), {(): float(operations.images_without_row)})
    ages = {(state.value,): waiting.age_s(now) or 0.0 for state, waiting in operations.jobs.items()}
    yield _gauge("cxrnode_oldest_study_seconds", "Age of the oldest study in a state.", ("state",), ages)
    yield from _destinations(operations, settings, now)


def _latencies(operations: Operations) -> Metric:
    text = "How long the stages on a study's path took (see docs/monitoring.md for where each begins and ends)."
    family = HistogramMetricFamily("cxrnode_stage_seconds", text, labels=("stage",))
    for stage in Stage:
        latency = operations.latencies.get(stage)
        counts = latency.counts if latency else (0,) * len(LATENCY_BOUNDS_S)
        buckets = _cumulative(LATENCY_BOUNDS_S[:-1], counts)
        family.add_metric([stage.value], buckets, latency.seconds if latency else 0.0)
    return family


def _destinations(operations: Operations, settings: Settings, now: datetime) -> Iterator[Metric]:
    """Yield the figures of configured destinations, and of former ones that have waiting or dead deliveries."""
    configured = [entry.label for entry in settings.delivery.destinations]
    known = operations.destinations_with(configured)
    figures = [entry for entry in known if entry.name in configured or entry.waiting.count or entry.dead]
    by_name: Sequence[tuple[str, str, Callable[[DestinationFigures], float]]] = (
        ("cxrnode_deliveries_waiting", "Results that wait for a destination.", lambda entry: entry.waiting.count),
        (
            "cxrnode_oldest_delivery_seconds",
            "Age of the oldest result that waits.",
            lambda entry: entry.waiting.age_s(now) or 0.0,
        ),
        ("cxrnode_deliveries_dead", "Results that were given up: dead letters.", lambda entry: entry.dead),
        (
            "cxrnode_destination_failures_in_row",
            "Failures since the last success.",
            lambda entry: entry.failures_in_row,
        ),
        ("cxrnode_commitments_overdue", "Results not answered for in time.", lambda entry: entry.overdue_commitments),
    )
    for name, text, value in by_name:
        yield _gauge(name, text, ("destination",), {(entry.name,): float(value(entry)) for entry in figures})
    up = {(entry.name,): float(entry.is_up) for entry in figures if entry.is_up is not None}
    yield _gauge("cxrnode_destination_up", "Whether the last attempt succeeded.", ("destination",), up)
    attempts = {
        (entry.name, outcome): float(count)
        for entry in figures
        for outcome, count in (("delivered", entry.delivered), ("failed", entry.failed))
    }
    text = "Attempts to deliver a result, by what came of them."
    yield _counter("cxrnode_delivery_attempts", text, ("destination", "outcome"), attempts)


def _images(images: Sequence[WeeklyImages]) -> Iterator[Metric]:
    by_end: Counter[tuple[str, ...]] = Counter()
    by_caller: Counter[str] = Counter()
    for entry in images:
        by_end[(entry.outcome,)] += entry.images
        by_caller[entry.calling_ae] += entry.images
    ends = {end: float(count) for end, count in by_end.items()}
    yield _counter("cxrnode_images", "Images, analysed or by the reason of their rejection.", ("outcome",), ends)
    shown = {name for name, _ in by_caller.most_common(MOST_LABELS)}
    found: Counter[tuple[str, ...]] = Counter()
    for entry in images:
        caller = sanitised(entry.calling_ae) if entry.calling_ae in shown else OTHER_CALLERS
        found[caller, "analysed" if entry.outcome == ANALYSED else "rejected"] += entry.images
    text = f"Images by who sent them; beyond {MOST_LABELS} AE titles together."
    callers = {labels: float(count) for labels, count in found.items()}
    yield _counter("cxrnode_caller_images", text, ("calling_ae", "outcome"), callers)


def _scores(scores: Sequence[WeeklyScores]) -> Iterator[Metric]:
    by_label: dict[str, list[WeeklyScores]] = {}
    for entry in scores:
        by_label.setdefault(entry.label, []).append(entry)
    family = HistogramMetricFamily("cxrnode_score", "Probabilities of each finding.", labels=("finding",))
    read: dict[tuple[str, ...], float] = {}
    for label, entries in by_label.items():
        counts = [sum(bins) for bins in zip(*(entry.counts for entry in entries), strict=True)]
        family.add_metric([label], _cumulative(SCORE_BOUNDS, [*counts, 0]), sum(entry.total for entry in entries))
        read[label, "above"] = float(sum(entry.above for entry in entries))
        read[label, "undetermined"] = float(sum(entry.undetermined for entry in entries))
    yield family
    text = "Images at or above the threshold, and images on which the members disagreed."
    yield _counter("cxrnode_findings", text, ("finding", "reading"), read)


def _drift(report: QualityReport) -> Iterator[Metric]:
    order = list(Change)
    psi = {(entry.label,): entry.shift.psi for entry in report.findings if entry.shift.psi is not None}
    text = "Population stability index of the last four weeks' scores against this site's first ones."
    yield _gauge("cxrnode_drift_psi", text, ("finding",), psi)
    chance = {(entry.label,): entry.shift.chance for entry in report.findings if entry.shift.chance is not None}
    text = "What the index exceeds by chance alone in one of twenty looks at all findings."
    yield _gauge("cxrnode_drift_psi_chance", text, ("finding",), chance)
    levels = {
        (entry.label,): float(max(0, order.index(entry.change) - order.index(Change.NONE))) for entry in report.findings
    }
    text = "0: no difference beyond chance, or too few images; 1: slight; 2: moderate; 3: large."
    yield _gauge("cxrnode_drift_level", text, ("finding",), levels)


def _gauge(name: str, text: str, labels: Sequence[str], values: Mapping[Labels, float]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=labels)
    for given, value in values.items():
        family.add_metric(given, value)
    return family


def _counter(name: str, text: str, labels: Sequence[str], values: Mapping[Labels, float]) -> Metric:
    family = CounterMetricFamily(name, text, labels=labels)
    for given, value in values.items():
        family.add_metric(given, value)
    return family


def _bounded(values: Mapping[tuple[str, str], float]) -> dict[tuple[str, ...], float]:
    """Return the most frequent entries; the others become one entry."""
    ordered = sorted(values.items(), key=lambda entry: (-entry[1], entry[0]))
    kept: dict[tuple[str, ...], float] = dict(ordered[: 2 * MOST_LABELS])
    if rest := sum(value for _, value in ordered[2 * MOST_LABELS :]):
        kept["(others)", "(others)"] = rest
    return kept


def _cumulative(bounds: Iterable[float], counts: Sequence[int]) -> list[tuple[str, float]]:
    """Return cumulative buckets as Prometheus expects them; the last count is of values beyond every bound."""
    found, total = [], 0
    for bound, count in zip([*map(str, bounds), "+Inf"], counts, strict=True):
        total += count
        found.append((bound, float(total)))
    return found
