"""Both ends of an association for the network's tests: a remembering inbox, and a peer that misbehaves on demand."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from io import BytesIO
from typing import Any, Self

from pydicom import dcmread
from pydicom import uid as uids
from pynetdicom import AE, evt
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.presentation import PresentationContext, build_context

from dicomnode.dicom.part10 import read_file_head
from dicomnode.domain.delivery import Destination
from dicomnode.domain.identifiers import derive_uid
from dicomnode.domain.instance import AssociationInfo, InstanceRef
from dicomnode.net.scp.server import StorageScp
from dicomnode.net.scu.outgoing import Outgoing
from dicomnode.settings.node import DeliverySettings, ScpSettings
from tests.support.make import build, encode
from tests.support.processes import free_port

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
QUICK = DeliverySettings(connect_timeout_s=2, response_timeout_s=2)
IMPLICIT, EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"


@dataclass
class Received:
    ref: InstanceRef
    transfer_syntax: str
    part10: bytes
    association: AssociationInfo


@dataclass
class MemoryInbox:
    """Remembers what it accepted; `failure` is raised instead, `delay_s` makes it slow, `meeting` is waited for."""

    failure: BaseException | None = None
    delay_s: float = 0.0
    meeting: threading.Barrier | None = None
    received: list[Received] = field(default_factory=list)
    opened: list[str] = field(default_factory=list)
    released: list[str] = field(default_factory=list)
    changes: list[tuple[int, int]] = field(default_factory=list)
    """How many were accepted, and how many associations released, whenever it was said that something changed."""

    def changed(self) -> None:
        self.changes.append((len(self.received), len(self.released)))

    def accept(
        self, ref: InstanceRef, transfer_syntax: str, part10: bytes, association: AssociationInfo, now: datetime
    ) -> object:
        time.sleep(self.delay_s)
        if self.meeting is not None:
            self.meeting.wait()
        if self.failure is not None:
            raise self.failure
        self.received.append(Received(ref, transfer_syntax, part10, association))
        return None

    def association_opened(self, association_id: str, now: datetime) -> None:
        self.opened.append(association_id)

    def association_released(self, association_id: str, now: datetime) -> None:
        self.released.append(association_id)


@contextmanager
def running_scp(
    inbox: Any, reports: Any = None, alert: Any = None, **settings: Any
) -> Iterator[tuple[StorageScp, Destination]]:
    """Run the node's SCP on a free port of the loopback."""
    chosen = ScpSettings(**{"bind": "127.0.0.1", "port": free_port(), "network_timeout_s": 5, **settings})
    numbers = iter(range(1_000_000))
    lock = threading.Lock()

    def identifier() -> str:
        with lock:
            return f"association-{next(numbers)}"

    arriving = getattr(inbox, "arriving", None)
    scp = StorageScp(
        chosen,
        inbox,
        clock=lambda: NOW,
        identifiers=identifier,
        reports=reports,
        alert=alert,
        arriving=arriving,
        changed=getattr(inbox, "changed", lambda: None),
    )
    scp.start()
    try:
        yield scp, Destination(name="node", ae_title=chosen.ae_title, host="127.0.0.1", port=chosen.port)
    finally:
        scp.stop(drain_s=0.2)


def outgoing(part10: bytes) -> Outgoing:
    head = read_file_head(part10)
    return Outgoing(sop_class=head.sop_class, transfer_syntax=head.transfer_syntax, read=lambda: part10)


def data_set_of(part10: bytes) -> bytes:
    return part10[read_file_head(part10).offset :]


class Peer:
    """A Storage SCP of pynetdicom's own; `on_store` returns the status, and may abort or stall."""

    def __init__(
        self,
        sop_classes: dict[str, list[str]],
        *,
        on_store: Callable[[Any], int] = lambda event: 0x0000,
        ae_title: str = "PEER",
        handlers: list[Any] | None = None,
        port: int = 0,
        **attributes: Any,
    ) -> None:
        self.stored: list[bytes] = []
        self.associations = 0
        self._on_store = on_store
        self._wires: list[socket.socket] = []
        self._ae = AE(ae_title=ae_title)
        for name, value in attributes.items():
            setattr(self._ae, name, value)
        contexts = [build_context(sop_class, syntaxes) for sop_class, syntaxes in sop_classes.items()]
        self._server = self._ae.start_server(
            ("127.0.0.1", port),
            block=False,
            contexts=contexts,
            evt_handlers=[
                (evt.EVT_C_STORE, self._store),
                (evt.EVT_ACCEPTED, self._count),
                (evt.EVT_CONN_OPEN, self._note_wire),
                *(handlers or []),
            ],
        )
        chosen = self._server.server_address[1]
        self.destination = Destination(name="peer", ae_title=ae_title, host="127.0.0.1", port=chosen)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ae.shutdown()
        # pynetdicom leaves the socket open when the other side was first to close.
        for wire in self._wires:
            wire.close()

    def _note_wire(self, event: Any) -> None:
        self._wires.append(event.assoc.dul.socket.socket)

    def _count(self, event: Any) -> None:
        self.associations += 1

    def _store(self, event: Any) -> int:
        status = self._on_store(event)
        if status == 0x0000:
            self.stored.append(event.encoded_dataset(include_meta=False))
        return status


def store_request(part10: bytes, **command: Any) -> C_STORE:
    """Return a C-STORE request for an object; `command` changes what the command set says."""
    head = read_file_head(part10)
    request = C_STORE()
    request.MessageID = 1
    request.Priority = 0
    request.AffectedSOPClassUID = command.get("sop_class", head.sop_class)
    request.AffectedSOPInstanceUID = command.get("sop_instance", head.sop_instance)
    request.DataSet = BytesIO(command.get("data_set", part10[head.offset :]))
    return request


@contextmanager
def requested(destination: Destination, *contexts: PresentationContext, calling_ae: str = "SENDER") -> Iterator[Any]:
    """Associate with pynetdicom alone, and leave no socket behind, however the association ends."""
    association = AE(ae_title=calling_ae).associate(
        destination.host, destination.port, contexts=list(contexts), ae_title=destination.ae_title
    )
    assert association.is_established
    wire = association.dul.socket.socket
    try:
        yield association
    finally:
        if association.is_established:
            association.release()
        wire.close()


def send_raw(destination: Destination, part10: bytes, *, calling_ae: str = "SENDER", **command: Any) -> Any:
    """Send an object with pynetdicom, with another command set than its data set asks for; return the response."""
    head = read_file_head(part10)
    context = build_context(command.pop("context", head.sop_class), [head.transfer_syntax])
    with requested(destination, context, calling_ae=calling_ae) as association:
        association._reactor_checkpoint.clear()
        while not association._is_paused:
            time.sleep(0.001)
        association.dimse.send_msg(store_request(part10, **command), association.accepted_contexts[0].context_id)
        _, response = association.dimse.get_msg(block=True)
        association._reactor_checkpoint.set()
    return response


def renamed(part10: bytes, name: str) -> bytes:
    """Return the same object under another SOP Instance UID."""
    ds = dcmread(BytesIO(part10))
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = derive_uid("tests", "renamed", name)
    buffer = BytesIO()
    ds.save_as(buffer)
    return buffer.getvalue()


def report_of(sop_class: str, name: str = "report") -> bytes:
    """Return an object of a report class; its content does not matter to the network."""
    ds = dcmread(BytesIO(encode(build("sc", rows=8, columns=8))))
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = uids.UID(sop_class)
    for keyword in ("PixelData", "Rows", "Columns"):
        delattr(ds, keyword)
    buffer = BytesIO()
    ds.save_as(buffer)
    return renamed(buffer.getvalue(), name)
