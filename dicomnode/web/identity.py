"""The patient of a study: masked unless the visitor may see patients and has asked to."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from dicomnode.dicom.header import RadiographHeader, read_header
from dicomnode.domain.errors import CxrNodeError
from dicomnode.web.context import PageContext, session_of, site_of, visitor_of
from dicomnode.web.guard import form_of

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class PatientDetails:
    """What the page shows of a patient and an order."""

    name: str
    patient_id: str
    birth_date: str
    sex: str
    accession_number: str
    study_date: str
    description: str


def shows_patients(request: Request) -> bool:
    """Tell whether a request's page names patients."""
    return visitor_of(request).patients and session_of(request).shows_patients


def patient_of(blobs: Sequence[str], read_blob: Callable[[str], bytes]) -> PatientDetails | None:
    """Return the patient of a study, from the first of its objects that can be read."""
    for blob in blobs:
        try:
            return _patient(read_header(read_blob(blob)))
        except CxrNodeError:
            continue
    return None


def patients_of(context: PageContext, studies: Sequence[str]) -> dict[str, PatientDetails]:
    """Return the patients of those studies of which an object is kept; of each study the smallest object is read.

    Raises: StoreUnavailable.
    """
    blobs = context.store.studies.smallest_of(studies)
    found = ((study, patient_of([blob], context.store.blobs.read)) for study, blob in blobs.items())
    return {study: patient for study, patient in found if patient is not None}


def disclosed(request: Request, studies: Sequence[str]) -> None:
    """Record that a visitor is about to be shown the patients of studies.

    Raises: StoreUnavailable; the visitor must not be shown them then.
    """
    visitor, address = visitor_of(request).name, request.client.host if request.client is not None else ""
    site_of(request).context.record_shown(visitor, address, studies)
    for study in studies:
        log.info("patient-shown", extra={"visitor": visitor, "study": study})


async def switch(request: Request) -> Response:
    """Show patients in this session from now on, or mask them."""
    form = await form_of(request)
    session_of(request).shows_patients = visitor_of(request).patients and form.get("show") == "yes"
    return RedirectResponse(local_path(form.get("back", "/")), status_code=303)


def local_path(path: str) -> str:
    """Return a path of this site; "/" for anything else that a form may hold."""
    return path if path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable() else "/"


def _patient(header: RadiographHeader) -> PatientDetails:
    patient, study = header.patient, header.study
    return PatientDetails(
        name=patient.name.replace("^", " ").strip(),
        patient_id=patient.patient_id,
        birth_date=_date(patient.birth_date),
        sex=patient.sex,
        accession_number=study.accession_number,
        study_date=_date(study.date),
        description=study.description,
    )


def _date(value: str) -> str:
    return f"{value[:4]}-{value[4:6]}-{value[6:]}" if len(value) == 8 and value.isdecimal() else value
