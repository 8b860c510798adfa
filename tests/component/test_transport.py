"""The node's end of a connection, below pynetdicom."""

import contextlib
import socket
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from dicomnode.net.dimse.transport import BoundedSocket, Limits

RELEASE_REQUEST = bytes.fromhex("05000000000400000000")


@pytest.fixture
def connection() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Return both ends of a connection over TCP."""
    with contextlib.ExitStack() as opened:
        listener = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
        there = opened.enter_context(socket.create_connection(listener.getsockname(), timeout=60))
        here, _ = listener.accept()
        yield opened.enter_context(here), there


@pytest.mark.skipif(not hasattr(socket, "TCP_QUICKACK"), reason="this system cannot be told to acknowledge at once")
def test_the_first_piece_of_a_pdu_is_acknowledged_at_once(connection: tuple[socket.socket, socket.socket]) -> None:
    here, there = connection
    bounded = BoundedSocket.adopting(
        SimpleNamespace(socket=here), Limits(pdu_bytes=1, object_bytes=1, associate_s=60, pdu_s=60)
    )
    here.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
    there.sendall(RELEASE_REQUEST)
    assert bounded.recv(6) == RELEASE_REQUEST[:6]
    assert here.getsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK) == 1
