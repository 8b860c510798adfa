"""Hostile data sets over the network, into a real store: each gets its status, and none a file outside."""

import struct
from collections.abc import Iterator
from contextlib import closing
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import ComputedRadiographyImageStorage, CTImageStorage

from dicomnode.domain.delivery import Accepted, Destination
from dicomnode.net.scu.storage import send
from dicomnode.store import Store
from tests.support.archives import Archive
from tests.support.attacks import PATIENT
from tests.support.bundles import make_bundle
from tests.support.dimse import MemoryInbox, data_set_of, outgoing, running_scp, send_raw
from tests.support.make import build, encode
from tests.support.processes import NodeProcess, free_port, wait_until
from tests.support.stores import open_store
from tests.support.wire import ABORT, P_DATA, answer, associated, command, fragment, p_data, push

SMALL = {"rows": 64, "columns": 64}
TRAVERSAL = "../../../../outside"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(tmp_path / "store")
    yield opened
    opened.close()


@pytest.fixture
def node(store: Store) -> Iterator[Destination]:
    with running_scp(store.reception) as (_, destination):
        yield destination


def with_text(part10: bytes, keyword: str, text: str) -> bytes:
    """Return the data set with other text, as long as before, in one element: what no library would write."""
    former = str(getattr(dcmread(BytesIO(part10)), keyword)).encode()
    return data_set_of(part10).replace(former, text.encode().ljust(len(former), b"x")[: len(former)])


def with_pixels(part10: bytes, length: int, value: bytes) -> bytes:
    """Return the data set with a pixel data element that announces `length` and holds `value`."""
    data_set = data_set_of(part10)
    at = data_set.rindex(b"\xe0\x7f\x10\x00")
    return data_set[:at] + b"\xe0\x7f\x10\x00OW\0\0" + struct.pack("<L", length) + value


def with_element(part10: bytes, element: bytes) -> bytes:
    """Return the data set with an element of group 0009 at its place."""
    data_set = data_set_of(part10)
    return data_set.replace(b"\x10\x00\x10\x00PN", element + b"\x10\x00\x10\x00PN", 1)


def nested(depth: int) -> bytes:
    """Return sequences of undefined length within each other, which no recursion survives."""
    opening = b"\x09\x00\x10\x10SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    return opening * depth + b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0" * depth


CR = encode(build("cr", **SMALL))
PRIVATE = b"\x09\x00\x01\x10"
# What may be stored: what it is worth shows when somebody looks at the pixels.
STORED = {
    "no pixel data": with_pixels(CR, 0, b""),
    "cut within the pixel data": with_pixels(CR, 8192, b"\0" * 100),
    "pixel data of four gigabytes, says its length": with_pixels(CR, 0xFFFFFFFE, b"\0" * 100),
    "a private element": with_element(CR, PRIVATE + b"LO\x04\x00ABCD"),
    "a private element of unknown VR": with_element(CR, PRIVATE + b"UN\0\0\x04\0\0\0ABCD"),
    "a VR that is yet to come": with_element(CR, PRIVATE + b"ZZ\0\0\x04\0\0\0ABCD"),
    "sequences 5000 deep": with_element(CR, nested(5000)),
    "a character set that there is not": with_text(CR, "SpecificCharacterSet", "ISO_IR 999"),
    "bytes that are no characters": data_set_of(CR).replace(b"CANARY", b"\xff\xfe\x1b$\x80\x81", 1),
}
REFUSED = {
    "a study path": (with_text(CR, "StudyInstanceUID", TRAVERSAL), "Study Instance UID is not a valid UID"),
    "a series path": (with_text(CR, "SeriesInstanceUID", TRAVERSAL), "Series Instance UID is not a valid UID"),
    "an instance path": (with_text(CR, "SOPInstanceUID", TRAVERSAL), "SOP Instance UID is not a valid UID"),
    "sequences that do not end": (with_element(CR, nested(50)[: 50 * 20]), "the data set ends within an element"),
    "an element beyond the end": (
        with_element(CR, PRIVATE + b"UN\0\0\xff\xff\xff\x7fABCD"),
        "the data set ends within an element",
    ),
    "no VR": (with_element(CR, PRIVATE + b"\0\0\x04\0ABCD"), "an element has no value representation"),
}


def written(folder: Path) -> set[str]:
    return {path.relative_to(folder).parts[0] for path in folder.rglob("*")}


@pytest.mark.parametrize("data_set", STORED.values(), ids=STORED.keys())
def test_an_object_that_can_be_named_is_kept_as_it_is(node: Destination, store: Store, data_set: bytes) -> None:
    assert send_raw(node, CR, data_set=data_set).Status == 0x0000
    assert send(node, [outgoing(CR)], calling_ae="GOOD", settings=PATIENT) == [Accepted()]


@pytest.mark.parametrize(("data_set", "comment"), REFUSED.values(), ids=REFUSED.keys())
def test_an_object_that_cannot_be_named_is_c000_and_leaves_nothing(
    node: Destination, tmp_path: Path, data_set: bytes, comment: str
) -> None:
    before = written(tmp_path)
    response = send_raw(node, CR, data_set=data_set)
    assert (response.Status, response.ErrorComment) == (0xC000, comment)
    assert written(tmp_path) == before == {"store"}
    assert send(node, [outgoing(CR)], calling_ae="GOOD", settings=PATIENT) == [Accepted()]


@pytest.mark.parametrize("uid", [TRAVERSAL, "1.2.3/../4", "1..2", "1.2.03", "/etc/passwd", "1" * 65, "1.2.3\n"])
def test_a_path_in_the_command_is_never_accepted(uid: str) -> None:
    inbox = MemoryInbox()
    request = command(str(ComputedRadiographyImageStorage), 1, sop_instance=uid, more={0x0700: b"\0\0"})
    with running_scp(inbox) as (_, destination):
        wire = associated(destination.port, source=1)
        assert wire is not None
        with wire:
            push(wire, p_data(fragment(request, command=True, last=True)))
            push(wire, p_data(fragment(data_set_of(CR)[:8000], command=False, last=False)))
            push(wire, p_data(fragment(data_set_of(CR)[8000:], command=False, last=True)))
            wire.settimeout(10)
            assert answer(wire) in (P_DATA, ABORT)
        assert inbox.received == []
        assert send(destination, [outgoing(CR)], calling_ae="GOOD", settings=PATIENT) == [Accepted()]


def test_the_same_object_again_is_success_and_other_content_under_its_uid_too(node: Destination, store: Store) -> None:
    other = encode(build("cr", **SMALL, seed=9, **_uids(dcmread(BytesIO(CR)))))
    assert [send_raw(node, entry).Status for entry in (CR, CR, other, CR)] == [0x0000] * 4


def _uids(ds: Dataset) -> dict[str, str]:
    return {"study_uid": ds.StudyInstanceUID, "series_uid": ds.SeriesInstanceUID, "sop_uid": ds.SOPInstanceUID}


def test_an_instance_uid_taken_in_another_study_is_a900(node: Destination) -> None:
    thief = encode(build("cr", **SMALL, **{**_uids(dcmread(BytesIO(CR))), "study_uid": "1.2.826.77"}))
    assert send_raw(node, CR).Status == 0x0000
    assert send_raw(node, thief).Status == 0xA900


def test_an_object_of_a_class_that_was_not_negotiated_ends_the_association(node: Destination) -> None:
    wire = associated(node.port, source=1)
    assert wire is not None
    with wire:
        push(wire, p_data(fragment(command(str(CTImageStorage), 1, more={0x0700: b"\0\0"}), command=True, last=True)))
        push(wire, p_data(fragment(data_set_of(CR)[:1000], command=False, last=True)))
        wire.settimeout(10)
        assert answer(wire) in (P_DATA, ABORT)
    assert send(node, [outgoing(CR)], calling_ae="GOOD", settings=PATIENT) == [Accepted()]


CONFIG = '[scp]\nbind = "127.0.0.1"\n[assembly]\nquiet_s = 0.2\n'


def renamed(data_set: bytes, study: str, instance: str) -> bytes:
    ds = dcmread(BytesIO(CR))
    for former, uid in ((ds.StudyInstanceUID, study), (ds.SOPInstanceUID, instance)):
        data_set = data_set.replace(former.encode(), uid.encode().ljust(len(former), b"\0"))
    return data_set


def test_every_hostile_study_has_an_end_and_a_good_one_is_answered(tmp_path: Path) -> None:
    with Archive() as archive:
        bundle, port = make_bundle(tmp_path / "bundle"), free_port()
        process = NodeProcess(tmp_path / "node", port=port, bundle=bundle, send_to=(archive.peer,), config=CONFIG)
        with closing(process.start()):
            peer = Destination(name="node", ae_title="CXRNODE", host="127.0.0.1", port=port)
            studies = {f"1.2.826.0.1.{number}": data_set for number, data_set in enumerate(STORED.values())}
            for study, data_set in studies.items():
                hostile = renamed(data_set, study, f"{study}.1")
                assert send_raw(peer, CR, data_set=hostile, sop_instance=f"{study}.1").Status == 0x0000
            good = build("dx")
            assert send(peer, [outgoing(encode(good))], calling_ae="GOOD", settings=PATIENT) == [Accepted()]
            wait_until(lambda: archive.of_study(str(good.StudyInstanceUID)), 120, "the answer to the good study")
            wait_until(lambda: ended(process) >= studies.keys(), 60, "the end of every hostile study")


def ended(process: NodeProcess) -> set[str]:
    return {line["study"] for line in process.events("study-answered")}
