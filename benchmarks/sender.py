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

from dicomnode.dicom.part10 import read_file_head
from tests.support import wire

_C_STORE, _MESSAGE_ID, _PRIORITY = 0x0001, 0x0110, 0x0700
_LARGEST_PDU = 1_048_576
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
    """An association with all its requests encoded beforehand."""

    def __init__(self, job: dict[str, Any], files: list[Path]) -> None:
        self._wire = socket.create_connection(("127.0.0.1", job["port"]), timeout=_RESPONSE_S)
        self._wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._wire.sendall(
            wire.associate_request(
                calling="BENCH", called=job["called_ae"], abstract=job["sop_class"], transfer=job["transfer_syntax"]
            )
        )
        kind, body = self._receive()
        if kind != wire.ACCEPTED:
            sys.exit("the association was refused")
        most = _largest_pdu(body) - 6
        self._requests = [_request(number, file.read_bytes(), most) for number, file in enumerate(files, start=1)]
        self.done = False

    def send(self) -> None:
        for request in self._requests:
            self._wire.sendall(request)
            kind, body = self._receive()
            if kind != wire.P_DATA or _status(body) != 0:
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


def _largest_pdu(accept: bytes) -> int:
    at = accept.find(bytes.fromhex("51000004"))
    most = int.from_bytes(accept[at + 4 : at + 8], "big")
    return most if 0 < most < _LARGEST_PDU else _LARGEST_PDU


def _request(number: int, part10: bytes, most: int) -> bytes:
    head = read_file_head(part10)
    more = {_MESSAGE_ID: struct.pack("<H", number), _PRIORITY: bytes(2)}
    command = wire.command(head.sop_class, _C_STORE, sop_instance=head.sop_instance, more=more)
    pdus = [wire.p_data(wire.fragment(command, command=True, last=True))]
    for start in range(head.offset, len(part10), most):
        last = start + most >= len(part10)
        pdus.append(wire.p_data(wire.fragment(part10[start : start + most], command=False, last=last)))
    return b"".join(pdus)


def _status(p_data: bytes) -> int:
    at = p_data.find(struct.pack("<HHL", 0, 0x0900, 2))
    return int.from_bytes(p_data[at + 8 : at + 10], "little")


if __name__ == "__main__":
    main()
