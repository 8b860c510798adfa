"""Where a result belongs and who made it: what is taken from the source's header, and the UIDs derived for results."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Self

from pydicom.dataset import Dataset
from pydicom.uid import UID

from dicomnode.dicom.character_set import Terms, writable_terms
from dicomnode.dicom.header import PixelSpacing, RadiographHeader
from dicomnode.dicom.identity import CodedText, HierarchicDesignator, IssuerQualifiers, PatientIdentity, StudyIdentity
from dicomnode.dicom.writing import is_code_string, non_ascii, put
from dicomnode.domain.answer import ResultKind, Subject
from dicomnode.domain.finding import ModelIdentity
from dicomnode.domain.frame import Righting
from dicomnode.domain.identifiers import OWN_MODEL_NAME, derive_uid, digest_of
from dicomnode.domain.instance import InstanceRef
from dicomnode.results.greyscale import Greyscale, greyscale_of
from dicomnode.settings.node import ResultSettings

_OFFSET = re.compile(r"([+-])(0[0-9]|1[0-4])([0-5][0-9])")

LOSSY_METHODS: Mapping[str, str] = {
    "1.2.840.10008.1.2.4.50": "ISO_10918_1",
    "1.2.840.10008.1.2.4.51": "ISO_10918_1",
    "1.2.840.10008.1.2.4.81": "ISO_14495_1",
    "1.2.840.10008.1.2.4.91": "ISO_15444_1",
    "1.2.840.10008.1.2.4.203": "ISO_15444_15",
}
"""Transfer syntaxes that may lose information, with the method's defined term (PS3.3 C.7.6.1.1.5.1).

JPEG 2000 and HTJ2K may also be reversible; an object that says `00` of itself is believed.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossyHistory:
    """That the source was once compressed with loss; ratios and methods as far as the source states them."""

    ratios: tuple[str, ...]
    methods: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceContext:
    """What a result takes over from one source image.

    `identity` holds the Patient, General Study and Patient Study attributes, cleaned so that they may stand in a
    new object; `patient_orientation` is the source's (row, column) direction, None unless both are well formed.
    """

    ref: InstanceRef
    patient: PatientIdentity
    identity: Dataset
    character_set: Terms
    timezone: str | None
    modality: str | None
    rows: int | None
    columns: int | None
    patient_orientation: tuple[str, str] | None
    lossy: LossyHistory | None
    spacing: PixelSpacing | None
    greyscale: Greyscale

    @property
    def subject(self) -> Subject:
        """Whom and which order the source is of, as results state them."""
        return Subject(
            patient_id=str(self.identity.get("PatientID") or ""),
            accession_number=str(self.identity.get("AccessionNumber") or ""),
        )

    @classmethod
    def of(cls, header: RadiographHeader) -> Self:
        """Return the context of results that are derived from this object."""
        identity = _identity(header)
        return cls(
            ref=header.ref,
            patient=header.patient,
            identity=identity,
            character_set=writable_terms(header.character_set, non_ascii(identity)),
            timezone=header.timezone if _OFFSET.fullmatch(header.timezone) else None,
            modality=header.modality if is_code_string(header.modality) else None,
            rows=header.pixels.rows,
            columns=header.pixels.columns,
            patient_orientation=header.patient_orientation,
            lossy=_lossy(header),
            spacing=header.pixel_spacing,
            greyscale=greyscale_of(header),
        )

    def local(self, moment: datetime) -> datetime:
        """Return the moment on the clock that the source's dates were read from.

        A source without Timezone Offset leaves it open; then the zone of `moment` itself stands.
        Source: PS3.3 C.12.1.1.8.
        """
        match = _OFFSET.fullmatch(self.timezone or "")
        if match is None:
            return moment
        offset = timedelta(hours=int(match[2]), minutes=int(match[3]))
        return moment.astimezone(timezone(-offset if match[1] == "-" else offset))

    def orientation_after(self, quarter_turns: int, *, mirrored: bool = False) -> tuple[str, str] | None:
        """Return the Patient Orientation of the image after it was mirrored and turned as by `Righting`.

        An image is only ever righted, so an orientation that would then not point to the feet was wrong in the
        source, and none is returned.
        """
        righting = Righting(mirrored=mirrored, quarter_turns=quarter_turns % 4)
        if self.patient_orientation is None or righting == Righting(mirrored=False, quarter_turns=0):
            return self.patient_orientation
        row, column = righting.orientation(*self.patient_orientation)
        return (row, column) if column.startswith("F") else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Equipment:
    """Who makes the results: the node as its operator configured it, and the model it runs.

    `series_description_prefix`: what every Series Description of this set of results begins with.
    """

    settings: ResultSettings
    model: ModelIdentity
    software_version: str
    series_description_prefix: str = ""

    @property
    def model_name(self) -> str:
        """Return the node's Manufacturer's Model Name, the same in every installation."""
        return OWN_MODEL_NAME

    @property
    def observer_uid(self) -> str:
        """Return the Device Observer UID of this installation."""
        return derive_uid(
            "device observer",
            self.settings.manufacturer,
            self.settings.station_name,
            self.settings.device_serial_number,
        )

    @property
    def short_hash(self) -> str:
        """Return the first 12 digits of the bundle's hash, enough for a person to compare."""
        return self.model.bundle_hash[:12]

    def settings_digest(self, *more: str) -> str:
        """Return the digest of the settings that shape results, and of whatever else (`more`) shapes them."""
        prefix = (self.series_description_prefix,) if self.series_description_prefix else ()
        return digest_of(self.settings.model_dump_json(), *more, *prefix)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultIdentity:
    """What a result's UIDs derive from: the same study, inputs, model and settings give the same UIDs."""

    study: str
    inputs_digest: str
    bundle_hash: str
    settings_digest: str

    def series(self, kind: ResultKind, *of: str) -> str:
        """Return the Series Instance UID for results of this kind, and `of` one finding where each has its own."""
        return self._uid("series", kind.value, *of)

    def instance(self, kind: ResultKind, *of: str) -> str:
        """Return the SOP Instance UID of the result of this kind made `of` these sources (none: the whole study)."""
        return self._uid("instance", kind.value, *of)

    def tracking(self, source: str, label: str) -> str:
        """Return the Tracking UID of one label in one source image."""
        return self._uid("tracking", source, label)

    def _uid(self, *role: str) -> str:
        return derive_uid(self.study, self.inputs_digest, self.bundle_hash, self.settings_digest, *role)


def _identity(header: RadiographHeader) -> Dataset:
    """Return the Patient, General Study and Patient Study modules of a new object, in that order.

    Type 2 attributes are always there, empty if need be. Source: PS3.3 C.7.1.1, C.7.2.1, C.7.2.2.
    """
    ds = Dataset()
    _patient(ds, header.patient)
    _study(ds, header.study)
    for keyword, value in (
        ("PatientAge", header.patient.age),
        ("PatientSize", header.patient.size_m),
        ("PatientWeight", header.patient.weight_kg),
    ):
        _put_if(ds, keyword, value)
    return ds


def _patient(ds: Dataset, patient: PatientIdentity) -> None:
    put(ds, "PatientName", patient.name)
    put(ds, "PatientID", patient.patient_id)
    _put_if(ds, "IssuerOfPatientID", patient.issuer)
    if patient.issuer_qualifiers:
        ds.IssuerOfPatientIDQualifiersSequence = [_qualifiers_item(patient.issuer_qualifiers)]
    put(ds, "PatientBirthDate", patient.birth_date)
    put(ds, "PatientSex", patient.sex)
    _put_if(ds, "PatientIdentityRemoved", patient.identity_removed)
    removed = patient.identity_removed == "YES"
    # Type 1C: a source that says YES without saying how still needs a method.
    method = patient.deidentification_method or ("not stated by the source image" if removed else "")
    _put_if(ds, "DeidentificationMethod", method)


def _study(ds: Dataset, study: StudyIdentity) -> None:
    put(ds, "StudyInstanceUID", study.study_instance_uid)
    put(ds, "StudyDate", study.date)
    put(ds, "StudyTime", study.time)
    put(ds, "ReferringPhysicianName", study.referring_physician)
    put(ds, "StudyID", study.study_id)
    put(ds, "AccessionNumber", study.accession_number)
    if study.accession_issuer:
        ds.IssuerOfAccessionNumberSequence = [_designator_item(study.accession_issuer)]
    _put_if(ds, "StudyDescription", study.description)


def _put_if(ds: Dataset, keyword: str, value: str) -> None:
    if value:
        put(ds, keyword, value)


def _qualifiers_item(qualifiers: IssuerQualifiers) -> Dataset:
    """Return an item of the Issuer of Patient ID Macro. Source: PS3.3 10.15."""
    item = Dataset()
    _put_if(item, "UniversalEntityID", qualifiers.universal_id)
    _put_if(item, "UniversalEntityIDType", qualifiers.universal_id_type)
    _put_if(item, "IdentifierTypeCode", qualifiers.identifier_type)
    if qualifiers.facility:
        item.AssigningFacilitySequence = [_designator_item(qualifiers.facility)]
    if qualifiers.jurisdiction:
        item.AssigningJurisdictionCodeSequence = [_code_item(qualifiers.jurisdiction)]
    if qualifiers.agency:
        item.AssigningAgencyOrDepartmentCodeSequence = [_code_item(qualifiers.agency)]
    return item


def _designator_item(designator: HierarchicDesignator) -> Dataset:
    """Return an item of the HL7v2 Hierarchic Designator Macro. Source: PS3.3 10.14."""
    item = Dataset()
    _put_if(item, "LocalNamespaceEntityID", designator.local_namespace)
    _put_if(item, "UniversalEntityID", designator.universal_id)
    _put_if(item, "UniversalEntityIDType", designator.universal_id_type)
    return item


def _code_item(code: CodedText) -> Dataset:
    item = Dataset()
    put(item, "CodeValue", code.value)
    put(item, "CodingSchemeDesignator", code.scheme)
    put(item, "CodeMeaning", code.meaning)
    return item


def _lossy(header: RadiographHeader) -> LossyHistory | None:
    """Return the lossy history from the flag, or from a lossy transfer syntax whose object forgot the flag.

    Source: PS3.3 C.7.6.1.1.5.
    """
    method = LOSSY_METHODS.get(header.transfer_syntax)
    flag = header.lossy.flag
    if flag == "00" or (flag != "01" and method is None):
        return None
    ratios = tuple(_ratios(header))
    methods = header.lossy.methods or ((method,) if method else ())
    # The two are parallel lists; where the source's lengths disagree, neither can be trusted to name a step.
    return LossyHistory(ratios=ratios, methods=methods if len(methods) == len(ratios) or not ratios else ())


def _ratios(header: RadiographHeader) -> Iterator[str]:
    """Return the ratios that the source states, else the one of its own pixel data, if that is encapsulated."""
    stated = [value for value in header.lossy.ratios if value > 0]
    pixels = header.pixels
    if not stated and pixels.data_bytes and header.transfer_syntax and UID(header.transfer_syntax).is_encapsulated:
        shape = (pixels.rows, pixels.columns, pixels.samples_per_pixel, pixels.bits_allocated)
        size_bits = math.prod(max(0, entry or 0) for entry in shape)
        stated = [max(1.0, size_bits / 8 / pixels.data_bytes)] if size_bits else []
    for value in stated:
        yield f"{value:.4g}"
