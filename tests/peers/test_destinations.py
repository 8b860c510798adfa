"""Orthanc as every kind of destination: it commits itself to what it got by C-STORE, and takes results by STOW-RS."""

import io
import time
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest

from tests.support.bundles import make_bundle
from tests.support.documents import orthanc_blocks
from tests.support.make import build, encode
from tests.support.processes import NodeProcess, Orthanc, free_port, run_cxrnode, wait_until

pytestmark = pytest.mark.peer

WITHIN_S, SETTLED_S = 120.0, 5.0
DICOMWEB = "libOrthancDicomWeb.so"
FAST = """
[scp]
bind = "127.0.0.1"
[assembly]
quiet_s = 0.3
[delivery.retry]
first_delay_s = 0.5
max_delay_s = 1.0
"""


def documented_config(pacs: Orthanc) -> str:
    """Return the configuration that docs/integration.md shows for Orthanc, on the ports of this one."""
    by_store, by_web = orthanc_blocks("toml")
    assert "port = 4242" in by_store
    assert "http://127.0.0.1:8042/" in by_web
    ported = by_store.replace("port = 4242", f"port = {pacs.dicom_port}")
    return FAST + ported + by_web.replace("http://127.0.0.1:8042", pacs.url)


@pytest.fixture
def pacs_and_node(tmp_path: Path) -> Iterator[tuple[Orthanc, NodeProcess]]:
    port = free_port()
    # Orthanc opens an association of its own to report, to whom its configuration says the AE title belongs.
    (script,) = orthanc_blocks("lua")
    (tmp_path / "to-cxrnode.lua").write_text(script)
    routing = {"LuaScripts": [str(tmp_path / "to-cxrnode.lua")], "StableAge": 1}
    pacs = Orthanc(tmp_path / "pacs", node_port=port, plugins=[DICOMWEB], more=routing)
    node = NodeProcess(
        tmp_path / "node", port=port, bundle=make_bundle(tmp_path / "bundle"), config=documented_config(pacs)
    )
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
    send(node, tmp_path / "dx.dcm", pacs.ae_title)
    wait_until(lambda: node.events("instances-committed"), WITHIN_S, "the commitment")
    assert pacs.count() == 2, "the results return to the sender and to nobody else"
    story = node.command("why", study).stdout
    assert (
        "everything is delivered. The destinations that were asked for Storage Commitment have committed themselves."
        in story
    )
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


def test_what_orthanc_routes_by_itself_is_answered_once(pacs_and_node: tuple[Orthanc, NodeProcess]) -> None:
    pacs, node = pacs_and_node
    pacs.upload(encode(build("dx", seed=2)))
    wait_until(lambda: pacs.count() == 3, WITHIN_S, "the return of the results")
    wait_until(lambda: node.events("instances-committed"), WITHIN_S, "the commitment")
    time.sleep(SETTLED_S)  # what is to be shown is that nothing more happens
    assert len(node.events("instance-received")) == 1
    assert pacs.count() == 3


def test_check_finds_both_ways(pacs_and_node: tuple[Orthanc, NodeProcess]) -> None:
    _, node = pacs_and_node
    assert node.terminate() == 0
    checked = node.command("check", "--port", str(node.port), "--bundle", str(node.folder.parent / "bundle"))
    assert checked.returncode == 0, checked.stdout
    assert "destination orthanc: answers C-ECHO" in checked.stdout
    assert "destination web: answers HTTP" in checked.stdout
