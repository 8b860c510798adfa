"""An association acceptor of bare sockets, which answers the node's requests with what it is told to."""

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO

from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset

from dicomnode.domain.delivery import Destination
from tests.support.wire import P_DATA, REQUEST, associate_accept, command, fragment, p_data

RELEASE, RELEASED = 5, 6
Respond = Callable[[Dataset], bytes]
"""Given the command set of a request: the bytes that answer it."""


def response(request: Dataset, *, status: int = 0, more: dict[int, bytes] | None = None) -> bytes:
    """Return a response to a request, with the elements of group 0000 in `more`."""
    values = {0x0120: struct.pack("<H", request.MessageID), 0x0800: b"\1\1", 0x0900: struct.pack("<H", status)}
    uid = str(request.AffectedSOPInstanceUID) if "AffectedSOPInstanceUID" in request else ""
    encoded = command(
        str(request.AffectedSOPClassUID),
        request.CommandField | 0x8000,
        sop_instance=uid,
        more={**values, **(more or {})},
        without=(0x0110,),
    )
    return p_data(fragment(encoded, command=True, last=True))


@contextmanager
def accepting(
    answer: bytes | Callable[[int], bytes] | None = None, respond: Respond = response
) -> Iterator[tuple[Destination, list[Dataset]]]:
    """Answer every association request with these bytes, and every request with what `respond` returns.

    `answer` may be called with the number of the association. The list grows by the command set of each request.
    """
    heard: list[Dataset] = []
    choose = answer if callable(answer) else lambda _: answer or associate_accept()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = threading.Thread(target=_serve_all, args=(listener, choose, respond, heard), daemon=True)
        serving.start()
        yield Destination(name="peer", ae_title="PEER", host="127.0.0.1", port=listener.getsockname()[1]), heard
        listener.shutdown(socket.SHUT_RDWR)
        serving.join(60)


def _serve_all(listener: socket.socket, choose: Callable[[int], bytes], respond: Respond, heard: list[Dataset]) -> None:
    with contextlib.suppress(OSError):
        for number in range(1000):
            wire, _ = listener.accept()
            with wire, contextlib.suppress(OSError):
                _serve(wire, choose(number), respond, heard)


def _serve(wire: socket.socket, answer: bytes, respond: Respond, heard: list[Dataset]) -> None:
    command_set = b""
    while (pdu := _pdu(wire))[:1] not in (b"", b"\7"):
        if pdu[0] == REQUEST:
            wire.sendall(answer)
        elif pdu[0] == RELEASE:
            wire.sendall(struct.pack(">BBLL", RELEASED, 0, 4, 0))
        for is_command, is_last, data in _fragments(pdu[6:]) if pdu[0] == P_DATA else ():
            command_set += data if is_command else b""
            if is_command and is_last:
                heard.append(read_dataset(BytesIO(command_set), is_implicit_VR=True, is_little_endian=True))
                command_set = b""
            if is_last and is_command == (heard[-1].CommandDataSetType == 0x0101):
                wire.sendall(respond(heard[-1]))


def _pdu(wire: socket.socket) -> bytes:
    header = wire.recv(6, socket.MSG_WAITALL)
    return header + wire.recv(struct.unpack(">BBL", header)[2], socket.MSG_WAITALL) if len(header) == 6 else b""


def _fragments(body: bytes) -> Iterator[tuple[bool, bool, bytes]]:
    position = 0
    while position < len(body):
        end = position + 4 + int.from_bytes(body[position : position + 4], "big")
        yield bool(body[position + 5] & 1), bool(body[position + 5] & 2), body[position + 6 : end]
        position = end
