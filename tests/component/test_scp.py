"""The Storage SCP on real sockets, with pynetdicom as the peer."""

import logging
import socket
import struct
import threading
import time
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom import uid as uids
from pynetdicom.presentation import build_context

from dicomnode.domain.delivery import Accepted, Destination, Refused
from dicomnode.domain.errors import ConfigurationError, DiskFull, StoreUnavailable, UidMismatch
from dicomnode.domain.identifiers import IMPLEMENTATION_CLASS_UID
from dicomnode.net.contexts import ACCEPTED_TRANSFER_SYNTAXES
from dicomnode.net.scu.storage import echo, send
from tests.support.dimse import (
    EXPLICIT,
    QUICK,
    MemoryInbox,
    data_set_of,
    outgoing,
    renamed,
    requested,
    running_scp,
    send_raw,
)
from tests.support.make import CANARIES, build, encode
from tests.support.processes import wait_until

SMALL = {"rows": 96, "columns": 80}
# No encoder for these is installed; the SCP never looks at the pixels, so other compressed pixels do.
_RELABELLED = {uids.HTJ2KLossless, uids.HTJ2KLosslessRPCL, uids.HTJ2K}


@pytest.fixture(scope="module")
def cr() -> bytes:
    return encode(build("cr", **SMALL))


def object_in(transfer_syntax: str) -> bytes:
    if transfer_syntax not in _RELABELLED:
        bits = 8 if transfer_syntax == uids.JPEGBaseline8Bit else 12
        return encode(build("cr", bits=bits, **SMALL), transfer_syntax)
    ds = dcmread(BytesIO(encode(build("cr", **SMALL), uids.JPEG2000Lossless)))
    ds.file_meta.TransferSyntaxUID = uids.UID(transfer_syntax)
    buffer = BytesIO()
    ds.save_as(buffer)
    return buffer.getvalue()


def deliver(destination: Destination, *objects: bytes) -> list[object]:
    return list(send(destination, [outgoing(entry) for entry in objects], calling_ae="SENDER", settings=QUICK))


@pytest.mark.parametrize("transfer_syntax", ACCEPTED_TRANSFER_SYNTAXES, ids=lambda uid: uids.UID(uid).name)
def test_every_listed_transfer_syntax_is_stored_byte_for_byte(transfer_syntax: str) -> None:
    sent, inbox = object_in(transfer_syntax), MemoryInbox()
    with running_scp(inbox) as (_, destination):
        assert deliver(destination, sent) == [Accepted()]
    (received,) = inbox.received
    assert received.transfer_syntax == transfer_syntax
    assert data_set_of(received.part10) == data_set_of(sent)


def test_who_waits_is_told_of_each_image_and_of_the_end_of_an_association(cr: bytes) -> None:
    inbox = MemoryInbox()
    with running_scp(inbox) as (_, destination):
        assert deliver(destination, cr) == [Accepted()]
        wait_until(lambda: (1, 1) in inbox.changes, 60, "the end of the association")
    assert inbox.changes == [(1, 0), (1, 1)]


@pytest.mark.parametrize("kind", ["cr", "dx", "dx-for-processing", "sc", "sc-multi-frame", "sc-multi-frame-word"])
def test_every_kind_of_projection_image_is_accepted(kind: str) -> None:
    sent, inbox = encode(build(kind, **SMALL)), MemoryInbox()
    with running_scp(inbox) as (_, destination):
        assert deliver(destination, sent) == [Accepted()]
    ds = dcmread(BytesIO(sent))
    ref = inbox.received[0].ref
    assert (ref.study, ref.series) == (ds.StudyInstanceUID, ds.SeriesInstanceUID)
    assert (ref.sop_class, ref.sop_instance) == (ds.SOPClassUID, ds.SOPInstanceUID)


def test_the_stored_file_has_the_nodes_own_meta_information(cr: bytes) -> None:
    inbox = MemoryInbox()
    with running_scp(inbox) as (_, destination):
        deliver(destination, b"MZ" + cr[2:])
    stored = dcmread(BytesIO(inbox.received[0].part10))
    assert stored.preamble == bytes(128)
    assert stored.file_meta.ImplementationClassUID == IMPLEMENTATION_CLASS_UID
    assert stored.file_meta.MediaStorageSOPInstanceUID == stored.SOPInstanceUID
    assert "SourceApplicationEntityTitle" not in stored.file_meta


def test_an_object_sent_again_by_another_peer_gives_the_same_bytes(cr: bytes) -> None:
    inbox = MemoryInbox()
    with running_scp(inbox) as (_, destination):
        send_raw(destination, cr, calling_ae="ONE")
        send_raw(destination, cr, calling_ae="OTHER")
    first, second = inbox.received
    assert first.part10 == second.part10
    assert (first.association.calling_ae, second.association.calling_ae) == ("ONE", "OTHER")


def test_verification_is_answered() -> None:
    with running_scp(MemoryInbox()) as (_, destination):
        result = echo(destination, calling_ae="SENDER", settings=QUICK)
    assert result.succeeded
    assert result.round_trip_ms is not None
    assert 0 < result.round_trip_ms < 2000


def test_a_sop_instance_uid_unlike_the_commands_is_a900(cr: bytes) -> None:
    inbox = MemoryInbox()
    with running_scp(inbox) as (_, destination):
        response = send_raw(destination, cr, sop_instance="1.2.3.4")
    assert (response.Status, response.ErrorComment) == (0xA900, "SOP Instance UID of command and data set differ")
    assert inbox.received == []


def test_a_sop_class_unlike_the_commands_is_a900() -> None:
    inbox, dx = MemoryInbox(), encode(build("dx", **SMALL))
    with running_scp(inbox) as (_, destination):
        response = send_raw(
            destination,
            dx,
            sop_class=uids.ComputedRadiographyImageStorage,
            context=uids.ComputedRadiographyImageStorage,
        )
    assert response.Status == 0xA900
    assert inbox.received == []


def test_a_sop_class_unlike_the_presentation_contexts_is_a900(cr: bytes) -> None:
    inbox = MemoryInbox()
    with running_scp(inbox) as (_, destination):
        response = send_raw(destination, cr, context=uids.DigitalXRayImageStorageForPresentation)
    assert response.Status == 0xA900
    assert inbox.received == []


@pytest.mark.parametrize(
    "data_set",
    [b"", b"\x08", b"\x08\x00\x16\x00UI\xff\xff1.2", bytes(4000), b"\xff" * 4000, b"%PDF-1.4" * 100],
    ids=["empty", "one byte", "cut", "zeros", "ones", "another format"],
)
def test_bytes_that_are_no_data_set_are_c000(cr: bytes, data_set: bytes) -> None:
    inbox = MemoryInbox()
    with running_scp(inbox) as (_, destination):
        response = send_raw(destination, cr, data_set=data_set or b"\x00\x00")
        assert deliver(destination, cr) == [Accepted()]
    assert response.Status == 0xC000


def test_a_data_set_with_an_invalid_study_uid_is_c000(cr: bytes) -> None:
    inbox = MemoryInbox()
    study = dcmread(BytesIO(cr)).StudyInstanceUID.encode()
    data_set = data_set_of(cr).replace(study, b"../../etc/passwd".ljust(len(study), b"x"))
    with running_scp(inbox) as (_, destination):
        response = send_raw(destination, cr, data_set=data_set)
    assert (response.Status, response.ErrorComment) == (0xC000, "Study Instance UID is not a valid UID")
    assert inbox.received == []


@pytest.mark.parametrize(
    ("failure", "status"),
    [
        (DiskFull("too little free space"), 0xA700),
        (StoreUnavailable("the database is locked"), 0xA701),
        (UidMismatch("the instance is stored already, in another study"), 0xA900),
        (RuntimeError("a defect"), 0xC0FF),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_the_status_says_why_the_store_refused(cr: bytes, failure: Exception, status: int) -> None:
    inbox = MemoryInbox(failure=failure)
    with running_scp(inbox) as (_, destination):
        response = send_raw(destination, cr)
        inbox.failure = None
        assert deliver(destination, cr) == [Accepted()]
    assert response.Status == status


def test_an_unknown_error_is_logged_with_its_traceback_but_not_its_message(
    cr: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    inbox = MemoryInbox(failure=RuntimeError("about CANARY^NAMEZQX"))
    with running_scp(inbox) as (_, destination):
        send_raw(destination, cr)
    (record,) = [record for record in caplog.records if record.message == "instance-failed"]
    assert record.raised.startswith("RuntimeError in accept ")
    assert "CANARY" not in str(record.__dict__)


def test_a_wrong_called_ae_title_is_rejected_with_the_reason() -> None:
    with running_scp(MemoryInbox()) as (_, destination):
        wrong = Destination(name="x", ae_title="WRONG", host=destination.host, port=destination.port)
        result = echo(wrong, calling_ae="SENDER", settings=QUICK)
    assert result.cause == "association rejected: called AE title WRONG is not its own"


def test_any_called_ae_title_will_do_when_configured() -> None:
    with running_scp(MemoryInbox(), require_called_ae=False) as (_, destination):
        other = Destination(name="x", ae_title="OTHER", host=destination.host, port=destination.port)
        assert echo(other, calling_ae="SENDER", settings=QUICK).succeeded


def test_only_listed_calling_ae_titles_may_associate() -> None:
    with running_scp(MemoryInbox(), calling_ae_titles=("FRIEND",)) as (_, destination):
        stranger = echo(destination, calling_ae="STRANGER", settings=QUICK)
        friend = echo(destination, calling_ae="FRIEND", settings=QUICK)
    assert stranger.cause == "association rejected: calling AE title STRANGER is not known there"
    assert friend.succeeded


def test_a_sop_class_outside_the_table_gets_no_context_until_it_is_configured() -> None:
    ct, inbox = encode(build("ct", **SMALL)), MemoryInbox()
    with running_scp(inbox) as (_, destination):
        (outcome,) = deliver(destination, ct)
    assert outcome == Refused(status=None, cause="no presentation context was accepted", permanent=True)
    with running_scp(inbox, also_accept=(str(uids.CTImageStorage),)) as (_, destination):
        assert deliver(destination, ct) == [Accepted()]


def test_a_private_storage_class_can_be_configured(cr: bytes) -> None:
    private = "1.2.826.0.1.3680043.10.999.1"
    ds = dcmread(BytesIO(cr))
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = uids.UID(private)
    buffer = BytesIO()
    ds.save_as(buffer)
    inbox = MemoryInbox()
    with running_scp(inbox, also_accept=(private,)) as (_, destination):
        assert deliver(destination, buffer.getvalue()) == [Accepted()]
    assert inbox.received[0].ref.sop_class == private


@pytest.mark.parametrize("syntax", [uids.DeflatedExplicitVRLittleEndian, uids.ExplicitVRBigEndian])
def test_deflated_and_big_endian_are_not_negotiated(syntax: uids.UID) -> None:
    with running_scp(MemoryInbox()) as (_, destination):
        context = build_context(uids.ComputedRadiographyImageStorage, [syntax])
        verification = build_context("1.2.840.10008.1.1")
        with requested(destination, context, verification) as association:
            rejected = [entry.abstract_syntax for entry in association.rejected_contexts]
    assert rejected == [uids.ComputedRadiographyImageStorage]


def test_a_peer_that_offers_several_transfer_syntaxes_is_never_asked_to_lose_anything() -> None:
    offered = [uids.JPEGBaseline8Bit, uids.JPEG2000, uids.JPEGLosslessSV1, uids.ImplicitVRLittleEndian]
    with running_scp(MemoryInbox()) as (_, destination):
        context = build_context(uids.ComputedRadiographyImageStorage, offered)
        with requested(destination, context) as association:
            chosen = association.accepted_contexts[0].transfer_syntax
    assert chosen == [uids.ImplicitVRLittleEndian]


def test_two_peers_are_served_at_once(cr: bytes) -> None:
    # Either can be accepted only while the other is being accepted too.
    inbox = MemoryInbox(meeting=threading.Barrier(2, timeout=10))
    with running_scp(inbox) as (_, destination):
        threads = [threading.Thread(target=deliver, args=(destination, renamed(cr, str(n)))) for n in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(inbox.received) == 2


def test_opening_and_release_reach_the_inbox_in_order(cr: bytes) -> None:
    inbox = MemoryInbox()
    with running_scp(inbox) as (scp, destination):
        deliver(destination, cr)
        wait_until(lambda: inbox.released, 60, "the release")
        assert scp.associations == 0
    assert inbox.opened == inbox.released == [inbox.received[0].association.association_id]


def test_an_association_aborted_within_an_object_stores_nothing_and_is_closed_in_the_books(cr: bytes) -> None:
    inbox = MemoryInbox()
    with running_scp(inbox) as (_, destination):
        context = build_context(uids.ComputedRadiographyImageStorage, [EXPLICIT])
        with requested(destination, context) as association:
            pdv = b"\x01\x00" + data_set_of(cr)[:1000]
            association.dul.socket.socket.sendall(struct.pack(">BBLL", 4, 0, len(pdv) + 4, len(pdv)) + pdv)
            association.abort()
        wait_until(lambda: inbox.released, 60, "the end of the association")
    assert inbox.opened == inbox.released
    assert inbox.received == []


def test_a_lost_connection_is_closed_in_the_books() -> None:
    inbox = MemoryInbox()
    with running_scp(inbox) as (scp, destination):
        context = build_context("1.2.840.10008.1.1")
        with requested(destination, context) as association:
            association.dul.socket.socket.shutdown(socket.SHUT_RDWR)
            wait_until(lambda: inbox.released == inbox.opened and inbox.opened, 60, "the end of the association")
        assert scp.associations == 0


def test_an_end_that_cannot_be_recorded_is_recorded_later(cr: bytes) -> None:
    class Forgetful(MemoryInbox):
        refusals = 2

        def association_released(self, association_id: str, now: object) -> None:
            if self.refusals:
                self.refusals -= 1
                raise StoreUnavailable("the database is locked")
            self.released.append(association_id)

    inbox = Forgetful()
    with running_scp(inbox) as (_, destination):
        deliver(destination, cr)
        wait_until(lambda: inbox.released == inbox.opened, 60, "the release")


def test_an_association_beyond_the_limit_is_rejected_for_now() -> None:
    with running_scp(MemoryInbox(), maximum_associations=1) as (_, destination):
        context = build_context("1.2.840.10008.1.1")
        with requested(destination, context):
            second = echo(destination, calling_ae="SENDER", settings=QUICK)
    assert second.cause == "association rejected: its limit of associations is reached"


def test_stopping_lets_the_object_at_hand_finish(cr: bytes) -> None:
    inbox, outcomes = MemoryInbox(delay_s=0.7), []
    with running_scp(inbox) as (scp, destination):
        sender = threading.Thread(target=lambda: outcomes.extend(deliver(destination, cr)))
        sender.start()
        wait_until(lambda: inbox.opened, 60, "the association")
        time.sleep(0.2)
        scp.stop(drain_s=10)
        sender.join()
        refused = echo(destination, calling_ae="SENDER", settings=QUICK)
    assert outcomes == [Accepted()]
    assert inbox.released == inbox.opened
    assert "nothing listens there" in refused.cause


def test_stopping_does_not_wait_for_ever_for_an_idle_peer() -> None:
    inbox = MemoryInbox()
    with (
        running_scp(inbox) as (scp, destination),
        requested(destination, build_context("1.2.840.10008.1.1")) as association,
    ):
        scp.stop(drain_s=0.3)
        wait_until(lambda: association.is_aborted, 60, "the abort")
    assert inbox.released == inbox.opened


def test_a_port_in_use_is_a_configuration_error_that_says_so() -> None:
    with (
        running_scp(MemoryInbox()) as (_, destination),
        pytest.raises(ConfigurationError, match=rf"port {destination.port} of 127.0.0.1 is already in use"),
        running_scp(MemoryInbox(), port=destination.port),
    ):
        pass


def test_a_listener_can_be_started_again_on_the_same_port(cr: bytes) -> None:
    inbox = MemoryInbox()
    with running_scp(inbox) as (scp, destination):
        scp.stop()
        scp.start()
        assert scp.listening
        assert deliver(destination, cr) == [Accepted()]


def test_no_patient_data_reaches_the_logs(
    cr: bytes, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    logging.getLogger("pynetdicom").setLevel(logging.DEBUG)
    inbox = MemoryInbox()
    with running_scp(inbox) as (_, destination):
        deliver(destination, cr)
        send_raw(destination, cr, sop_instance="1.2.3.4")
        send_raw(destination, cr, data_set=b"CANARY^NAMEZQX  " * 9)
        inbox.failure = ValueError("CANARY^NAMEZQX")
        deliver(destination, renamed(cr, "again"))
    written = "".join(str(record.__dict__) for record in caplog.records) + "".join(capfd.readouterr())
    assert "instance-received" in written
    assert [word for word in CANARIES if word in written] == []


def test_the_shared_objects_arrive_as_they_are(shared_data: Path) -> None:
    inbox = MemoryInbox()
    files = sorted(path.read_bytes() for path in (shared_data / "dicom").glob("chest-*.dcm"))
    with running_scp(inbox) as (_, destination):
        assert deliver(destination, *files) == [Accepted()] * len(files)
    assert [data_set_of(entry.part10) for entry in inbox.received] == [data_set_of(entry) for entry in files]
