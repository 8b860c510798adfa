"""May this model read this image? What the tags say of it, rule by rule.

The rules stand in `_RULES`, in order; the first that objects decides. A tag that says the wrong thing rejects. Where
body part or view are absent, or say nothing this node understands, the pixels decide (`inference.gate`), which
always look too. Sentences are the node's own: no text of a data set is repeated in them.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date

from pydicom import Dataset
from pydicom import uid as uids

from dicomnode.dicom.attributes import integer, items, quiet, text, texts
from dicomnode.domain.answer import RejectionReason
from dicomnode.domain.identifiers import OWN_MODEL_NAME
from dicomnode.domain.instance import InstanceRef
from dicomnode.imaging.vocabulary import (
    FORMER_SCHEMES,
    FRONTAL_VIEWS,
    PART_CODES,
    VIEW_CODES,
    Part,
    View,
    part_of,
    view_of,
)
from dicomnode.settings.node import EligibilitySettings

RADIOGRAPHS = frozenset(
    {
        uids.ComputedRadiographyImageStorage,
        uids.DigitalXRayImageStorageForPresentation,
        uids.DigitalXRayImageStorageForProcessing,
    }
)
CAPTURES = frozenset(
    {
        uids.SecondaryCaptureImageStorage,
        uids.MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
        uids.MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
        uids.MultiFrameTrueColorSecondaryCaptureImageStorage,
    }
)
_OTHER_PROJECTIONS = frozenset(
    {
        uids.DigitalMammographyXRayImageStorageForPresentation,
        uids.DigitalMammographyXRayImageStorageForProcessing,
        uids.DigitalIntraOralXRayImageStorageForPresentation,
        uids.DigitalIntraOralXRayImageStorageForProcessing,
        uids.XRayAngiographicImageStorage,
        uids.XRayRadiofluoroscopicImageStorage,
    }
)
_IMAGE_DESCRIPTIONS = (
    "SeriesDescription",
    "ProtocolName",
    "AcquisitionDeviceProcessingDescription",
    "AcquisitionDeviceProcessingCode",
    "PerformedProcedureStepDescription",
    "AcquisitionProtocolName",
)
_STUDY_DESCRIPTIONS = ("RequestedProcedureDescription", "StudyDescription")
_IMAGE_CODES = ("PerformedProtocolCodeSequence", "SeriesDescriptionCodeSequence")
_STUDY_CODES = ("ProcedureCodeSequence", "RequestedProcedureCodeSequence")
_AGE = re.compile(r"([0-9]{1,3})\s*([DWMYA]?)[A-Z]*")
_DATE = re.compile(r"([0-9]{4})[.\-]?([0-9]{2})[.\-]?([0-9]{2})")
_YEARS = {"D": 1 / 365.25, "W": 7 / 365.25, "M": 1 / 12, "Y": 1.0, "A": 1.0, "": 1.0}
_OLDEST_YEARS = 130.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Eligible:
    """The tags do not forbid it.

    `view` is "PA", "AP", or None when no tag says which; `view_evidence` and `body_part_evidence` are keywords of the
    elements that said so, None when none did and the pixels decide.
    """

    source: InstanceRef
    view: str | None
    view_evidence: str | None
    body_part_evidence: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ineligible:
    """The tags forbid it. `detail` is the node's own sentence."""

    source: InstanceRef
    reason: RejectionReason
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    ds: Dataset
    sop_class: str
    settings: EligibilitySettings
    maximum_pixels: int


_Objection = tuple[RejectionReason, str] | None


def judge(
    ds: Dataset, ref: InstanceRef, settings: EligibilitySettings, *, maximum_pixels: int = 80_000_000
) -> Eligible | Ineligible:
    """Tell whether the model may read the image, and on what evidence."""
    case = _Case(ds=ds, sop_class=ref.sop_class, settings=settings, maximum_pixels=maximum_pixels)
    for rule in _RULES:
        objection = rule(case)
        if objection is not None:
            reason, detail = objection
            return Ineligible(source=ref, reason=reason, detail=detail)
    view, view_evidence = _view(ds)
    part, part_evidence = _part(ds)
    return Eligible(
        source=ref,
        view=view.value if view in (View.PA, View.AP) else None,
        view_evidence=view_evidence,
        body_part_evidence=part_evidence if part is not None else None,
    )


def age_years(ds: Dataset) -> float | None:
    """Return the patient's age in years, or None when no plausible one is stated.

    Patient's Age is read with or without its unit (years when absent); failing that, birth date and study date.
    """
    match = _AGE.fullmatch(text(ds, "PatientAge").upper())
    if match is not None:
        years = int(match[1]) * _YEARS[match[2]]
        return years if years <= _OLDEST_YEARS else None
    born, studied = _date(text(ds, "PatientBirthDate")), _date(text(ds, "StudyDate"))
    if born is None or studied is None:
        return None
    years = (studied - born).days / 365.25
    return years if 0 <= years <= _OLDEST_YEARS else None


def is_own_result(ds: Dataset) -> bool:
    """Tell whether this node made the object: all it makes carries its model name, as (contributing) equipment."""
    devices = (ds, *items(ds, "ContributingEquipmentSequence"))
    return any(text(device, "ManufacturerModelName").lower() == OWN_MODEL_NAME for device in devices)


def _own_result(case: _Case) -> _Objection:
    """Keep the node's own results out."""
    if is_own_result(case.ds):
        return RejectionReason.OWN_RESULT, "the object is one of this node's own results"
    return None


def _storage_class(case: _Case) -> _Objection:
    """CR, DX and Secondary Capture hold projections the model may know; other storage classes say what they are."""
    if case.sop_class in RADIOGRAPHS | CAPTURES:
        return None
    with quiet():
        known = uids.UID(case.sop_class).name
    name = known if known != case.sop_class else "an unknown storage class"
    if case.sop_class in _OTHER_PROJECTIONS:
        return RejectionReason.MODALITY, f"the object is of {name}, not a CR, DX or Secondary Capture image"
    return RejectionReason.NOT_A_PROJECTION, f"the object is of {name}, not a projection radiograph"


def _modality(case: _Case) -> _Objection:
    """Modality must be configured. A CR or DX object may lack it; a Secondary Capture may not.

    A capture can hold a screen, a page or a dose report: only its Modality says that a radiograph is in it, and OT
    says that none is.
    """
    stated = text(case.ds, "Modality").upper()
    if stated in case.settings.modalities or (not stated and case.sop_class in RADIOGRAPHS):
        return None
    wanted = " or ".join(case.settings.modalities)
    if not stated:
        return RejectionReason.MODALITY, f"a Secondary Capture without Modality does not say that it holds {wanted}"
    return RejectionReason.MODALITY, f"Modality is not {wanted}"


def _image_type(case: _Case) -> _Objection:
    """Localizers are no exposures, and a derived capture with burned-in annotation is a result of something else."""
    types = {value.upper() for value in texts(case.ds, "ImageType")}
    if "LOCALIZER" in types:
        return RejectionReason.NOT_A_PROJECTION, "Image Type names a localizer"
    annotated = text(case.ds, "BurnedInAnnotation").upper() == "YES"
    if case.sop_class in CAPTURES and "DERIVED" in types and annotated and items(case.ds, "SourceImageSequence"):
        return RejectionReason.NOT_A_PROJECTION, "the object is an annotated capture made from another image"
    return None


def _single_frame(case: _Case) -> _Objection:
    """Refuse cine and tomosynthesis: the model reads one exposure."""
    frames = integer(case.ds, "NumberOfFrames")
    if frames is not None and frames > 1:
        return RejectionReason.MULTI_FRAME, f"the object holds {frames} frames, and a radiograph is one"
    return None


def _size(case: _Case) -> _Objection:
    """Refuse what holds too little to read, and what is too much to decode."""
    rows, columns = integer(case.ds, "Rows") or 0, integer(case.ds, "Columns") or 0
    if rows < 1 or columns < 1:
        return RejectionReason.CORRUPT_PIXELS, "Rows or Columns is missing or not a number above 0"
    if min(rows, columns) < case.settings.minimum_side:
        least = case.settings.minimum_side
        return RejectionReason.TOO_SMALL, f"the image has {rows} x {columns} pixels; the shorter side must have {least}"
    if rows * columns > case.maximum_pixels:
        return RejectionReason.TOO_LARGE, f"the image has {rows} x {columns} pixels; the limit is {case.maximum_pixels}"
    return None


def _body_part(case: _Case) -> _Objection:
    """Refuse what names another part than the chest."""
    part, evidence = _part(case.ds)
    if part is None or part is Part.CHEST:
        return None
    return RejectionReason.BODY_PART, f"{_name(evidence)} names {part.value}, not the chest"


def _projection(case: _Case) -> _Objection:
    """Refuse what names a view that is not frontal. A lateral decubitus is frontal, but no model here has seen one."""
    view, evidence = _view(case.ds)
    if view is None or view in FRONTAL_VIEWS:
        return None
    if view is View.LATERAL:
        return RejectionReason.LATERAL_VIEW, f"{_name(evidence)} names a lateral view"
    return RejectionReason.UNKNOWN_VIEW, f"{_name(evidence)} names a {view.value} view, not a frontal one"


def _age(case: _Case) -> _Objection:
    """Apply the configured bounds, if any; a missing age passes unless the configuration says otherwise."""
    least, most = case.settings.minimum_age_years, case.settings.maximum_age_years
    years = age_years(case.ds)
    if years is None:
        missing = case.settings.reject_missing_age
        return (
            (RejectionReason.AGE, "no plausible age is stated, and the configuration asks for one") if missing else None
        )
    if (least is not None and years < least) or (most is not None and years > most):
        return RejectionReason.AGE, "the patient's age is outside the configured range"
    return None


_RULES: tuple[Callable[[_Case], _Objection], ...] = (
    _own_result,
    _storage_class,
    _modality,
    _image_type,
    _single_frame,
    _size,
    _body_part,
    _projection,
    _age,
)


def _part(ds: Dataset) -> tuple[Part | None, str | None]:
    """Return the body part and the keyword of the element that names it.

    Body Part Examined and the coded regions are asked first, and any of them that names another part than the chest
    decides; descriptions are asked only when none of these says anything.
    """
    stated = [(part, keyword) for part, keyword in _stated_parts(ds) if part is not None]
    for part, keyword in stated:
        if part is not Part.CHEST:
            return part, keyword
    if stated:
        return stated[0]
    described = (*_descriptions(ds, _IMAGE_DESCRIPTIONS, _IMAGE_CODES), *_study_descriptions(ds))
    named = ((one, keyword) for keyword, words in described if (one := part_of(words)) is not None)
    return next(named, (None, None))


def _stated_parts(ds: Dataset) -> Iterator[tuple[Part | None, str]]:
    yield part_of(text(ds, "BodyPartExamined")), "BodyPartExamined"
    for keyword in ("AnatomicRegionSequence", "PrimaryAnatomicStructureSequence"):
        for item in items(ds, keyword):
            yield PART_CODES.get(_code(item)) or part_of(text(item, "CodeMeaning")), keyword


def _view(ds: Dataset) -> tuple[View | None, str | None]:
    """Return the view and the keyword of the element that names it, by the ladder of evidence.

    View Position, View Code Sequence, a view misplaced in Patient Position, descriptions of the image or series,
    descriptions of the study. Devices fill View Position with a default, so a rung that says lateral outweighs one
    above it that says frontal; descriptions of the study speak only when nothing nearer does.
    """
    nearer = [(view, keyword) for view, keyword in _stated_views(ds) if view is not None]
    for view, keyword in nearer:
        if view not in FRONTAL_VIEWS:
            return view, keyword
    directed = [found for found in nearer if found[0] is not View.FRONTAL]
    if nearer:
        return (directed or nearer)[0]
    named = ((one, keyword) for keyword, words in _study_descriptions(ds) if (one := view_of(words)) is not None)
    return next(named, (None, None))


def _stated_views(ds: Dataset) -> Iterator[tuple[View | None, str]]:
    yield view_of(text(ds, "ViewPosition")), "ViewPosition"
    for item in items(ds, "ViewCodeSequence"):
        yield VIEW_CODES.get(_code(item)) or view_of(text(item, "CodeMeaning")), "ViewCodeSequence"
    yield view_of(text(ds, "PatientPosition")), "PatientPosition"
    for keyword, words in _descriptions(ds, _IMAGE_DESCRIPTIONS, _IMAGE_CODES):
        yield view_of(words), keyword


def _study_descriptions(ds: Dataset) -> Iterator[tuple[str, str]]:
    return _descriptions(ds, _STUDY_DESCRIPTIONS, _STUDY_CODES)


def _descriptions(ds: Dataset, fields: tuple[str, ...], codes: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for keyword in fields:
        yield keyword, " ; ".join(texts(ds, keyword))
    for keyword in codes:
        for item in items(ds, keyword):
            yield keyword, text(item, "CodeMeaning")


def _code(item: Dataset) -> tuple[str, str]:
    """Return scheme and value; SNOMED's former designators all mean the same codes. Source: PS3.16 8.1."""
    scheme = text(item, "CodingSchemeDesignator").upper()
    return FORMER_SCHEMES.get(scheme, scheme), text(item, "CodeValue")


def _name(keyword: str | None) -> str:
    """Return the keyword as words."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", keyword or "")


def _date(value: str) -> date | None:
    match = _DATE.fullmatch(value)
    if match is None:
        return None
    try:
        return date(int(match[1]), int(match[2]), int(match[3]))
    except ValueError:
        return None
