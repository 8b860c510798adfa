"""Audit messages are what PS3.15 says: valid by its schema, and with the contents of each kind of message."""

import base64
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from lxml import etree

from dicomnode.audit.message import AuditPatient, Endpoint, Reporter, write_message
from dicomnode.audit.syslog import syslog_line
from dicomnode.domain.audit import Alert, AuditKind, AuditRecord, Disclosure, InstanceTransfer

SCHEMA = etree.RelaxNG(etree.parse(str(Path(__file__).parent.parent / "data" / "audit-message.rng")))
AT = datetime(2026, 3, 1, 12, 0, 0, 250000, tzinfo=UTC)
PATIENT = AuditPatient(patient_id="12345", name="DOE^JANE")
CR, SR = "1.2.840.10008.5.1.4.1.1.1", "1.2.840.10008.5.1.4.1.1.88.34"
REPORTER = Reporter(
    node=Endpoint(user="CXRNODE", ae_title="CXRNODE", address="reader-1.example.org"),
    source_id="CXRNODE",
    enterprise_site_id="hospital",
    destinations={
        "pacs": Endpoint(user="PACS", ae_title="PACS", address="10.0.0.5"),
        "cloud": Endpoint(user="cloud", ae_title="", address="https://dicomweb.example.org/dicom-web"),
    },
)


def transfer(peer: str = "MODALITY", **facts: str) -> InstanceTransfer:
    given = {"address": "10.0.0.7", "action": "C", **facts}
    return InstanceTransfer(study="1.2.3", peer=peer, instances={CR: ["1.2.3.1", "1.2.3.2"], SR: ["1.2.3.3"]}, **given)


def alert(**facts: str) -> Alert:
    given = {"address": "10.9.9.9", "calling_ae": "STRANGER", "reason": "association-rejected: calling-ae", **facts}
    return Alert(times=7, **given)


def written(kind: AuditKind, about: InstanceTransfer | Alert | Disclosure | None = None) -> ET.Element:
    xml = write_message(AuditRecord(number=1, at=AT, kind=kind, about=about), REPORTER, PATIENT)
    SCHEMA.assertValid(etree.fromstring(xml))
    return ET.fromstring(xml)


def codes(message: ET.Element, path: str) -> list[str | None]:
    return [found.get("csd-code") for found in message.findall(path)]


@pytest.mark.parametrize(
    ("kind", "about", "event", "type_code"),
    [
        (AuditKind.APPLICATION_START, None, "110100", ["110120"]),
        (AuditKind.APPLICATION_STOP, None, "110100", ["110121"]),
        (AuditKind.RECEIVED, transfer(), "110104", []),
        (AuditKind.SENT, transfer("cloud", action="R", failure="HTTP 409: not stored"), "110104", []),
        (AuditKind.SENT, transfer("removed from the configuration"), "110104", []),
        (AuditKind.ALERT, alert(), "110113", ["110126"]),
        (AuditKind.ALERT, alert(calling_ae="", address="::1"), "110113", ["110126"]),
        (AuditKind.SHOWN, Disclosure(study="1.2.3", visitor="anna <b>", address="10.0.0.9"), "110103", []),
    ],
)
def test_a_message_is_valid_and_says_what_happened(
    kind: AuditKind, about: InstanceTransfer | Alert | Disclosure | None, event: str, type_code: list[str]
) -> None:
    message = written(kind, about)
    assert codes(message, "EventIdentification/EventID") == [event]
    assert codes(message, "EventIdentification/EventTypeCode") == type_code
    identification = message.find("EventIdentification")
    assert identification is not None
    assert identification.get("EventDateTime") == "2026-03-01T12:00:00.250+00:00"


def test_the_schema_refuses_what_the_standard_does_not_allow() -> None:
    message = written(AuditKind.RECEIVED, transfer())
    message.find("EventIdentification").set("EventActionCode", "X")  # type: ignore[union-attr]
    assert not SCHEMA.validate(etree.fromstring(ET.tostring(message)))


def test_a_reception_names_both_ends_the_study_its_objects_and_the_patient() -> None:
    message = written(AuditKind.RECEIVED, transfer())
    ends = [(end.get("UserID"), end.get("NetworkAccessPointID")) for end in message.findall("ActiveParticipant")]
    assert ends == [("MODALITY", "10.0.0.7"), ("CXRNODE", "reader-1.example.org")]
    assert codes(message, "ActiveParticipant/RoleIDCode") == ["110153", "110152"]
    study, patient = message.findall("ParticipantObjectIdentification")
    assert (study.get("ParticipantObjectID"), patient.get("ParticipantObjectID")) == ("1.2.3", "12345")
    assert patient.findtext("ParticipantObjectName") == "DOE^JANE"
    described = study.findall("ParticipantObjectDescription/SOPClass")
    assert [(found.get("UID"), found.get("NumberOfInstances")) for found in described] == [(CR, "2"), (SR, "1")]
    assert [found.get("UID") for found in described[0]] == ["1.2.3.1", "1.2.3.2"]


def test_a_delivery_goes_the_other_way_and_one_that_failed_is_a_failure() -> None:
    sent = written(AuditKind.SENT, transfer("pacs", action="R"))
    assert [end.get("UserID") for end in sent.findall("ActiveParticipant")] == ["CXRNODE", "PACS"]
    assert sent.find("EventIdentification").get("EventOutcomeIndicator") == "0"  # type: ignore[union-attr]
    failed = written(AuditKind.SENT, transfer("pacs", action="R", failure="C001: cannot understand"))
    assert failed.find("EventIdentification").get("EventOutcomeIndicator") == "8"  # type: ignore[union-attr]
    assert failed.findtext("EventIdentification/EventOutcomeDescription") == "C001: cannot understand"


def test_exactly_one_participant_at_most_is_the_requestor() -> None:
    for kind, about in ((AuditKind.RECEIVED, transfer()), (AuditKind.ALERT, alert())):
        found = [end.get("UserIsRequestor") for end in written(kind, about).findall("ActiveParticipant")]
        assert found.count("true") <= 1


def test_an_alert_names_the_node_that_was_turned_away_and_only_that_one_as_alerted_about() -> None:
    message = written(AuditKind.ALERT, alert())
    (subject,) = message.findall("ParticipantObjectIdentification")
    assert subject.get("ParticipantObjectID") == "10.9.9.9"
    assert b"12345" not in ET.tostring(message)
    details = subject.findall("ParticipantObjectDetail")
    assert {str(entry.get("type")): base64.b64decode(str(entry.get("value"))) for entry in details} == {
        "Alert Description": b"association-rejected: calling-ae",
        "Times": b"7",
    }


def test_a_time_is_told_in_utc_wherever_the_node_stands() -> None:
    there = AT.astimezone(timezone(timedelta(hours=-5)))
    record = AuditRecord(number=1, at=there, kind=AuditKind.APPLICATION_START, about=None)
    event = ET.fromstring(write_message(record, REPORTER, PATIENT)).find("EventIdentification")
    assert event is not None
    assert event.get("EventDateTime") == "2026-03-01T12:00:00.250+00:00"


@pytest.mark.parametrize("hostile", ['<a/>&"]]>', "\x00\x08\n\r\t", "\ud800", "\uffff\ufffe", "é\u202e"])
def test_nothing_that_a_peer_or_an_object_says_breaks_the_message(hostile: str) -> None:
    about = transfer(f"A{hostile}", address=hostile)
    record = AuditRecord(number=1, at=AT, kind=AuditKind.RECEIVED, about=about)
    xml = write_message(record, REPORTER, AuditPatient(patient_id=f"1{hostile}", name=hostile))
    SCHEMA.assertValid(etree.fromstring(xml))
    assert b"\n" not in xml


def test_a_syslog_message_has_the_header_of_the_standard_and_is_the_same_whoever_makes_it() -> None:
    line = syslog_line(b"<AuditMessage/>", number=42, at=AT, host="reader-1")
    assert line.startswith(b'<85>1 2026-03-01T12:00:00.250000Z reader-1 cxrnode - DICOM+RFC3881 [meta sequenceId="42"]')
    assert line.endswith(b" \xef\xbb\xbf<AuditMessage/>")
    assert line == syslog_line(b"<AuditMessage/>", number=42, at=AT, host="reader-1")


def test_who_was_shown_whom_a_study_is_of_is_told() -> None:
    message = written(AuditKind.SHOWN, Disclosure(study="1.2.3", visitor="anna", address="10.0.0.9"))
    (event,) = message.findall("EventIdentification")
    assert event.get("EventActionCode") == "R"
    who = [(one.get("UserID"), one.get("UserIsRequestor")) for one in message.findall("ActiveParticipant")]
    assert who == [("anna", "true"), ("CXRNODE", "false")]
    told = {one.get("ParticipantObjectID") for one in message.findall("ParticipantObjectIdentification")}
    assert told == {"1.2.3", PATIENT.patient_id}
