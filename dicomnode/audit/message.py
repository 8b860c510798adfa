"""Audit messages as XML. Source: PS3.15 A.5.1 (schema), A.5.2 (conventions), A.5.3 (messages)."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from xml.etree.ElementTree import Element, SubElement, tostring

from dicomnode.domain.audit import Alert, AuditKind, AuditRecord, Disclosure, InstanceTransfer

Code = tuple[str, str, str]
"""Value, coding scheme, meaning."""

_APPLICATION_ACTIVITY: Code = ("110100", "DCM", "Application Activity")
_INSTANCES_ACCESSED: Code = ("110103", "DCM", "DICOM Instances Accessed")
_INSTANCES_TRANSFERRED: Code = ("110104", "DCM", "DICOM Instances Transferred")
_SECURITY_ALERT: Code = ("110113", "DCM", "Security Alert")
_START: Code = ("110120", "DCM", "Application Start")
_STOP: Code = ("110121", "DCM", "Application Stop")
_NODE_AUTHENTICATION: Code = ("110126", "DCM", "Node Authentication")
_APPLICATION: Code = ("110150", "DCM", "Application")
_DESTINATION: Code = ("110152", "DCM", "Destination Role ID")
_SOURCE: Code = ("110153", "DCM", "Source Role ID")
_STUDY: Code = ("110180", "DCM", "Study Instance UID")
_NODE: Code = ("110182", "DCM", "Node ID")
_PATIENT: Code = ("2", "RFC-3881", "Patient Number")

_SUCCESS, _MINOR_FAILURE, _SERIOUS_FAILURE = "0", "4", "8"
_MACHINE_NAME, _IP_ADDRESS, _URI = "1", "2", "5"
_APPLICATION_SERVER = "4"
_PERSON, _SYSTEM_OBJECT = "1", "2"
_ROLE_PATIENT, _ROLE_REPORT, _ROLE_SECURITY_RESOURCE = "1", "3", "13"


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditPatient:
    """The patient of a study. Outside the stored objects a patient is named here only."""

    patient_id: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A party of a transfer; `address` is a host name, an IP address or a URL."""

    user: str
    ae_title: str
    address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Reporter:
    """How messages name the node, and the destinations by their names in the settings."""

    node: Endpoint
    source_id: str
    enterprise_site_id: str = ""
    destinations: Mapping[str, Endpoint] = field(default_factory=dict)


def write_message(record: AuditRecord, reporter: Reporter, patient: AuditPatient) -> bytes:
    """Return the message for a record as UTF-8 without an XML declaration; `patient` is that of its study, if any."""
    about = record.about
    if isinstance(about, InstanceTransfer):
        message = _transferred(record, about, reporter, patient)
    elif isinstance(about, Disclosure):
        message = _shown(record, about, reporter, patient)
    elif isinstance(about, Alert):
        message = _alert(record, about, reporter)
    else:
        message = _activity(record, reporter)
    return bytes(tostring(message, encoding="utf-8"))


def _activity(record: AuditRecord, reporter: Reporter) -> Element:
    """Source: PS3.15 A.5.3.1."""
    kind = _START if record.kind is AuditKind.APPLICATION_START else _STOP
    message = _message(record.at, _APPLICATION_ACTIVITY, "E", _SUCCESS, kind)
    _participant(message, reporter.node, _APPLICATION, requestor=False)
    _source(message, reporter)
    return message


def _transferred(record: AuditRecord, about: InstanceTransfer, reporter: Reporter, patient: AuditPatient) -> Element:
    """Source: PS3.15 A.5.3.7."""
    outcome = _SERIOUS_FAILURE if about.failure else _SUCCESS
    message = _message(record.at, _INSTANCES_TRANSFERRED, about.action, outcome, description=about.failure)
    if record.kind is AuditKind.SENT:
        unknown = Endpoint(user=about.peer, ae_title="", address="")
        from_, to = reporter.node, reporter.destinations.get(about.peer, unknown)
    else:
        from_, to = Endpoint(user=about.peer, ae_title=about.peer, address=about.address), reporter.node
    # The sender of instances requests the association.
    _participant(message, from_, _SOURCE, requestor=True)
    _participant(message, to, _DESTINATION, requestor=False)
    _source(message, reporter)
    described = _object(message, _STUDY, about.study, about.study, _SYSTEM_OBJECT, _ROLE_REPORT)
    _describe(SubElement(described, "ParticipantObjectDescription"), about.instances)
    _object(message, _PATIENT, patient.patient_id, patient.name, _PERSON, _ROLE_PATIENT)
    return message


def _shown(record: AuditRecord, about: Disclosure, reporter: Reporter, patient: AuditPatient) -> Element:
    """Source: PS3.15 A.5.3.6."""
    message = _message(record.at, _INSTANCES_ACCESSED, "R", _SUCCESS)
    _participant(message, Endpoint(user=about.visitor, ae_title="", address=about.address), None, requestor=True)
    _participant(message, reporter.node, None, requestor=False)
    _source(message, reporter)
    described = _object(message, _STUDY, about.study, about.study, _SYSTEM_OBJECT, _ROLE_REPORT)
    _describe(SubElement(described, "ParticipantObjectDescription"), {})
    _object(message, _PATIENT, patient.patient_id, patient.name, _PERSON, _ROLE_PATIENT)
    return message


def _alert(record: AuditRecord, about: Alert, reporter: Reporter) -> Element:
    """Source: PS3.15 A.5.3.11."""
    message = _message(record.at, _SECURITY_ALERT, "E", _MINOR_FAILURE, _NODE_AUTHENTICATION, about.reason)
    _participant(message, reporter.node, None, requestor=False)
    peer = Endpoint(user=about.calling_ae or about.address, ae_title=about.calling_ae, address=about.address)
    _participant(message, peer, None, requestor=False)
    _source(message, reporter)
    subject = _object(message, _NODE, about.address, about.calling_ae, _SYSTEM_OBJECT, _ROLE_SECURITY_RESOURCE)
    for name, value in (("Alert Description", about.reason), ("Times", str(about.times))):
        SubElement(subject, "ParticipantObjectDetail", type=name, value=base64.b64encode(value.encode()).decode())
    return message


def _message(
    at: datetime, event: Code, action: str, outcome: str, kind: Code | None = None, description: str = ""
) -> Element:
    message = Element("AuditMessage")
    moment = at.astimezone(UTC).isoformat(timespec="milliseconds")
    facts = {"EventActionCode": action, "EventDateTime": moment, "EventOutcomeIndicator": outcome}
    identification = SubElement(message, "EventIdentification", facts)
    _code(identification, "EventID", event)
    if kind is not None:
        _code(identification, "EventTypeCode", kind)
    if description:
        SubElement(identification, "EventOutcomeDescription").text = _clean(description)
    return message


def _participant(message: Element, who: Endpoint, role: Code | None, *, requestor: bool) -> None:
    facts = {"UserID": _clean(who.user), "UserIsRequestor": "true" if requestor else "false"}
    if who.ae_title:
        facts["AlternativeUserID"] = _clean(f"AETITLES={who.ae_title}")
    if who.address:
        facts["NetworkAccessPointID"] = _clean(who.address)
        facts["NetworkAccessPointTypeCode"] = _access_point(who.address)
    participant = SubElement(message, "ActiveParticipant", facts)
    if role is not None:
        _code(participant, "RoleIDCode", role)


def _source(message: Element, reporter: Reporter) -> None:
    facts = {"AuditSourceID": reporter.source_id}
    if reporter.enterprise_site_id:
        facts["AuditEnterpriseSiteID"] = reporter.enterprise_site_id
    source = SubElement(message, "AuditSourceIdentification", facts)
    SubElement(source, "AuditSourceTypeCode", {"csd-code": _APPLICATION_SERVER})


def _object(message: Element, kind: Code, identifier: str, name: str, type_code: str, role: str) -> Element:
    facts = {
        "ParticipantObjectID": _clean(identifier),
        "ParticipantObjectTypeCode": type_code,
        "ParticipantObjectTypeCodeRole": role,
    }
    found = SubElement(message, "ParticipantObjectIdentification", facts)
    _code(found, "ParticipantObjectIDTypeCode", kind)
    SubElement(found, "ParticipantObjectName").text = _clean(name)
    return found


def _describe(description: Element, instances: Mapping[str, list[str]]) -> None:
    for sop_class, uids in instances.items():
        facts = {"NumberOfInstances": str(len(uids))} | ({"UID": sop_class} if sop_class else {})
        found = SubElement(description, "SOPClass", facts)
        for uid in uids:
            SubElement(found, "Instance", UID=uid)


def _code(parent: Element, name: str, code: Code) -> None:
    value, scheme, meaning = code
    SubElement(parent, name, {"csd-code": value, "codeSystemName": scheme, "originalText": meaning})


def _access_point(address: str) -> str:
    if "://" in address:
        return _URI
    return _IP_ADDRESS if ":" in address or address.replace(".", "").isdigit() else _MACHINE_NAME


def _clean(text: str) -> str:
    """Return text with every character replaced that is not printable, so that XML can carry it on one line."""
    return "".join(
        c if c.isprintable() and not "\ud800" <= c <= "\udfff" else "\N{REPLACEMENT CHARACTER}" for c in text
    )
