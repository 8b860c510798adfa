"""Large objects are written from the socket straight to the store, past pynetdicom, which would copy them six times.

The library sees the command, the first part of the data set, and its last fragment. The fragments between are written
to the store. This is done only for a C-STORE request whose data set names the same object as its command, in PDUs of
one fragment each. Every other object takes the ordinary path through the library, and is checked there.
"""

from collections.abc import Callable
from io import BytesIO
from typing import Any, Protocol

from dicomnode.dicom.part10 import part10_bytes, read_ref
from dicomnode.domain.errors import UnreadableObject
from dicomnode.domain.instance import InstanceRef

SMALLEST_BYTES = 524_288
"""Smaller objects gain nothing: writing one takes less time than starting a thread."""
# PS3.8 9.3.5.1: length, context and control of the one fragment; PS3.8 E.2: of a data set, and not its last.
_PDV_HEADER_BYTES = 6
_AMID_DATA_SET = 0x00


class StreamedObject(Protocol):
    """An object that is stored while it is received."""

    def write(self, piece: bytes | memoryview) -> None:
        """Take the next piece."""

    def abandon(self) -> None:
        """Stop storing it, unless it is complete."""

    def discard(self) -> None:
        """Remove its bytes, unless it was accepted."""


class Tail(BytesIO):
    """The last fragment of a data set, which the library takes for all of it; the others were written to `arriving`."""

    def __init__(self, ref: InstanceRef, arriving: StreamedObject, diverted: int) -> None:
        super().__init__()
        self.ref, self.arriving, self.streamed_bytes = ref, arriving, diverted


def streamed_bytes(data_set: object) -> int:
    """Return how many bytes of a data set were written past the library."""
    return data_set.streamed_bytes if isinstance(data_set, Tail) else 0


class ObjectStream:
    """The streamed objects of one connection: used by the thread that reads it, ended by the one that closes it."""

    def __init__(self, begin: Callable[[], StreamedObject]) -> None:
        self._begin = begin
        self._refused: Any = None
        self._tails: list[Tail] = []

    def wants(self, association: Any) -> bool:
        """Tell whether the next PDU of an association may be taken past the library."""
        message = association.dimse.message
        if message is None or type(message).__name__ != "C_STORE_RQ" or message is self._refused:
            return False
        if association.dul.state_machine.current_state != "Sta6":  # PS3.8 9.2: ready for data transfer
            return False
        if isinstance(message.data_set, Tail):
            # The library took a fragment that was not the last; streaming those behind it would change their order.
            return message.data_set.tell() == 0
        return message.data_set.tell() >= SMALLEST_BYTES and self._divert_from(association, message)

    def take(self, message: Any, body: bytearray) -> bool:
        """Store the fragment in a P-DATA PDU and tell so, or leave it to the library."""
        if len(body) < _PDV_HEADER_BYTES or int.from_bytes(body[:4], "big") + 4 != len(body):
            return False
        if body[4] != message.context_id or body[5] != _AMID_DATA_SET:
            return False
        tail = message.data_set
        tail.arriving.write(memoryview(body)[_PDV_HEADER_BYTES:])
        tail.streamed_bytes += len(body) - _PDV_HEADER_BYTES
        return True

    def end(self) -> None:
        """Stop storing the objects that are not complete: the connection has ended."""
        for tail in self._tails:
            tail.arriving.abandon()

    def _divert_from(self, association: Any, message: Any) -> bool:
        """Begin to stream a message, if its first part can be read and agrees with the command."""
        head, command = message.data_set.getvalue(), message.command_set
        try:
            syntax = str(association._accepted_cx[message.context_id].transfer_syntax[0])  # noqa: SLF001
            ref = read_ref(head, syntax)
        except (UnreadableObject, KeyError):
            self._refused = message
            return False
        if (ref.sop_class, ref.sop_instance) != (
            command.get("AffectedSOPClassUID"),
            command.get("AffectedSOPInstanceUID"),
        ):
            self._refused = message
            return False
        tail = Tail(ref, self._begin(), len(head))
        start = part10_bytes(head, sop_class=ref.sop_class, sop_instance=ref.sop_instance, transfer_syntax=syntax)
        tail.arriving.write(start)
        # Of earlier ones nothing is left to be given up, but for the one that is being answered.
        self._tails = [*self._tails[-2:], tail]
        message.data_set = tail
        return True
