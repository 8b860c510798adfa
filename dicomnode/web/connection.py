"""Bounds on connections to the page: how many there are, and how long a request and an answer may take.

uvicorn bounds the requests that it answers at once, and the pause between two requests of a connection. It does not
bound the wait for the rest of a request, or for a client that does not take its answer. It also does not know a
connection before TLS is agreed on, and such a connection uses a file descriptor, which the rest of the node needs too.
"""

import asyncio
import socket
from collections import Counter
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle
from uvicorn.server import ServerState

MOST_OPEN = 128
"""Connections that are open at once, with and without a request."""
AT_ONCE = 64
"""Connections that the kernel queues. All of them are accepted before one is closed."""
MOST_ANSWERED = 64
"""Requests that are answered at once; further ones get 503."""
MOST_IDLE = 48
"""Connections without a complete request; fewer than MOST_OPEN, so that a request always finds a place."""
REQUEST_S = 20.0
"""The time in which a request has to arrive completely."""
ANSWER_S = 60.0
"""The time in which a client has to take what was sent."""


class BoundedListener(socket.socket):
    """A listening socket that bounds the open connections.

    Beyond the bound it closes the oldest connection of the address that has the most. uvicorn's event loop accepts
    connections from it, so it is a socket.
    """

    _inside: tuple[tuple[socket.socket, str], ...] = ()

    def accept(self) -> tuple[socket.socket, Any]:
        """Accept a connection, and close another one if there are too many."""
        wire, address = super().accept()
        inside = [(connection, whose) for connection, whose in self._inside if connection.fileno() != -1]
        inside.append((wire, str(address[0])))
        if len(inside) > MOST_OPEN:
            inside.remove(leaving := _oldest_connection(inside))
            _end(leaving[0])
        self._inside = tuple(inside)
        return wire, address


def _oldest_connection(inside: list[tuple[socket.socket, str]]) -> tuple[socket.socket, str]:
    """Return the oldest of the address with the most."""
    count = Counter(whose for _, whose in inside)
    return max(inside, key=lambda connection: count[connection[1]])


def _end(wire: socket.socket) -> None:
    """Close a connection in both directions; its reader finds the end of the stream."""
    try:
        wire.shutdown(socket.SHUT_RDWR)
    except OSError:  # the other side was quicker
        return


class BoundedConnection(H11Protocol):
    """A connection whose requests must be complete within `REQUEST_S`, and whose answers must be taken in `ANSWER_S`.

    The time of the first request counts from the beginning of the connection, that of others from their first byte.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        """Take the arguments that uvicorn gives to every connection."""
        super().__init__(config, server_state, app_state, _loop)
        self._deadline: asyncio.TimerHandle | None = None
        self._patience: asyncio.TimerHandle | None = None
        self._idle_since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for a request; if too many connections wait, close one of them."""
        super().connection_made(transport)
        self._idle_since = self.loop.time()
        self._watch()
        idle = [
            connection
            for connection in self.connections
            if isinstance(connection, BoundedConnection) and connection.is_idle
        ]
        if len(idle) > MOST_IDLE:
            _least_deserving(idle).give_up()

    def data_received(self, data: bytes) -> None:
        """Take some bytes of a request."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """Count the connection as idle until its next request."""
        self._idle_since = self.loop.time()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """Wait for the client to take what was sent, for a limited time."""
        super().pause_writing()
        self._patience = self.loop.call_later(ANSWER_S, self.give_up)

    def resume_writing(self) -> None:
        """Continue to send."""
        if self._patience is not None:
            self._patience.cancel()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the timers of a connection that has ended."""
        for timer in (self._deadline, self._patience):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    @property
    def is_idle(self) -> bool:
        """Whether there is no complete request to answer."""
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is None or cycle.response_complete or cycle.more_body

    @property
    def idle_since(self) -> float:
        """Since when it has been idle, on the loop's clock."""
        return self._idle_since

    @property
    def address(self) -> str:
        """The address of the client."""
        return self.client[0] if self.client is not None else ""

    def give_up(self) -> None:
        """Close at once, without sending the rest, and free the place."""
        self.connections.discard(self)
        self.transport.abort()

    def _watch(self) -> None:
        """Set or cancel the deadline, so that there is one exactly while a request arrives."""
        is_due = self.is_idle and not self.transport.is_closing()
        if is_due and self._deadline is None:
            self._deadline = self.loop.call_later(REQUEST_S, self.give_up)
        elif not is_due and self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def _least_deserving(idle: list[BoundedConnection]) -> BoundedConnection:
    """Return the connection that has been idle for longest, of the address with the most."""
    count = Counter(connection.address for connection in idle)
    return min(idle, key=lambda connection: (-count[connection.address], connection.idle_since))
