"""The page's server on a real socket: TLS, certificates that are renewed, who asks slowly, ports, and its end."""

import contextlib
import http.client
import logging
import os
import socket
import ssl
import threading
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from dicomnode.domain.errors import ConfigurationError
from dicomnode.settings.http import HttpSettings
from dicomnode.web import connection as connections
from dicomnode.web import connection as door
from dicomnode.web.guard import form_of
from dicomnode.web.server import WebServer
from tests.support.certificates import Authority
from tests.support.processes import wait_until

WITHIN_S = 60


async def hello(_: Request) -> PlainTextResponse:
    return PlainTextResponse("hello")


async def form(request: Request) -> PlainTextResponse:
    return PlainTextResponse(f"{len(await form_of(request))} fields")


async def plenty(_: Request) -> PlainTextResponse:
    return PlainTextResponse("x" * 32_000_000)


def server(**settings: object) -> WebServer:
    routes = [Route("/", hello), Route("/form", form, methods=["POST"]), Route("/plenty", plenty)]
    return WebServer(Starlette(routes=routes), HttpSettings(port=0, **settings))  # type: ignore[arg-type]


@contextlib.contextmanager
def serving(**settings: object) -> Iterator[WebServer]:
    served = server(**settings)
    served.open()
    served.start()
    try:
        yield served
    finally:
        served.stop()


def connection(served: WebServer) -> socket.socket:
    address = urlsplit(served.url)
    return socket.create_connection((str(address.hostname), int(address.port or 0)), timeout=WITHIN_S)


def is_served(served: WebServer) -> bool:
    with urllib.request.urlopen(served.url, timeout=WITHIN_S) as answer:
        return bool(answer.read() == b"hello")


def is_ended(wire: socket.socket) -> bool:
    """Wait for the other side to end a connection."""
    with contextlib.suppress(ConnectionResetError):
        while wire.recv(65_536):
            pass
    return True


def test_the_page_is_served_over_tls(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    served = server(certificate=authority.issue("127.0.0.1", tmp_path / "page.pem"))
    served.open()
    served.start()
    try:
        assert served.url.startswith("https://127.0.0.1:")
        trusting = ssl.create_default_context(cafile=str(authority.file))
        with urllib.request.urlopen(served.url, timeout=60, context=trusting) as answer:
            assert answer.read() == b"hello"
            assert "server" not in answer.headers
    finally:
        served.stop()


@pytest.mark.parametrize("content", ["", "no certificate"])
def test_a_certificate_that_is_none_is_said(tmp_path: Path, content: str) -> None:
    (tmp_path / "page.pem").write_text(content)
    with pytest.raises(ConfigurationError, match=r"http\.certificate or http\.key cannot be used: .*[a-z]"):
        server(certificate=tmp_path / "page.pem").open()
    with pytest.raises(ConfigurationError, match="No such file"):
        server(certificate=tmp_path / "absent.pem").open()


def test_a_key_that_is_locked_is_said_and_nobody_is_asked_for_its_password(tmp_path: Path) -> None:
    locked = Authority(tmp_path).issue("127.0.0.1", tmp_path / "page.pem", password=b"open sesame")
    with pytest.raises(ConfigurationError, match=r"http\.certificate or http\.key cannot be used: .*cannot be used"):
        server(certificate=locked).open()


def serial_number(served: WebServer, authority: Authority, *, name: str = "") -> str:
    """Return which certificate a new handshake shows, and see that the page is served behind it."""
    trusting = ssl.create_default_context(cafile=str(authority.file))
    trusting.check_hostname = not name
    with trusting.wrap_socket(connection(served), server_hostname=name or "127.0.0.1") as wire:
        wire.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        shown = str(wire.getpeercert()["serialNumber"])  # type: ignore[index]
        assert wire.recv(12) == b"HTTP/1.1 200"
    return shown


def is_current(served: WebServer) -> bool:
    assert served.certificate is not None
    assert served.certificate.expires_at > datetime.now(UTC)
    return served.certificate.is_current


def test_a_renewed_certificate_is_served_without_a_restart_and_a_broken_one_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    authority = Authority(tmp_path)
    certificate = authority.issue("127.0.0.1", tmp_path / "page.pem")
    with serving(certificate=certificate) as served:
        first = serial_number(served, authority)
        assert serial_number(served, authority, name="page.example.org") == first
        authority.issue("127.0.0.1", tmp_path / "new.pem")
        os.replace(tmp_path / "new.pem", certificate)  # noqa: PTH105 as certbot does it
        second = serial_number(served, authority)
        assert second != first
        assert serial_number(served, authority, name="page.example.org") == second
        assert is_current(served)
        certificate.write_text("half a certificate")
        assert not is_current(served)
        assert serial_number(served, authority) == second
        authority.issue("127.0.0.1", certificate)
        assert serial_number(served, authority) not in (first, second)
        assert is_current(served)
    told = [record.message for record in caplog.records if "reloaded" in record.message]
    assert told == ["tls-reloaded", "tls-not-reloaded", "tls-reloaded"]


def test_a_certificate_and_its_key_are_renewed_one_after_the_other(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = tmp_path / "page.pem", tmp_path / "page.key"
    key.write_bytes(authority.issue("127.0.0.1", certificate).read_bytes())
    with serving(certificate=certificate, key=key) as served:
        first = serial_number(served, authority)
        authority.issue("127.0.0.1", certificate)
        assert serial_number(served, authority) == first, "the new certificate is of another key"
        key.write_bytes(certificate.read_bytes())
        assert serial_number(served, authority) != first


def test_who_dribbles_a_request_is_ended_while_others_are_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "REQUEST_S", 2.0)
    begun = (
        b"",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n",
        b"POST /form HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n\r\na=1",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nGET / HT",
    )
    with serving() as served, contextlib.ExitStack() as stack:
        wires = [stack.enter_context(connection(served)) for _ in begun]
        for wire, part in zip(wires, begun, strict=True):
            wire.sendall(part)
        done = threading.Event()
        dribbling = threading.Thread(target=dribble, args=(wires, done))
        dribbling.start()
        try:
            assert is_served(served)
            assert all(is_ended(wire) for wire in wires)
            assert is_served(served)
        finally:
            done.set()
            dribbling.join()


def dribble(wires: list[socket.socket], done: threading.Event) -> None:
    """Send a byte now and then, as long as somebody takes it."""
    while not done.wait(0.1):
        for wire in wires:
            with contextlib.suppress(OSError):
                wire.send(b"a")


def test_who_asks_for_nothing_keeps_nobody_out() -> None:
    with serving() as served, contextlib.ExitStack() as stack:
        wires = [stack.enter_context(connection(served)) for _ in range(3 * connections.MOST_ANSWERED)]
        assert is_served(served)
        assert is_ended(wires[0]), "the oldest goes"
        wires[-1].sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert wires[-1].recv(12) == b"HTTP/1.1 200", "the newest is served"


def test_who_connects_and_never_agrees_on_tls_takes_no_more_than_his_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "MOST_OPEN", 32)
    authority = Authority(tmp_path)
    with serving(certificate=authority.issue("127.0.0.1", tmp_path / "page.pem")) as served:
        with contextlib.ExitStack() as stack:
            wires = [stack.enter_context(connection(served)) for _ in range(100)]
            wires[0].settimeout(WITHIN_S / 2)  # less than it may take to agree
            assert is_ended(wires[0]), "the oldest goes"
            assert serial_number(served, authority)
            wait_until(lambda: sum(is_open(wire) for wire in wires) <= 32, WITHIN_S / 2, "the end of the others")
        assert serial_number(served, authority)


def is_open(wire: socket.socket) -> bool:
    """Tell whether the other side has not ended a connection over which it sends nothing."""
    wire.setblocking(False)
    try:
        return bool(wire.recv(1))
    except BlockingIOError:
        return True
    except ConnectionResetError:
        return False


def test_who_asked_once_and_rests_keeps_nobody_out() -> None:
    with serving() as served, contextlib.ExitStack() as stack:
        for _ in range(2 * connections.MOST_ANSWERED):
            wire = stack.enter_context(connection(served))
            wire.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            assert wire.recv(12) == b"HTTP/1.1 200"
        assert is_served(served)


def test_who_does_not_take_an_answer_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "ANSWER_S", 1.0)
    with serving() as served, connection(served) as wire:
        wire.sendall(b"GET /plenty HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert wire.recv(12) == b"HTTP/1.1 200"
        wait_until(lambda: not served._server.server_state.connections, WITHIN_S, "its end")
        taken = 0
        with contextlib.suppress(ConnectionResetError):
            while part := wire.recv(1 << 20):
                taken += len(part)
        assert taken < 32_000_000
        assert is_served(served)


def test_a_form_that_comes_in_pieces_is_taken_whole() -> None:
    with serving() as served, connection(served) as wire:
        for part in (b"POST /form HT", b"TP/1.1\r\nHost: 127.0.0.1\r\nConte", b"nt-Length: 7\r\n\r\na=1", b"&b=2"):
            wire.sendall(part)
        wire.settimeout(WITHIN_S)
        answer = http.client.HTTPResponse(wire)
        answer.begin()
        assert answer.read() == b"2 fields"


def test_an_address_that_is_taken_or_not_ours_is_said_with_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = HttpSettings(port=taken.getsockname()[1])
        with pytest.raises(ConfigurationError, match="--http off"):
            WebServer(Starlette(), settings).open()
    with pytest.raises(ConfigurationError, match=r"192\.0\.2\.1"):
        server(bind="192.0.2.1").open()


def test_it_ends_whether_it_was_started_or_not() -> None:
    server().stop()
    opened = server()
    opened.open()
    opened.stop()
