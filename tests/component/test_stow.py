"""STOW-RS against a service that stores, refuses, is busy, asks who is there, or is not whom it claims to be."""

import base64
import logging
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom import uid as uids

from dicomnode.dicom.part10 import read_file_head
from dicomnode.domain.delivery import Accepted, NoAnswer, Refused, StoreOutcome
from dicomnode.domain.errors import BlobDamaged
from dicomnode.domain.instance import InstanceRef
from dicomnode.net.contexts import COMPREHENSIVE_3D_SR, COMPREHENSIVE_SR, ENHANCED_SR
from dicomnode.net.scu.outgoing import AS_IT_IS, Form, Outgoing
from dicomnode.net.scu.stow import StowTransfer, probe
from dicomnode.settings.delivery import DeliverySettings, PreferredEncoding, StowDestination
from tests.support.certificates import Authority
from tests.support.dicomweb import Answer, Dicomweb, Request, module, uid_of
from tests.support.dimse import outgoing, renamed, report_of
from tests.support.make import CANARIES, build, encode
from tests.support.processes import free_port

SETTINGS = DeliverySettings(connect_timeout_s=5, response_timeout_s=10)
SECRET = "CANARY-pa55word"


@pytest.fixture(scope="module")
def sc() -> bytes:
    return encode(build("sc", rows=32, columns=32))


def destination(url: str, **settings: Any) -> StowDestination:
    return StowDestination.model_validate({"kind": "stow", "name": "web", "url": url, **settings})


def deliver(
    service: Dicomweb | str,
    *objects: bytes,
    form: Form = AS_IT_IS,
    settings: DeliverySettings = SETTINGS,
    told: list[InstanceRef | None] | None = None,
    **configured: Any,
) -> list[StoreOutcome]:
    url = service if isinstance(service, str) else service.url
    reported: list[StoreOutcome] = []

    def report(position: int, outcome: StoreOutcome, sent_as: InstanceRef | None) -> None:
        assert position == len(reported)
        reported.append(outcome)
        if told is not None:
            told.append(sent_as)

    transfer = StowTransfer(destination(url, **configured), settings, form)
    assert transfer([outgoing(entry) for entry in objects], report=report) == reported
    assert len(reported) == len(objects)
    return reported


def uid(part10: bytes) -> str:
    return read_file_head(part10).sop_instance


def test_every_instance_arrives_byte_for_byte_over_one_connection(sc: bytes) -> None:
    objects = [sc, renamed(sc, "b"), renamed(sc, "c")]
    with Dicomweb() as service:
        assert deliver(service, *objects) == [Accepted()] * 3
    assert service.stored == objects
    assert len(service.connections) == 1
    study = dcmread(BytesIO(sc)).StudyInstanceUID
    assert {(request.method, request.path) for request in service.requests} == {("POST", f"/dicom-web/studies/{study}")}
    assert {request.headers["Host"] for request in service.requests} == {f"127.0.0.1:{service.port}"}
    assert {request.headers["Accept"] for request in service.requests} == {"application/dicom+json"}


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (Answer(200), Accepted()),
        (Answer(204), Accepted()),
        (module(202, warned={"1.2.3": 0xB000}), Accepted(warning=0xB000)),
        (Answer(200, b"<x/>", {"Content-Type": "application/dicom+xml"}), Accepted()),
        (
            Answer(200, b"<html>Sign in</html>", {"Content-Type": "text/html"}),
            Refused(status=None, cause="HTTP 200, but no DICOMweb service answers there", permanent=False),
        ),
        (
            Answer(200, b"{", {"Content-Type": "application/dicom+json"}),
            Refused(status=None, cause="HTTP 200, but no DICOMweb service answers there", permanent=False),
        ),
        (
            Answer(400),
            Refused(status=None, cause="HTTP 400: the server does not understand the object", permanent=True),
        ),
        (
            Answer(401),
            Refused(
                status=None, cause="HTTP 401: not authenticated, the secret may have to be renewed", permanent=False
            ),
        ),
        (Answer(403), Refused(status=None, cause="HTTP 403: not authorised", permanent=True)),
        (Answer(409), Refused(status=None, cause="HTTP 409: not stored", permanent=True)),
        (Answer(413), Refused(status=None, cause="HTTP 413: too large for the server", permanent=True)),
        (Answer(500), Refused(status=None, cause="HTTP 500: the server failed", permanent=False)),
        (
            Answer(503, headers={"Retry-After": "120"}),
            Refused(status=None, cause="HTTP 503: the service is busy or down", permanent=False, retry_after_s=120.0),
        ),
        (
            Answer(302, headers={"Location": "/login"}),
            Refused(status=None, cause="HTTP 302: it points elsewhere, which is not followed", permanent=True),
        ),
    ],
    ids=lambda value: f"{value.status}-{len(value.body)}" if isinstance(value, Answer) else "",
)
def test_the_outcome_follows_the_answer(sc: bytes, answer: Answer, outcome: StoreOutcome) -> None:
    with Dicomweb(lambda _: answer) as service:
        assert deliver(service, sc) == [outcome]
    assert len(service.requests) == 1, "the outbox tries again, not the library"


@pytest.mark.parametrize("status", [200, 202, 409])
@pytest.mark.parametrize(
    ("reason", "outcome"),
    [
        (0xA700, Refused(status=0xA700, cause="A700: out of resources", permanent=False)),
        (0x0110, Refused(status=0x0110, cause="0110: processing failure", permanent=False)),
        (0xC000, Refused(status=0xC000, cause="C000: cannot understand", permanent=True)),
        (0x0124, Refused(status=0x0124, cause="0124: not authorised", permanent=True)),
        (0x0111, Accepted(warning=0x0111)),
    ],
)
def test_a_failure_reason_says_what_is_done(sc: bytes, status: int, reason: int, outcome: Any) -> None:
    with Dicomweb(lambda request: module(status, failed={uid_of(request): reason})) as service:
        (found,) = deliver(service, sc)
    if isinstance(outcome, Refused):
        assert isinstance(found, Refused)
        assert found.cause == f"HTTP {status}, {outcome.cause}"
        assert (found.status, found.permanent) == (outcome.status, outcome.permanent)
    else:
        assert found == outcome


def test_one_instance_that_fails_does_not_hold_up_the_others(sc: bytes) -> None:
    second = renamed(sc, "b")

    def refuse_the_second(request: Request) -> Answer:
        return module(409, failed={uid(second): 0xC000}) if uid_of(request) == uid(second) else module(200)

    with Dicomweb(refuse_the_second) as service:
        outcomes = deliver(service, sc, second, renamed(sc, "c"))
    assert [type(outcome) for outcome in outcomes] == [Accepted, Refused, Accepted]


@pytest.mark.parametrize("status", [401, 429, 503])
def test_what_is_said_of_the_service_is_asked_once_for_the_whole_batch(sc: bytes, status: int) -> None:
    with Dicomweb(lambda _: Answer(status)) as service:
        outcomes = deliver(service, sc, renamed(sc, "b"), renamed(sc, "c"))
    assert len(service.requests) == 1
    assert len(set(map(str, outcomes))) == 1


def test_an_object_that_cannot_be_read_is_refused_and_the_others_are_sent(sc: bytes) -> None:
    def damaged() -> bytes:
        raise BlobDamaged("stored bytes changed")

    items = [Outgoing(sop_class="1.2", transfer_syntax="1.2.840.10008.1.2.1", read=damaged), outgoing(sc)]
    with Dicomweb() as service:
        transfer = StowTransfer(destination(service.url), SETTINGS, AS_IT_IS)
        outcomes = transfer(items, report=lambda *_: None)
    assert outcomes == [Refused(status=None, cause="stored bytes changed", permanent=True), Accepted()]


def test_nobody_there_is_no_answer_and_asked_once(sc: bytes) -> None:
    url = f"http://127.0.0.1:{free_port()}/dicom-web"
    assert deliver(url, sc, renamed(sc, "b")) == [NoAnswer(cause=f"no connection to {url}")] * 2


def test_a_silent_service_is_no_answer(sc: bytes) -> None:
    import threading

    done = threading.Event()

    def stall(_: Request) -> Answer:
        done.wait(20)
        return Answer()

    impatient = DeliverySettings(connect_timeout_s=5, response_timeout_s=0.5)
    with Dicomweb(stall) as service:
        outcomes = deliver(service, sc, settings=impatient)
        done.set()
    assert outcomes == [NoAnswer(cause="no response within 0.5 s")]


@pytest.mark.parametrize("source", ["file", "environment"])
def test_basic_authentication_is_sent(sc: bytes, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret").write_text("pässword\n")
    monkeypatch.setenv("A_PASSWORD", "pässword")
    where = {"secret_file": tmp_path / "secret"} if source == "file" else {"secret_env": "A_PASSWORD"}
    with Dicomweb() as service:
        deliver(service, sc, authentication="basic", username="node", **where)
    expected = "Basic " + base64.b64encode("node:pässword".encode()).decode()
    assert service.requests[0].headers["Authorization"] == expected


def test_a_bearer_token_is_read_anew_for_every_batch(sc: bytes, tmp_path: Path) -> None:
    file = tmp_path / "token"
    with Dicomweb() as service:
        for token in ("first", "second"):
            file.write_text(token)
            deliver(service, sc, authentication="bearer", secret_file=file)
    assert [request.headers["Authorization"] for request in service.requests] == ["Bearer first", "Bearer second"]


def test_a_secret_that_is_not_there_is_said_and_tried_again(sc: bytes, tmp_path: Path) -> None:
    with Dicomweb() as service:
        outcomes = deliver(service, sc, sc, authentication="bearer", secret_file=tmp_path / "absent")
    assert service.requests == []
    assert (
        outcomes == [NoAnswer(cause=f"the secret in {tmp_path}/absent cannot be read: No such file or directory")] * 2
    )


def test_the_environment_changes_neither_authentication_nor_trust(
    sc: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority, other = Authority(tmp_path), Authority(tmp_path, "other")
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login stranger password stranger\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(other.file))
    with Dicomweb(authority=authority, folder=tmp_path) as service:
        assert deliver(service, sc, ca_file=authority.file) == [Accepted()]
    assert "Authorization" not in service.requests[0].headers


def test_a_service_that_the_authority_vouches_for_is_trusted(sc: bytes, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    with Dicomweb(authority=authority, folder=tmp_path) as service:
        assert service.url.startswith("https:")
        assert deliver(service, sc, ca_file=authority.file) == [Accepted()]


@pytest.mark.parametrize("trusts", ["nobody-in-particular", "another-authority"])
def test_a_service_that_nobody_vouches_for_gets_nothing(sc: bytes, tmp_path: Path, trusts: str) -> None:
    configured = {"ca_file": Authority(tmp_path, "another").file} if trusts == "another-authority" else {}
    with Dicomweb(authority=Authority(tmp_path), folder=tmp_path) as service:
        (outcome,) = deliver(service, sc, **configured)
    assert isinstance(outcome, NoAnswer)
    assert outcome.cause.startswith("TLS failed: the server's certificate is not trusted, ")
    assert service.requests == []


@pytest.mark.filterwarnings("ignore::urllib3.exceptions.InsecureRequestWarning")
def test_verification_ends_only_where_it_is_switched_off(sc: bytes, tmp_path: Path) -> None:
    with Dicomweb(authority=Authority(tmp_path), folder=tmp_path) as service:
        assert deliver(service, sc, verify_tls=False) == [Accepted()]


def test_a_client_certificate_is_shown_where_it_is_asked_for(sc: bytes, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    own = authority.issue("127.0.0.2", tmp_path / "client.pem")
    with Dicomweb(authority=authority, folder=tmp_path, client_authority=authority) as service:
        assert isinstance(deliver(service, sc, ca_file=authority.file)[0], NoAnswer)
        assert deliver(service, sc, ca_file=authority.file, client_certificate=own) == [Accepted()]


@pytest.mark.parametrize("setting", ["ca_file", "client_certificate"])
def test_a_certificate_file_that_is_not_there_is_no_answer(sc: bytes, tmp_path: Path, setting: str) -> None:
    with Dicomweb(authority=Authority(tmp_path), folder=tmp_path) as service:
        (outcome,) = deliver(service, sc, **{setting: tmp_path / "absent.pem"})
    assert isinstance(outcome, NoAnswer)
    assert "certificate file" in outcome.cause


def test_a_report_goes_under_the_next_class_where_its_own_is_not_supported() -> None:
    taken = ENHANCED_SR.uid
    told: list[InstanceRef | None] = []

    def enhanced_only(request: Request) -> Answer:
        known = read_file_head(request.objects[0]).sop_class == taken
        return module(200) if known else module(409, failed={uid_of(request): 0x0122})

    form = Form(fallback=lambda part10, classes: report_of(next(iter(classes))))
    with Dicomweb(enhanced_only) as service:
        assert deliver(service, report_of(COMPREHENSIVE_3D_SR.uid), form=form, told=told) == [Accepted()]
    tried = [read_file_head(entry).sop_class for entry in service.stored]
    assert tried == [COMPREHENSIVE_3D_SR.uid, COMPREHENSIVE_SR.uid, taken]
    assert told[0] is not None
    assert told[0].sop_class == taken


@pytest.mark.parametrize("supported", [True, False])
def test_an_image_goes_in_the_preferred_encoding_where_that_is_supported(sc: bytes, supported: bool) -> None:
    def answers(request: Request) -> Answer:
        plain = read_file_head(request.objects[0]).transfer_syntax == uids.ExplicitVRLittleEndian
        return module(200) if supported or plain else module(409, failed={uid_of(request): 0xC122})

    with Dicomweb(answers) as service:
        assert deliver(service, sc, form=Form(encoding=PreferredEncoding.JPEG_LS)) == [Accepted()]
    arrived = dcmread(BytesIO(service.stored[-1]))
    expected = uids.JPEGLSLossless if supported else uids.ExplicitVRLittleEndian
    assert arrived.file_meta.TransferSyntaxUID == expected
    original = dcmread(BytesIO(sc))
    assert arrived.SOPInstanceUID == original.SOPInstanceUID
    assert (arrived.pixel_array == original.pixel_array).all()


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        (Answer(200), ""),
        (Answer(405), ""),
        (Answer(401), "HTTP 401: not authenticated, the secret may have to be renewed"),
        (Answer(503), "HTTP 503: the service is busy or down"),
        (Answer(302, headers={"Location": "/login"}), "HTTP 302: it points elsewhere"),
    ],
)
def test_a_probe_stores_nothing_and_says_what_is_wrong(answer: Answer, cause: str) -> None:
    with Dicomweb(lambda _: answer) as service:
        result = probe(destination(service.url), SETTINGS)
    assert (result.succeeded, result.cause) == (not cause, cause)
    assert [request.method for request in service.requests] == ["OPTIONS"]


def test_neither_patients_nor_secrets_reach_logs_or_causes(
    sc: bytes,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("A_SECRET", SECRET)
    causes: list[object] = []
    how = {"authentication": "basic", "username": "node", "secret_env": "A_SECRET"}
    for answer in (Answer(401), Answer(503), module(409, failed={"1.2": 0xC000}), module(200)):
        with Dicomweb(lambda _, answer=answer: answer) as service:
            causes += deliver(service, sc, **how)
    causes += deliver(f"http://127.0.0.1:{free_port()}", sc, **how)
    encoded = base64.b64encode(f"node:{SECRET}".encode()).decode()
    written = "".join(str(record.__dict__) for record in caplog.records) + "".join(capfd.readouterr()) + str(causes)
    assert [word for word in (*CANARIES, SECRET, encoded) if word in written] == []
    assert SECRET not in repr(destination("https://web", **how))
