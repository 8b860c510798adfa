"""A DICOMweb service that answers as it is told to, with or without TLS, and remembers what it was asked."""

import json
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

from dicomnode.dicom.part10 import read_file_head
from tests.support.certificates import Authority

JSON = "application/dicom+json"


@dataclass(frozen=True)
class Answer:
    """What the service says: a status, headers and a body."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


def module(answered: int, *, failed: dict[str, int] | None = None, warned: dict[str, int] | None = None) -> Answer:
    """Return a Store Instances Response Module; the UIDs map to their failure or warning reasons."""

    def items(reasons: dict[str, int], tag: str) -> dict[str, Any]:
        return {
            "vr": "SQ",
            "Value": [
                {"00081155": {"vr": "UI", "Value": [uid]}, tag: {"vr": "US", "Value": [reason]}}
                for uid, reason in reasons.items()
            ],
        }

    body: dict[str, Any] = {}
    if failed:
        body["00081198"] = items(failed, "00081197")
    if warned:
        body["00081199"] = items(warned, "00081196")
    return Answer(answered, json.dumps(body).encode(), {"Content-Type": f"{JSON}; charset=utf-8"})


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: dict[str, str]
    objects: tuple[bytes, ...]


class Dicomweb:
    """The service; `answers` is called with each request."""

    def __init__(
        self,
        answers: Callable[[Request], Answer] = lambda _: module(200),
        *,
        authority: Authority | None = None,
        folder: Path | None = None,
        client_authority: Authority | None = None,
    ) -> None:
        self.requests: list[Request] = []
        self.connections: set[tuple[str, int]] = set()
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _serve(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                objects = parts(self.headers.get("Content-Type", ""), body)
                request = Request(self.command, self.path, dict(self.headers), objects)
                service.requests.append(request)
                service.connections.add(self.client_address)
                answer = answers(request)
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(answer.body)))
                self.end_headers()
                self.wfile.write(answer.body)

            do_POST = do_GET = do_OPTIONS = _serve  # noqa: N815 the names are http.server's

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]
        if authority is not None:
            assert folder is not None
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(authority.issue("127.0.0.1", folder / "server.pem"))
            if client_authority is not None:
                context.verify_mode = ssl.CERT_REQUIRED
                context.load_verify_locations(client_authority.file)
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        scheme = "http" if authority is None else "https"
        self.port = self._server.server_address[1]
        self.url = f"{scheme}://127.0.0.1:{self.port}/dicom-web"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def stored(self) -> list[bytes]:
        return [part for request in self.requests for part in request.objects]


def parts(content_type: str, body: bytes) -> tuple[bytes, ...]:
    """Return the parts of a multipart/related body, byte for byte."""
    if not content_type.startswith("multipart/related"):
        return ()
    boundary = message_from_bytes(f"Content-Type: {content_type}\r\n\r\n".encode(), policy=policy.HTTP).get_boundary()
    delimiter = b"\r\n--" + str(boundary).encode()
    return tuple(part.split(b"\r\n\r\n", 1)[1] for part in (b"\r\n" + body).split(delimiter)[1:-1])


def uid_of(request: Request) -> str:
    return read_file_head(request.objects[0]).sop_instance
