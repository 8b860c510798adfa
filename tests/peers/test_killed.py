"""SIGKILL at each step of a study with Orthanc as the PACS, and the books of both sides held against each other."""

import sqlite3
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import pydicom
import pytest

from dicomnode.settings.node import AssemblySettings, StoreSettings
from dicomnode.store import Store
from tests.support.bundles import make_bundle
from tests.support.killing import COMMITTED, HASTY, STEP_WITHIN_S, committing, is_acknowledged, owes_nothing
from tests.support.make import build, encode
from tests.support.processes import NodeProcess, Orthanc, free_port, wait_until

pytestmark = [pytest.mark.peer, pytest.mark.crash]

PAUSE_S = 0.2


@dataclass
class Modality:
    """Sends each image until it is acknowledged, as a modality does."""

    node: NodeProcess
    acknowledged: dict[str, str] = field(default_factory=dict)  # SOP Instance UID → study
    _leaving: threading.Event = field(default_factory=threading.Event)

    def start(self, image: pydicom.Dataset) -> threading.Thread:
        sending = threading.Thread(target=self._send, args=(image,))
        sending.start()
        return sending

    def give_up(self) -> None:
        self._leaving.set()

    def _send(self, image: pydicom.Dataset) -> None:
        part10 = encode(image)
        while not self._leaving.is_set():
            if is_acknowledged(self.node, part10):
                self.acknowledged[str(image.SOPInstanceUID)] = str(image.StudyInstanceUID)
                return
            self._leaving.wait(PAUSE_S)


def results_written(node: NodeProcess) -> int:
    """Count results that have their bytes, be it with or without a row."""
    if not node.count("job", "state = 'working'"):
        return node.count("result")
    images = node.count("instance")
    return len(node.blobs()) - images


STEPS: dict[str, Callable[[NodeProcess, Orthanc], int]] = {
    "accept: the bytes are written": lambda node, pacs: len(node.blobs()),
    "accept: the row is committed": lambda node, pacs: node.count("instance"),
    "assemble: the study waits for its quiet time": lambda node, pacs: node.count("job"),
    "infer: the study is in work": lambda node, pacs: node.count("event", "kind = 'claimed'"),
    "encode: a result's bytes are written": lambda node, pacs: results_written(node),
    "finish: the results are committed": lambda node, pacs: node.count("result"),
    "send: a delivery is claimed": lambda node, pacs: node.count("delivery", "attempts > 0"),
    "send: the PACS has an object": lambda node, pacs: pacs.count(),
    "commit: the request is written down": lambda node, pacs: node.count("commitment_request"),
    "commit: the PACS was asked": lambda node, pacs: len(node.events("commitment-requested")),
    "commit: the report is written down": lambda node, pacs: node.count("commitment", COMMITTED),
}
"""The steps of a study, each as a number that grows with it."""


def test_killed_at_every_step_nothing_is_lost_doubled_or_left_behind(tmp_path: Path) -> None:
    port = free_port()
    pacs = Orthanc(tmp_path / "pacs", node_port=port)
    config = HASTY + committing(pacs.ae_title, pacs.dicom_port)
    node = NodeProcess(tmp_path / "node", port=port, bundle=make_bundle(tmp_path / "bundle"), config=config)
    modality = Modality(node)
    try:
        pacs.start()
        node.start()
        for number, (name, step) in enumerate(STEPS.items(), start=1):
            kill_at(name, step, node, pacs, modality, build("dx", seed=number))
            wait_until(lambda number=number: committed(node) == 2 * number, STEP_WITHIN_S, f"the end after: {name}")
        assert node.terminate() == 0
        require_balanced_books(node, modality.acknowledged)
        require_one_answer_each(pacs, set(modality.acknowledged.values()))
    finally:
        modality.give_up()
        node.close()
        pacs.stop()


def kill_at(
    name: str,
    step: Callable[[NodeProcess, Orthanc], int],
    node: NodeProcess,
    pacs: Orthanc,
    modality: Modality,
    image: pydicom.Dataset,
) -> None:
    """Have an image sent, and end the node as soon as it has come so far."""
    before = step(node, pacs)
    sending = modality.start(image)
    wait_until(lambda: step(node, pacs) > before, STEP_WITHIN_S, name)
    node.kill()
    node.start()
    sending.join(STEP_WITHIN_S)
    assert str(image.SOPInstanceUID) in modality.acknowledged, name


def committed(node: NodeProcess) -> int:
    return node.count("commitment", COMMITTED)


def require_balanced_books(node: NodeProcess, acknowledged: dict[str, str]) -> None:
    check = node.command("store", "check")
    assert check.returncode == 0, check.stdout + check.stderr
    assert owes_nothing(node)
    with closing(sqlite3.connect(node.store / "store.db")) as aside:
        held = {row[0] for row in aside.execute("SELECT sop_instance FROM instance")}
        named = {row[0] for row in aside.execute("SELECT blob FROM instance UNION SELECT blob FROM result")}
    assert acknowledged.keys() == held
    assert node.blobs() == named, "blobs without a row, or rows without their blob"
    with Store.open(StoreSettings(path=node.store), AssemblySettings(), exclusive=True) as store:
        balance = store.ledger.balance()
    assert balance.answered == len(acknowledged)
    assert not balance.pending + balance.dead + balance.dropped + balance.unaccounted, balance


def require_one_answer_each(pacs: Orthanc, studies: set[str]) -> None:
    stored = [pydicom.dcmread(BytesIO(part10), stop_before_pixels=True) for part10 in pacs.all_files().values()]
    held = Counter((str(ds.StudyInstanceUID), str(ds.Modality)) for ds in stored)
    assert held == {(study, modality): 1 for study in studies for modality in ("SR", "OT")}
    assert len({str(ds.SOPInstanceUID) for ds in stored}) == len(stored) == 2 * len(STEPS)
