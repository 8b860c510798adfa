"""HTTP requests whose answers are bounded: in bytes, as they come and decompressed, and in time, over all of it.

requests reads what a server sends for as long as it sends, decompresses it without limit, and takes an interim answer
other than 100 for the final one. Here every byte of an answer passes a reader that counts and has one deadline.
Source: RFC 9110 15.2 (interim answers), 8.4.1 (content codings).
"""

import http.client
import io
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

LARGEST_ANSWER_BYTES = 1_048_576
"""An answer about one instance has a few hundred bytes, an error page of a proxy some thousands."""

_PIECE_BYTES = 65_536
_MOST_INTERIM_ANSWERS = 20
_MOST_HEADER_LINES = 100
_LONGEST_LINE_BYTES = 65_536
_INTERIM = range(100, 200)
_SWITCHING_PROTOCOLS = 101
# Either of the two formats that have a header; and deflate without one, as some servers send it.
_ANY_FORMAT, _RAW_DEFLATE = zlib.MAX_WBITS | 32, -zlib.MAX_WBITS


class AnswerTooLong(requests.RequestException):
    """The answer has more bytes than anyone needs to say what became of a request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpAnswer:
    """A final answer; `headers` are found whatever their case."""

    code: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def media_type(self) -> str:
        """Return the media type without its parameters, in lower case."""
        return self.headers.get("Content-Type", "").split(";")[0].strip().lower()


class BoundedSession(requests.Session):
    """A session that goes where it is told: a POST that follows a redirect would be a GET, and its 200 a lie.

    `answer` is that to the last request, None while there is none; `was_sent` tells whether the request went out.
    Whoever uses the session through a library that reads answers itself gets an empty one, so that nothing reads them.
    """

    def __init__(self, answer_within_s: float) -> None:
        super().__init__()
        self.headers["Accept-Encoding"] = "identity"
        self.answer: HttpAnswer | None = None
        self._bounds = _Bounds(answer_within_s)
        for scheme in ("http://", "https://"):
            self.mount(scheme, _BoundedAdapter(self._bounds))

    @property
    def was_sent(self) -> bool:
        """Whether the last request went out, so that the server may have done what it asks."""
        return self._bounds.was_sent

    def send(self, request: requests.PreparedRequest, **arguments: Any) -> requests.Response:
        """Send a request and read its answer.

        Raises: requests.RequestException, of which AnswerTooLong, and Timeout when it is not complete in time; OSError.
        """
        # dicomweb-client sets a Host without the port; without a header of its own, the right one is made.
        request.headers.pop("Host", None)
        self.answer = None
        self._bounds.forget()
        try:
            response = super().send(request, **{**arguments, "allow_redirects": False, "stream": True})
            with response:
                body = _decoded(_read(response), response.headers.get("Content-Encoding", ""))
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            raise self._bounds.cause_of(error) from error
        self.answer = HttpAnswer(code=response.status_code, headers=response.headers, body=body)
        return _empty(request)


class _Bounds:
    """What one answer may cost, and which bound it went over."""

    def __init__(self, within_s: float) -> None:
        self._within_s = within_s
        self.forget()

    def forget(self) -> None:
        self.was_sent = self.is_too_long = self.is_too_slow = False

    def begin(self) -> None:
        """Note that the request has gone out, and that its answer is awaited from now on."""
        self.was_sent, self._deadline, self._bytes = True, time.monotonic() + self._within_s, 0

    def left_s(self) -> float:
        """Return how long the answer may still take. Raises: TimeoutError."""
        left_s = self._deadline - time.monotonic()
        if left_s <= 0:
            self.is_too_slow = True
            raise TimeoutError("the answer is not complete")
        return left_s

    def count(self, read_bytes: int) -> None:
        """Note what was read. Raises: OSError when it is too much."""
        self._bytes += read_bytes
        if self._bytes > LARGEST_ANSWER_BYTES:
            self.is_too_long = True
            raise OSError("the answer is too long")

    def cause_of(self, error: Exception) -> Exception:
        """Return the error that says what really happened."""
        if self.is_too_long or isinstance(error, AnswerTooLong):
            return AnswerTooLong("the answer is too long")
        if self.is_too_slow or isinstance(error, urllib3.exceptions.ReadTimeoutError):
            return requests.ReadTimeout("the answer is not complete")
        return error if isinstance(error, requests.RequestException | OSError) else requests.ConnectionError("lost")


class _BoundedReader(io.RawIOBase):
    """Reads from a socket within the bounds."""

    def __init__(self, wire: Any, raw: io.RawIOBase, bounds: _Bounds) -> None:
        super().__init__()
        self._wire, self._raw, self._bounds = wire, raw, bounds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._wire.settimeout(self._bounds.left_s())
        try:
            read_bytes = int(self._raw.readinto(buffer) or 0)
        except TimeoutError:
            self._bounds.is_too_slow = True
            raise
        self._bounds.count(read_bytes)
        return read_bytes

    def close(self) -> None:
        self._raw.close()
        super().close()


def _response_class(bounds: _Bounds) -> type[http.client.HTTPResponse]:
    class BoundedResponse(http.client.HTTPResponse):
        """Reads an answer within the bounds, and passes over the interim ones before it."""

        def __init__(self, sock: Any, *arguments: Any, **options: Any) -> None:
            super().__init__(sock, *arguments, **options)
            raw: Any = self.fp.detach()
            self.fp = io.BufferedReader(_BoundedReader(sock, raw, bounds))

        def _read_status(self) -> tuple[str, int, str]:
            for _ in range(_MOST_INTERIM_ANSWERS):
                version, status, reason = super()._read_status()  # type: ignore[misc]
                if status not in _INTERIM or status == _SWITCHING_PROTOCOLS:
                    return version, status, reason
                for _ in range(_MOST_HEADER_LINES):
                    if self.fp.readline(_LONGEST_LINE_BYTES) in (b"\r\n", b"\n", b""):
                        break
            raise http.client.BadStatusLine("interim answers without end")

    return BoundedResponse


class _BoundedAdapter(HTTPAdapter):
    """Makes connections whose answers are bounded."""

    def __init__(self, bounds: _Bounds) -> None:
        responses = _response_class(bounds)

        class BoundedHttp(HTTPConnection):
            response_class = responses

            def getresponse(self) -> Any:
                bounds.begin()
                return super().getresponse()

        class BoundedHttps(HTTPSConnection):
            response_class = responses

            def getresponse(self) -> Any:
                bounds.begin()
                return super().getresponse()

        http_pool = type("BoundedHttpPool", (HTTPConnectionPool,), {"ConnectionCls": BoundedHttp})
        https_pool = type("BoundedHttpsPool", (HTTPSConnectionPool,), {"ConnectionCls": BoundedHttps})
        self._pools = {"http": http_pool, "https": https_pool}
        super().__init__()

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        super().init_poolmanager(*arguments, **options)
        self.poolmanager.pool_classes_by_scheme = self._pools

    def proxy_manager_for(self, *arguments: Any, **options: Any) -> Any:
        manager = super().proxy_manager_for(*arguments, **options)
        manager.pool_classes_by_scheme = self._pools
        return manager

    def close(self) -> None:
        """Close the connections now; urllib3 would leave that to the garbage collector."""
        for manager in (self.poolmanager, *self.proxy_manager.values()):
            for key in list(manager.pools.keys()):
                manager.pools[key].close()
        super().close()


def _read(response: requests.Response) -> bytes:
    return b"".join(response.raw.stream(_PIECE_BYTES, decode_content=False))


def _decoded(body: bytes, coding: str) -> bytes:
    """Return a body without its content coding; one that cannot be undone stays. Raises: AnswerTooLong."""
    if coding.strip().lower() not in ("gzip", "x-gzip", "deflate"):
        return body
    for window in (_ANY_FORMAT, _RAW_DEFLATE):
        try:
            plain = zlib.decompressobj(window).decompress(body, LARGEST_ANSWER_BYTES + 1)
        except zlib.error:
            continue
        if len(plain) > LARGEST_ANSWER_BYTES:
            raise AnswerTooLong("the answer is too long once it is decompressed")
        return plain
    return body


def _empty(request: requests.PreparedRequest) -> requests.Response:
    """Return an answer that says nothing, for a library that would read it."""
    response = requests.Response()
    response.status_code, response.request, response.url = 200, request, request.url or ""
    response.headers["Content-Type"] = "application/dicom+json"
    response._content = b"{}"  # noqa: SLF001 requests has no other way to make an answer
    return response
