"""What DICOMweb services really answer: interim answers, other media types, reasons that are none, and no end."""

import gzip
import itertools
import json
import resource
import time
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dicomnode.dicom.part10 import read_file_head
from dicomnode.domain.delivery import Accepted, NoAnswer, Refused, StoreOutcome
from dicomnode.net.scu.http import LARGEST_ANSWER_BYTES
from dicomnode.net.scu.outgoing import AS_IT_IS
from dicomnode.net.scu.stow import StowTransfer
from dicomnode.settings.delivery import DeliverySettings, StowDestination
from tests.support.dimse import outgoing, renamed
from tests.support.http_wire import Answering, answer, serving
from tests.support.make import build, encode

TOO_LONG = NoAnswer(cause=f"the answer has more than {LARGEST_ANSWER_BYTES} bytes")
XML_HEAD = b'<?xml version="1.0" encoding="UTF-8"?>'


@pytest.fixture(scope="module")
def sc() -> bytes:
    return encode(build("sc", rows=16, columns=16))


def deliver(url: str, *objects: bytes, response_timeout_s: float = 60) -> list[StoreOutcome]:
    settings = DeliverySettings(connect_timeout_s=5, response_timeout_s=response_timeout_s)
    destination = StowDestination.model_validate({"kind": "stow", "name": "web", "url": url})
    return StowTransfer(destination, settings, AS_IT_IS)([outgoing(entry) for entry in objects], report=lambda *_: None)


def told(sc: bytes, whole_answer: bytes) -> StoreOutcome:
    with serving(lambda _: [whole_answer]) as (url, heard):
        (outcome,) = deliver(url, sc)
    assert len(heard) == 1
    return outcome


def failed(reason: Any, *, sequence: str = "00081198") -> bytes:
    item = {"00081197": {"vr": "US", "Value": [reason]}}
    return json.dumps({sequence: {"vr": "SQ", "Value": [item]}}).encode()


@pytest.mark.parametrize("code", ["200 OK", "202 Accepted", "409 Conflict", "400 Bad Request"])
@pytest.mark.parametrize("reason", [0xB000, 0xB006, 0xB007, 0xBFFF, 0x0001, 0x0107, 0x0116])
def test_an_instance_in_the_failed_sequence_is_not_stored_whatever_the_reason(
    sc: bytes, code: str, reason: int
) -> None:
    outcome = told(sc, answer(code, failed(reason)))
    cause = f"HTTP {code[:3]}, {reason:04X}: not stored"
    assert outcome == Refused(status=reason, cause=cause, permanent=True)


@pytest.mark.parametrize("code", ["200 OK", "202 Accepted", "409 Conflict", "503 Busy"])
def test_an_instance_that_failed_since_it_is_there_is_stored(sc: bytes, code: str) -> None:
    expected: StoreOutcome = Accepted(warning=0x0111)
    if code.startswith("503"):
        expected = Refused(status=None, cause="HTTP 503: the service is busy or down", permanent=False)
    assert told(sc, answer(code, failed(0x0111))) == expected


@pytest.mark.parametrize(
    "body",
    [
        failed(2**70),
        failed(-1),
        failed(0x10000),
        failed("A700H"),
        failed(1e300),
        failed(None),
        failed([1]),
        failed(True),
        b'{"00081198": {"vr": "SQ", "Value": [{"00081197": {"vr": "US", "Value": [1e999]}}]}}',
        b'{"00081198": {"vr": "SQ", "Value": [{"00081197": {"vr": "US", "Value": [NaN]}}]}}',
        b'{"00081198": {"vr": "SQ", "Value": [' + b"9" * 5000 + b"]}}",
        b'{"00081198": {"vr": "SQ", "Value": [null]}}',
    ],
)
def test_a_reason_that_is_none_is_a_failure_without_a_reason(sc: bytes, body: bytes) -> None:
    outcome = told(sc, answer("200 OK", body))
    assert isinstance(outcome, Refused)
    assert outcome.status is None
    assert outcome.cause.startswith("HTTP 200")


def test_other_failures_are_failures(sc: bytes) -> None:
    outcome = told(sc, answer("202 Accepted", failed(0xA700, sequence="0008119A")))
    assert outcome == Refused(status=0xA700, cause="HTTP 202, A700: out of resources", permanent=False)


@pytest.mark.parametrize("interim", ["100 Continue", "102 Processing", "103 Early Hints"])
@pytest.mark.parametrize("times", [1, 3])
def test_an_interim_answer_is_not_the_final_one(sc: bytes, interim: str, times: int) -> None:
    before = f"HTTP/1.1 {interim}\r\nLink: </style.css>\r\n\r\n".encode() * times
    assert told(sc, before + answer("200 OK", b"{}")) == Accepted()
    assert told(sc, before + answer("503 Busy", b"")) == Refused(
        status=None, cause="HTTP 503: the service is busy or down", permanent=False
    )


def test_interim_answers_without_end_are_no_answer(sc: bytes) -> None:
    with serving(lambda _: itertools.repeat(b"HTTP/1.1 102 Processing\r\n\r\n")) as (url, _):
        (outcome,) = deliver(url, sc)
    assert isinstance(outcome, NoAnswer)


@pytest.mark.parametrize("code", ["424 Failed Dependency", "423 Locked", "599 Whatever"])
def test_what_passes_is_tried_again(sc: bytes, code: str) -> None:
    outcome = told(sc, answer(code, b""))
    assert isinstance(outcome, Refused)
    assert not outcome.permanent


def native(reason: int | None, *, prefix: str = "") -> bytes:
    if reason is None:
        return f"<{prefix}NativeDicomModel/>".encode()
    return (
        f'<{prefix}NativeDicomModel xmlns="http://dicom.nema.org/PS3.19/models/NativeDICOM">'
        f'<{prefix}DicomAttribute tag="00081198" vr="SQ" keyword="FailedSOPSequence"><{prefix}Item number="1">'
        f'<{prefix}DicomAttribute tag="00081155" vr="UI"><{prefix}Value number="1">1.2</{prefix}Value>'
        f"</{prefix}DicomAttribute>"
        f'<{prefix}DicomAttribute tag="00081197" vr="US"><{prefix}Value number="1"> {reason} </{prefix}Value>'
        f"</{prefix}DicomAttribute></{prefix}Item></{prefix}DicomAttribute></{prefix}NativeDicomModel>"
    ).encode()


MULTIPART = 'multipart/related; type="application/dicom+xml"; boundary=b'


def part(body: bytes) -> bytes:
    return b"--b\r\nContent-Type: application/dicom+xml\r\n\r\n" + body + b"\r\n--b--\r\n"


@pytest.mark.parametrize("media_type", ["text/xml", "text/xml; charset=utf-8", "application/xml", MULTIPART])
@pytest.mark.parametrize("code", ["200 OK", "202 Accepted", "409 Conflict", "400 Bad Request"])
def test_reasons_in_xml_are_read(sc: bytes, media_type: str, code: str) -> None:
    body = native(0xA700)
    outcome = told(sc, answer(code, part(body) if media_type == MULTIPART else XML_HEAD + body, media_type))
    assert outcome == Refused(status=0xA700, cause=f"HTTP {code[:3]}, A700: out of resources", permanent=False)


def test_success_in_xml_is_stored(sc: bytes) -> None:
    assert told(sc, answer("200 OK", native(None), "text/xml")) == Accepted()
    assert told(sc, answer("200 OK", native(0x0111), "text/xml")) == Accepted(warning=0x0111)


@pytest.mark.parametrize(
    ("body", "media_type"),
    [
        (b"<html><body>Sign in</body></html>", "text/xml"),
        (b"<NativeDicomModel>", "application/dicom+xml"),
        (b'<!DOCTYPE a [<!ENTITY b "x">]><NativeDicomModel>&b;</NativeDicomModel>', "application/dicom+xml"),
        (b"<a>" * 5000, "application/dicom+xml"),
        (b'{"00081198":' * 5000, "application/dicom+json"),
        (b"[" * 100_000, "application/json"),
        (b"3", "application/json"),
        (b"--b--", MULTIPART),
    ],
)
def test_what_no_service_writes_is_not_taken_for_success(sc: bytes, body: bytes, media_type: str) -> None:
    cause = "HTTP 200, but no DICOMweb service answers there"
    assert told(sc, answer("200 OK", body, media_type)) == Refused(status=None, cause=cause, permanent=False)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.parametrize("coding", ["gzip", "deflate", "GZIP"])
def test_a_small_answer_that_unpacks_to_a_gigabyte_is_given_up(sc: bytes, coding: str) -> None:
    packer = gzip.compress if coding.lower() == "gzip" else zlib.compress
    bomb = packer(bytes(200_000_000), 9)
    assert len(bomb) < 300_000
    before = resident_bytes()
    with serving(lambda _: [answer("200 OK", bomb, "application/dicom+json", f"Content-Encoding: {coding}")]) as (
        url,
        _,
    ):
        assert deliver(url, sc) == [TOO_LONG]
    assert resident_bytes() - before < 60_000_000


def test_an_answer_that_was_packed_is_read(sc: bytes) -> None:
    packed = gzip.compress(failed(0xC000))
    outcome = told(sc, answer("200 OK", packed, "application/dicom+json", "Content-Encoding: gzip"))
    assert outcome == Refused(status=0xC000, cause="HTTP 200, C000: cannot understand", permanent=True)


def endless(head: bytes, piece: bytes) -> Iterator[bytes]:
    yield head
    yield from itertools.repeat(piece, 10_000)


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/dicom+json\r\n"
ENDLESS: dict[str, tuple[bytes, bytes]] = {
    "a-body": (HEAD + b"\r\n", b" " * 65_536),
    "a-chunk": (HEAD + b"Transfer-Encoding: chunked\r\n\r\nfffffffff\r\n", b" " * 65_536),
    "a-length-of-terabytes": (HEAD + b"Content-Length: 9999999999999\r\n\r\n", b" " * 65_536),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_an_answer_without_end_is_given_up(sc: bytes, name: str) -> None:
    with serving(lambda _: endless(*ENDLESS[name])) as (url, _):
        assert deliver(url, sc) == [TOO_LONG]


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (b"HTTP/1.1 200 ", b"O" * 65_536),
        (HEAD, b"X: y\r\n" * 10_000),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n1;", b"x" * 65_536),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nX:", b"x" * 65_536),
    ],
    ids=["a-status-line", "headers", "the-length-of-a-chunk", "a-trailer"],
)
def test_what_no_answer_has_without_end_is_no_answer(sc: bytes, head: bytes, piece: bytes) -> None:
    with serving(lambda _: endless(head, piece)) as (url, _):
        (outcome,) = deliver(url, sc)
    assert outcome == NoAnswer(cause=f"the connection to {url} ended before the answer did")


def dripping(head: bytes, piece: bytes) -> Iterator[bytes]:
    """Send a byte now and then, for longer than any test may last."""
    yield head
    while True:
        yield piece
        time.sleep(0.1)


@pytest.mark.parametrize(
    "drip",
    [
        (b"", b"H"),
        (b"HTTP/1.1 102 P\r\n", b"X"),
        (HEAD, b"X"),
        (HEAD + b"\r\n", b" "),
        (HEAD + b"Content-Length: 500000\r\n\r\n", b" "),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    ],
    ids=["status-line", "interim-headers", "headers", "body-without-length", "body", "chunks"],
)
def test_an_answer_that_drips_is_given_up_though_no_read_takes_long(sc: bytes, drip: tuple[bytes, bytes]) -> None:
    with serving(lambda _: dripping(*drip)) as (url, _):
        assert deliver(url, sc, response_timeout_s=1.0) == [NoAnswer(cause="no response within 1 s")]


def for_one(bad: bytes, first: Iterable[bytes]) -> Answering:
    return lambda body: first if bad in body else [answer("200 OK", b"{}")]


def test_an_instance_whose_answer_never_ends_does_not_hold_up_the_others(sc: bytes) -> None:
    objects = [renamed(sc, str(number)) for number in range(4)]
    bad = read_file_head(objects[1]).sop_instance.encode()
    with serving(for_one(bad, endless(*ENDLESS["a-body"]))) as (url, _):
        assert deliver(url, *objects) == [Accepted(), TOO_LONG, Accepted(), Accepted()]
    with serving(for_one(bad, [])) as (url, _):
        outcomes = deliver(url, *objects, response_timeout_s=1.0)
    assert outcomes == [Accepted(), NoAnswer(cause="no response within 1 s"), Accepted(), Accepted()]


def test_a_service_that_is_silent_about_everything_is_not_asked_about_all(sc: bytes) -> None:
    with serving(lambda _: []) as (url, heard):
        outcomes = deliver(url, *(renamed(sc, str(number)) for number in range(6)), response_timeout_s=0.5)
    assert outcomes == [NoAnswer(cause="no response within 0.5 s")] * 6
    assert len(heard) == 2
