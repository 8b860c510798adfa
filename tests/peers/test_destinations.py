"""Orthanc as every kind of destination: it commits itself to what it got by C-STORE, and takes results by STOW-RS."""

import io
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest

from tests.bundles import make_bundle
from tests.make import build, encode
from tests.processes import NodeProcess, Orthanc, free_port, run_cxrnode, wait_until

pytestmark = pytest.mark.peer

WITHIN_S = 120.0
DICOMWEB = "libOrthancDicomWeb.so"
CONFIG = """
[scp]
bind = "127.0.0.1"
[assembly]
quiet_s = 0.3
[delivery]
return_to_sender = {{ TO_ORTHANC = "orthanc" }}
[delivery.retry]
first_delay_s = 0.5
max_delay_s = 1.0
[[delivery.destinations]]
name = "orthanc"
ae_title = "ORTHANC"
host = "127.0.0.1"
port = {dicom_port}
commitment = true
transfer_syntax = "jpeg-ls"
[[delivery.destinations]]
kind = "stow"
name = "web"
url = "{url}/dicom-web/"
outputs = ["sr", "sc"]
series_description_prefix = "AI: "
"""


@pytest.fixture
def pacs_and_node(tmp_path: Path) -> Iterator[tuple[Orthanc, NodeProcess]]:
    port = free_port()
    # Orthanc opens an association of its own to report, to whom its configuration says the AE title belongs.
    pacs = Orthanc(tmp_path / "pacs", node_port=port, plugins=[DICOMWEB])
    config = CONFIG.format(dicom_port=pacs.dicom_port, url=pacs.url)
    node = NodeProcess(tmp_path / "node", port=port, bundle=make_bundle(tmp_path / "bundle"), config=config)
    try:
        yield pacs.start(), node.start()
    finally:
        node.close()
        pacs.stop()


def send(node: NodeProcess, file: Path, calling_ae: str) -> None:
    sent = run_cxrnode("send", f"CXRNODE@127.0.0.1:{node.port}", str(file), "--ae-title", calling_ae)
    assert sent.returncode == 0, sent.stdout + sent.stderr


def test_orthanc_commits_itself_and_takes_another_set_of_results_by_stow_rs(
    pacs_and_node: tuple[Orthanc, NodeProcess], tmp_path: Path
) -> None:
    pacs, node = pacs_and_node
    source = build("dx", seed=1)
    study = str(source.StudyInstanceUID)
    (tmp_path / "dx.dcm").write_bytes(encode(source))
    send(node, tmp_path / "dx.dcm", "TO_ORTHANC")
    wait_until(lambda: node.events("instances-committed"), WITHIN_S, "the commitment")
    assert pacs.count() == 2, "the results return to the sender and to nobody else"
    story = node.command("why", study).stdout
    assert "everything is delivered. The destinations that were asked to commit themselves have done so." in story
    send(node, tmp_path / "dx.dcm", "ANOTHER")
    wait_until(lambda: pacs.count() == 4, WITHIN_S, "the delivery to the others")
    assert node.terminate() == 0
    stored = [pydicom.dcmread(io.BytesIO(part10)) for part10 in pacs.all_files().values()]
    assert {str(ds.StudyInstanceUID) for ds in stored} == {study}
    prefixed = sorted(ds.Modality for ds in stored if ds.SeriesDescription.startswith("AI: "))
    plain = sorted(ds.Modality for ds in stored if not ds.SeriesDescription.startswith("AI: "))
    assert prefixed == plain == ["OT", "SR"]
    assert sorted(ds.file_meta.TransferSyntaxUID.name for ds in stored if ds.Modality == "OT") == [
        "Explicit VR Little Endian",
        "JPEG-LS Lossless Image Compression",
    ]


def test_check_finds_both_ways(pacs_and_node: tuple[Orthanc, NodeProcess]) -> None:
    _, node = pacs_and_node
    assert node.terminate() == 0
    checked = node.command("check", "--port", str(node.port), "--bundle", str(node.folder.parent / "bundle"))
    assert checked.returncode == 0, checked.stdout
    assert "destination orthanc: answers C-ECHO" in checked.stdout
    assert "destination web: answers HTTP" in checked.stdout
