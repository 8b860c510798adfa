"""The HTTP server of the page, on a thread of its own."""

import logging
import socket
import ssl
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from dicomnode.certificates import RenewedContext, ServedCertificate, load_certificate
from dicomnode.domain.errors import AddressUnavailable, ConfigurationError
from dicomnode.settings.http import HttpSettings
from dicomnode.web.connection import AT_ONCE, MOST_ANSWERED, BoundedConnection, BoundedListener

log = logging.getLogger(__name__)

_STOP_S = 5


class WebServer:
    """Serves an application at the configured address, from `start` to `stop`."""

    def __init__(
        self, app: ASGIApp, settings: HttpSettings, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        """Take an application, without opening anything. `clock` tells whether a certificate expires soon."""
        self._settings, self._clock = settings, clock
        self._config = uvicorn.Config(
            app,
            http=BoundedConnection,
            ws="none",
            loop="asyncio",
            lifespan="off",
            log_config=None,
            access_log=False,  # it would hold addresses, and UIDs of studies that were looked at
            proxy_headers=False,
            server_header=False,
            limit_concurrency=MOST_ANSWERED,
            backlog=AT_ONCE,
            timeout_keep_alive=15,
            timeout_graceful_shutdown=_STOP_S,
            h11_max_incomplete_event_size=32_768,
        )
        self._server = uvicorn.Server(self._config)
        self._renewed: RenewedContext | None = None
        self._socket: socket.socket | None = None
        self._thread: threading.Thread | None = None

    @property
    def port(self) -> int:
        """The port that is listened on; before `open`, the configured one."""
        return self._settings.port if self._socket is None else int(self._socket.getsockname()[1])

    @property
    def url(self) -> str:
        """The address of the page."""
        host = f"[{self._settings.bind}]" if ":" in self._settings.bind else self._settings.bind
        return f"{'https' if self._settings.certificate else 'http'}://{host}:{self.port}/"

    @property
    def certificate(self) -> ServedCertificate | None:
        """The certificate that is served; None without TLS."""
        return self._renewed.served() if self._renewed is not None else None

    def open(self) -> None:
        """Listen on the port, and read the certificate.

        Raises: AddressUnavailable for the port, ConfigurationError for the certificate.
        """
        # uvicorn's messages tell of starts and stops, which the node logs itself.
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
        self._config.load()
        if self._settings.certificate is not None:
            self._renewed = _renewed_context(self._settings, self._clock)
            self._config.ssl = _beginning(self._settings, self._renewed)
        self._socket = _listening(self._settings.bind, self._settings.port)

    def start(self) -> None:
        """Serve on the opened port."""
        self._thread = threading.Thread(target=self._run, name="web", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Answer the requests in progress, then end."""
        self._server.should_exit = True
        if self._thread is not None:
            self._thread.join(2 * _STOP_S)
        if self._socket is not None:
            self._socket.close()

    def _run(self) -> None:
        self._server.run(sockets=[self._socket] if self._socket is not None else [])


def try_out(settings: HttpSettings) -> str:
    """Open the page as the node would, close it again without answering anybody, and return its address.

    Raises: ConfigurationError.
    """
    server = WebServer(_nobody, settings)
    try:
        server.open()
        return server.url
    finally:
        server.stop()


async def _nobody(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer nothing: the port is closed before anybody could ask."""


def _renewed_context(settings: HttpSettings, clock: Callable[[], datetime]) -> RenewedContext:
    files = tuple(file for file in (settings.certificate, settings.key) if file is not None)
    return RenewedContext(lambda: _page_context(settings), files, clock)


def _beginning(settings: HttpSettings, renewed: RenewedContext) -> ssl.SSLContext:
    """Return the context that handshakes begin with; each continues with the certificate that is in the files then."""

    def go_on(handshake: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        handshake.context = renewed.context()

    beginning = _page_context(settings)
    beginning.sni_callback = go_on  # OpenSSL calls it even if the client names no host
    return beginning


def _page_context(settings: HttpSettings) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    # A resumed session would keep the former certificate.
    context.num_tickets = 0
    context.options |= ssl.OP_NO_TICKET
    try:
        load_certificate(context, settings.certificate or Path(), settings.key)
    except ConfigurationError as error:
        raise ConfigurationError(f"http.certificate or http.key cannot be used: {error}") from error
    return context


def _listening(bind: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(bind, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        opened = BoundedListener(family, socket.SOCK_STREAM)
    except OSError as error:
        raise AddressUnavailable(f"http.bind = {bind!r} is no address of this machine: {error.strerror}") from error
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
        opened.listen(AT_ONCE)
    except OSError as error:
        opened.close()
        raise AddressUnavailable(
            f"the web page cannot have {bind}:{port}: {error.strerror}. Give it another address (--http HOST:PORT, or "
            "http.bind and http.port), or switch it off (--http off, or http.enabled = false)"
        ) from error
    return opened
