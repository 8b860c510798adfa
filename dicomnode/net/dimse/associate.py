"""The PDUs that open and end an association, read as tolerantly as PS3.8 asks, and rewritten for the library.

pynetdicom 3.0 refuses items that it does not know, compares the whole protocol version, and its threads die of values
that the standard reserves. So the node reads these PDUs itself and hands on their meaning alone: what PS3.8 says is to
be ignored is left out, titles and names are in ASCII, every field has a value that the library knows. What no tolerance
helps is `InvalidPdu`.
Source: PS3.8 9.3.1 to 9.3.4 and 9.3.8; PS3.7 D.3.3.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from dicomnode.domain.errors import Permanent
from dicomnode.net.dimse.pdu import Pdu

# PS3.8 9.3.2 and 9.3.3, PS3.7 D.3.3: types of items and sub-items.
_APPLICATION_CONTEXT, _CONTEXT_RQ, _CONTEXT_AC, _USER_INFORMATION = 0x10, 0x20, 0x21, 0x50
_ABSTRACT_SYNTAX, _TRANSFER_SYNTAX = 0x30, 0x40
_MAXIMUM_LENGTH, _IMPLEMENTATION_CLASS, _ROLE_SELECTION, _IMPLEMENTATION_VERSION = 0x51, 0x52, 0x54, 0x55

# PS3.7 A.2.1: the DICOM application context.
_DICOM_APPLICATION = "1.2.840.10008.3.1.1.1"
_FIXED = struct.Struct(">HH16s16s32s")
_TITLE_BYTES = 16
_UID = re.compile(r"[0-9.]{1,64}")
# No SOP class and no transfer syntax is called so: a context that names something unreadable is answered as unknown.
_UNKNOWN_UID = "0.0"
_IMPLICIT_VR = "1.2.840.10008.1.2"
# For a peer that does not tell, though it has to: every implementation takes PDUs of this length.
_USUAL_PDU_BYTES = 16_384
SMALLEST_PEER_PDU_BYTES = 128
"""A peer that takes fewer bytes than a command set needs cannot be spoken to."""

# PS3.8 Table 9-18: acceptance, user rejection, no reason, abstract syntax, transfer syntaxes not supported.
_ACCEPTED, _NO_REASON, _SYNTAX_NOT_SUPPORTED = 0, 2, 4
# PS3.8 Table 9-21: the reasons that pynetdicom knows, and result, source and reason for what it does not know.
_KNOWN_REASONS = frozenset({1, 2, 3, 7})
_SOURCES = frozenset({1, 2, 3})
_REJECTED_PERMANENT, _REJECTED_TRANSIENT = 1, 2
_BY_USER, _NO_REASON_GIVEN = 1, 1
# PS3.8 Table 9-26.
_ABORT_BY_USER, _ABORT_BY_PROVIDER = 0, 2
_ABORT_REASONS = frozenset({0, 1, 2, 4, 5, 6})


class InvalidPdu(Permanent):
    """A PDU of association establishment that breaks the standard so that no meaning is left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AssociateRequest:
    """An A-ASSOCIATE-RQ: who calls whom, and the whole PDU as the library reads it.

    The titles are as the peer wrote them, in UTF-8 or Latin-1; the PDU has their ASCII form.
    """

    calling_ae: str
    called_ae: str
    is_version_supported: bool
    is_dicom: bool
    pdu: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """An A-ASSOCIATE-RJ as the peer sent it. Source: PS3.8 Table 9-21."""

    result: int
    source: int
    reason: int

    @property
    def is_permanent(self) -> bool:
        """Whether it is of no use to ask again.

        Congestion and limits (source 3) pass, even where a peer calls the rejection permanent.
        """
        return self.result == _REJECTED_PERMANENT and self.source != max(_SOURCES)

    def pdu(self) -> bytes:
        """Return it with values that the library knows."""
        result = _REJECTED_PERMANENT if self.is_permanent else _REJECTED_TRANSIENT
        source = self.source if self.source in _SOURCES else _BY_USER
        reason = self.reason if self.reason in _KNOWN_REASONS else _NO_REASON_GIVEN
        return struct.pack(">BBLBBBB", Pdu.ASSOCIATE_RJ, 0, 4, 0, result, source, reason)


def reject_pdu(result: int, source: int, reason: int) -> bytes:
    """Return an A-ASSOCIATE-RJ."""
    return struct.pack(">BBLBBBB", Pdu.ASSOCIATE_RJ, 0, 4, 0, result, source, reason)


def read_request(body: bytes | bytearray) -> AssociateRequest:
    """Read the body of an A-ASSOCIATE-RQ.

    Raises: InvalidPdu, which says what is wrong in words that the peer did not choose.
    """
    version, called, calling = _fixed_fields(body)
    called_ae, calling_ae = _title(called, "called"), _title(calling, "calling")
    applications: list[str] = []
    contexts: dict[int, bytes] = {}
    user = _UserInformation()
    for kind, data in _items(body[_FIXED.size :]):
        if kind == _APPLICATION_CONTEXT:
            applications.append(_uid(data))
        elif kind == _CONTEXT_RQ:
            context_id, item = _requested_context(data)
            if context_id in contexts:
                raise InvalidPdu(f"presentation context {context_id} is there twice")
            contexts[context_id] = item
        elif kind == _USER_INFORMATION:
            user.read(data)
    if not contexts:
        raise InvalidPdu("it proposes no presentation context")
    if 0 < user.maximum_length < SMALLEST_PEER_PDU_BYTES:
        raise InvalidPdu(f"the peer takes PDUs of {user.maximum_length} bytes only")
    return AssociateRequest(
        calling_ae=calling_ae,
        called_ae=called_ae,
        # PS3.8 9.3.2: only bit 0 is tested.
        is_version_supported=bool(version & 1),
        is_dicom=applications in ([], [_DICOM_APPLICATION]),
        pdu=_associate_pdu(Pdu.ASSOCIATE_RQ, _ascii(called_ae), _ascii(calling_ae), contexts, user),
    )


def accepted_pdu(body: bytes | bytearray) -> bytes:
    """Return an A-ASSOCIATE-AC as the library reads it, of the body that came.

    Raises: InvalidPdu.
    """
    _fixed_fields(body)
    contexts: dict[int, bytes] = {}
    user = _UserInformation()
    for kind, data in _items(body[_FIXED.size :]):
        if kind == _CONTEXT_AC:
            context_id, item = _answered_context(data)
            # Nobody proposed a context with an even identifier.
            if context_id % 2:
                contexts.setdefault(context_id, item)
        elif kind == _USER_INFORMATION:
            user.read(data)
    # PS3.8 9.3.3: the titles are not tested.
    return _associate_pdu(Pdu.ASSOCIATE_AC, b"", b"", contexts, user)


def read_rejection(body: bytes | bytearray) -> Rejected:
    """Read the body of an A-ASSOCIATE-RJ. Raises: InvalidPdu."""
    if len(body) < 4:
        raise InvalidPdu("the rejection is too short")
    return Rejected(result=body[1], source=body[2], reason=body[3])


def aborted_pdu(body: bytes | bytearray) -> bytes:
    """Return an A-ABORT with a source and a reason that the library knows; one that is too short has none."""
    by_provider = len(body) > 2 and body[2] == _ABORT_BY_PROVIDER
    reason = body[3] if by_provider and len(body) > 3 and body[3] in _ABORT_REASONS else 0
    source = _ABORT_BY_PROVIDER if by_provider else _ABORT_BY_USER
    return struct.pack(">BBLBBBB", Pdu.ABORT, 0, 4, 0, 0, source, reason)


class _UserInformation:
    """What the node heeds of a User Information item; the other sub-items are skipped. Source: PS3.7 D.3.3."""

    def __init__(self) -> None:
        self.maximum_length = _USUAL_PDU_BYTES
        self._kept: list[bytes] = []
        self._roles: dict[str, bytes] = {}

    def read(self, data: bytes) -> None:
        """Read the sub-items. Raises: InvalidPdu."""
        for kind, value in _items(data):
            if kind == _MAXIMUM_LENGTH:
                if len(value) != 4:
                    raise InvalidPdu("the maximum length received is not a number of 32 bits")
                self.maximum_length = int.from_bytes(value, "big")
            elif kind == _IMPLEMENTATION_CLASS and (uid := _uid(value)) != _UNKNOWN_UID:
                self._kept.append(_item(_IMPLEMENTATION_CLASS, uid.encode()))
            elif kind == _IMPLEMENTATION_VERSION and (name := _version_name(value)):
                self._kept.append(_item(_IMPLEMENTATION_VERSION, name))
            elif kind == _ROLE_SELECTION:
                self._read_role(value)

    def encoded(self) -> bytes:
        """Return the item as the library reads it."""
        length = _item(_MAXIMUM_LENGTH, self.maximum_length.to_bytes(4, "big"))
        return _item(_USER_INFORMATION, b"".join([length, *self._kept, *self._roles.values()]))

    def _read_role(self, value: bytes) -> None:
        """Keep a role selection that can be read. Source: PS3.7 D.3.3.4."""
        end = 2 + int.from_bytes(value[:2], "big")
        uid, roles = _uid(value[2:end]), [int(role == 1) for role in value[end : end + 2]]
        # Neither role is no selection.
        if uid != _UNKNOWN_UID and len(roles) == 2 and any(roles):
            encoded = len(uid).to_bytes(2, "big") + uid.encode() + bytes(roles)
            self._roles[uid] = _item(_ROLE_SELECTION, encoded)


def _fixed_fields(body: bytes | bytearray) -> tuple[int, bytes, bytes]:
    """Return protocol version, called and calling AE title."""
    if len(body) < _FIXED.size:
        raise InvalidPdu("it ends before its fixed fields do")
    version, _, called, calling, _ = _FIXED.unpack_from(body)
    return version, called, calling


def _requested_context(data: bytes) -> tuple[int, bytes]:
    """Return the identifier of a proposed presentation context, and its item. Source: PS3.8 9.3.2.2."""
    if len(data) < 4:
        raise InvalidPdu("a presentation context is too short")
    context_id = data[0]
    if context_id % 2 == 0:
        raise InvalidPdu(f"presentation context {context_id}: identifiers are odd")
    abstract: list[str] = []
    transfer: dict[str, None] = {}
    for kind, value in _items(data[4:]):
        if kind == _ABSTRACT_SYNTAX:
            abstract.append(_uid(value))
        elif kind == _TRANSFER_SYNTAX:
            transfer[_uid(value)] = None
    if len(abstract) != 1:
        raise InvalidPdu(f"presentation context {context_id} has {len(abstract)} abstract syntaxes instead of one")
    if not transfer:
        raise InvalidPdu(f"presentation context {context_id} has no transfer syntax")
    syntaxes = [_item(_TRANSFER_SYNTAX, syntax.encode()) for syntax in transfer]
    encoded = b"".join([bytes([context_id, 0, 0, 0]), _item(_ABSTRACT_SYNTAX, abstract[0].encode()), *syntaxes])
    return context_id, _item(_CONTEXT_RQ, encoded)


def _answered_context(data: bytes) -> tuple[int, bytes]:
    """Return the identifier of a presentation context that was answered, and its item. Source: PS3.8 9.3.3.2."""
    if len(data) < 4:
        raise InvalidPdu("a presentation context is too short")
    context_id, result = data[0], data[2]
    syntaxes = [_uid(value) for kind, value in _items(data[4:]) if kind == _TRANSFER_SYNTAX]
    if result > _SYNTAX_NOT_SUPPORTED:
        result = _NO_REASON
    if result == _ACCEPTED and (not syntaxes or syntaxes[0] == _UNKNOWN_UID):
        result = _SYNTAX_NOT_SUPPORTED
    syntax = syntaxes[0] if result == _ACCEPTED else _IMPLICIT_VR
    return context_id, _item(_CONTEXT_AC, bytes([context_id, 0, result, 0]) + _item(_TRANSFER_SYNTAX, syntax.encode()))


def _associate_pdu(
    kind: Pdu, called: bytes, calling: bytes, contexts: dict[int, bytes], user: _UserInformation
) -> bytes:
    fixed = _FIXED.pack(1, 0, called.ljust(_TITLE_BYTES), calling.ljust(_TITLE_BYTES), bytes(32))
    application = _item(_APPLICATION_CONTEXT, _DICOM_APPLICATION.encode())
    body = b"".join([fixed, application, *contexts.values(), user.encoded()])
    return struct.pack(">BBL", kind, 0, len(body)) + body


def _items(data: bytes | bytearray) -> Iterator[tuple[int, bytes]]:
    """Yield type and content of each item or sub-item. Raises: InvalidPdu where one is cut off."""
    position = 0
    while position < len(data):
        start = position + 4
        end = start + int.from_bytes(data[position + 2 : start], "big")
        if start > len(data) or end > len(data):
            raise InvalidPdu(f"an item of type {data[position]:02X}H is longer than what holds it")
        yield data[position], bytes(data[start:end])
        position = end


def _item(kind: int, data: bytes) -> bytes:
    return struct.pack(">BBH", kind, 0, len(data)) + data


def _uid(raw: bytes) -> str:
    """Return a UID without its padding; an unknown UID in place of a value that is not a UID."""
    text = raw.strip(b"\0 ").decode("ascii", errors="replace")
    return text if _UID.fullmatch(text) else _UNKNOWN_UID


def _title(raw: bytes, which: str) -> str:
    """Return an AE title, which peers pad with blanks or with null, and write in Latin-1 or UTF-8.

    Raises: InvalidPdu when it is blank, or has what no AE title may have. Source: PS3.5 6.2.
    """
    title = raw.split(b"\0", 1)[0].strip(b" ")
    if not title:
        raise InvalidPdu(f"the {which} AE title is blank")
    if b"\\" in title or any(byte < 0x20 or byte == 0x7F for byte in title):
        raise InvalidPdu(f"the {which} AE title has control characters or a backslash")
    try:
        text = title.decode("utf-8")
    except UnicodeDecodeError:
        text = title.decode("latin-1")
    return "".join(character if character.isprintable() else "?" for character in text)


def _ascii(title: str) -> bytes:
    return title.encode("ascii", errors="replace")


def _version_name(raw: bytes) -> bytes:
    """Return an implementation version name of at most 16 ASCII characters, whatever came. Source: PS3.7 D.3.3.2.4."""
    text = raw.decode("ascii", errors="replace").replace("\ufffd", "?")
    return (
        "".join(character for character in text if character.isprintable() and character != "\\")[:16].strip().encode()
    )
