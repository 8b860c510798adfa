"""The first page: what comes in, what waits, what went out, and what is wrong."""

import shutil
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from dicomnode.domain.job import DeliveryState, JobState
from dicomnode.web.parts import Parts, site_of


async def overview(request: Request) -> Response:
    """Show the state of the node."""
    site = site_of(request)
    facts = await run_in_threadpool(_facts, site.parts)
    return site.pages.page(request, "overview.html", **facts)


def _facts(parts: Parts) -> dict[str, Any]:
    counts = parts.store.ledger.counts()
    disk = shutil.disk_usage(parts.settings.store.path)
    return {
        "now": parts.clock(),
        "waiting_jobs": sum(counts.jobs[state] for state in (JobState.COLLECTING, JobState.WAITING, JobState.WORKING)),
        "waiting_deliveries": sum(counts.deliveries[s] for s in (DeliveryState.WAITING, DeliveryState.SENDING)),
        "dead": counts.jobs[JobState.DEAD] + counts.deliveries[DeliveryState.DEAD],
        "oldest": parts.store.ledger.oldest_waiting(),
        "disk": disk,
        "model": parts.bundle.identity,
    }
