"""DICOM's upper layer byte by byte, for peers that send what no library would."""

import socket
import struct

CR = "1.2.840.10008.5.1.4.1.1.1"
COMMITMENT = "1.2.840.10008.1.20.1"
EXPLICIT = "1.2.840.10008.1.2.1"
REQUEST, ACCEPTED, REJECTED, P_DATA, ABORT = 1, 2, 3, 4, 7


def item(kind: int, body: bytes) -> bytes:
    return struct.pack(">BBH", kind, 0, len(body)) + body


def associate_request(
    *,
    calling: str | bytes = "HOSTILE",
    called: str | bytes = "CXRNODE",
    abstract: str = CR,
    transfer: str = EXPLICIT,
    more: bytes = b"",
    role: bool = False,
    version: int = 1,
    application: bytes = b"1.2.840.10008.3.1.1.1",
    contexts: bytes | None = None,
    user: bytes | None = None,
    user_more: bytes = b"",
) -> bytes:
    """Return an A-ASSOCIATE-RQ with one context; `role`: the requestor is the SCP of it.

    `contexts` and `user` replace the items of the contexts and the sub-items of the user; others follow them.
    """
    titles = [(title if isinstance(title, bytes) else title.encode()).ljust(16) for title in (called, calling)]
    contexts = (
        proposed(1, item(0x30, abstract.encode()) + item(0x40, transfer.encode())) if contexts is None else contexts
    )
    user = item(0x51, struct.pack(">L", 16_384)) + item(0x52, b"1.2.3.4") if user is None else user
    if role:
        user += item(0x54, struct.pack(">H", len(abstract)) + abstract.encode() + b"\x00\x01")
    items = (item(0x10, application) if application else b"") + contexts + item(0x50, user + user_more) + more
    body = struct.pack(">HH16s16s32s", version, 0, *titles, bytes(32)) + items
    return struct.pack(">BBL", REQUEST, 0, len(body)) + body


def proposed(context_id: int, syntaxes: bytes) -> bytes:
    """Return the item of a proposed presentation context."""
    return item(0x20, bytes([context_id, 0, 0, 0]) + syntaxes)


def associate_accept(
    *, contexts: bytes | None = None, more: bytes = b"", user_more: bytes = b"", version: int = 1, length: int = 16_384
) -> bytes:
    """Return an A-ASSOCIATE-AC of context 1 in Explicit VR Little Endian, or of `contexts`."""
    contexts = accepted_context(1) if contexts is None else contexts
    user = item(0x51, struct.pack(">L", length)) + item(0x52, b"1.2.3.4") + user_more
    items = item(0x10, b"1.2.840.10008.3.1.1.1") + contexts + item(0x50, user) + more
    body = struct.pack(">HH16s16s32s", version, 0, b"CXRNODE".ljust(16), b"PEER".ljust(16), bytes(32)) + items
    return struct.pack(">BBL", ACCEPTED, 0, len(body)) + body


def accepted_context(context_id: int, transfer: str = EXPLICIT, *, result: int = 0) -> bytes:
    """Return the item of an answered presentation context."""
    return item(0x21, bytes([context_id, 0, result, 0]) + item(0x40, transfer.encode()))


def fragment(data: bytes, *, command: bool, last: bool) -> bytes:
    """Return a presentation data value of context 1."""
    return struct.pack(">LBB", len(data) + 2, 1, command | last << 1) + data


def p_data(*values: bytes) -> bytes:
    body = b"".join(values)
    return struct.pack(">BBL", P_DATA, 0, len(body)) + body


def command(
    sop_class: str,
    field: int,
    *,
    sop_instance: str = "1.2.3",
    more: dict[int, bytes] | None = None,
    without: tuple[int, ...] = (),
) -> bytes:
    """Return a command set that a data set follows, with the elements of group 0000 in `more`."""
    uid, instance = (text.encode() + b"\0" * (len(text) % 2) for text in (sop_class, sop_instance))
    elements = {
        0x0002: uid,
        0x0100: struct.pack("<H", field),
        0x0110: struct.pack("<H", 1),
        0x0800: struct.pack("<H", 1),
        0x1000: instance,
        **(more or {}),
    }
    body = b"".join(
        struct.pack("<HHL", 0, tag, len(value)) + value for tag, value in sorted(elements.items()) if tag not in without
    )
    return struct.pack("<HHLL", 0, 0, 4, len(body)) + body


STORE = command(CR, 0x0001, more={0x0700: b"\0\0"})
REPORT = command(COMMITMENT, 0x0100, sop_instance="1.2.840.10008.1.20.1.1", more={0x1002: b"\1\0"})


def connected(port: int, source: int = 2) -> socket.socket:
    """Connect from 127.0.0.`source`."""
    return socket.create_connection(("127.0.0.1", port), timeout=10, source_address=(f"127.0.0.{source}", 0))


def answer(wire: socket.socket) -> int:
    """Return the type of the PDU that comes back, 0 when the connection ends instead, or nothing comes in time."""
    try:
        return (answered(wire) or b"\0")[0]
    except OSError:
        return 0


def answered(wire: socket.socket) -> bytes:
    """Return the PDU that comes back, nothing when the connection ends instead. Raises: OSError."""
    try:
        header = wire.recv(6, socket.MSG_WAITALL)
        if len(header) < 6:
            return b""
        return header + wire.recv(struct.unpack(">BBL", header)[2], socket.MSG_WAITALL)
    except ConnectionResetError:
        return b""


def associated(port: int, source: int = 2, **request: object) -> socket.socket | None:
    """Return an association's bare socket, or None when it was not accepted."""
    wire = connected(port, source)
    wire.sendall(associate_request(**request))  # type: ignore[arg-type]
    if answer(wire) == ACCEPTED:
        return wire
    wire.close()
    return None


def push(wire: socket.socket, data: bytes, times: int = 1) -> int:
    """Send as often as the node takes it, and return how often that was."""
    for number in range(times):
        try:
            wire.sendall(data)
        except OSError:
            return number
    return times
