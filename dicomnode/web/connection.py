"""The socket at which the page listens: it lets in so many connections, and no more, whatever they do.

The HTTP server knows a connection when TLS is agreed on; one that never gets there holds a descriptor until then, and
descriptors are what the rest of the node needs too.

A connection to the page: how long a request may take to come in, and which one goes when there are too many.

The HTTP server itself bounds how many requests it answers at once, and how long a connection rests between two. But it
waits without end for the rest of a request, and for who does not take an answer; and every connection counts, whether
it asks for something or not. So a few that ask for nothing could keep everybody out.
"""

import asyncio
import socket
from collections import Counter
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle
from uvicorn.server import ServerState

MOST_OPEN = 128
"""Twice as many as are answered at once."""
AT_ONCE = 64
"""Connections that wait to be let in, all of which are let in before any is ended."""


class BoundedListener(socket.socket):
    """A listening socket that ends the oldest connection, of the address with the most, when there are too many.

    It takes part in the server's loop as any socket does, so it is one.
    """

    _inside: tuple[tuple[socket.socket, str], ...] = ()

    def accept(self) -> tuple[socket.socket, Any]:
        """Let a connection in."""
        wire, address = super().accept()
        inside = [(one, whose) for one, whose in self._inside if one.fileno() != -1]
        inside.append((wire, str(address[0])))
        if len(inside) > MOST_OPEN:
            inside.remove(leaving := _oldest_connection(inside))
            _end(leaving[0])
        self._inside = tuple(inside)
        return wire, address


def _oldest_connection(inside: list[tuple[socket.socket, str]]) -> tuple[socket.socket, str]:
    """Return the oldest of the address with the most."""
    count = Counter(whose for _, whose in inside)
    return max(inside, key=lambda one: count[one[1]])


def _end(wire: socket.socket) -> None:
    """Have whoever reads from a connection find its end."""
    try:
        wire.shutdown(socket.SHUT_RDWR)
    except OSError:  # the other side was quicker
        return


MOST_ANSWERED = 64
"""Connections at which whoever asks is told to come later."""
MOST_IDLE = 48
"""Connections that ask for nothing now, or have not asked in full; fewer, so that one that asks finds a place."""
REQUEST_S = 20.0
ANSWER_S = 60.0


class BoundedConnection(H11Protocol):
    """A connection whose every request has to be whole within `REQUEST_S`, and whose answers are to be taken.

    The time counts from when the connection was made, or from the first byte of a later request.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        """Take what the server gives to every connection."""
        super().__init__(config, server_state, app_state, _loop)
        self._deadline: asyncio.TimerHandle | None = None
        self._patience: asyncio.TimerHandle | None = None
        self._idle_since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request; where too many wait, another one goes."""
        super().connection_made(transport)
        self._idle_since = self.loop.time()
        self._watch()
        idle = [one for one in self.connections if isinstance(one, BoundedConnection) and one.is_idle]
        if len(idle) > MOST_IDLE:
            _least_deserving(idle).give_up()

    def data_received(self, data: bytes) -> None:
        """Take some bytes of a request."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """Rest until the next request."""
        self._idle_since = self.loop.time()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """Wait for the client to take what was sent, but not for ever."""
        super().pause_writing()
        self._patience = self.loop.call_later(ANSWER_S, self.give_up)

    def resume_writing(self) -> None:
        """Go on sending."""
        if self._patience is not None:
            self._patience.cancel()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        for timer in (self._deadline, self._patience):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    @property
    def is_idle(self) -> bool:
        """Whether there is no whole request to answer."""
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is None or cycle.response_complete or cycle.more_body

    @property
    def idle_since(self) -> float:
        """Since when it asks for nothing, on the loop's clock."""
        return self._idle_since

    @property
    def address(self) -> str:
        """Whose it is."""
        return self.client[0] if self.client is not None else ""

    def give_up(self) -> None:
        """End now, whatever is still to be sent, and make room at once."""
        self.connections.discard(self)
        self.transport.abort()

    def _watch(self) -> None:
        """See to it that there is a deadline exactly while a request is coming in."""
        is_due = self.is_idle and not self.transport.is_closing()
        if is_due and self._deadline is None:
            self._deadline = self.loop.call_later(REQUEST_S, self.give_up)
        elif not is_due and self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def _least_deserving(idle: list[BoundedConnection]) -> BoundedConnection:
    """Return the connection that has been idle for longest, of the address with the most."""
    count = Counter(one.address for one in idle)
    return min(idle, key=lambda one: (-count[one.address], one.idle_since))
