"""What a hostile peer does with a bare socket, and what it finds afterwards."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from pydicom.uid import ComputedRadiographyImageStorage
from pynetdicom.presentation import build_context

from dicomnode.domain.delivery import Accepted, Destination
from dicomnode.net.scu.storage import send
from tests.support.dimse import EXPLICIT, QUICK, outgoing, requested
from tests.support.make import build, encode


def connect(destination: Destination, *, source: str = "127.0.0.1") -> socket.socket:
    return socket.create_connection((destination.host, destination.port), timeout=5, source_address=(source, 0))


@contextmanager
def association(destination: Destination) -> Iterator[socket.socket]:
    """Establish a real association and yield its bare socket."""
    context = build_context(ComputedRadiographyImageStorage, [EXPLICIT])
    with requested(destination, context, calling_ae="HOSTILE") as established:
        yield established.dul.socket.socket


def closed(wire: socket.socket) -> bool:
    """Tell whether the node has ended the connection."""
    try:
        wire.settimeout(0.05)
        return wire.recv(4096) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


def serves(destination: Destination) -> bool:
    item = outgoing(encode(build("cr", rows=64, columns=64)))
    return send(destination, [item], calling_ae="GOOD", settings=QUICK) == [Accepted()]
