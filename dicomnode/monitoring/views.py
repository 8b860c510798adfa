"""The addresses for probes (/healthz, /readyz), Prometheus (/metrics) and quality (/monitoring)."""

import math
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from dicomnode import __version__
from dicomnode.monitoring.drift import Change, Rate
from dicomnode.monitoring.health import Verdict, alive
from dicomnode.monitoring.metrics import CONTENT_TYPE, Metrics
from dicomnode.monitoring.monitored_node import MonitoredNode
from dicomnode.monitoring.quality import RECENT_WEEKS, FindingQuality, QualityReport
from dicomnode.settings.http import Role
from dicomnode.web.app import PageRoute
from dicomnode.web.context import site_of

_WIDTH, _HEIGHT = 220, 48
_CALM = (Change.NONE, Change.FEW, Change.UNKNOWN)


def monitoring_pages(monitored: MonitoredNode) -> tuple[PageRoute, ...]:
    """Return the addresses that this package adds to the page."""
    metrics = Metrics(monitored)

    async def healthz(request: Request) -> Response:  # noqa: ARG001 Starlette's signature
        return _answer(await run_in_threadpool(alive, monitored.running), {})

    async def readyz(request: Request) -> Response:  # noqa: ARG001
        return _answer(await run_in_threadpool(monitored.readiness), {"version": __version__})

    async def scrape(request: Request) -> Response:  # noqa: ARG001
        return Response(await run_in_threadpool(metrics.text), headers={"content-type": CONTENT_TYPE})

    async def quality(request: Request) -> Response:
        report = await run_in_threadpool(monitored.report)
        return await site_of(request).pages.page(request, "monitoring.html", **_shown(report, monitored))

    return (
        PageRoute(path="/healthz", view=healthz, role=Role.NOBODY),
        PageRoute(path="/readyz", view=readyz, role=Role.NOBODY),
        PageRoute(path="/metrics", view=scrape, role=Role.METRICS),
        PageRoute(
            path="/monitoring",
            view=quality,
            title="Quality",
            package="dicomnode.monitoring",
            former_path="/watch",
        ),
    )


def _answer(verdict: Verdict, more: dict[str, Any]) -> Response:
    return JSONResponse(verdict.as_json() | more, status_code=200 if verdict.passed else 503)


def _shown(report: QualityReport, monitored: MonitoredNode) -> dict[str, Any]:
    return {
        "report": report,
        "model": monitored.bundle.identity,
        "has_scores": any(label.scores is not None for label in monitored.bundle.manifest.labels),
        "trained_on": monitored.bundle.manifest.provenance,
        "recent_weeks": RECENT_WEEKS,
        "changed": [entry.label.replace("_", " ") for entry in report.findings if entry.change not in _CALM],
        "trends": {entry.label: _trend(entry) for entry in report.findings},
        "percent": format_percent,
        "rate": format_rate,
        "calm": _CALM,
    }


def format_percent(share: float | None) -> str:
    """Return a share in percent; a dash for none."""
    if share is None or not math.isfinite(share):
        return "–"
    return f"{100 * share:.1f} %"


def format_rate(rate: Rate) -> str:
    """Return a rate in percent with its 95 % interval; "no images" without images."""
    if rate.value is None:
        return "no images"
    low, high = rate.interval()
    return f"{100 * rate.value:.1f} % ({100 * low:.1f}–{100 * high:.1f})"


def _trend(entry: FindingQuality) -> dict[str, Any]:
    """Return the weekly rates as marks of a small SVG drawing: a whisker for each interval, a dot for each rate."""
    rates = [rate for _, rate in entry.weekly]
    intervals = [rate.interval() for rate in rates if rate.images]
    top = min(1.0, 1.1 * max([high for _, high in intervals] + [entry.reference.value or 0.0, 0.01]))
    step = _WIDTH / len(rates)

    def height(share: float) -> float:
        return round(_HEIGHT - 2 - (_HEIGHT - 4) * min(share, top) / top, 1)

    marks = [
        {
            "x": round(step * (position + 0.5), 1),
            "y": height(rate.value),
            "low": height(rate.interval()[0]),
            "high": height(rate.interval()[1]),
            "title": f"week of {week}: {format_rate(rate)}, {rate.hits} of {rate.images}",
        }
        for position, (week, rate) in enumerate(entry.weekly)
        if rate.value is not None
    ]
    return {"width": _WIDTH, "height": _HEIGHT, "marks": marks, "expected": height(entry.reference.value or 0.0)}
