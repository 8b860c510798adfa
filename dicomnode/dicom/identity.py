"""Whose image it is and of which study: the attributes that results take over, and whether two of them agree.

Names and identifiers stay as they were sent, even when they are too long: results that the archive cannot match to the
patient or the order are worse than a length that its own study already has. Other values are dropped unless they are
well formed, since they stand in new objects. Source: PS3.3 C.7.1.1, C.7.2.1, C.7.2.2.
"""

import re
import unicodedata
from dataclasses import dataclass
from enum import StrEnum

from pydicom import Dataset

from dicomnode.dicom.attributes import code_string, day, items, text, time_of_day

_LONGEST_LO = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class CodedText:
    """A code sequence item as it was sent; any part may be empty. Source: PS3.3 8.8."""

    value: str
    scheme: str
    meaning: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HierarchicDesignator:
    """An assigning authority. Source: PS3.3 10.14 (HL7v2 Hierarchic Designator Macro)."""

    local_namespace: str
    universal_id: str
    universal_id_type: str


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuerQualifiers:
    """What qualifies Issuer of Patient ID. Source: PS3.3 10.15.1 (Issuer of Patient ID Macro)."""

    universal_id: str
    universal_id_type: str
    identifier_type: str
    facility: HierarchicDesignator | None
    jurisdiction: CodedText | None
    agency: CodedText | None


class Difference(StrEnum):
    """In what two images are of different patients. The values are words for the node's own sentences."""

    PATIENT_ID = "the Patient ID"
    ISSUER = "the issuer of the Patient ID"
    PERSON = "the patient's name and birth date"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class PatientIdentity:
    """The Patient module, and of the Patient Study module what describes the body; "" is absent.

    Dates are YYYYMMDD. Source: PS3.3 C.7.1.1, C.7.2.2.
    """

    name: str
    patient_id: str
    issuer: str
    issuer_qualifiers: IssuerQualifiers | None
    birth_date: str
    sex: str
    identity_removed: str
    deidentification_method: str
    age: str
    size_m: str
    weight_kg: str

    def difference(self, other: "PatientIdentity") -> Difference | None:
        """Return in what the other one is another patient, None when nothing shows that.

        What one of them does not state shows nothing. The same Patient ID of the same issuer is the same patient,
        whose name or birth date may have been corrected, unless both of them differ. Without a common Patient ID the
        name or the birth date alone tell patients apart.
        """
        if _differ(self.patient_id, other.patient_id):
            return Difference.PATIENT_ID
        if self._issuer_differs(other):
            return Difference.ISSUER
        named, born = names_differ(self.name, other.name), _differ(self.birth_date, other.birth_date)
        shares_id = bool(self.patient_id and other.patient_id)
        return Difference.PERSON if (named and born if shares_id else named or born) else None

    def _issuer_differs(self, other: "PatientIdentity") -> bool:
        """Compare the universal IDs where both have one, else the local names."""
        universal = [of.issuer_qualifiers.universal_id if of.issuer_qualifiers else "" for of in (self, other)]
        local = [of.issuer for of in (self, other)]
        one, another = universal if all(universal) else local
        return _differ(one.casefold(), another.casefold())


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class StudyIdentity:
    """The General Study module; "" is absent. Source: PS3.3 C.7.2.1."""

    study_instance_uid: str
    date: str
    time: str
    referring_physician: str
    study_id: str
    accession_number: str
    accession_issuer: HierarchicDesignator | None
    description: str


def patient_of(ds: Dataset) -> PatientIdentity:
    """Read whose image it is."""
    removed = _one_of(ds, "PatientIdentityRemoved", "YES", "NO")
    qualifiers = items(ds, "IssuerOfPatientIDQualifiersSequence")
    return PatientIdentity(
        name=text(ds, "PatientName"),
        patient_id=text(ds, "PatientID"),
        issuer=text(ds, "IssuerOfPatientID"),
        issuer_qualifiers=_qualifiers(qualifiers[0]) if qualifiers else None,
        birth_date=_date(ds, "PatientBirthDate"),
        sex=_one_of(ds, "PatientSex", "M", "F", "O"),
        identity_removed=removed,
        deidentification_method=_long_string(ds, "DeidentificationMethod") if removed else "",
        age=_matching(ds, "PatientAge", r"[0-9]{3}[DWMY]"),
        size_m=_matching(ds, "PatientSize", r"[0-9]{1,6}(\.[0-9]{1,6})?"),
        weight_kg=_matching(ds, "PatientWeight", r"[0-9]{1,6}(\.[0-9]{1,6})?"),
    )


def study_of(ds: Dataset) -> StudyIdentity:
    """Read of which study it is."""
    issuers = items(ds, "IssuerOfAccessionNumberSequence")
    return StudyIdentity(
        study_instance_uid=text(ds, "StudyInstanceUID"),
        date=_date(ds, "StudyDate"),
        time=time_of_day(ds, "StudyTime"),
        referring_physician=text(ds, "ReferringPhysicianName"),
        study_id=text(ds, "StudyID"),
        accession_number=text(ds, "AccessionNumber"),
        accession_issuer=_designator(issuers[0]) if issuers else None,
        description=_long_string(ds, "StudyDescription"),
    )


def names_differ(one: str, other: str) -> bool:
    """Tell whether two person names are different: in the first component group that both of them have.

    Capitals, accents, trailing separators and spaces make no difference. Source: PS3.5 6.2.1.
    """
    groups = zip(one.split("="), other.split("="), strict=False)
    compared = ((_person(left), _person(right)) for left, right in groups)
    return next((left != right for left, right in compared if left and right), False)


def coded(item: Dataset) -> CodedText:
    """Read a code sequence item. Source: PS3.3 8.8."""
    value = text(item, "CodeValue") or text(item, "LongCodeValue") or text(item, "URNCodeValue")
    return CodedText(value=value, scheme=text(item, "CodingSchemeDesignator"), meaning=text(item, "CodeMeaning"))


def _qualifiers(item: Dataset) -> IssuerQualifiers | None:
    facility = items(item, "AssigningFacilitySequence")
    universal_id, kind = _universal_id(item)
    read = IssuerQualifiers(
        universal_id=universal_id,
        universal_id_type=kind,
        identifier_type=code_string(item, "IdentifierTypeCode"),
        facility=_designator(facility[0]) if facility else None,
        jurisdiction=_first_code(item, "AssigningJurisdictionCodeSequence"),
        agency=_first_code(item, "AssigningAgencyOrDepartmentCodeSequence"),
    )
    empty = (read.universal_id, read.identifier_type, read.facility, read.jurisdiction, read.agency)
    return read if any(empty) else None


def _designator(item: Dataset) -> HierarchicDesignator | None:
    universal_id, kind = _universal_id(item)
    namespace = text(item, "LocalNamespaceEntityID")
    if not namespace and not universal_id:
        return None
    return HierarchicDesignator(local_namespace=namespace, universal_id=universal_id, universal_id_type=kind)


def _universal_id(item: Dataset) -> tuple[str, str]:
    """Return a universal ID and its type; it counts only with the type, which the standard requires of it."""
    universal_id, kind = text(item, "UniversalEntityID"), code_string(item, "UniversalEntityIDType")
    return (universal_id, kind) if universal_id and kind else ("", "")


def _first_code(item: Dataset, keyword: str) -> CodedText | None:
    """Return a code that may stand in a new object: one with value, scheme and meaning."""
    found = (coded(entry) for entry in items(item, keyword))
    return next((code for code in found if code.value and code.scheme and code.meaning), None)


def _date(ds: Dataset, keyword: str) -> str:
    read = day(ds, keyword)
    return read.isoformat().replace("-", "") if read else ""


def _one_of(ds: Dataset, keyword: str, *terms: str) -> str:
    value = text(ds, keyword).upper()
    return value if value in terms else ""


def _matching(ds: Dataset, keyword: str, form: str) -> str:
    value = text(ds, keyword).upper()
    return value if re.fullmatch(form, value) else ""


def _long_string(ds: Dataset, keyword: str) -> str:
    return text(ds, keyword).replace("\\", " ")[:_LONGEST_LO].strip()


def _differ(one: str, other: str) -> bool:
    return bool(one and other) and one != other


def _person(group: str) -> str:
    decomposed = unicodedata.normalize("NFKD", group.casefold())
    bare = "".join(c for c in decomposed if not unicodedata.combining(c))
    return " ".join(bare.replace("^", " ").split())
