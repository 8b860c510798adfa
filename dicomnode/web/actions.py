"""Actions of an operator on a study: try again, give up, analyse again."""

import logging
from collections.abc import Iterator, Sequence

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from dicomnode.domain.delivery import DeliveryState
from dicomnode.domain.identifiers import is_valid_uid
from dicomnode.domain.job import JobState
from dicomnode.store.ledger import DeliveryEntry, JobEntry
from dicomnode.store.operator import OfStudy, OneDelivery, Reanalysis, why_not_again
from dicomnode.store.studies import ImageEntry
from dicomnode.web.context import session_of, site_of, visitor_of
from dicomnode.web.guard import form_of

log = logging.getLogger(__name__)

RETRY, REANALYSE, DROP = "retry", "reanalyse", "drop"


async def act_on_study(request: Request) -> Response:
    """Carry out the action of a form on a study or on one of its deliveries, then show the study."""
    uid, form = str(request.path_params["study"]), await form_of(request)
    if not is_valid_uid(uid):
        raise HTTPException(404)
    if form.get("act") == REANALYSE:
        session_of(request).message = _told(await run_in_threadpool(reanalyse, request, uid))
    else:
        session_of(request).message = await _retry_or_drop(request, uid, form.get("delivery", ""), form.get("act", ""))
    return RedirectResponse(f"/studies/{uid}", status_code=303)


def reanalyse(request: Request, study: str) -> Reanalysis:
    """Have a study analysed again, and record the visitor who asked for it.

    Raises: UnknownStudy, StoreUnavailable.
    """
    context, visitor = site_of(request).context, visitor_of(request).name
    asked = context.store.ledger.analyse_again(study, f"{visitor}, on the page,", context.clock())
    if asked.version is not None:
        log.info("study-reanalysed", extra={"visitor": visitor, "study": study, "version": asked.version})
    return asked


def acts_on(
    jobs: Sequence[JobEntry], deliveries: Sequence[DeliveryEntry], images: Sequence[ImageEntry]
) -> frozenset[str]:
    """Return the actions that are possible on a study in its present state."""
    return frozenset(_acts_on(jobs, deliveries, images))


def _acts_on(
    jobs: Sequence[JobEntry], deliveries: Sequence[DeliveryEntry], images: Sequence[ImageEntry]
) -> Iterator[str]:
    states, sent = [job.state for job in jobs], {entry.state for entry in deliveries}
    if {JobState.WAITING, JobState.DEAD, JobState.DROPPED}.intersection(states) or sent & {
        DeliveryState.WAITING,
        DeliveryState.DEAD,
        DeliveryState.DROPPED,
    }:
        yield RETRY
    if {JobState.COLLECTING, JobState.WAITING, JobState.DEAD}.intersection(states) or sent & {
        DeliveryState.WAITING,
        DeliveryState.DEAD,
    }:
        yield DROP
    if states and not why_not_again(states[-1], states[:-1], kept=any(not image.is_purged for image in images)):
        yield REANALYSE


async def _retry_or_drop(request: Request, study: str, delivery: str, act: str) -> str:
    """Carry out the action, and return a sentence on what was done."""
    context = site_of(request).context
    is_one = delivery.isdecimal() and len(delivery) < 16
    selection = OneDelivery(delivery_id=int(delivery)) if is_one else OfStudy(study=study)
    ledger = context.store.ledger
    do, done = (ledger.drop, "given up") if act == DROP else (ledger.retry, "will be tried again")
    changed = await run_in_threadpool(do, selection, context.clock())
    counted = f"{changed.jobs} analyses and {changed.deliveries} deliveries {done}."
    return counted if changed.jobs + changed.deliveries else "Nothing is in a state for that."


def _told(asked: Reanalysis) -> str:
    if asked.version is None:
        return f"It is not analysed again: {asked.why_not}."
    return f"It is to be analysed again; that will be version {asked.version} of its answer."
