"""The page of problems: destinations that are down, dead letters, overdue commitments, studies not analysed."""

import re
from collections import Counter
from collections.abc import Sequence

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from dicomnode.domain.delivery import DeliveryState
from dicomnode.domain.identifiers import is_valid_uid
from dicomnode.domain.job import JobState
from dicomnode.store.counters import OUTCOMES
from dicomnode.store.operator import AllDead, OneDelivery, OneJob, Selection
from dicomnode.store.studies import StudyQuery
from dicomnode.web.actions import REANALYSE, reanalyse
from dicomnode.web.context import PageContext, session_of, site_of
from dicomnode.web.findings import REASONS
from dicomnode.web.guard import values_of

_PER_PAGE = 100
_ENTRY = re.compile(r"(?P<kind>[AD])(?P<number>[0-9]{1,15})")


async def problems(request: Request) -> Response:
    """Show everything that needs an operator."""
    site = site_of(request)
    ledger, studies = site.context.store.ledger, site.context.store.studies
    jobs = await run_in_threadpool(ledger.jobs, (JobState.DEAD,), limit=_PER_PAGE)
    deliveries = await run_in_threadpool(ledger.deliveries, (DeliveryState.DEAD,), limit=_PER_PAGE)
    overdue = await run_in_threadpool(ledger.uncommitted, limit=_PER_PAGE)
    rejected = await run_in_threadpool(studies.page, StudyQuery(states=(JobState.REJECTED,)), limit=_PER_PAGE)
    operations = await run_in_threadpool(site.context.store.watching.operations)
    figures = operations.destinations_with(site.context.destinations)
    reasons = Counter(reason for entry in rejected for reason in entry.reasons)
    return await site.pages.page(
        request,
        "problems.html",
        jobs=jobs,
        deliveries=deliveries,
        overdue=overdue,
        down=[entry for entry in figures if entry.is_up is False],
        now=site.context.clock(),
        dead=operations.dead,
        rejected=rejected,
        rejected_in_all=operations.outcomes.get(OUTCOMES[JobState.REJECTED], 0),
        reasons=[(REASONS[reason], count) for reason, count in reasons.most_common()],
        names=REASONS,
    )


async def act_on_problems(request: Request) -> Response:
    """Try chosen entries, or all dead letters, again; give chosen ones up; or have chosen studies analysed again."""
    site, act = site_of(request), (await values_of(request, "act"))[-1:]
    if act == [REANALYSE]:
        chosen_studies = [study for study in await values_of(request, "study") if is_valid_uid(study)]
        session_of(request).message = await run_in_threadpool(_reanalyse, request, chosen_studies)
        return RedirectResponse("/problems", status_code=303)
    chosen = [_selection(entry) for entry in await values_of(request, "entry")]
    selections: list[Selection] = (
        [AllDead()] if act == ["retry-all"] else [entry for entry in chosen if entry is not None]
    )
    changed = await run_in_threadpool(_act, site.context, selections, is_drop=act == ["drop"])
    done = "given up" if act == ["drop"] else "will be tried again"
    counted = f"{changed} {'entry' if changed == 1 else 'entries'} {done}."
    session_of(request).message = (
        counted if changed else "Nothing was chosen, or nothing of it waits or has failed now."
    )
    return RedirectResponse("/problems", status_code=303)


def _reanalyse(request: Request, studies: Sequence[str]) -> str:
    asked = [reanalyse(request, study) for study in studies]
    count = sum(entry.version is not None for entry in asked)
    why_not = Counter(entry.why_not for entry in asked if entry.version is None)
    refused = "".join(f" {times} not: {why}." for why, times in why_not.items())
    return f"{count} studies will be analysed again.{refused}" if asked else "Nothing was chosen."


def _act(context: PageContext, selections: list[Selection], *, is_drop: bool) -> int:
    act = context.store.ledger.drop if is_drop else context.store.ledger.retry
    changes = [act(selection, context.clock()) for selection in selections]
    return sum(change.jobs + change.deliveries for change in changes)


def _selection(entry: str) -> Selection | None:
    match = _ENTRY.fullmatch(entry)
    if match is None:
        return None
    number = int(match["number"])
    return OneJob(job_id=number) if match["kind"] == "A" else OneDelivery(delivery_id=number)
