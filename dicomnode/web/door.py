"""The socket at which the page listens: it lets in so many connections, and no more, whatever they do.

The HTTP server knows a connection when TLS is agreed on; one that never gets there holds a descriptor until then, and
descriptors are what the rest of the node needs too.
"""

import socket
from collections import Counter
from typing import Any

MOST_OPEN = 128
"""Twice as many as are answered at once."""
AT_ONCE = 64
"""Connections that wait to be let in, all of which are let in before any is ended."""


class Door(socket.socket):
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
            inside.remove(leaving := _least_deserving(inside))
            _end(leaving[0])
        self._inside = tuple(inside)
        return wire, address


def _least_deserving(inside: list[tuple[socket.socket, str]]) -> tuple[socket.socket, str]:
    """Return the oldest of the address with the most."""
    count = Counter(whose for _, whose in inside)
    return max(inside, key=lambda one: count[one[1]])


def _end(wire: socket.socket) -> None:
    """Have whoever reads from a connection find its end."""
    try:
        wire.shutdown(socket.SHUT_RDWR)
    except OSError:  # the other side was quicker
        return
