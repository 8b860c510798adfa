"""The first page: what comes in, what waits, what went out, and what is wrong."""

import shutil
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from dicomnode.domain.job import DeliveryState, JobState
from dicomnode.store.rows import EventKind
from dicomnode.store.studies import Recent, Wanted
from dicomnode.store.watching import DestinationFigures
from dicomnode.web.parts import Parts, site_of
from dicomnode.web.studies import described

_NEWEST = 8
_LATE = timedelta(minutes=10)
_BIN_MINUTES = 2

_LAST_HOUR = (
    ("Images received", (EventKind.RECEIVED, EventKind.REPLACED)),
    ("Studies answered", (EventKind.ANSWERED,)),
    ("Studies without findings", (EventKind.REJECTED,)),
    ("Studies failed", (EventKind.DEAD,)),
    ("Results delivered", (EventKind.DELIVERED,)),
    ("Deliveries put off", (EventKind.DELIVERY_DEFERRED,)),
    ("Deliveries failed", (EventKind.DELIVERY_DEAD,)),
)


async def overview(request: Request) -> Response:
    """Show the state of the node."""
    site = site_of(request)
    facts = await run_in_threadpool(_facts, site.parts)
    return site.pages.page(request, "overview.html", **facts)


def _facts(parts: Parts) -> dict[str, Any]:
    now, store = parts.clock(), parts.store
    counts, recent = store.ledger.counts(), store.studies.recent(now)
    operations = store.watching.operations()
    waiting = {
        "Being received": counts.jobs[JobState.COLLECTING],
        "Waiting for analysis": counts.jobs[JobState.WAITING],
        "Being analysed": counts.jobs[JobState.WORKING],
        "Waiting to be sent": counts.deliveries[DeliveryState.WAITING],
        "Being sent": counts.deliveries[DeliveryState.SENDING],
    }
    oldest = store.ledger.oldest_waiting()
    disk = shutil.disk_usage(parts.settings.store.path)
    return {
        "now": now,
        "waiting": waiting,
        "waiting_in_all": sum(waiting.values()),
        "dead": counts.jobs[JobState.DEAD] + counts.deliveries[DeliveryState.DEAD],
        "oldest": oldest,
        "oldest_age": _age(now - oldest) if oldest is not None else "",
        "is_late": oldest is not None and now - oldest > _LATE,
        "disk": disk,
        "disk_used": 100 * disk.used / disk.total,
        "disk_is_low": disk.free < 2 * parts.settings.store.minimum_free_bytes,
        "kept_bytes": parts.settings.store.minimum_free_bytes,
        "model": parts.bundle.identity,
        "last_hour": [(name, sum(recent.events.get(kind, 0) for kind in kinds)) for name, kinds in _LAST_HOUR],
        "throughput": _bins(recent),
        "answered": recent.events.get(EventKind.ANSWERED, 0) + recent.events.get(EventKind.REJECTED, 0),
        "destinations": _destinations(parts, operations.destinations, now),
        "newest": [described(entry) for entry in store.studies.page(Wanted(), limit=_NEWEST)],
        "ae_title": parts.settings.scp.ae_title,
        "port": parts.settings.scp.port,
    }


def _bins(recent: Recent) -> list[tuple[int, float, float, int]]:
    """Return the columns of the chart: place, top and height in percent, and how many answers they stand for."""
    minutes = recent.answers_by_minute
    sums = [sum(minutes[at : at + _BIN_MINUTES]) for at in range(0, len(minutes), _BIN_MINUTES)]
    most = max(*sums, 4)
    return [(at, 40 - 40 * count / most, 40 * count / most, count) for at, count in enumerate(sums)]


def _destinations(
    parts: Parts, figures: Mapping[str, DestinationFigures], now: datetime
) -> list[tuple[DestinationFigures, bool, str]]:
    """Return every destination, whether it is configured, and how long something has waited for it."""
    configured = [entry.label for entry in parts.settings.delivery.destinations]
    names = [*configured, *(name for name in figures if name not in configured)]
    shown = [(figures.get(name) or DestinationFigures(name=name), name in configured) for name in names]
    return [(one, known, _age(now - one.waiting.since) if one.waiting.since else "") for one, known in shown]


def _age(age: timedelta) -> str:
    seconds = max(0, int(age.total_seconds()))
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"
