"""The PDUs that open and end an association: whatever comes, the library can take what is made of it."""

import struct

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pynetdicom.pdu import A_ABORT_RQ, A_ASSOCIATE_AC, A_ASSOCIATE_RJ, A_ASSOCIATE_RQ

from dicomnode.net.dimse.associate import InvalidPdu, Rejected, aborted_pdu, accepted_pdu, read_rejection, read_request
from tests.support.wire import CR, EXPLICIT, associate_accept, associate_request, item, proposed

HEADER_BYTES = 6
FIXED = struct.pack(">HH16s16s32s", 1, 0, b"CXRNODE".ljust(16), b"PEER".ljust(16), bytes(32))
SYNTAXES = item(0x30, CR.encode()) + item(0x40, EXPLICIT.encode())
KINDS = st.sampled_from(
    [0x10, 0x20, 0x21, 0x30, 0x40, 0x50, 0x51, 0x52, 0x53, 0x54, 0x55, 0x56, 0x57, 0x58, 0x59, 0x77]
)
CONTENT = st.one_of(
    st.binary(max_size=80), st.sampled_from([CR.encode(), EXPLICIT.encode(), b"\0\0\x40\0", b"\1\0\0\0"])
)
SUB_ITEMS = st.lists(st.builds(item, KINDS, CONTENT), max_size=6).map(b"".join)
CONTEXT_HEADS = st.tuples(st.integers(0, 255), st.integers(0, 9)).map(lambda pair: bytes([pair[0], 0, pair[1], 0]))
CONTEXTS = st.builds(
    lambda kind, head, rest: item(kind, head + rest), st.sampled_from([0x20, 0x21]), CONTEXT_HEADS, SUB_ITEMS
)
ITEMS = st.lists(st.one_of(CONTEXTS, st.builds(item, KINDS, SUB_ITEMS), st.builds(item, KINDS, CONTENT)), max_size=6)


@given(ITEMS.map(b"".join), st.binary(max_size=3), st.binary(min_size=32, max_size=32))
@example(proposed(1, SYNTAXES) + item(0x50, item(0x54, b"\0\3" + b"1.2" + b"\1\1")), b"", b"A".ljust(32))
@settings(max_examples=500, deadline=None)
def test_a_request_is_refused_or_the_library_takes_what_is_made_of_it(items: bytes, rest: bytes, titles: bytes) -> None:
    body = FIXED[:4] + titles + bytes(32) + proposed(1, SYNTAXES) + items + rest
    try:
        made = read_request(body)
    except InvalidPdu:
        return
    pdu = A_ASSOCIATE_RQ()
    pdu.decode(made.pdu)
    primitive = pdu.to_primitive()
    assert len(primitive.presentation_context_definition_list) >= 1
    assert all(context.abstract_syntax and context.transfer_syntax for context in pdu.presentation_context)


@given(ITEMS.map(b"".join), st.binary(max_size=3))
@settings(max_examples=500, deadline=None)
def test_an_acceptance_is_refused_or_the_library_takes_what_is_made_of_it(items: bytes, rest: bytes) -> None:
    try:
        made = accepted_pdu(FIXED + items + rest)
    except InvalidPdu:
        return
    pdu = A_ASSOCIATE_AC()
    pdu.decode(made)
    assert pdu.to_primitive().result == 0


@given(st.binary(max_size=8))
def test_a_rejection_is_refused_or_the_library_takes_what_is_made_of_it(body: bytes) -> None:
    try:
        made = read_rejection(body).pdu()
    except InvalidPdu:
        assert len(body) < 4
        return
    pdu = A_ASSOCIATE_RJ()
    pdu.decode(made)
    assert pdu.to_primitive().result in (1, 2)


@given(st.binary(max_size=8))
def test_the_library_takes_what_is_made_of_any_abort(body: bytes) -> None:
    pdu = A_ABORT_RQ()
    pdu.decode(aborted_pdu(body))
    pdu.to_primitive()


@pytest.mark.parametrize("pdu", [associate_request(), associate_request(role=True)])
def test_a_request_without_a_fault_keeps_what_the_node_heeds(pdu: bytes) -> None:
    made = read_request(pdu[HEADER_BYTES:])
    assert made.pdu == pdu
    assert (made.calling_ae, made.called_ae) == ("HOSTILE", "CXRNODE")
    assert (made.is_version_supported, made.is_dicom) == (True, True)


def test_an_acceptance_without_a_fault_keeps_what_the_node_heeds() -> None:
    pdu = associate_accept()
    assert accepted_pdu(pdu[HEADER_BYTES:])[HEADER_BYTES + len(FIXED) :] == pdu[HEADER_BYTES + len(FIXED) :]


@pytest.mark.parametrize(
    ("rejected", "is_permanent"),
    [
        ((1, 1, 3), True),
        ((1, 2, 2), True),
        ((1, 3, 1), False),
        ((1, 3, 2), False),
        ((2, 1, 1), False),
        ((0, 1, 1), False),
    ],
)
def test_congestion_and_limits_pass_whatever_the_peer_calls_them(
    rejected: tuple[int, int, int], is_permanent: bool
) -> None:
    result, source, reason = rejected
    assert Rejected(result=result, source=source, reason=reason).is_permanent is is_permanent
