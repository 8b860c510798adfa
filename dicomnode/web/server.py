"""The HTTP server, on a thread of its own beside the node's other loops."""

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
    """Serves an application at the configured address from `start` to `stop`."""

    def __init__(
        self, app: ASGIApp, settings: HttpSettings, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        """Take an application; nothing is opened yet. `clock` tells whether a certificate expires soon."""
        self._settings, self._clock = settings, clock
        self._config = uvicorn.Config(
            app,
            http=BoundedConnection,
            ws="none",
            loop="asyncio",
            lifespan="off",
            log_config=None,
            access_log=False,  # addresses would be in it, and what was searched for
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
        """The port that was taken, or is to be."""
        return self._settings.port if self._socket is None else int(self._socket.getsockname()[1])

    @property
    def url(self) -> str:
        """Where the page is, once it is served."""
        host = f"[{self._settings.bind}]" if ":" in self._settings.bind else self._settings.bind
        return f"{'https' if self._settings.certificate else 'http'}://{host}:{self.port}/"

    @property
    def certificate(self) -> ServedCertificate | None:
        """The certificate that browsers are shown, if there is one."""
        return self._renewed.served() if self._renewed is not None else None

    def open(self) -> None:
        """Take the port, and read the certificate.

        Raises: AddressUnavailable, ConfigurationError, if either cannot be had.
        """
        # Its messages are of its own life cycle, which the node reports itself.
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
        self._config.load()
        if self._settings.certificate is not None:
            self._renewed = _renewed_context(self._settings, self._clock)
            self._config.ssl = _beginning(self._settings, self._renewed)
        self._socket = _listening(self._settings.bind, self._settings.port)

    def start(self) -> None:
        """Begin to serve what was opened."""
        self._thread = threading.Thread(target=self._run, name="web", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Answer what is being asked, then end."""
        self._server.should_exit = True
        if self._thread is not None:
            self._thread.join(2 * _STOP_S)
        if self._socket is not None:
            self._socket.close()

    def _run(self) -> None:
        self._server.run(sockets=[self._socket] if self._socket is not None else [])


def try_out(settings: HttpSettings) -> str:
    """Open the page as the node would, with its certificate, answer nobody, and return where it was.

    Raises: ConfigurationError.
    """
    server = WebServer(_nobody, settings)
    try:
        server.open()
        return server.url
    finally:
        server.stop()


async def _nobody(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer nothing, since nobody asks."""


def _renewed_context(settings: HttpSettings, clock: Callable[[], datetime]) -> RenewedContext:
    files = tuple(file for file in (settings.certificate, settings.key) if file is not None)
    return RenewedContext(lambda: _page_context(settings), files, clock)


def _beginning(settings: HttpSettings, renewed: RenewedContext) -> ssl.SSLContext:
    """Return what every handshake begins with, to go on with the certificate that is in the files by then."""

    def go_on(handshake: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        handshake.context = renewed.context()

    beginning = _page_context(settings)
    beginning.sni_callback = go_on  # called whether a name is asked for or not
    return beginning


def _page_context(settings: HttpSettings) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    # A session would outlive the certificate that it was begun with.
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
