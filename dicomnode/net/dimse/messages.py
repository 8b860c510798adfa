"""DIMSE messages of a peer: a request with a bad value is refused, and what is no message ends the association.

pynetdicom 3.0 aborts where a command has one value that it does not take, ignores requests that lack one, and its
thread dies of a fragment that it cannot decode. This module takes its place between the fragments and the requests.
Source: PS3.7 6.3.1 (messages), Annex C (statuses), Annex E (command elements).
"""

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

from pydicom.datadict import keyword_for_tag
from pydicom.multival import MultiValue
from pynetdicom import dimse_primitives, evt
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import _DATASET_KEYWORDS, DIMSEMessage
from pynetdicom.service_class import StorageServiceClass, VerificationServiceClass
from pynetdicom.service_class_n import StorageCommitmentServiceClass
from pynetdicom.sop_class import uid_to_service_class

from dicomnode.dicom.hostile import HOSTILE_DATA_RAISES, quiet
from dicomnode.net.dimse.streaming import Tail
from dicomnode.net.status import CommandStatus, StoreStatus, describe

log = logging.getLogger(__name__)

# What the library does with a message that it cannot decode: A-ABORT (PS3.8 9.2, Evt19).
_INVALID_PDU = "Evt19"
_MOST_CANCELLED = 10
_FAULTS = {
    "AffectedSOPClassUID": CommandStatus.SOP_CLASS_NOT_SUPPORTED,
    "RequestedSOPClassUID": CommandStatus.SOP_CLASS_NOT_SUPPORTED,
    "AffectedSOPInstanceUID": CommandStatus.INVALID_SOP_INSTANCE,
    "RequestedSOPInstanceUID": CommandStatus.INVALID_SOP_INSTANCE,
}
_SERVED = {
    "C_STORE": StorageServiceClass,
    "C_ECHO": VerificationServiceClass,
    "N_EVENT_REPORT": StorageCommitmentServiceClass,
    "N_ACTION": StorageCommitmentServiceClass,
}


class Messages(DIMSEServiceProvider):  # type: ignore[misc]
    """The messages of one association; `refused` is told why a message ended it."""

    message: Any

    def __init__(self, association: Any, refused: Callable[[str], None]) -> None:
        super().__init__(association)
        self._refused = refused

    def receive_primitive(self, primitive: Any) -> None:
        """Take the fragments of a P-DATA PDU, and queue the message that they complete."""
        try:
            with quiet():
                self._receive(primitive)
        except HOSTILE_DATA_RAISES:
            self.message = None
            self._refused("message")
            self.dul.event_queue.put(_INVALID_PDU)

    def _receive(self, fragments: Any) -> None:
        for context_id, data in fragments.presentation_data_value_list:
            message = self.message = self.message or DIMSEMessage()
            one = type(fragments)()
            one.presentation_data_value_list = [[context_id, data]]
            if message.decode_msg(one, self.assoc):
                self._complete(message)

    def _complete(self, message: Any) -> None:
        evt.trigger(self.assoc, evt.EVT_DIMSE_RECV, {"message": message})
        primitive = to_primitive(message)
        self.message = None
        if isinstance(primitive, dimse_primitives.C_CANCEL):
            if len(self.cancel_req) < _MOST_CANCELLED:
                self.cancel_req[primitive.MessageIDBeingRespondedTo] = primitive
        elif _is_report(primitive):
            serve = self.assoc._serve_request  # noqa: SLF001 as the library does
            threading.Thread(target=serve, args=(primitive, message.context_id)).start()
        else:
            self.msg_queue.put((message.context_id, primitive))


def to_primitive(message: Any) -> Any:
    """Return a complete message as the library's primitive, without the values that it does not take.

    `fault` of the primitive is the status that says what is wrong with a request, None when nothing is.
    """
    kind = type(message).__name__
    name, _, direction = kind.rpartition("_")
    primitive = getattr(dimse_primitives, name)()
    refused = [
        keyword
        for tag in tuple(message.command_set.keys())
        if hasattr(primitive, keyword := keyword_for_tag(tag))
        and not _take(primitive, keyword, message.command_set, tag)
    ]
    if kind in _DATASET_KEYWORDS:
        setattr(primitive, _DATASET_KEYWORDS[kind], message.data_set)
    primitive._context_id = message.context_id  # noqa: SLF001 the library's events read it
    primitive.is_request = direction == "RQ"
    primitive.fault = _fault(primitive, refused) if primitive.is_request else None
    return primitive


def failure_of(message: Any, context: Any) -> int | None:
    """Return the status with which a request has to be refused before it is served, None when it may be."""
    if message.fault is not None:
        return int(message.fault)
    served = _SERVED.get(type(message).__name__)
    if served is None:
        return int(CommandStatus.UNRECOGNISED_OPERATION)
    sop_class = getattr(message, "AffectedSOPClassUID", None) or getattr(message, "RequestedSOPClassUID", None)
    if issubclass(uid_to_service_class(sop_class), served):
        return None
    is_object = served is StorageServiceClass and issubclass(uid_to_service_class(context.abstract_syntax), served)
    return int(StoreStatus.DATA_SET_DOES_NOT_MATCH if is_object else CommandStatus.UNRECOGNISED_OPERATION)


def refuse(association: Any, message: Any, context_id: int, status: int) -> None:
    """Answer a request with a failure, and discard what was stored of its object."""
    data_set = getattr(message, "DataSet", None)
    if isinstance(data_set, Tail):
        data_set.arriving.discard()
    response = type(message)()
    # The message that has no identifier is answered as if it were number 0.
    response.MessageIDBeingRespondedTo = message.MessageID or 0
    response.Status = status
    log.warning("request-refused", extra={"request": message.msg_type, "status": describe(status)})
    for keyword in ("AffectedSOPClassUID", "AffectedSOPInstanceUID"):
        if getattr(message, keyword, None) is not None:
            setattr(response, keyword, getattr(message, keyword))
    association.dimse.send_msg(response, context_id)


def _is_report(primitive: Any) -> bool:
    is_report = isinstance(primitive, dimse_primitives.N_EVENT_REPORT)
    return is_report and primitive.is_request and primitive.fault is None


def _fault(request: Any, refused: Sequence[str]) -> CommandStatus | None:
    """Return what is wrong with a request, of which the values of `refused` could not be taken."""
    for keyword in getattr(request, "REQUEST_KEYWORDS", ()):
        if keyword in refused:
            return _FAULTS.get(keyword, CommandStatus.INVALID_ARGUMENT_VALUE)
        if getattr(request, keyword) is None:
            return _FAULTS.get(keyword, CommandStatus.MISTYPED_ARGUMENT)
    return None


def _take(primitive: Any, keyword: str, command: Any, tag: Any) -> bool:
    """Set one value of a command; tell whether it could be."""
    try:
        value = command[tag].value
        if isinstance(value, MultiValue | list) and keyword not in ("OffendingElement", "AttributeIdentifierList"):
            value = value[0]
        setattr(primitive, keyword, value)
    except HOSTILE_DATA_RAISES:
        return False
    return True
