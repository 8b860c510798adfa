"""Large objects, which are stored while they arrive: the same bytes, the same promises, the same refusals."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom import uid as uids
from pynetdicom.presentation import build_context

from dicomnode.dicom.part10 import read_ref
from dicomnode.domain.delivery import Accepted, NoAnswer, Refused
from dicomnode.domain.errors import DiskFull
from dicomnode.net.scu.storage import send
from dicomnode.settings.node import DeliverySettings
from dicomnode.store import Store
from dicomnode.store.blobs.streamed import Arriving
from tests.support.dimse import data_set_of, outgoing, requested, running_scp, send_raw, store_request
from tests.support.make import build, encode
from tests.support.processes import wait_until
from tests.support.stores import open_store

LIMIT_S = 60
PATIENT = DeliverySettings(connect_timeout_s=LIMIT_S, response_timeout_s=LIMIT_S)
SIDE = 1100


class Watched:
    """A store's reception that counts what was begun, and whose disk can refuse."""

    def __init__(self, store: Store) -> None:
        self.store, self.begun, self.refused = store, list[Arriving](), 0
        self.failure: Exception | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store.reception, name)

    def arriving(self) -> Arriving:
        self.begun.append(self.store.reception.arriving())
        return self.begun[-1]

    def accept(self, *arguments: Any) -> object:
        if self.failure is not None:
            self.refused += 1
            raise self.failure
        return self.store.reception.accept(*arguments)


@pytest.fixture(scope="module")
def large() -> bytes:
    return encode(build("cr", rows=SIDE, columns=SIDE))


@pytest.fixture
def inbox(tmp_path: Path) -> Iterator[Watched]:
    with open_store(tmp_path / "store") as store:
        yield Watched(store)


def kept(tmp_path: Path) -> list[bytes]:
    return [path.read_bytes() for path in (tmp_path / "store" / "blobs").rglob("*") if path.is_file()]


@pytest.mark.parametrize("pdu_bytes", [4096, 16_384, 262_144, 4_194_304])
def test_a_large_object_is_stored_byte_for_byte_whatever_the_size_of_its_pdus(
    large: bytes, inbox: Watched, tmp_path: Path, pdu_bytes: int
) -> None:
    with running_scp(inbox, maximum_pdu_bytes=pdu_bytes) as (_, destination):
        assert send(destination, [outgoing(large)] * 2, calling_ae="S", settings=PATIENT) == [Accepted()] * 2
    (blob,) = kept(tmp_path)
    assert data_set_of(blob) == data_set_of(large)
    # Where one PDU holds all of it there is nothing to divert.
    assert len(inbox.begun) == (2 if pdu_bytes < len(large) else 0)


def test_a_small_object_takes_the_ordinary_way_to_the_same_place(inbox: Watched, tmp_path: Path) -> None:
    small = encode(build("cr", rows=96, columns=80))
    with running_scp(inbox) as (_, destination):
        assert send(destination, [outgoing(small)], calling_ae="S", settings=PATIENT) == [Accepted()]
    assert inbox.begun == []
    assert data_set_of(kept(tmp_path)[0]) == data_set_of(small)


def test_a_command_that_names_another_object_is_refused_and_nothing_is_kept(
    large: bytes, inbox: Watched, tmp_path: Path
) -> None:
    with running_scp(inbox) as (_, destination):
        response = send_raw(destination, large, sop_instance="1.2.3.4")
        assert response.Status == 0xA900
        assert send_raw(destination, large).Status == 0x0000
    assert len(inbox.begun) == 1
    assert len(kept(tmp_path)) == 1


def test_a_store_that_refuses_leaves_nothing_and_the_association_goes_on(
    large: bytes, inbox: Watched, tmp_path: Path
) -> None:
    context = build_context(uids.ComputedRadiographyImageStorage, [uids.ExplicitVRLittleEndian])
    with running_scp(inbox) as (_, destination):
        inbox.failure = DiskFull("no more")
        assert send_raw(destination, large).Status == 0xA700
        assert kept(tmp_path) == []
        inbox.failure = None
        with requested(destination, context) as association:
            assert association.is_established
        assert send_raw(destination, large).Status == 0x0000
    assert len(kept(tmp_path)) == 1


def test_what_is_refused_again_and_again_over_one_association_leaves_nothing(
    large: bytes, inbox: Watched, tmp_path: Path
) -> None:
    instance = read_ref(data_set_of(large), str(uids.ExplicitVRLittleEndian)).sop_instance
    elsewhere = encode(build("cr", rows=SIDE, columns=SIDE, study_uid="1.2.3.4", sop_uid=instance))
    with running_scp(inbox) as (_, destination):
        assert send_raw(destination, large).Status == 0x0000
        refused = send(destination, [outgoing(elsewhere)] * 5, calling_ae="S", settings=PATIENT)
        assert [type(outcome) for outcome in refused] == [Refused] * 5
    assert len(inbox.begun) == 6
    assert len(kept(tmp_path)) == 1


def test_a_connection_that_is_lost_amid_an_object_leaves_nothing(large: bytes, inbox: Watched, tmp_path: Path) -> None:
    context = build_context(uids.ComputedRadiographyImageStorage, [uids.ExplicitVRLittleEndian])
    with running_scp(inbox) as (_, destination):
        with requested(destination, context) as association:
            wire = association.dul.socket.socket
            for pdu in _pdus(large)[:-4]:
                wire.sendall(pdu)
            wait_until(lambda: kept(tmp_path), LIMIT_S, "the begin of the object's file")
        wait_until(lambda: kept(tmp_path) == [], LIMIT_S, "the removal of what was not whole")
    assert len(inbox.begun) == 1
    assert inbox.store.inbox.next_due() is None


def test_fragments_that_share_a_pdu_keep_their_order(large: bytes, inbox: Watched, tmp_path: Path) -> None:
    context = build_context(uids.ComputedRadiographyImageStorage, [uids.ExplicitVRLittleEndian])
    pdus = _pdus(large)
    # Two fragments in one PDU, well behind where diversion begins, and single ones before and after it.
    merged = [*pdus[:60], _merged(pdus[60], pdus[61]), *pdus[62:]]
    with running_scp(inbox) as (_, destination), requested(destination, context) as association:
        association._reactor_checkpoint.clear()
        wait_until(lambda: association._is_paused, LIMIT_S, "the pause of the requestor's own thread")
        for pdu in merged:
            association.dul.socket.socket.sendall(pdu)
        _, response = association.dimse.get_msg(block=True)
        association._reactor_checkpoint.set()
        assert response.Status == 0x0000
    assert len(inbox.begun) == 1
    (blob,) = kept(tmp_path)
    assert data_set_of(blob) == data_set_of(large)


def test_an_object_over_the_bound_is_cut_off_while_it_is_diverted(large: bytes, inbox: Watched, tmp_path: Path) -> None:
    with running_scp(inbox, maximum_object_bytes=1_048_576) as (scp, destination):
        (outcome,) = send(destination, [outgoing(large)], calling_ae="S", settings=PATIENT)
        assert isinstance(outcome, NoAnswer)
        wait_until(lambda: kept(tmp_path) == [], LIMIT_S, "the removal of what was too large")
    assert len(inbox.begun) == 1
    assert scp.refused == {("pdu-refused", "object-size"): 1}


def _pdus(part10: bytes, fragment_bytes: int = 16_000) -> list[bytes]:
    """Return an object as the PDUs of a C-STORE request over the first context."""
    from pynetdicom.dimse_messages import C_STORE_RQ

    message = C_STORE_RQ()
    message.primitive_to_message(store_request(part10))
    pdus = []
    for primitive in message.encode_msg(1, fragment_bytes):
        ((context_id, value),) = primitive.presentation_data_value_list
        fragment = struct.pack(">LB", len(value) + 1, context_id) + value
        pdus.append(struct.pack(">BBL", 4, 0, len(fragment)) + fragment)
    return pdus


def _merged(*pdus: bytes) -> bytes:
    body = b"".join(pdu[6:] for pdu in pdus)
    return struct.pack(">BBL", 4, 0, len(body)) + body
