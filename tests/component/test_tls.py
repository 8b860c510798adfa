"""DIMSE over TLS, the node on both sides, with authorities made for each test."""

import logging
import os
import socket
import ssl
import struct
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from dicomnode.domain.delivery import Accepted, Destination, PeerTls
from dicomnode.domain.errors import ConfigurationError
from dicomnode.net.dimse.tls import listener_tls
from dicomnode.net.scp.server import StorageScp
from dicomnode.net.scu.storage import echo, send
from dicomnode.settings.node import DeliverySettings, TlsSettings
from tests.support.certificates import Authority
from tests.support.dimse import MemoryInbox, outgoing, running_scp
from tests.support.make import build, encode
from tests.support.processes import free_port, wait_until

HOST, WITHIN_S = "127.0.0.1", 60.0
CALM = DeliverySettings(connect_timeout_s=10, response_timeout_s=10)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def stranger(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "stranger")


@pytest.fixture
def certificate(authority: Authority, tmp_path: Path) -> Path:
    return authority.issue(HOST, tmp_path / "node.pem")


@contextmanager
def listening(certificate: Path, **tls: object) -> Iterator[tuple[StorageScp, Destination]]:
    settings = {"certificate": certificate, **tls}
    with running_scp(MemoryInbox(), tls=settings, acse_timeout_s=8) as running:
        yield running


def over_tls(destination: Destination, authority: Authority, **more: object) -> Destination:
    tls = PeerTls(ca_file=authority.file, **more)  # type: ignore[arg-type]
    return Destination(name="node", ae_title=destination.ae_title, host=HOST, port=destination.port, tls=tls)


def tried(destination: Destination) -> str:
    """Return why a C-ECHO was not answered, or nothing."""
    return echo(destination, calling_ae="SENDER", settings=CALM).cause


def test_objects_of_every_size_cross_tls_unchanged(authority: Authority, certificate: Path) -> None:
    inbox, objects = MemoryInbox(), [encode(build("cr", rows=side, columns=side)) for side in (64, 900)]
    with running_scp(inbox, tls={"certificate": certificate}) as (_, destination):
        items = [outgoing(entry) for entry in objects]
        peer = over_tls(destination, authority)
        assert send(peer, items, calling_ae="SENDER", settings=CALM) == [Accepted()] * 2
    assert [len(entry.part10) > 1000 for entry in inbox.received] == [True, True]


@pytest.mark.parametrize(("newest", "agreed"), [("TLSv1_3", "TLSv1.3"), ("TLSv1_2", "TLSv1.2")])
def test_the_newest_version_that_both_speak_is_agreed_on(
    authority: Authority, certificate: Path, newest: str, agreed: str
) -> None:
    with listening(certificate) as (_, destination), connected(destination, authority, newest) as wire:
        assert wire.version() == agreed
        assert wire.cipher()[0].startswith(("TLS_AES", "ECDHE-ECDSA-AES"))  # type: ignore[index]


@contextmanager
def connected(
    destination: Destination, authority: Authority, newest: str = "TLSv1_3", ciphers: str = ""
) -> Iterator[ssl.SSLSocket]:
    context = ssl.create_default_context(cafile=authority.file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        context.maximum_version = ssl.TLSVersion[newest]
    if ciphers:
        context.set_ciphers(ciphers)
    plain = socket.create_connection((HOST, destination.port), timeout=10)
    with plain, context.wrap_socket(plain, server_hostname=HOST) as wire:
        yield wire


@pytest.mark.parametrize(
    ("newest", "ciphers"),
    [("TLSv1_1", "ALL:@SECLEVEL=0"), ("TLSv1_2", "AES128-SHA"), ("TLSv1_2", "ECDHE-ECDSA-AES128-SHA256")],
    ids=["TLS 1.1", "no forward secrecy", "CBC"],
)
def test_what_the_profile_forbids_is_not_agreed_on(
    authority: Authority, certificate: Path, newest: str, ciphers: str
) -> None:
    with listening(certificate) as (scp, destination):
        with pytest.raises(OSError), connected(destination, authority, newest, ciphers):  # noqa: PT011 whichever alert
            pass
        wait_until(lambda: scp.refused, 5, "the refusal")
        assert scp.refused == {("connection-refused", "tls"): 1}
        assert tried(over_tls(destination, authority)) == ""


def test_a_minimum_of_1_3_refuses_1_2(authority: Authority, certificate: Path) -> None:
    with listening(certificate, minimum_version="1.3") as (_, destination):
        with pytest.raises(ssl.SSLError), connected(destination, authority, "TLSv1_2"):
            pass
        assert tried(over_tls(destination, authority)) == ""


def test_a_peer_of_another_authority_is_not_spoken_to(certificate: Path, stranger: Authority) -> None:
    with listening(certificate) as (_, destination):
        cause = tried(over_tls(destination, stranger))
    assert "its certificate is not accepted: unable to get local issuer certificate" in cause


def test_a_peer_whose_certificate_has_expired_is_not_spoken_to(authority: Authority, tmp_path: Path) -> None:
    with listening(authority.issue(HOST, tmp_path / "old.pem", expired=True)) as (_, destination):
        cause = tried(over_tls(destination, authority))
    assert "its certificate is not accepted: certificate has expired" in cause


def test_a_certificate_for_another_host_serves_only_where_the_host_is_not_checked(
    authority: Authority, tmp_path: Path
) -> None:
    with listening(authority.issue("127.0.0.9", tmp_path / "other.pem")) as (_, destination):
        assert "IP address mismatch" in tried(over_tls(destination, authority))
        assert tried(over_tls(destination, authority, check_hostname=False)) == ""


def test_peers_show_a_certificate_where_it_is_required(
    authority: Authority, stranger: Authority, certificate: Path, tmp_path: Path
) -> None:
    known, unknown = authority.issue(HOST, tmp_path / "a.pem"), stranger.issue(HOST, tmp_path / "b.pem")
    expired = authority.issue(HOST, tmp_path / "c.pem", expired=True)
    required = {"client_certificates": "required", "client_ca_file": authority.file}
    with listening(certificate, **required) as (scp, destination):
        assert tried(over_tls(destination, authority, client_certificate=known)) == ""
        assert "certificate required" in tried(over_tls(destination, authority))
        assert "unknown ca" in tried(over_tls(destination, authority, client_certificate=unknown))
        assert "certificate expired" in tried(over_tls(destination, authority, client_certificate=expired))
        wait_until(lambda: scp.refused == {("connection-refused", "tls"): 3}, WITHIN_S, "three refusals")


@pytest.mark.parametrize(
    ("attempt", "cause"),
    [
        ("no certificate", "no TLS session: peer did not return a certificate"),
        ("another authority", "its certificate is not accepted: unable to get local issuer certificate"),
        ("expired", "its certificate is not accepted: certificate has expired"),
        ("plain", "it does not speak TLS"),
        ("does not trust the node", "no TLS session: tlsv1 alert unknown ca"),
    ],
)
def test_every_failure_of_tls_is_a_log_line_with_its_cause_and_a_security_alert(
    attempt: str,
    cause: str,
    authority: Authority,
    stranger: Authority,
    certificate: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    alerts: list[tuple[str, str, str]] = []
    required = {"certificate": certificate, "client_certificates": "required", "client_ca_file": authority.file}
    own = {
        "another authority": stranger.issue(HOST, tmp_path / "b.pem"),
        "expired": authority.issue(HOST, tmp_path / "c.pem", expired=True),
    }
    with running_scp(MemoryInbox(), tls=required, acse_timeout_s=20, alert=lambda *told: alerts.append(told)) as (
        scp,
        destination,
    ):
        known = stranger if attempt == "does not trust the node" else authority
        peer = over_tls(destination, known, client_certificate=own.get(attempt))
        assert tried(destination if attempt == "plain" else peer)
        wait_until(lambda: scp.refused, WITHIN_S, "the refusal")
        wait_until(lambda: alerts, WITHIN_S, "the alert")
        known_too = authority.issue(HOST, tmp_path / "a.pem")
        assert tried(over_tls(destination, authority, client_certificate=known_too)) == ""
    assert scp.refused == {("connection-refused", "tls"): 1}
    (record,) = [record for record in caplog.records if record.message == "connection-refused"]
    assert (record.levelname, record.reason, record.peer, record.cause) == ("WARNING", "tls", HOST, cause)
    assert alerts == [(HOST, "", "connection-refused: tls")]


def test_peers_may_show_a_certificate_where_it_is_optional(
    authority: Authority, stranger: Authority, certificate: Path, tmp_path: Path
) -> None:
    unknown = stranger.issue(HOST, tmp_path / "b.pem")
    optional = {"client_certificates": "optional", "client_ca_file": authority.file}
    with listening(certificate, **optional) as (_, destination):
        assert tried(over_tls(destination, authority)) == ""
        assert "unknown ca" in tried(over_tls(destination, authority, client_certificate=unknown))


def test_plain_dicom_gets_nowhere_on_the_port_of_tls(
    authority: Authority, certificate: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with listening(certificate) as (scp, destination):
        assert tried(destination)
        wait_until(lambda: scp.refused == {("connection-refused", "tls"): 1}, WITHIN_S, "the refusal")
        assert tried(over_tls(destination, authority)) == ""
    (record,) = [record for record in caplog.records if record.message == "connection-refused"]
    assert record.cause == "it does not speak TLS"


def test_a_destination_that_does_not_speak_tls_is_said_not_to(authority: Authority) -> None:
    with running_scp(MemoryInbox()) as (_, destination):
        assert "it does not speak TLS" in tried(over_tls(destination, authority))


def test_plain_and_tls_stand_side_by_side(authority: Authority, certificate: Path) -> None:
    port = free_port()
    with listening(certificate, port=port) as (_, destination):
        assert tried(destination) == ""
        beside = Destination(name="tls", ae_title=destination.ae_title, host=HOST, port=port)
        assert tried(over_tls(beside, authority)) == ""
        assert tried(beside)


def test_handshakes_that_stall_or_drip_end_in_time_and_keep_nobody_waiting(
    authority: Authority, certificate: Path
) -> None:
    hello = struct.pack(">BHHBL", 22, 0x0301, 512, 1, 508)
    with (
        running_scp(MemoryInbox(), tls={"certificate": certificate}, acse_timeout_s=10) as (scp, destination),
        ExitStack() as stack,
    ):
        wires = [stack.enter_context(socket.create_connection((HOST, destination.port))) for _ in range(8)]
        began = time.monotonic()
        assert tried(over_tls(destination, authority)) == ""
        assert time.monotonic() - began < 9
        while not scp.refused and time.monotonic() < began + 60:
            for wire in wires[:4]:
                wire.send(hello[:1])
                time.sleep(0.02)
            hello = hello[1:] + b"\0"
        # While they are open: one that goes by itself was not too late.
        wait_until(lambda: scp.refused.get(("connection-refused", "request-timeout")) == 8, 60, "the end of all")


def test_a_destination_that_never_shakes_hands_is_given_up_in_time(authority: Authority) -> None:
    with socket.create_server((HOST, 0)) as silent:
        peer = Destination(name="s", ae_title="S", host=HOST, port=silent.getsockname()[1])
        began = time.monotonic()
        settings = DeliverySettings(connect_timeout_s=1, response_timeout_s=10)
        cause = echo(over_tls(peer, authority), calling_ae="SENDER", settings=settings).cause
    assert "within 1 s" in cause
    assert time.monotonic() - began < 6


def serial_number(destination: Destination, authority: Authority) -> str:
    with connected(destination, authority) as wire:
        return str(wire.getpeercert()["serialNumber"])  # type: ignore[index]


def test_a_renewed_certificate_is_served_without_a_restart_and_a_broken_one_is_not(
    authority: Authority, certificate: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with listening(certificate) as (scp, destination):
        first = serial_number(destination, authority)
        assert serial_number(destination, authority) == first
        authority.issue(HOST, tmp_path / "new.pem")
        os.replace(tmp_path / "new.pem", certificate)  # noqa: PTH105 as certbot does it
        second = serial_number(destination, authority)
        assert second != first
        assert scp.certificate is not None
        assert scp.certificate.is_current
        certificate.write_text("half a certificate")
        assert not scp.certificate.is_current
        assert serial_number(destination, authority) == second
        authority.issue(HOST, certificate)
        assert serial_number(destination, authority) not in (first, second)
    told = [record.message for record in caplog.records if "reloaded" in record.message]
    assert told == ["tls-reloaded", "tls-not-reloaded", "tls-reloaded"]


def test_a_certificate_that_expires_soon_is_warned_of(certificate: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    settings = TlsSettings(certificate=certificate)
    for days in (0, 40):
        listener_tls(settings, lambda before=days: datetime.now(UTC) - timedelta(days=before))
    told = [(record.levelname, record.message) for record in caplog.records]
    assert told == [("WARNING", "certificate-expires-soon"), ("INFO", "certificate-read")]


def test_an_encrypted_key_is_opened_with_its_password(authority: Authority, tmp_path: Path) -> None:
    locked = authority.issue(HOST, tmp_path / "locked.pem", password=b"open sesame")
    password = tmp_path / "password"
    password.write_text("open sesame\n")
    with listening(locked, key_password_file=password) as (_, destination):
        assert tried(over_tls(destination, authority)) == ""
        own = {"client_certificate": locked, "client_key_password_file": password}
        assert tried(over_tls(destination, authority, **own)) == ""
        assert "cannot be used" in tried(over_tls(destination, authority, client_certificate=locked))


@pytest.mark.parametrize("broken", ["absent", "no certificate", "another key", "wrong password", "no authorities"])
def test_files_that_do_not_serve_are_named_before_anything_listens(
    authority: Authority, certificate: Path, tmp_path: Path, broken: str
) -> None:
    (tmp_path / "text").write_text("CANARY")
    other = authority.issue(HOST, tmp_path / "other.pem")
    locked = authority.issue(HOST, tmp_path / "locked.pem", password=b"open sesame")
    settings = {
        "absent": {"certificate": tmp_path / "absent.pem"},
        "no certificate": {"certificate": tmp_path / "text"},
        "another key": {"certificate": certificate, "key": other},
        "wrong password": {"certificate": locked, "key_password_file": tmp_path / "text"},
        "no authorities": {
            "certificate": certificate,
            "client_certificates": "required",
            "client_ca_file": tmp_path / "text",
        },
    }[broken]
    before = threading.active_count()
    with pytest.raises(ConfigurationError) as raised, running_scp(MemoryInbox(), tls=settings):
        pass
    assert str(tmp_path) in str(raised.value)
    assert "CANARY" not in str(raised.value)
    assert threading.active_count() == before
