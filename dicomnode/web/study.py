"""The page of one study: patient, images with findings and heatmaps, results, deliveries, and the history.

The Structured Report is shown as a tree of its content items, which `read_report` makes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from pydicom import Dataset, dcmread
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from dicomnode.dicom.attributes import items, number, text
from dicomnode.domain.answer import RejectionReason, ResultKind
from dicomnode.domain.errors import CxrNodeError
from dicomnode.domain.evidence import Evidence, name_of
from dicomnode.domain.identifiers import is_valid_uid
from dicomnode.domain.summary import ImageSummary, StudySummary
from dicomnode.results.presentation import UNUSUAL, Note
from dicomnode.store.events import EventKind
from dicomnode.store.ledger import conclusion, sentence
from dicomnode.store.studies import ImageEntry, ResultEntry
from dicomnode.web.actions import acts_on
from dicomnode.web.context import PageContext, site_of
from dicomnode.web.findings import REASONS, Bar, bars_by_uid, bars_of, first_to_show, impression_of
from dicomnode.web.identity import PatientDetails, disclosed, patient_of, shows_patients
from dicomnode.web.imagery import RenderedImage, capture_png, heat_png

_DEEPEST = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One content item: its concept name, its value, and the items below it."""

    name: str
    value: str
    items: tuple["Item", ...]


def read_report(part10: bytes) -> Item:
    """Return the content of a report that this node wrote."""
    return _item(dcmread(BytesIO(part10), stop_before_pixels=True), 0)


def _item(ds: Dataset, depth: int) -> Item:
    below = () if depth >= _DEEPEST else tuple(_items(ds, depth + 1))
    return Item(name=_meaning(ds, "ConceptNameCodeSequence"), value=_value(ds), items=below)


def _items(ds: Dataset, depth: int) -> Iterator[Item]:
    for entry in items(ds, "ContentSequence"):
        # The report has outlines of whole images for viewers that need coordinates; here they would tell nothing.
        if text(entry, "ValueType") not in ("SCOORD", ""):
            yield _item(entry, depth)


def _value(ds: Dataset) -> str:
    match text(ds, "ValueType"):
        case "CODE":
            return _meaning(ds, "ConceptCodeSequence")
        case "NUM":
            measured = next(iter(items(ds, "MeasuredValueSequence")), Dataset())
            value = number(measured, "NumericValue")
            return "" if value is None else f"{value:g}"
        case "IMAGE":
            return text(next(iter(items(ds, "ReferencedSOPSequence")), Dataset()), "ReferencedSOPInstanceUID")
        case kind:
            return text(ds, {"TEXT": "TextValue", "UIDREF": "UID", "PNAME": "PersonName"}.get(kind, "TextValue"))


def _meaning(ds: Dataset, keyword: str) -> str:
    return text(next(iter(items(ds, keyword)), Dataset()), "CodeMeaning")


_MOST_EVENTS = 500
_STEPS = 10

_GOOD = frozenset({EventKind.ANSWERED, EventKind.DELIVERED, EventKind.COMMITTED})
_BAD = frozenset(
    {
        EventKind.REFUSED,
        EventKind.DEAD,
        EventKind.DELIVERY_DEAD,
        EventKind.COMMITMENT_FAILED,
        EventKind.IMAGE_UNMENTIONED,
        EventKind.UNROUTED,
    }
)
_DOUBTFUL = frozenset(
    {
        EventKind.REJECTED,
        EventKind.IMAGE_REJECTED,
        EventKind.DEFERRED,
        EventKind.INTERRUPTED,
        EventKind.DELIVERY_DEFERRED,
        EventKind.DELIVERY_INTERRUPTED,
        EventKind.COMMITMENT_DEFERRED,
        EventKind.COMMITMENT_OVERDUE,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownImage:
    """An image with its findings. `heat`: the label whose map is shown; `labels`: all labels that have a map.

    `evidence`: which attribute of the image said what, such as view and body part.
    """

    entry: ImageEntry
    bars: tuple[Bar, ...]
    impression: str
    word_above: str
    notes: tuple[Note, ...]
    rejection: str
    rendered: RenderedImage | None
    is_withheld: bool
    labels: tuple[str, ...]
    heat: str
    evidence: tuple[Evidence, ...]


async def study(request: Request) -> Response:
    """Show a study."""
    site, uid = site_of(request), _uid_in(request, "study")
    shows = shows_patients(request)
    facts = await run_in_threadpool(_facts, site.context, uid, shows=shows, chosen=request.query_params)
    if facts["patient"] is not None:
        await run_in_threadpool(disclosed, request, [uid])
    return await site.pages.page(request, "study.html", **facts)


async def radiograph(request: Request) -> Response:
    """Answer with an image as PNG."""
    rendered = await _rendered_of(request)
    return _picture(rendered.png or None)


async def heat(request: Request) -> Response:
    """Answer with the map of a finding as PNG; `label` in the address is the label's position in the manifest."""
    context, rendered = site_of(request).context, await _rendered_of(request)
    labels, at = context.bundle.manifest.labels, int(request.path_params["label"])
    return _picture(heat_png(rendered, labels[at].name) if at < len(labels) else None)


async def capture(request: Request) -> Response:
    """Answer with a Secondary Capture of the study as PNG."""
    context, uid, result = site_of(request).context, _uid_in(request, "study"), _uid_in(request, "result")

    def made() -> bytes | None:
        entries = context.store.studies.results_of(uid)
        entry = next((entry for entry in entries if entry.ref.sop_instance == result and not entry.is_purged), None)
        if entry is None or entry.kind not in (ResultKind.SECONDARY_CAPTURE, ResultKind.FINDING_CAPTURE):
            return None
        return capture_png(context.store.blobs.read(entry.blob))

    return _picture(await run_in_threadpool(made))


def _facts(context: PageContext, uid: str, *, shows: bool, chosen: Mapping[str, str]) -> dict[str, Any]:
    ledger, studies = context.store.ledger, context.store.studies
    events = ledger.explain(uid)
    jobs, deliveries = ledger.jobs_of(uid), ledger.deliveries_of(uid)
    images, results, summary = studies.images_of(uid), studies.results_of(uid), studies.summary_of(uid)
    is_current = summary.model is not None and summary.model.bundle_hash == context.bundle.identity.bundle_hash
    bars, rejections = bars_by_uid(summary, context.settings.results), ledger.rejections_of(uid)
    at = _chosen(images, bars, chosen.get("image", ""))
    shown = (
        _shown(context, images[at], summary, rejections, chosen.get("finding", ""), maps=is_current, open_=shows)
        if at is not None
        else None
    )
    newest = max((entry.version for entry in results), default=0)
    return {
        "uid": uid,
        "conclusion": conclusion(jobs, deliveries),
        "state": jobs[-1].state if jobs else None,
        "jobs": jobs,
        "acts": acts_on(jobs, deliveries, images),
        "images": [(image, bool(bars.get(image.instance.ref.sop_instance))) for image in images],
        "shown": shown,
        "at": at,
        "model": summary.model,
        "is_current_model": is_current,
        "heat_labels": {label.name: at for at, label in enumerate(context.bundle.manifest.labels)},
        "opacity": _step(chosen.get("opacity", "")),
        "deliveries": deliveries,
        "now": context.clock(),
        "results": results,
        "reports": _reports(context, [entry for entry in results if entry.version == newest]),
        "events": [(event, sentence(event), _mark(event.kind)) for event in events[-_MOST_EVENTS:]],
        "left_out": max(0, len(events) - _MOST_EVENTS),
        "patient": _patient(context, images, results, at) if shows else None,
        "of_several_patients": any(
            entry.reason is RejectionReason.PATIENT_MISMATCH and entry.version == jobs[-1].version
            for entry in rejections
            if jobs
        ),
        "name_of": name_of,
        "senders": sorted({image.instance.calling_ae for image in images}),
    }


def _chosen(images: Sequence[ImageEntry], bars: Mapping[str, Any], asked: str) -> int | None:
    """Return the position of the image to show: the requested one, else the first analysed one, else the first."""
    uids = [image.instance.ref.sop_instance for image in images]
    analysed = [uid for uid in uids if uid in bars]
    return next((uids.index(uid) for uid in (asked, *analysed, *uids) if uid in uids), None)


def _shown(
    context: PageContext,
    image: ImageEntry,
    summary: StudySummary,
    rejections: Sequence[Any],
    asked: str,
    *,
    maps: bool,
    open_: bool,
) -> ShownImage:
    uid = image.instance.ref.sop_instance
    found = next((entry for entry in summary.images if entry.sop_instance == uid), None)
    bars = bars_of(found, context.settings.results) if found is not None else ()
    rendered = None if image.is_purged else _rendered(context, image)
    withheld = rendered is not None and rendered.may_name_patient and not open_
    labels = tuple(bar.label for bar in bars if bar.has_heat and rendered is not None and bar.label in rendered.maps)
    labels = labels if maps else ()
    why_not = [entry for entry in rejections if entry.sop_instance == uid]
    return ShownImage(
        entry=image,
        bars=bars,
        impression=impression_of(found, context.settings.results) if found is not None else "",
        word_above=context.settings.results.word_above,
        notes=_notes(found, rendered),
        rejection=f"{REASONS[why_not[-1].reason]}: {why_not[-1].detail}" if why_not and not bars else "",
        rendered=rendered,
        is_withheld=withheld,
        evidence=dict(summary.evidence()).get(uid, ()),
        labels=labels,
        heat=asked if asked in labels else first_to_show(bars, labels),
    )


def _notes(found: ImageSummary | None, rendered: RenderedImage | None) -> tuple[Note, ...]:
    """Return what to know of an image that was analysed."""
    if found is None or rendered is None:
        return ()
    return (*((Note(text=UNUSUAL, is_warning=True),) if found.is_unusual else ()), *rendered.notes)


def _rendered(context: PageContext, image: ImageEntry) -> RenderedImage | None:
    try:
        return context.gallery.rendered(image.instance)
    except CxrNodeError:  # removed meanwhile, damaged, or no decoder: the page then says that there is no picture
        return None


async def _rendered_of(request: Request) -> RenderedImage:
    context, uid, sop = site_of(request).context, _uid_in(request, "study"), _uid_in(request, "image")

    def found() -> RenderedImage | None:
        images = context.store.studies.images_of(uid)
        image = next(
            (entry for entry in images if entry.instance.ref.sop_instance == sop and not entry.is_purged), None
        )
        return None if image is None else _rendered(context, image)

    rendered = await run_in_threadpool(found)
    if rendered is None:
        raise HTTPException(404)
    if rendered.may_name_patient and not shows_patients(request):
        raise HTTPException(403)
    return rendered


def _reports(context: PageContext, results: Sequence[ResultEntry]) -> list[Item]:
    reports = [entry for entry in results if entry.kind is ResultKind.STRUCTURED_REPORT and not entry.is_purged]
    made = []
    for entry in reports[:1]:
        try:
            made.append(read_report(context.store.blobs.read(entry.blob)))
        except CxrNodeError:
            continue
    return made


def _patient(
    context: PageContext, images: Sequence[ImageEntry], results: Sequence[ResultEntry], at: int | None
) -> PatientDetails | None:
    """Return the patient of the image that is shown, since a study may hold images of others by mistake."""
    ordered = images if at is None else [images[at], *images]
    blobs = [image.instance.blob for image in ordered if not image.is_purged]
    blobs += [result.blob for result in results if not result.is_purged]
    return patient_of(blobs[:3], context.store.blobs.read)


def _mark(kind: EventKind) -> str:
    return "good" if kind in _GOOD else "bad" if kind in _BAD else "doubtful" if kind in _DOUBTFUL else "plain"


def _step(value: str) -> int:
    """Return an opacity in tenths, from its percentage in the address."""
    return min(int(value) // _STEPS, _STEPS) if value.isdecimal() and len(value) < 4 else 4


def _uid_in(request: Request, name: str) -> str:
    uid = str(request.path_params[name])
    if not is_valid_uid(uid):
        raise HTTPException(404)
    return uid


def _picture(png: bytes | None) -> Response:
    if png is None:
        raise HTTPException(404)
    return Response(png, media_type="image/png", headers={"cache-control": "private, no-store"})
