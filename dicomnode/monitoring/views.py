"""What the node answers to probes, to Prometheus, and to who looks after quality."""

import math
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from dicomnode import __version__
from dicomnode.monitoring.drift import Change, Rate
from dicomnode.monitoring.health import Verdict, alive
from dicomnode.monitoring.metrics import CONTENT_TYPE, Metrics
from dicomnode.monitoring.monitored_node import Watched
from dicomnode.monitoring.quality import RECENT_WEEKS, FindingWatch, WatchReport
from dicomnode.settings.http import Role
from dicomnode.web.app import Extra
from dicomnode.web.context import site_of

_WIDTH, _HEIGHT = 220, 48
_CALM = (Change.NONE, Change.FEW, Change.UNKNOWN)


def watch_pages(watched: Watched) -> tuple[Extra, ...]:
    """Return the pages that this package adds to the node's own."""
    metrics = Metrics(watched)

    async def healthz(request: Request) -> Response:  # noqa: ARG001 Starlette's signature
        return _answer(await run_in_threadpool(alive, watched.running), {})

    async def readyz(request: Request) -> Response:  # noqa: ARG001
        return _answer(await run_in_threadpool(watched.readiness), {"version": __version__})

    async def scrape(request: Request) -> Response:  # noqa: ARG001
        return Response(await run_in_threadpool(metrics.text), headers={"content-type": CONTENT_TYPE})

    async def quality(request: Request) -> Response:
        report = await run_in_threadpool(watched.report)
        return site_of(request).pages.page(request, "monitoring.html", **_shown(report, watched))

    return (
        Extra(path="/healthz", view=healthz, role=Role.NOBODY),
        Extra(path="/readyz", view=readyz, role=Role.NOBODY),
        Extra(path="/metrics", view=scrape, role=Role.METRICS),
        Extra(path="/watch", view=quality, title="Quality", package="dicomnode.monitoring"),
    )


def _answer(verdict: Verdict, more: dict[str, Any]) -> Response:
    return JSONResponse(verdict.as_json() | more, status_code=200 if verdict.passed else 503)


def _shown(report: WatchReport, watched: Watched) -> dict[str, Any]:
    return {
        "report": report,
        "model": watched.bundle.identity,
        "has_scores": any(label.scores is not None for label in watched.bundle.manifest.labels),
        "trained_on": watched.bundle.manifest.provenance,
        "recent_weeks": RECENT_WEEKS,
        "changed": [one.label.replace("_", " ") for one in report.findings if one.change not in _CALM],
        "trends": {entry.label: _trend(entry) for entry in report.findings},
        "percent": shown_percent,
        "rate": shown_rate,
        "calm": _CALM,
    }


def shown_percent(share: float | None) -> str:
    """Return a share as people read it."""
    if share is None or not math.isfinite(share):
        return "–"
    return f"{100 * share:.1f} %"


def shown_rate(rate: Rate) -> str:
    """Return a rate with its 95 % interval, or that there is nothing to say."""
    if rate.value is None:
        return "no images"
    low, high = rate.interval()
    return f"{100 * rate.value:.1f} % ({100 * low:.1f}–{100 * high:.1f})"


def _trend(entry: FindingWatch) -> dict[str, Any]:
    """Return the weekly rates as marks of a small drawing: a whisker for each interval, a dot for each rate."""
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
            "title": f"week of {week}: {shown_rate(rate)}, {rate.hits} of {rate.images}",
        }
        for position, (week, rate) in enumerate(entry.weekly)
        if rate.value is not None
    ]
    return {"width": _WIDTH, "height": _HEIGHT, "marks": marks, "expected": height(entry.reference.value or 0.0)}
