"""The overview: what arrives, what waits, what was delivered, and the state of disk, model and destinations."""

import shutil
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from dicomnode.domain.job import JobState
from dicomnode.store.counters import Operations
from dicomnode.store.events import EventKind
from dicomnode.store.studies import Recent, StudyQuery
from dicomnode.web.context import PageContext, site_of
from dicomnode.web.studies import described

_NEWEST = 8
_LATE_S = 600.0
_BIN_MINUTES = 2

_LAST_HOUR = (
    ("Images received", (EventKind.RECEIVED, EventKind.REPLACED)),
    ("Studies answered", (EventKind.ANSWERED,)),
    ("Studies not analysed", (EventKind.REJECTED,)),
    ("Studies failed", (EventKind.DEAD,)),
    ("Results delivered", (EventKind.DELIVERED,)),
    ("Deliveries put off", (EventKind.DELIVERY_DEFERRED,)),
    ("Deliveries failed", (EventKind.DELIVERY_DEAD,)),
)


async def overview(request: Request) -> Response:
    """Show the state of the node."""
    site = site_of(request)
    facts = await run_in_threadpool(_facts, site.context)
    return await site.pages.page(request, "overview.html", **facts)


def _facts(context: PageContext) -> dict[str, Any]:
    now, store = context.clock(), context.store
    operations, recent = store.watching.operations(), store.studies.recent(now)
    oldest_s = operations.waiting.age_s(now)
    disk = shutil.disk_usage(context.settings.store.path)
    return {
        "now": now,
        "waiting": _waiting(operations),
        "waiting_in_all": operations.waiting.count,
        "dead": operations.dead,
        "oldest_s": oldest_s,
        "is_late": oldest_s is not None and oldest_s > _LATE_S,
        "disk": disk,
        "disk_used": 100 * disk.used / disk.total,
        "disk_is_low": disk.free < 2 * context.settings.store.minimum_free_bytes,
        "kept_bytes": context.settings.store.minimum_free_bytes,
        "model": context.bundle.identity,
        "last_hour": [(name, sum(recent.events.get(kind, 0) for kind in kinds)) for name, kinds in _LAST_HOUR],
        "throughput": _bins(recent),
        "answered": recent.events.get(EventKind.ANSWERED, 0),
        "not_analysed": recent.events.get(EventKind.REJECTED, 0),
        "finished": recent.events.get(EventKind.ANSWERED, 0) + recent.events.get(EventKind.REJECTED, 0),
        "destinations": operations.destinations_with(context.destinations),
        "configured": context.destinations,
        "patients": None,
        "newest": [
            described(entry, context.settings.results) for entry in store.studies.page(StudyQuery(), limit=_NEWEST)
        ],
        "ae_title": context.settings.scp.ae_title,
        "port": context.settings.scp.port,
        "peer": context.peer,
    }


def _waiting(operations: Operations) -> dict[str, int]:
    """Return the number of studies and results at each unfinished stage of the path."""
    sending = sum(entry.sending for entry in operations.destinations.values())
    return {
        "Being received": operations.jobs[JobState.COLLECTING].count,
        "Waiting for analysis": operations.jobs[JobState.WAITING].count,
        "Being analysed": operations.jobs[JobState.WORKING].count,
        "Waiting to be sent": sum(entry.waiting.count for entry in operations.destinations.values()) - sending,
        "Being sent": sending,
    }


def _bins(recent: Recent) -> list[tuple[int, float, float, int]]:
    """Return the columns of the chart: position, top and height in the drawing's units, and number of studies."""
    minutes = recent.answers_by_minute
    sums = [sum(minutes[at : at + _BIN_MINUTES]) for at in range(0, len(minutes), _BIN_MINUTES)]
    most = max(*sums, 4)
    return [(at, 40 - 40 * count / most, 40 * count / most, count) for at, count in enumerate(sums)]
