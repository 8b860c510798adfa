"""An HTTP server of bare sockets, which answers byte by byte what no library would."""

import contextlib
import re
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

Answering = Callable[[bytes], Iterable[bytes]]
"""Given the body of a request: the pieces of its answer, sent as they come."""


@contextmanager
def serving(answering: Answering) -> Iterator[tuple[str, list[bytes]]]:
    """Serve requests, one connection after the other; the list grows by the body of each."""
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=_serve_all, args=(listener, answering, heard), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/dicom-web", heard
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(60)


def _serve_all(listener: socket.socket, answering: Answering, heard: list[bytes]) -> None:
    with contextlib.suppress(OSError):
        while True:
            wire, _ = listener.accept()
            with wire, contextlib.suppress(OSError):
                while (body := _request(wire)) is not None:
                    heard.append(body)
                    for piece in answering(body):
                        wire.sendall(piece)


def _request(wire: socket.socket) -> bytes | None:
    """Return the body of the next request, None when there is none."""
    data = b""
    while b"\r\n\r\n" not in data:
        got = wire.recv(65_536)
        if not got:
            return None
        data += got
    head, _, body = data.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: (\d+)", head)
    while length is not None and len(body) < int(length[1]):
        body += wire.recv(65_536)
    return body


def answer(code: str, body: bytes, media_type: str = "application/dicom+json", *headers: str) -> bytes:
    """Return a whole answer."""
    lines = [f"HTTP/1.1 {code}", f"Content-Type: {media_type}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body
