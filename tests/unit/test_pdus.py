"""What is told of a PDU from its bytes, before the library decodes it."""

import struct

import pytest
from pynetdicom.pdu import A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import A_ASSOCIATE, ImplementationClassUIDNotification, MaximumLengthNotification
from pynetdicom.presentation import build_context

from dicomnode.net.contexts import ACCEPTED_STORAGE, ACCEPTED_TRANSFER_SYNTAXES
from dicomnode.net.dimse.pdu import LONGEST_REQUEST_BYTES, Pdu, abort_pdu, is_reasonable, longest, read_header
from tests.support.wire import associate_request, fragment, item, p_data


def largest_honest_request() -> bytes:
    """Return what a requestor sends that proposes 128 contexts with every transfer syntax there is."""
    request = A_ASSOCIATE()
    request.application_context_name = "1.2.840.10008.3.1.1.1"
    request.calling_ae_title, request.called_ae_title = "A", "B"
    length, implementation = MaximumLengthNotification(), ImplementationClassUIDNotification()
    implementation.implementation_class_uid = "1.2.3"
    request.user_information = [length, implementation]
    contexts = [build_context(ACCEPTED_STORAGE[0].uid, [*ACCEPTED_TRANSFER_SYNTAXES] * 2) for _ in range(128)]
    for number, context in enumerate(contexts):
        context.context_id = 2 * number + 1
    request.presentation_context_definition_list = contexts
    return bytes(A_ASSOCIATE_RQ(request).encode())


def test_the_largest_honest_request_is_reasonable() -> None:
    request = largest_honest_request()
    assert len(request) < LONGEST_REQUEST_BYTES
    assert is_reasonable(Pdu.ASSOCIATE_RQ, request[6:])


CONTEXT = item(0x20, b"\x01\x00\x00\x00" + item(0x40, b"") * 9000)
BOMBS = {
    "items": item(0x10, b"") * 30_000,
    "contexts": item(0x20, b"\x01\x00\x00\x00") * 10_000,
    "transfer syntaxes": CONTEXT,
    "user information": item(0x50, item(0x54, b"\0\0\0\0") * 8000) + item(0x50, item(0x54, b"") * 200),
    "several user informations": item(0x50, item(0x54, b"") * 3000) * 3,
}


@pytest.mark.parametrize("more", BOMBS.values(), ids=BOMBS.keys())
def test_a_request_of_too_many_parts_is_not_reasonable(more: bytes) -> None:
    assert not is_reasonable(Pdu.ASSOCIATE_RQ, associate_request(more=more)[6:])


def test_fragments_are_counted() -> None:
    few = p_data(*[fragment(b"x", command=False, last=False)] * 64)
    many = p_data(*[fragment(b"", command=False, last=False)] * 65)
    assert is_reasonable(Pdu.P_DATA, few[6:])
    assert not is_reasonable(Pdu.P_DATA, many[6:])


@pytest.mark.parametrize("body", [b"", b"\0", b"\xff" * 40, bytes(3)], ids=["empty", "cut", "beyond", "short"])
@pytest.mark.parametrize("pdu_type", list(Pdu))
def test_malformed_bodies_are_left_to_the_library(pdu_type: Pdu, body: bytes) -> None:
    assert is_reasonable(pdu_type, body)


def test_zeros_without_end_are_not_walked_to_the_end() -> None:
    assert not is_reasonable(Pdu.P_DATA, bytes(262_144))
    assert not is_reasonable(Pdu.ASSOCIATE_RQ, bytes(131_072))


def test_each_type_has_its_own_longest() -> None:
    assert longest(Pdu.P_DATA, 16_384) == 16_384
    assert longest(Pdu.ASSOCIATE_RQ, 16_384) == LONGEST_REQUEST_BYTES
    assert longest(Pdu.ABORT, 16_384) < 100
    assert longest(0x99, 16_384) < 100


def test_an_abort_is_that_of_the_standard() -> None:
    assert abort_pdu(2) == struct.pack(">BBLBBBB", 7, 0, 4, 0, 0, 2, 2)
    assert read_header(abort_pdu(2)[:6]) == (7, 4)
