"""The network against programs that others wrote: DCMTK's storescu, storescp and echoscu, and Orthanc."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom import uid as uids

from dicomnode.domain.delivery import Accepted, Destination, PeerTls, StoreOutcome
from dicomnode.net.scu.files import send_files
from dicomnode.net.scu.storage import echo, send
from dicomnode.settings.node import DeliverySettings
from tests.support.dimse import IMPLICIT, MemoryInbox, data_set_of, outgoing, running_scp
from tests.support.make import build, encode
from tests.support.processes import Orthanc, free_port, missing_peer, wait_until

pytestmark = pytest.mark.peer

SETTINGS = DeliverySettings(connect_timeout_s=5, response_timeout_s=20)
# storescu proposes compressed transfer syntaxes only when told which.
STORESCU_OPTION = {
    uids.ExplicitVRLittleEndian: "-xe",
    uids.ImplicitVRLittleEndian: "-xi",
    uids.JPEGBaseline8Bit: "-xy",
    uids.JPEGExtended12Bit: "-xx",
    uids.JPEGLosslessSV1: "-xs",
    uids.JPEGLSLossless: "-xt",
    uids.JPEG2000Lossless: "-xv",
    uids.JPEG2000: "-xw",
    uids.RLELossless: "-xr",
}


def dcmtk(program: str) -> str:
    """Return the path of a program of DCMTK, or skip; pynetdicom installs others under the same names."""
    own = Path(sys.executable).parent
    elsewhere = os.pathsep.join(entry for entry in os.get_exec_path() if Path(entry) != own)
    found = shutil.which(program, path=elsewhere)
    if found is None:
        missing_peer(f"DCMTK's {program} is not installed")
    return str(found)


def run(*command: str | Path) -> str:
    """Run a program that must succeed, and return what it said."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def deliver(destination: Destination, objects: Sequence[bytes]) -> list[StoreOutcome]:
    items = [outgoing(entry) for entry in objects]
    return send(destination, items, calling_ae="CXRNODE", settings=SETTINGS)


@contextmanager
def storescp(folder: Path, *options: str, tls: PeerTls | None = None) -> Iterator[Destination]:
    """Run DCMTK's storescp, which writes what it receives to `folder`, bit for bit."""
    port = free_port()
    program = dcmtk("storescp")
    folder.mkdir(exist_ok=True)
    process = subprocess.Popen(
        [program, "--bit-preserving", "-od", str(folder), "-aet", "STORESCP", *options, str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    destination = Destination(name="storescp", ae_title="STORESCP", host="127.0.0.1", port=port, tls=tls)
    try:
        wait_until(
            lambda: echo(destination, calling_ae="CXRNODE", settings=SETTINGS).succeeded, 20, "the start of storescp"
        )
        yield destination
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(10)


@pytest.mark.parametrize("transfer_syntax", STORESCU_OPTION, ids=lambda uid: uid.name)
def test_storescu_delivers_every_transfer_syntax_that_it_speaks(transfer_syntax: uids.UID, tmp_path: Path) -> None:
    bits = 8 if transfer_syntax == uids.JPEGBaseline8Bit else 12
    sent = encode(build("cr", rows=256, columns=200, bits=bits), transfer_syntax)
    file = tmp_path / "sent.dcm"
    file.write_bytes(sent)
    inbox = MemoryInbox()
    with running_scp(inbox) as (_, destination):
        option = STORESCU_OPTION[transfer_syntax]
        run(dcmtk("storescu"), option, "-aec", destination.ae_title, destination.host, str(destination.port), file)
        wait_until(lambda: inbox.released, 10, "the release")
    (received,) = inbox.received
    assert received.transfer_syntax == transfer_syntax
    stored, original = dcmread(BytesIO(received.part10)), dcmread(BytesIO(sent))
    assert stored.PixelData == original.PixelData
    assert stored.SOPInstanceUID == original.SOPInstanceUID


def test_storescu_is_told_when_it_calls_another_ae_title(tmp_path: Path) -> None:
    file = tmp_path / "sent.dcm"
    file.write_bytes(encode(build("cr", rows=64, columns=64)))
    with running_scp(MemoryInbox()) as (_, destination):
        done = subprocess.run(
            [dcmtk("storescu"), "-aec", "OTHER", destination.host, str(destination.port), str(file)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode != 0
    assert "Called AE Title Not Recognized" in done.stdout + done.stderr


def test_echoscu_is_answered() -> None:
    with running_scp(MemoryInbox()) as (_, destination):
        run(dcmtk("echoscu"), "-aec", destination.ae_title, destination.host, str(destination.port))


def test_storescp_gets_the_bytes_as_they_are(tmp_path: Path) -> None:
    objects = [encode(build("cr", rows=256, columns=200, seed=seed)) for seed in (1, 2, 3)]
    with storescp(tmp_path / "in", "+xe") as destination:
        assert deliver(destination, objects) == [Accepted()] * 3
    arrived = {data_set_of(path.read_bytes()) for path in (tmp_path / "in").iterdir()}
    assert arrived == {data_set_of(entry) for entry in objects}


def test_a_storescp_that_takes_implicit_only_gets_the_same_image(tmp_path: Path) -> None:
    original = build("cr", rows=256, columns=200)
    with storescp(tmp_path / "in", "+xi") as destination:
        assert deliver(destination, [encode(original, uids.JPEG2000Lossless)]) == [Accepted()]
    (path,) = (tmp_path / "in").iterdir()
    arrived = dcmread(path)
    assert arrived.file_meta.TransferSyntaxUID == IMPLICIT
    assert arrived.PixelData == original.PixelData
    assert arrived.SOPInstanceUID == original.SOPInstanceUID


def test_orthanc_takes_every_encoding_and_is_sent_nothing_else(tmp_path: Path) -> None:
    syntaxes = [uids.ImplicitVRLittleEndian, uids.JPEG2000Lossless, uids.JPEGLSLossless, uids.RLELossless]
    for number, syntax in enumerate(syntaxes):
        (tmp_path / f"{number}.dcm").write_bytes(encode(build("dx", rows=128, columns=96, seed=number), syntax))
    (tmp_path / "notes.txt").write_text("not DICOM")
    orthanc = Orthanc(tmp_path / "orthanc", node_port=free_port()).start()
    try:
        destination = Destination(name="orthanc", ae_title=orthanc.ae_title, host="127.0.0.1", port=orthanc.dicom_port)
        assert echo(destination, calling_ae="CXRNODE", settings=SETTINGS).succeeded
        files = sorted(path for path in tmp_path.iterdir() if path.is_file())
        report = send_files(destination, files, calling_ae="CXRNODE", settings=SETTINGS)
        assert [entry.delivered for entry in report] == [True] * 4 + [False]
        assert orthanc.count() == 4
    finally:
        orthanc.stop()


def test_the_shared_objects_reach_orthanc(shared_data: Path, tmp_path: Path) -> None:
    orthanc = Orthanc(tmp_path / "orthanc", node_port=free_port()).start()
    try:
        destination = Destination(name="orthanc", ae_title=orthanc.ae_title, host="127.0.0.1", port=orthanc.dicom_port)
        report = send_files(destination, [shared_data / "dicom"], calling_ae="CXRNODE", settings=SETTINGS)
        assert {entry.delivered for entry in report if entry.path.suffix == ".dcm"} == {True}
    finally:
        orthanc.stop()
