"""The Storage SCU against peers that accept, refuse, stall, abort, or are not there."""

import gc
import logging
import socket
import threading
import time
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom import uid as uids
from pynetdicom import evt

from dicomnode.domain.delivery import Accepted, Destination, NoAnswer, Refused, StoreOutcome
from dicomnode.domain.errors import BlobDamaged, StoreUnavailable
from dicomnode.domain.instance import InstanceRef
from dicomnode.net.contexts import COMPREHENSIVE_3D_SR, COMPREHENSIVE_SR, ENHANCED_SR, SopClass
from dicomnode.net.scu.files import send_files
from dicomnode.net.scu.outgoing import AS_IT_IS, Fallback, Form, Outgoing
from dicomnode.net.scu.storage import echo, send
from dicomnode.settings.delivery import DeliverySettings, PreferredEncoding, SrClass
from tests.support.dimse import EXPLICIT, IMPLICIT, QUICK, Peer, data_set_of, outgoing, renamed, report_of
from tests.support.make import CANARIES, build, encode
from tests.support.processes import free_port

CR = str(uids.ComputedRadiographyImageStorage)
VERIFICATION = "1.2.840.10008.1.1"
IMPATIENT = DeliverySettings(connect_timeout_s=1, response_timeout_s=0.7)


@pytest.fixture(scope="module")
def cr() -> bytes:
    return encode(build("cr", rows=96, columns=80))


def deliver(
    peer: Peer | Destination,
    *objects: bytes,
    fallback: Fallback | None = None,
    settings: DeliverySettings = QUICK,
    form: Form = AS_IT_IS,
) -> list[StoreOutcome]:
    destination = peer.destination if isinstance(peer, Peer) else peer
    items = [outgoing(entry) for entry in objects]
    form = replace(form, fallback=fallback) if fallback is not None else form
    return send(destination, items, calling_ae="CXRNODE", settings=settings, form=form)


def test_an_object_arrives_byte_for_byte_over_one_association(cr: bytes) -> None:
    objects = [cr, renamed(cr, "b"), renamed(cr, "c")]
    with Peer({CR: [EXPLICIT]}) as peer:
        assert deliver(peer, *objects) == [Accepted()] * 3
    assert peer.stored == [data_set_of(entry) for entry in objects]
    assert peer.associations == 1


@pytest.mark.parametrize("stored_as", [uids.JPEG2000Lossless, uids.JPEGLSLossless, uids.RLELossless])
def test_a_compressed_object_goes_as_it_is_where_that_is_accepted(stored_as: uids.UID) -> None:
    compressed = encode(build("cr", rows=96, columns=80), stored_as)
    with Peer({CR: [EXPLICIT, IMPLICIT, stored_as]}) as peer:
        assert deliver(peer, compressed) == [Accepted()]
    assert peer.stored == [data_set_of(compressed)]


@pytest.mark.parametrize("accepted", [IMPLICIT, EXPLICIT])
@pytest.mark.parametrize(
    "stored_as", [uids.ImplicitVRLittleEndian, uids.ExplicitVRLittleEndian, uids.JPEG2000Lossless, uids.RLELossless]
)
def test_the_pixels_are_the_same_where_only_one_uncompressed_encoding_is_accepted(
    stored_as: uids.UID, accepted: str
) -> None:
    original = build("cr", rows=96, columns=80)
    with Peer({CR: [accepted]}) as peer:
        assert deliver(peer, encode(original, stored_as)) == [Accepted()]
    arrived = dcmread(BytesIO(_file(peer.stored[0], accepted)))
    assert arrived.PixelData == original.PixelData
    assert arrived.SOPInstanceUID == original.SOPInstanceUID


def _file(data_set: bytes, transfer_syntax: str) -> bytes:
    from dicomnode.dicom.part10 import part10_bytes

    return part10_bytes(data_set, sop_class=CR, sop_instance="1.2.3", transfer_syntax=transfer_syntax)


def test_an_object_compressed_with_loss_is_never_decompressed_for_a_peer() -> None:
    lossy = encode(build("cr", rows=96, columns=80), uids.JPEG2000)
    with Peer({CR: [EXPLICIT, IMPLICIT]}) as peer:
        (outcome,) = deliver(peer, lossy)
    assert outcome == Refused(status=None, cause="no presentation context for the transfer syntax", permanent=True)
    assert peer.stored == []


def test_a_sop_class_that_is_not_accepted_is_refused_and_the_others_are_sent(cr: bytes) -> None:
    sr = report_of(COMPREHENSIVE_3D_SR.uid)
    with Peer({CR: [EXPLICIT]}) as peer:
        refused, accepted = deliver(peer, sr, cr)
    assert refused == Refused(status=None, cause="no presentation context for the SOP class", permanent=True)
    assert accepted == Accepted()


@pytest.mark.parametrize("accepted", [COMPREHENSIVE_SR.uid, ENHANCED_SR.uid])
def test_a_report_goes_as_the_fallback_that_the_peer_accepts(accepted: str) -> None:
    asked: list[frozenset[str]] = []
    variant = report_of(accepted, "variant")

    def fallback(part10: bytes, classes: frozenset[str]) -> bytes | None:
        asked.append(classes)
        return variant

    told: list[InstanceRef | None] = []
    with Peer({accepted: [EXPLICIT]}) as peer:
        outcomes = send(
            peer.destination,
            [outgoing(report_of(COMPREHENSIVE_3D_SR.uid))],
            calling_ae="CXRNODE",
            settings=QUICK,
            form=Form(fallback=fallback),
            report=lambda position, outcome, sent_as: told.append(sent_as),
        )
    assert outcomes == [Accepted()]
    assert asked == [frozenset({accepted})]
    assert peer.stored == [data_set_of(variant)]
    assert told[0] is not None
    assert told[0].sop_class == accepted


@pytest.mark.parametrize(
    ("preference", "accepted", "sent"),
    [
        (SrClass.ENHANCED, (COMPREHENSIVE_3D_SR, COMPREHENSIVE_SR, ENHANCED_SR), ENHANCED_SR),
        (SrClass.COMPREHENSIVE, (COMPREHENSIVE_3D_SR, COMPREHENSIVE_SR, ENHANCED_SR), COMPREHENSIVE_SR),
        (SrClass.COMPREHENSIVE, (COMPREHENSIVE_3D_SR, ENHANCED_SR), ENHANCED_SR),
        (SrClass.ENHANCED, (COMPREHENSIVE_3D_SR,), COMPREHENSIVE_3D_SR),
    ],
)
def test_a_report_goes_under_the_class_that_the_destination_prefers_or_the_next_best(
    preference: SrClass, accepted: tuple[SopClass, ...], sent: SopClass
) -> None:
    form = Form(sr_class=preference, fallback=lambda _, classes: report_of(next(iter(classes)), "variant"))
    with Peer({entry.uid: [EXPLICIT] for entry in accepted}) as peer:
        assert deliver(peer, report_of(COMPREHENSIVE_3D_SR.uid), form=form) == [Accepted()]
    assert sent.uid.encode() in peer.stored[0]


@pytest.mark.parametrize(
    ("preference", "accepted", "arrives_in"),
    [
        (PreferredEncoding.JPEG_LS, [EXPLICIT, uids.JPEGLSLossless], uids.JPEGLSLossless),
        (PreferredEncoding.JPEG_2000, [EXPLICIT, uids.JPEG2000Lossless], uids.JPEG2000Lossless),
        (PreferredEncoding.RLE, [EXPLICIT, uids.RLELossless], uids.RLELossless),
        (PreferredEncoding.RLE, [EXPLICIT, IMPLICIT], EXPLICIT),
        (PreferredEncoding.IMPLICIT, [EXPLICIT, IMPLICIT], IMPLICIT),
    ],
)
def test_an_image_goes_in_the_encoding_that_the_destination_prefers_or_the_next_best(
    preference: PreferredEncoding, accepted: list[str], arrives_in: str
) -> None:
    original = build("sc", rows=32, columns=32)
    arrived: list[tuple[str, bytes]] = []

    def keep(event: Any) -> int:
        arrived.append((str(event.context.transfer_syntax), event.encoded_dataset()))
        return 0x0000

    with Peer({str(uids.SecondaryCaptureImageStorage): accepted}, on_store=keep) as peer:
        assert deliver(peer, encode(original), form=Form(encoding=preference)) == [Accepted()]
    ((syntax, file),) = arrived
    assert syntax == arrives_in
    stored = dcmread(BytesIO(file))
    assert stored.SOPInstanceUID == original.SOPInstanceUID
    assert (stored.pixel_array == dcmread(BytesIO(encode(original))).pixel_array).all()


def test_a_report_is_never_compressed() -> None:
    with Peer({COMPREHENSIVE_3D_SR.uid: [EXPLICIT, uids.RLELossless]}) as peer:
        assert deliver(peer, report_of(COMPREHENSIVE_3D_SR.uid), form=Form(encoding=PreferredEncoding.RLE)) == [
            Accepted()
        ]
    assert peer.stored == [data_set_of(report_of(COMPREHENSIVE_3D_SR.uid))]


def test_the_report_goes_as_it_is_where_its_own_class_is_accepted() -> None:
    sr = report_of(COMPREHENSIVE_3D_SR.uid)
    classes = {entry.uid: [EXPLICIT] for entry in (COMPREHENSIVE_3D_SR, COMPREHENSIVE_SR, ENHANCED_SR)}
    with Peer(classes) as peer:
        assert deliver(peer, sr, fallback=lambda *_: pytest.fail("no fallback is needed")) == [Accepted()]
    assert peer.stored == [data_set_of(sr)]


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (0x0111, Accepted(warning=0x0111)),
        (0xB000, Accepted(warning=0xB000)),
        (0xA700, Refused(status=0xA700, cause="A700: out of resources", permanent=False)),
        (0xA900, Refused(status=0xA900, cause="A900: data set does not match SOP class", permanent=True)),
        (0xC000, Refused(status=0xC000, cause="C000: cannot understand", permanent=True)),
        (0x0122, Refused(status=0x0122, cause="0122: SOP class not supported", permanent=True)),
    ],
)
def test_the_outcome_follows_the_peers_status(cr: bytes, status: int, outcome: StoreOutcome) -> None:
    with Peer({CR: [EXPLICIT]}, on_store=lambda _: status) as peer:
        assert deliver(peer, cr) == [outcome]


def test_a_refusal_does_not_end_the_batch(cr: bytes) -> None:
    statuses = iter([0xC000, 0x0000])
    with Peer({CR: [EXPLICIT]}, on_store=lambda _: next(statuses)) as peer:
        first, second = deliver(peer, cr, renamed(cr, "b"))
    assert isinstance(first, Refused)
    assert second == Accepted()


def test_a_peer_that_aborts_on_everything_is_not_sent_everything(cr: bytes) -> None:
    def abort_behind_the_first(event: Any) -> int:
        if len(peer.stored) == 1:
            event.assoc.abort()
            return 0xC000
        return 0x0000

    objects = [renamed(cr, str(number)) for number in range(30)]
    with Peer({CR: [EXPLICIT]}, on_store=abort_behind_the_first) as peer:
        outcomes = deliver(peer, *objects)
    assert outcomes[0] == Accepted()
    assert outcomes[1:] == [NoAnswer(cause="the peer aborted the association")] * 29
    assert peer.associations == 11


def test_a_peer_that_takes_the_object_and_says_nothing_is_no_answer(cr: bytes) -> None:
    release = threading.Event()

    def stall(event: Any) -> int:
        release.wait()
        return 0x0000

    with Peer({CR: [EXPLICIT]}, on_store=stall) as peer:
        (outcome,) = deliver(peer, cr, settings=IMPATIENT)
        release.set()
    assert outcome == NoAnswer(cause="no response within 0.7 s")


def test_a_peer_that_stops_reading_does_not_hang_the_sender() -> None:
    large = encode(build("cr", rows=2600, columns=2400))
    released = threading.Event()

    def stop_reading(event: Any) -> None:
        released.wait()

    with Peer({CR: [EXPLICIT]}, handlers=[(evt.EVT_DATA_RECV, _only_data(stop_reading))]) as peer:
        (outcome,) = deliver(peer, large, settings=IMPATIENT)
        released.set()
    assert isinstance(outcome, NoAnswer)
    assert not outcome.permanent


def _only_data(action: Any) -> Any:
    return lambda event: action(event) if event.data[:1] == b"\x04" else None


def test_nothing_listening_is_said_so(cr: bytes) -> None:
    nowhere = Destination(name="x", ae_title="X", host="127.0.0.1", port=free_port())
    cause = f"connection to 127.0.0.1:{nowhere.port} refused: nothing listens there"
    assert deliver(nowhere, cr, renamed(cr, "b")) == [NoAnswer(cause=cause)] * 2
    assert echo(nowhere, calling_ae="CXRNODE", settings=QUICK).cause == cause


def test_an_unknown_host_is_said_so(cr: bytes) -> None:
    nowhere = Destination(name="x", ae_title="X", host="no-such-host.invalid", port=104)
    assert deliver(nowhere, cr) == [NoAnswer(cause="unknown host no-such-host.invalid")]


def test_a_host_that_accepts_but_never_answers_is_said_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        destination = Destination(name="x", ae_title="X", host="127.0.0.1", port=silent.getsockname()[1])
        result = echo(destination, calling_ae="CXRNODE", settings=IMPATIENT)
    assert result.cause == "no answer to the association request within 0.7 s"


def test_a_listener_that_speaks_another_protocol_is_no_answer() -> None:
    def answer(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection:
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            time.sleep(0.5)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=answer, args=(server,))
        thread.start()
        destination = Destination(name="x", ae_title="X", host="127.0.0.1", port=server.getsockname()[1])
        result = echo(destination, calling_ae="CXRNODE", settings=QUICK)
        thread.join()
    assert not result.succeeded
    assert "association request" in result.cause
    gc.collect()  # an unclosed socket would warn here, and warnings are errors


def test_a_rejection_for_good_is_permanent_and_names_the_title(cr: bytes) -> None:
    with Peer({CR: [EXPLICIT], VERIFICATION: [IMPLICIT]}, require_called_aet=True) as peer:
        wrong = Destination(name="x", ae_title="WRONG", host="127.0.0.1", port=peer.destination.port)
        outcomes = deliver(wrong, cr)
        result = echo(wrong, calling_ae="CXRNODE", settings=QUICK)
    cause = "association rejected: called AE title WRONG is not its own"
    assert outcomes == [NoAnswer(cause=cause, permanent=True)]
    assert result.cause == cause


def test_a_rejection_for_now_is_transient(cr: bytes) -> None:
    def reject(event: Any) -> None:
        event.assoc.acse.send_reject(2, 3, 1)
        event.assoc.kill()

    with Peer({CR: [EXPLICIT]}, handlers=[(evt.EVT_REQUESTED, reject)]) as peer:
        assert deliver(peer, cr) == [NoAnswer(cause="association rejected: temporary congestion")]


def test_echo_tells_the_round_trip() -> None:
    with Peer({VERIFICATION: [IMPLICIT]}) as peer:
        result = echo(peer.destination, calling_ae="CXRNODE", settings=QUICK)
    assert (result.succeeded, result.cause) == (True, "")
    assert result.round_trip_ms is not None
    assert 0 < result.round_trip_ms < 1000


def test_echo_says_when_verification_is_not_accepted() -> None:
    with Peer({CR: [EXPLICIT]}) as peer:
        result = echo(peer.destination, calling_ae="CXRNODE", settings=QUICK)
    assert result.cause == "the peer does not accept Verification"


@pytest.mark.parametrize(
    ("failure", "outcome"),
    [
        (BlobDamaged("the blob is damaged"), Refused(status=None, cause="the blob is damaged", permanent=True)),
        (StoreUnavailable("the disk is away"), NoAnswer(cause="the disk is away")),
    ],
)
def test_an_object_that_cannot_be_read_does_not_hold_up_the_others(
    cr: bytes, failure: Exception, outcome: StoreOutcome
) -> None:
    def broken() -> bytes:
        raise failure

    with Peer({CR: [EXPLICIT]}) as peer:
        items = [Outgoing(sop_class=CR, transfer_syntax=EXPLICIT, read=broken), outgoing(cr)]
        assert send(peer.destination, items, calling_ae="CXRNODE", settings=QUICK) == [outcome, Accepted()]


def test_more_classes_than_one_association_can_propose_go_over_several() -> None:
    classes = [f"1.2.826.0.1.3680043.10.999.{number}" for number in range(1, 71)]
    objects = [report_of(entry, entry) for entry in classes]
    with Peer({CR: [EXPLICIT]}) as peer:
        outcomes = deliver(peer, *objects, renamed(encode(build("cr", rows=64, columns=64)), "last"))
    assert outcomes[-1] == Accepted()
    assert {type(outcome) for outcome in outcomes[:-1]} == {Refused}


def test_files_are_sent_each_in_its_own_encoding_and_the_rest_is_named(cr: bytes, tmp_path: Path) -> None:
    compressed = encode(build("dx", rows=96, columns=80), uids.JPEG2000Lossless)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.dcm").write_bytes(cr)
    (tmp_path / "folder" / "b").write_bytes(compressed)
    (tmp_path / "folder" / "notes.txt").write_text("not DICOM")
    seen: list[tuple[str, int, int]] = []
    accepts = {CR: [EXPLICIT], str(uids.DigitalXRayImageStorageForPresentation): [EXPLICIT, uids.JPEG2000Lossless]}
    with Peer(accepts) as peer:
        report = send_files(
            peer.destination,
            [tmp_path / "folder", tmp_path / "absent.dcm"],
            calling_ae="CXRNODE",
            settings=QUICK,
            progress=lambda entry, done, total: seen.append((entry.path.name, done, total)),
        )
    facts = {entry.path.name: (entry.delivered, entry.skipped) for entry in report}
    assert facts == {
        "a.dcm": (True, ""),
        "b": (True, ""),
        "notes.txt": (False, "not a DICOM file"),
        "absent.dcm": (False, "cannot be read: No such file or directory"),
    }
    assert peer.stored == [data_set_of(cr), data_set_of(compressed)]
    assert [(done, total) for _, done, total in seen] == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_no_patient_data_reaches_the_logs_or_the_causes(
    cr: bytes, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    logging.getLogger("pynetdicom").setLevel(logging.DEBUG)
    pixels_lost = encode(build("cr", rows=96, columns=80), uids.JPEG2000Lossless)[:-3000]
    causes = []
    with Peer({CR: [IMPLICIT]}, on_store=lambda _: 0xC000) as peer:
        causes += deliver(peer, cr, pixels_lost)
    written = "".join(str(record.__dict__) for record in caplog.records) + "".join(capfd.readouterr()) + str(causes)
    assert [word for word in CANARIES if word in written] == []
