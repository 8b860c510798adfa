"""The page's server on a real socket: TLS, ports that are taken, and its end."""

import socket
import ssl
import urllib.request
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from dicomnode.domain.errors import ConfigurationError
from dicomnode.http_settings import HttpSettings
from dicomnode.web.server import WebServer
from tests.certificates import Authority


async def hello(_: Request) -> PlainTextResponse:
    return PlainTextResponse("hello")


def server(**settings: object) -> WebServer:
    return WebServer(Starlette(routes=[Route("/", hello)]), HttpSettings(port=0, **settings))  # type: ignore[arg-type]


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
