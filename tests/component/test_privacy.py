"""Patient data stays where it belongs: a canary goes every way there is, failures too, and is then looked for."""

import os
import re
import sqlite3
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset, dcmread
from pynetdicom.presentation import build_context
from typer.testing import CliRunner

from dicomnode.cli.main import app
from dicomnode.dicom.attributes import text
from dicomnode.dicom.part10 import read_file_head
from dicomnode.dicom.reader import read
from dicomnode.domain.delivery import Destination
from tests.support.archives import CommittingArchive
from tests.support.bundles import make_bundle
from tests.support.dicomweb import JSON, Answer, Dicomweb
from tests.support.dimse import Peer, requested, send_raw, store_request
from tests.support.make import CANARIES, CANARY_ID, CANARY_NAME, SOP_CLASSES, build, encode
from tests.support.modules import code
from tests.support.processes import NodeProcess, free_port, run_cxrnode, wait_until

WITHIN_S = 60.0
SR, SC = "1.2.840.10008.5.1.4.1.1.88.34", "1.2.840.10008.5.1.4.1.1.7"
EXPLICIT = "1.2.840.10008.1.2.1"
CANARY = "CANARY^QUOTED"
ASCII = b"ISO_IR 100"
CONFIG = """
[scp]
bind = "127.0.0.1"
[assembly]
quiet_s = 0.3
[results]
report_rejected = true
[log]
level = "DEBUG"
[delivery.retry]
first_delay_s = 0.2
max_delay_s = 0.5
[[delivery.destinations]]
name = "archive"
ae_title = "ARCHIVE"
host = "127.0.0.1"
port = {archive}
commitment = true
commitment_timeout_s = 5.0
commitment_linger_s = 0
[[delivery.destinations]]
name = "refusing"
ae_title = "PEER"
host = "127.0.0.1"
port = {refusing}
[[delivery.destinations]]
name = "nowhere"
ae_title = "NOWHERE"
host = "127.0.0.1"
port = {nowhere}
[[delivery.destinations]]
kind = "stow"
name = "cloud"
url = "{cloud}"
"""


def quoting_refusal(_: Any) -> Dataset:
    """Refuse for good, and quote the patient in the Error Comment and as an offending value."""
    answer = Dataset()
    answer.Status = 0xC001
    answer.ErrorComment = CANARY
    return answer


class QuotingArchive(CommittingArchive):
    """Quotes the patient in its first response to a request for commitment, a refusal, and in every report."""

    def _on_action(self, event: Any) -> tuple[int | Dataset, None]:
        if not self.asked:
            self.asked.append("refused")
            refusal = Dataset()
            refusal.Status = 0x0110
            refusal.ErrorComment = CANARY
            return refusal, None
        return super()._on_action(event)

    def _tell(self, told: Dataset) -> bool:
        told.PatientName, told.RetrieveAETitle = CANARY_NAME, "CANARY"
        told.PatientComments = CANARY
        unknown = Dataset()
        unknown.ReferencedSOPClassUID = unknown.ReferencedSOPInstanceUID = "1.2.3"
        unknown.PatientID = CANARY_ID
        told.ReferencedSOPSequence.append(unknown)
        return super()._tell(told)


class QuotingService:
    """A DICOMweb service that holds the first request until the test lets go, then refuses and quotes the patient."""

    def __init__(self) -> None:
        self.asked, self.let_go = threading.Event(), threading.Event()

    def __call__(self, _: Any) -> Answer:
        self.asked.set()
        self.let_go.wait(WITHIN_S)
        return Answer(409, f'{{"error": "{CANARY}"}}'.encode(), {"Content-Type": JSON, "Warning": f"299 - {CANARY}"})


def everywhere(**tags: Any) -> dict[str, Any]:
    """Return attributes that carry the canary wherever an attribute can carry a text."""
    request = Dataset()
    request.RequestedProcedureDescription = request.ScheduledProcedureStepDescription = "CANARY request"
    request.AccessionNumber = "CANARYACCZQX"
    words = {
        keyword: f"CANARY {keyword}"[:60]
        for keyword in (
            "StudyDescription", "SeriesDescription", "PatientComments", "ImageComments", "InstitutionName",
            "ReferringPhysicianName", "PerformingPhysicianName", "OperatorsName", "ProtocolName", "OtherPatientIDs",
            "AdditionalPatientHistory", "InstitutionalDepartmentName", "DerivationDescription",
        )
    }  # fmt: skip
    short = {"StationName": "CANARY", "StudyID": "CANARY", "Manufacturer": "CANARY", "SoftwareVersions": "CANARY"}
    return {**words, **short, "RequestAttributesSequence": [request], **tags}


def marked(ds: Dataset) -> Dataset:
    """Add private attributes that carry the canary."""
    block = ds.private_block(0x0099, "CANARY CREATOR", create=True)
    block.add_new(0x01, "LO", CANARY)
    block.add_new(0x02, "UN", CANARY.encode())
    return ds


def in_its_file(part10: bytes) -> bytes:
    """Add file meta information that carries the canary, where it may carry a text."""
    ds = dcmread(BytesIO(part10))
    ds.file_meta.SourceApplicationEntityTitle = ds.file_meta.SendingApplicationEntityTitle = "CANARY"
    ds.file_meta.ImplementationVersionName = "CANARY META"
    ds.file_meta.PrivateInformationCreatorUID = "1.2.3"
    ds.file_meta.PrivateInformation = b"CANARY^META "
    ds.preamble = b"CANARY^PREAMBLE ".ljust(128, b".")
    buffer = BytesIO()
    ds.save_as(buffer)
    return buffer.getvalue()


def objects() -> dict[str, bytes]:
    """Return an object for each thing that the node may make of one."""
    odd = {"ViewCodeSequence": [code("CANARY", "99CANARY", "CANARY view")], "BodyPartExamined": "CANARY CHEST"}
    damaged = marked(build("dx", seed=3, tags=everywhere(Rows=7)))
    broken = encode(marked(build("cr", seed=4, tags=everywhere())), "1.2.840.10008.1.2.4.90")
    start = broken.rindex(b"\xff\x4f\xff\x51")
    return {
        "good": in_its_file(encode(marked(build("dx", seed=1, tags=everywhere())))),
        "rejected": encode(marked(build("cr", seed=2, body_part="CANARY HAND", tags=everywhere()))),
        "damaged": encode(damaged),
        "broken frame": broken[: start + 60] + CANARY.encode() * 20 + broken[start + 60 + 20 * len(CANARY) :],
        "odd code": encode(marked(build("dx", seed=5, tags=everywhere(**odd)))),
        "odd photometric": encode(marked(build("cr", seed=6, tags=everywhere(PhotometricInterpretation="CANARY")))),
        "odd modality": encode(marked(build("cr", seed=7, modality="CANARY", tags=everywhere()))),
        "odd age": encode(marked(build("dx", seed=8, age="CAN", tags=everywhere(PatientAge="CANY")))),
        "odd character set": encode(marked(build("dx", seed=9, tags=everywhere()))).replace(ASCII, b"CANARY_100"),
    }


def undecodable(part10: bytes) -> dict[str, bytes]:
    """Return data sets that cannot be parsed, which the command set of a C-STORE gives away for good ones."""
    whole = part10[part10.index(b"\x08\x00\x05\x00") :]
    return {
        "cut": whole[:200],
        "no UIDs": b"\x10\x00\x10\x00PN\x0c\x00CANARY^NAME ",
        "lying length": b"\x10\x00\x10\x00PN\xff\xffCANARY^NAME ",
        "no VR": b"\x08\x00\x05\x00??\x06\x00CANARY" + whole,
        "names for UIDs": re.sub(rb"2\.25\.[0-9]", b"CANARY", whole),
    }


@contextmanager
def permissive() -> Iterator[None]:
    """Run with a umask that forbids nothing."""
    before = os.umask(0)
    try:
        yield
    finally:
        os.umask(before)


pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Life"]:
    with permissive():
        told = Life(tmp_path_factory.mktemp("life"))
        try:
            told.live()
            yield told
        finally:
            told.node.close()


class Life:
    """A node that has seen it all, and everything that it has left behind; `said` is what its commands printed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.said: dict[str, str] = {}
        self.cloud = QuotingService()
        self.archived: set[str] = set()
        self.committed: list[str] = []
        self.requests: list[str] = []
        self.objects = objects()
        self.node = NodeProcess(folder / "node", port=free_port(), bundle=make_bundle(folder / "bundle"))
        self.destination = Destination(name="node", ae_title="CXRNODE", host="127.0.0.1", port=self.node.port)

    def live(self) -> None:
        taken = {SR: [EXPLICIT], SC: [EXPLICIT]}
        quoting = QuotingArchive(self.node.port)
        with quoting as archive, Peer(taken, on_store=quoting_refusal) as refusing, Dicomweb(self.cloud) as service:
            ports = {"archive": archive.port, "refusing": refusing.destination.port, "nowhere": free_port()}
            self.node.config.write_text(CONFIG.format(**ports, cloud=service.url))
            self.node.start()
            self._send_what_is_refused()
            self._send_what_is_accepted()
            answered = len(self.objects)
            wait_until(lambda: len(self.node.events("study-answered")) >= answered, WITHIN_S, "the answers")
            wait_until(self.cloud.asked.is_set, WITHIN_S, "a request to the service")
            self.node.kill()
            self.cloud.let_go.set()
            self.node.start()
            wait_until(lambda: self._dead("refusing") and self._dead("cloud"), WITHIN_S, "the dead letters")
            wait_until(lambda: archive.sent, WITHIN_S, "a delivery")
            wait_until(lambda: self.node.events("instances-committed"), WITHIN_S, "a commitment")
            self.committed = list(archive.heard)
            self.requests = [f"{request.method} {request.path} {request.headers}" for request in service.requests]
            self.archived = {text(ds, "PatientName") for ds in list(archive.datasets.values())}
        self._ask()
        assert self.node.terminate() == 0

    def _send_what_is_accepted(self) -> None:
        folder = self.folder / "out"
        folder.mkdir()
        for number, part10 in enumerate(self.objects.values()):
            (folder / f"{number}.dcm").write_bytes(part10)
        to = f"CXRNODE@127.0.0.1:{self.node.port}"
        sent = run_cxrnode("send", to, str(folder), "--ae-title", "MODALITY")
        assert sent.returncode == 0, sent.stdout + sent.stderr
        self.said["send"] = sent.stdout + sent.stderr

    def _send_what_is_refused(self) -> None:
        good = self.objects["good"]
        for name, data_set in undecodable(good).items():
            assert send_raw(self.destination, good, data_set=data_set).Status != 0, name
        assert send_raw(self.destination, good, sop_instance="1.2.3").Status == 0xA900
        context = build_context(SOP_CLASSES["dx"], EXPLICIT)
        with requested(self.destination, context) as association:
            # Half an object, and then nothing.
            association.dimse.send_msg(store_request(good[: len(good) // 2]), 1)
            association.abort()

    def _dead(self, destination: str) -> bool:
        return any(event["destination"] == destination for event in self.node.events("delivery-dead"))

    def _ask(self) -> None:
        studies = {text(read(part10), "StudyInstanceUID"): name for name, part10 in self.objects.items()}
        commands = {"list": ("queue", "list"), "retry": ("queue", "retry", "--all-dead")}
        for uid, name in studies.items():
            commands[f"why {name}"] = ("why", uid)
            commands[f"show {name}"] = ("queue", "show", uid)
        on_this_store = ("--config", str(self.node.config), "--store", str(self.node.store))
        for name, words in commands.items():
            answer = CliRunner().invoke(app, [*words, *on_this_store])
            assert answer.exit_code == 0, (words, answer.output)
            self.said[name] = answer.output
        checked = self.node.command("check")
        self.said["check"] = checked.stdout + checked.stderr

    def events_of_the_ledger(self) -> set[str]:
        with sqlite3.connect(f"file:{self.node.store / 'store.db'}?mode=ro", uri=True) as connection:
            return {kind for (kind,) in connection.execute("SELECT DISTINCT kind FROM event")}


def test_the_canary_went_every_way_there_is(life: Life) -> None:
    assert CANARY_NAME in life.archived
    assert life.committed
    assert any(b"CANARY" in path.read_bytes() for path in (life.node.store / "blobs").rglob("*") if path.is_file())
    logged = {
        name for name in ("instance-refused", "association-aborted", "delivery-deferred") if life.node.events(name)
    }
    assert logged == {"instance-refused", "association-aborted", "delivery-deferred"}
    ways = {"received", "answered", "image-rejected", "delivered", "delivery-dead", "delivery-deferred",
            "delivery-interrupted", "queued", "retried", "commitment-requested", "commitment-deferred",
            "committed"}  # fmt: skip
    assert ways <= life.events_of_the_ledger()
    assert {"corrupt-pixels", "body-part", "modality"} <= _rejections(life)


def test_no_log_record_quotes_a_patient(life: Life) -> None:
    assert not [line for line in life.node.log().splitlines() for canary in CANARIES if canary in line]


def test_no_header_of_a_request_to_a_dicomweb_service_quotes_a_patient(life: Life) -> None:
    assert life.requests
    assert not [request for request in life.requests for canary in CANARIES if canary in request]


def test_no_file_meta_information_of_a_sender_is_kept_or_passed_on(life: Life) -> None:
    blobs = [path.read_bytes() for path in (life.node.store / "blobs").rglob("*") if path.is_file()]
    heads = [blob[: read_file_head(blob).offset] for blob in blobs]
    assert len(heads) > len(life.objects)
    assert not [head for head in heads for canary in CANARIES if canary.encode() in head]


def test_no_command_quotes_a_patient(life: Life) -> None:
    assert not {name for name, text in life.said.items() for canary in CANARIES if canary in text}


def test_the_database_holds_nothing_of_a_patient(life: Life) -> None:
    files = [path for path in life.node.store.iterdir() if path.is_file()]
    assert "store.db" in {path.name for path in files}
    for path in files:
        content = path.read_bytes()
        assert not [canary for canary in CANARIES if canary.encode() in content], path.name


def test_no_file_name_holds_anything_of_a_patient(life: Life) -> None:
    names = [str(path.relative_to(life.folder)) for path in life.node.folder.rglob("*")]
    assert not [name for name in names for canary in CANARIES if canary in name]


def test_what_the_node_writes_is_for_its_owner_only_whatever_the_umask(life: Life) -> None:
    for path in (life.node.store, *life.node.store.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) in ((0o700,) if path.is_dir() else (0o600, 0o400)), path


def _rejections(life: Life) -> set[str]:
    with sqlite3.connect(f"file:{life.node.store / 'store.db'}?mode=ro", uri=True) as connection:
        return {reason for (reason,) in connection.execute("SELECT DISTINCT reason FROM rejection")}
