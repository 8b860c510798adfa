"""Requests with any command set over a bare association, and their responses."""

import socket
from io import BytesIO

from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset

from dicomnode.dicom.part10 import read_file_head
from tests.support.wire import P_DATA, answered, command, fragment, p_data, push


def exchange(wire: socket.socket, request: bytes, data: bytes | None) -> Dataset:
    """Send a request, with its data set if it has one, and return the response's command set."""
    push(wire, p_data(fragment(request, command=True, last=True)))
    for start in range(0, len(data or b""), 16_000):
        part = (data or b"")[start : start + 16_000]
        push(wire, p_data(fragment(part, command=False, last=start + 16_000 >= len(data or b""))))
    answer = answered(wire)
    assert answer[:1] == bytes([P_DATA])
    return read_dataset(BytesIO(answer[12:]), is_implicit_VR=True, is_little_endian=True)


def store(part10: bytes, *, without: tuple[int, ...] = (), **more: bytes) -> bytes:
    """Return the command that stores an object, with other values where `more` has some, by name of the element."""
    values = {int(name[1:], 16): value for name, value in more.items()}
    head = read_file_head(part10)
    values = {0x0700: b"\0\0", **values}
    return command(head.sop_class, 0x0001, sop_instance=head.sop_instance, more=values, without=without)
