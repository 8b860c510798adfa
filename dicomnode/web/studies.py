"""The list of studies and its search. A search's fields stay in the session, so that no address names a patient."""

import re
import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from dicomnode.domain.identifiers import is_valid_uid
from dicomnode.domain.job import JobState
from dicomnode.settings.node import ResultSettings
from dicomnode.store.studies import StudyEntry, StudyQuery
from dicomnode.web.context import PageContext, session_of, site_of
from dicomnode.web.findings import REASONS, headline
from dicomnode.web.guard import form_of
from dicomnode.web.identity import PatientDetails, disclosed, patients_of, shows_patients

PER_PAGE = 50
_MOST_SEARCHES = 20
_FIELDS = ("number", "outcome", "since", "until")

OUTCOMES: Mapping[str, tuple[JobState, ...]] = {
    "open": (JobState.COLLECTING, JobState.WAITING, JobState.WORKING),
    "answered": (JobState.DONE,),
    "rejected": (JobState.REJECTED,),
    "failed": (JobState.DEAD,),
    "given up": (JobState.DROPPED,),
}


async def studies(request: Request) -> Response:
    """Show a page of the list, or of a search."""
    site, asked = site_of(request), request.query_params
    search = asked.get("search", "")
    fields = session_of(request).searches.get(search, {})
    before = int(asked["before"]) if re.fullmatch(r"[0-9]{1,15}", asked.get("before", "")) else None
    entries = await run_in_threadpool(_page, site.context, fields, before)
    more = entries[PER_PAGE - 1].number if len(entries) > PER_PAGE else None
    patients = await run_in_threadpool(_shown_patients, request, entries[:PER_PAGE])
    return await site.pages.page(
        request,
        "studies.html",
        newest=[described(entry, site.context.settings.results) for entry in entries[:PER_PAGE]],
        patients=patients,
        fields={name: fields.get(name, "") for name in _FIELDS},
        outcomes=tuple(OUTCOMES),
        search=search if fields else "",
        more=more,
        is_first=before is None,
        is_filtered=bool(fields),
        peer=site.context.peer,
    )


async def search_studies(request: Request) -> Response:
    """Keep the fields of a search in the session, and redirect to its results."""
    form = await form_of(request)
    fields = {name: form.get(name, "").strip()[:128] for name in _FIELDS}
    if not any(fields.values()):
        return RedirectResponse("/studies", status_code=303)
    searches, name = session_of(request).searches, secrets.token_urlsafe(9)
    searches[name] = fields
    while len(searches) > _MOST_SEARCHES:
        searches.popitem(last=False)
    return RedirectResponse(f"/studies?search={name}", status_code=303)


def _page(context: PageContext, fields: Mapping[str, str], before: int | None) -> tuple[StudyEntry, ...]:
    return context.store.studies.page(wanted_of(fields), limit=PER_PAGE + 1, before=before)


def _shown_patients(request: Request, entries: Sequence[StudyEntry]) -> dict[str, PatientDetails] | None:
    """Return the patients of a page's studies if the visitor sees patients, and record that they are shown."""
    if not shows_patients(request):
        return None
    patients = patients_of(site_of(request).context, [entry.study for entry in entries])
    if patients:
        disclosed(request, list(patients))
    return patients


def wanted_of(fields: Mapping[str, str]) -> StudyQuery:
    """Return the conditions of a search; dates are days of the node's time zone, and the last day is included."""
    number = fields.get("number", "")
    is_uid = number.count(".") >= 2 and is_valid_uid(number)
    until = _day(fields.get("until", ""))
    return StudyQuery(
        study=number if is_uid else "",
        number="" if is_uid else number,
        states=OUTCOMES.get(fields.get("outcome", ""), ()),
        since=_day(fields.get("since", "")),
        until=until + timedelta(days=1) if until is not None else None,
    )


def _day(value: str) -> datetime | None:
    try:
        return datetime.strptime(value, "%Y-%m-%d").astimezone()
    except (ValueError, OverflowError):
        return None


def described(entry: StudyEntry, settings: ResultSettings) -> dict[str, Any]:
    """Return a study as the template of the list shows it."""
    why = ", ".join(REASONS[reason] for reason in entry.reasons) or (entry.last_error or "")
    return {"entry": entry, "headline": headline(entry.summary, settings), "why": why}
