"""The node between a real Orthanc and itself, on real chest X-rays, with the shipped model: nothing is mocked."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pydicom
import pytest

from tests.support.processes import NodeProcess, Orthanc, free_port, run_cxrnode, wait_until

pytestmark = pytest.mark.peer

CHEST = (
    "chest-pa-monochrome1-j2k.dcm",
    "chest-pa-secondary-capture-jpeg.dcm",
    "chest-pa-view-in-patient-position.dcm",
)
NOT_CHEST = {"extremity-cr-j2k.dcm": "body-part", "ct-j2k.dcm": "not-a-projection"}
CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
CONFIG = f"""
[scp]
also_accept = ["{CT_IMAGE_STORAGE}"]
bind = "127.0.0.1"
[assembly]
quiet_s = 0.5
[delivery.retry]
first_delay_s = 0.5
max_delay_s = 1.0
"""
WITHIN_S = 60.0


@dataclass(frozen=True)
class Pair:
    node: NodeProcess
    pacs: Orthanc


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    port = free_port()
    pacs = Orthanc(tmp_path / "pacs", node_port=port)
    node = NodeProcess(tmp_path / "node", port=port, send_to=[pacs.peer], config=CONFIG)
    try:
        yield Pair(node, pacs)
    finally:
        node.close()
        pacs.stop()


def part10(shared_data: Path, name: str) -> bytes:
    return (shared_data / "dicom" / name).read_bytes()


def results(pacs: Orthanc, study: str) -> dict[str, list[str]]:
    return {kind: ids for kind, ids in pacs.by_modality(study).items() if kind in {"SR", "OT"}}


def answered(pacs: Orthanc, study: str) -> bool:
    return {kind: len(ids) for kind, ids in results(pacs, study).items()} == {"SR": 1, "OT": 1}


def test_each_chest_study_gets_one_report_and_one_heatmap_in_its_study(pair: Pair, shared_data: Path) -> None:
    pair.pacs.start()
    pair.node.start()
    studies = {name: pair.pacs.upload(part10(shared_data, name)) for name in CHEST}
    for study in studies.values():
        pair.pacs.send_to_node(study)
    for name, study in studies.items():
        wait_until(lambda study=study: answered(pair.pacs, study), WITHIN_S, f"the answer to {name}")
        source = pydicom.dcmread(shared_data / "dicom" / name, stop_before_pixels=True)
        for ids in results(pair.pacs, study).values():
            result = pydicom.dcmread(io.BytesIO(pair.pacs.file(ids[0])))
            assert result.StudyInstanceUID == source.StudyInstanceUID
            assert result.PatientID == source.get("PatientID", "")
            assert result.AccessionNumber == source.get("AccessionNumber", "")


def test_a_leg_and_a_ct_get_a_recorded_reason_and_no_findings(pair: Pair, shared_data: Path) -> None:
    pair.pacs.start()
    pair.node.start()
    for name, reason in NOT_CHEST.items():
        study = pair.pacs.upload(part10(shared_data, name))
        pair.pacs.send_to_node(study)
        uid = str(pydicom.dcmread(shared_data / "dicom" / name, stop_before_pixels=True).StudyInstanceUID)
        wait_until(
            lambda uid=uid, reason=reason: reason in pair.node.command("why", uid).stdout,
            WITHIN_S,
            f"a recorded reason for {name}",
        )
        assert results(pair.pacs, study) == {}
    assert pair.pacs.count() == len(NOT_CHEST)


def test_killed_after_the_last_success_and_restarted_it_answers_once(pair: Pair, shared_data: Path) -> None:
    pair.pacs.start()
    pair.node.start()
    studies = [pair.pacs.upload(part10(shared_data, name)) for name in CHEST]
    for study in studies:
        pair.pacs.send_to_node(study)
    pair.node.kill()
    pair.node.start()
    for study in studies:
        wait_until(lambda study=study: answered(pair.pacs, study), WITHIN_S, "the answer after the restart")
    assert pair.node.terminate() == 0
    assert pair.pacs.count() == 3 * len(CHEST)


def test_a_pacs_that_was_down_gets_its_results_and_the_queue_says_why_they_wait(
    pair: Pair, shared_data: Path, tmp_path: Path
) -> None:
    pair.pacs.start()
    study = pair.pacs.upload(part10(shared_data, CHEST[0]))
    pair.pacs.stop()
    pair.node.start()
    sent = run_cxrnode("send", f"CXRNODE@127.0.0.1:{pair.node.port}", str(shared_data / "dicom" / CHEST[0]))
    assert sent.returncode == 0, sent.stderr
    wait_until(
        lambda: "refused" in pair.node.command("queue", "list").stdout.lower(), WITHIN_S, "a reason in the queue"
    )
    pair.pacs.start()
    wait_until(lambda: answered(pair.pacs, study), WITHIN_S, "the delivery once the PACS was up")
