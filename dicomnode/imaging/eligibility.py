"""May this model read this image? What its header says of it, rule by rule.

The rules stand in `_RULES`, in order; the first that objects decides. A tag that says the wrong thing rejects. Where
body part or view are absent, or say nothing this node understands, the pixels decide (`inference.gate`), which
always look too. Sentences are the node's own: no text of a data set is repeated in them.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from pydicom import uid as uids

from dicomnode.dicom.header import RadiographHeader, Statement
from dicomnode.dicom.hostile import quiet
from dicomnode.domain.answer import RejectionReason
from dicomnode.domain.evidence import Evidence, name_of
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
_T = TypeVar("_T")
_AGE = re.compile(r"([0-9]{1,3})\s*([DWMYA]?)[A-Z]*")
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
class _Candidate:
    header: RadiographHeader
    settings: EligibilitySettings
    maximum_pixels: int

    @property
    def sop_class(self) -> str:
        return self.header.ref.sop_class


_Objection = tuple[RejectionReason, str] | None


def judge(
    header: RadiographHeader, settings: EligibilitySettings, *, maximum_pixels: int = 80_000_000
) -> Eligible | Ineligible:
    """Tell whether the model may read the image, and on what evidence."""
    candidate = _Candidate(header=header, settings=settings, maximum_pixels=maximum_pixels)
    for rule in _RULES:
        objection = rule(candidate)
        if objection is not None:
            reason, detail = objection
            return Ineligible(source=header.ref, reason=reason, detail=detail)
    view, view_evidence = _view(header)
    _, part_evidence = _part(header)
    return Eligible(
        source=header.ref,
        view=view.value if view in (View.PA, View.AP) else None,
        view_evidence=view_evidence or None,
        body_part_evidence=part_evidence or None,
    )


def evidence_of(header: RadiographHeader) -> tuple[Evidence, ...]:
    """Return which element said what of view, body part and orientation, and what was repaired in reading.

    Values are the node's own words, so that they may stand in the ledger.
    """
    view, view_attribute = _view(header)
    part, part_attribute = _part(header)
    found = [
        Evidence(fact="view", value=view.value if view else "not stated", attribute=view_attribute),
        Evidence(fact="body part", value=part.value if part else "not stated", attribute=part_attribute),
    ]
    if header.patient_orientation is not None:
        value = "\\".join(header.patient_orientation)
        found.append(Evidence(fact="orientation", value=value, attribute="PatientOrientation"))
    found.extend(Evidence(fact="repair", value=one.what, attribute=one.attribute) for one in header.repairs)
    return tuple(found)


def age_years(header: RadiographHeader) -> float | None:
    """Return the patient's age in years, or None when no plausible one is stated.

    Patient's Age is read with or without its unit (years when absent); failing that, birth date and study date.
    """
    match = _AGE.fullmatch(header.patient_age)
    if match is not None:
        years = int(match[1]) * _YEARS[match[2]]
        return years if years <= _OLDEST_YEARS else None
    if header.birth_date is None or header.study_date is None:
        return None
    years = (header.study_date - header.birth_date).days / 365.25
    return years if 0 <= years <= _OLDEST_YEARS else None


def is_own_result(header: RadiographHeader) -> bool:
    """Tell whether this node made the object: all it makes carries its model name, as (contributing) equipment."""
    return any(model.lower() == OWN_MODEL_NAME for model in header.makers)


def _own_result(candidate: _Candidate) -> _Objection:
    """Keep the node's own results out."""
    if is_own_result(candidate.header):
        return RejectionReason.OWN_RESULT, "the object is one of this node's own results"
    return None


def _storage_class(candidate: _Candidate) -> _Objection:
    """CR, DX and Secondary Capture hold projections the model may know; other storage classes say what they are."""
    if candidate.sop_class in RADIOGRAPHS | CAPTURES:
        return None
    with quiet():
        known = uids.UID(candidate.sop_class).name
    name = known if known != candidate.sop_class else "an unknown storage class"
    if candidate.sop_class in _OTHER_PROJECTIONS:
        return RejectionReason.MODALITY, f"the object is of {name}, not a CR, DX or Secondary Capture image"
    return RejectionReason.NOT_A_PROJECTION, f"the object is of {name}, not a projection radiograph"


def _modality(candidate: _Candidate) -> _Objection:
    """Modality must be configured. A CR or DX object may lack it; a Secondary Capture may not.

    A capture can hold a screen, a page or a dose report: only its Modality says that a radiograph is in it, and OT
    says that none is.
    """
    stated = candidate.header.modality
    if stated in candidate.settings.modalities or (not stated and candidate.sop_class in RADIOGRAPHS):
        return None
    wanted = " or ".join(candidate.settings.modalities)
    if not stated:
        return RejectionReason.MODALITY, f"a Secondary Capture without Modality does not say that it holds {wanted}"
    return RejectionReason.MODALITY, f"Modality is not {wanted}"


def _image_type(candidate: _Candidate) -> _Objection:
    """Localizers are no exposures, and a derived capture with burned-in annotation is a result of something else."""
    types = set(candidate.header.image_type)
    if "LOCALIZER" in types:
        return RejectionReason.NOT_A_PROJECTION, "Image Type names a localizer"
    annotated = candidate.header.burned_in_annotation == "YES"
    if candidate.sop_class in CAPTURES and "DERIVED" in types and annotated and candidate.header.exposure.has_sources:
        return RejectionReason.NOT_A_PROJECTION, "the object is an annotated capture made from another image"
    return None


def _single_frame(candidate: _Candidate) -> _Objection:
    """Refuse cine and tomosynthesis: the model reads one exposure."""
    frames = candidate.header.pixels.number_of_frames
    if frames is not None and frames > 1:
        return RejectionReason.MULTI_FRAME, f"the object holds {frames} frames, and a radiograph is one"
    return None


def _size(candidate: _Candidate) -> _Objection:
    """Refuse what holds too little to read, and what is too much to decode."""
    rows, columns = candidate.header.pixels.rows or 0, candidate.header.pixels.columns or 0
    if rows < 1 or columns < 1:
        return RejectionReason.CORRUPT_PIXELS, "Rows or Columns is missing or not a number above 0"
    if min(rows, columns) < candidate.settings.minimum_side:
        least = candidate.settings.minimum_side
        return RejectionReason.TOO_SMALL, f"the image has {rows} x {columns} pixels; the shorter side must have {least}"
    if rows * columns > candidate.maximum_pixels:
        return (
            RejectionReason.TOO_LARGE,
            f"the image has {rows} x {columns} pixels; the limit is {candidate.maximum_pixels}",
        )
    return None


def _body_part(candidate: _Candidate) -> _Objection:
    """Refuse what names another part than the chest."""
    part, attribute = _part(candidate.header)
    if part is None or part is Part.CHEST:
        return None
    return RejectionReason.BODY_PART, f"{name_of(attribute)} names {part.value}, not the chest"


def _projection(candidate: _Candidate) -> _Objection:
    """Refuse what names a view that is not frontal. A lateral decubitus is frontal, but no model here has seen one."""
    view, attribute = _view(candidate.header)
    if view is None or view in FRONTAL_VIEWS:
        return None
    if view is View.LATERAL:
        return RejectionReason.LATERAL_VIEW, f"{name_of(attribute)} names a lateral view"
    return RejectionReason.UNKNOWN_VIEW, f"{name_of(attribute)} names a {view.value} view, not a frontal one"


def _age(candidate: _Candidate) -> _Objection:
    """Apply the configured bounds, if any; a missing age passes unless the configuration says otherwise."""
    least, most = candidate.settings.minimum_age_years, candidate.settings.maximum_age_years
    years = age_years(candidate.header)
    if years is None:
        missing = candidate.settings.reject_missing_age
        return (
            (RejectionReason.AGE, "no plausible age is stated, and the configuration asks for one") if missing else None
        )
    if (least is not None and years < least) or (most is not None and years > most):
        return RejectionReason.AGE, "the patient's age is outside the configured range"
    return None


_RULES: tuple[Callable[[_Candidate], _Objection], ...] = (
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


def _part(header: RadiographHeader) -> tuple[Part | None, str]:
    """Return the body part and the keyword of the element that names it.

    Body Part Examined and the coded regions are asked first, and any of them that names another part than the chest
    decides; descriptions are asked only when none of these says anything.
    """
    tags = header.projection
    stated = list(_named((tags.body_part_examined, *tags.body_regions), _part_named))
    for part, keyword in stated:
        if part is not Part.CHEST:
            return part, keyword
    if stated:
        return stated[0]
    described = _named((*tags.image_descriptions, *tags.study_descriptions), lambda one: part_of(one.words))
    return next(described, (None, ""))


def _view(header: RadiographHeader) -> tuple[View | None, str]:
    """Return the view and the keyword of the element that names it, by the ladder of evidence.

    View Position, View Code Sequence, a view misplaced in Patient Position, descriptions of the image or series,
    descriptions of the study. Devices fill View Position with a default, so a rung that says lateral outweighs one
    above it that says frontal; descriptions of the study speak only when nothing nearer does.
    """
    tags = header.projection
    ladder = (tags.view_position, *tags.view_codes, tags.patient_position, *tags.image_descriptions)
    nearer = list(_named(ladder, _view_named))
    for view, keyword in nearer:
        if view not in FRONTAL_VIEWS:
            return view, keyword
    directed = [found for found in nearer if found[0] is not View.FRONTAL]
    if nearer:
        return (directed or nearer)[0]
    return next(_named(tags.study_descriptions, lambda one: view_of(one.words)), (None, ""))


def _named(statements: Iterable[Statement], read: Callable[[Statement], _T | None]) -> Iterator[tuple[_T, str]]:
    """Return what statements name, each with the keyword of its element, leaving out those that name nothing."""
    for statement in statements:
        named = read(statement)
        if named is not None:
            yield named, statement.attribute


def _part_named(statement: Statement) -> Part | None:
    return PART_CODES.get(_code(statement)) or part_of(statement.words)


def _view_named(statement: Statement) -> View | None:
    return VIEW_CODES.get(_code(statement)) or view_of(statement.words)


def _code(statement: Statement) -> tuple[str, str]:
    """Return scheme and value; SNOMED's former designators all mean the same codes. Source: PS3.16 8.1."""
    if statement.code is None:
        return "", ""
    scheme = statement.code.scheme.upper()
    return FORMER_SCHEMES.get(scheme, scheme), statement.code.value
