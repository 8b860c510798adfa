"""A sender that costs next to nothing: whole C-STORE requests encoded beforehand, the same for every receiver.

Run as a process of its own: `python -m benchmarks.sender JOB.json` prints when the first byte went and when the last
response came; it is JSON of `port`, `called_ae`, `sop_class`, `transfer_syntax`, and `files` for each association.
Source: PS3.8 9.3 (PDUs), PS3.7 9.3.1 (C-STORE), both in their smallest form.
"""

import json
import socket
import struct
import sys
import threading
import time
from pathlib import Path
from typing import Any

from dicomnode.net.part10 import read_file_head

_CONTEXT = 1
_LARGEST_PDU = 1_048_576
_SMALLEST_FRAGMENT = 4096
_RESPONSE_S = 120


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    associations = [Sender(job, [Path(file) for file in files]) for files in job["files"]]
    threads = [threading.Thread(target=association.send) for association in associations]
    began = time.time()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ended = time.time()
    if not all(association.done for association in associations):
        sys.exit("the receiver refused or failed")
    print(began, ended)
    for association in associations:
        association.release()


class Sender:
    """One association; everything that it is to send lies ready when this returns."""

    def __init__(self, job: dict[str, Any], files: list[Path]) -> None:
        self._wire = socket.create_connection(("127.0.0.1", job["port"]), timeout=_RESPONSE_S)
        self._wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._wire.sendall(_associate_request(job["called_ae"], job["sop_class"], job["transfer_syntax"]))
        kind, body = self._receive()
        if kind != 2:
            sys.exit("the association was refused")
        fragment = _largest_pdu(body) - 6
        self._requests = [_request(number, file.read_bytes(), fragment) for number, file in enumerate(files, start=1)]
        self.done = False

    def send(self) -> None:
        for request in self._requests:
            self._wire.sendall(request)
            kind, body = self._receive()
            if kind != 4 or _status(body) != 0:
                return
        self.done = True

    def release(self) -> None:
        self._wire.sendall(bytes.fromhex("05000000000400000000"))
        self._receive()
        self._wire.close()

    def _receive(self) -> tuple[int, bytes]:
        header = self._exactly(6)
        return header[0], self._exactly(int.from_bytes(header[2:], "big"))

    def _exactly(self, count: int) -> bytes:
        read = b""
        while len(read) < count:
            more = self._wire.recv(count - len(read))
            if not more:
                sys.exit("the receiver closed the connection")
            read += more
        return read


def _associate_request(called_ae: str, sop_class: str, transfer_syntax: str) -> bytes:
    context = struct.pack(">BBBB", _CONTEXT, 0, 0, 0) + _item(0x30, sop_class) + _item(0x40, transfer_syntax)
    user = _item(0x51, struct.pack(">L", 16384)) + _item(0x52, "1.2.826.0.1.3680043.9.9999.1")
    items = _item(0x10, "1.2.840.10008.3.1.1.1") + _item(0x20, context) + _item(0x50, user)
    body = struct.pack(">HH16s16s32x", 1, 0, called_ae.ljust(16).encode(), b"BENCH".ljust(16)) + items
    return struct.pack(">BBL", 1, 0, len(body)) + body


def _item(kind: int, value: str | bytes) -> bytes:
    encoded = value.encode() if isinstance(value, str) else value
    return struct.pack(">BBH", kind, 0, len(encoded)) + encoded


def _largest_pdu(accept: bytes) -> int:
    at = accept.find(bytes.fromhex("51000004"))
    most = int.from_bytes(accept[at + 4 : at + 8], "big")
    return most if 0 < most < _LARGEST_PDU else _LARGEST_PDU


def _request(number: int, part10: bytes, fragment: int) -> bytes:
    head = read_file_head(part10)
    command = _command(number, head.sop_class, head.sop_instance)
    data = memoryview(part10)[head.offset :]
    pdus = [_p_data(command, 0x03)]
    for start in range(0, len(data), fragment):
        last = start + fragment >= len(data)
        pdus.append(_p_data(data[start : start + fragment], 0x02 if last else 0x00))
    return b"".join(pdus)


def _p_data(fragment: bytes | memoryview, control: int) -> bytes:
    return struct.pack(">BBLLBB", 4, 0, len(fragment) + 6, len(fragment) + 2, _CONTEXT, control) + bytes(fragment)


def _command(number: int, sop_class: str, sop_instance: str) -> bytes:
    elements = (
        _element(0x0002, _even(sop_class)),
        _element(0x0100, struct.pack("<H", 0x0001)),
        _element(0x0110, struct.pack("<H", number)),
        _element(0x0700, struct.pack("<H", 0)),
        _element(0x0800, struct.pack("<H", 0x0001)),
        _element(0x1000, _even(sop_instance)),
    )
    body = b"".join(elements)
    return _element(0x0000, struct.pack("<L", len(body))) + body


def _element(number: int, value: bytes) -> bytes:
    return struct.pack("<HHL", 0, number, len(value)) + value


def _even(uid: str) -> bytes:
    return uid.encode() + b"\x00" * (len(uid) % 2)


def _status(p_data: bytes) -> int:
    at = p_data.find(struct.pack("<HHL", 0, 0x0900, 2))
    return int.from_bytes(p_data[at + 8 : at + 10], "little")


if __name__ == "__main__":
    main()
