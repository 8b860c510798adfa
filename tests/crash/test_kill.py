"""SIGKILL at each step from reception to delivery: what was promised is answered, once, after the restart."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from tests.support.archives import Archive, CommittingArchive
from tests.support.bundles import make_bundle
from tests.support.killing import COMMITTED, HASTY, STEP_WITHIN_S, committing, is_acknowledged, owes_nothing
from tests.support.make import build, encode
from tests.support.processes import NodeProcess, free_port, run_cxrnode, wait_until

pytestmark = pytest.mark.crash

STUDIES = 3
WITHIN_S = 40.0


@dataclass(frozen=True)
class Link:
    node: NodeProcess
    archive: Archive

    def send(self, files: Path) -> int:
        return run_cxrnode("send", f"CXRNODE@127.0.0.1:{self.node.port}", str(files)).returncode


@pytest.fixture
def link(tmp_path: Path) -> Iterator[Link]:
    bundle = make_bundle(tmp_path / "bundle")
    with Archive() as archive:
        node = NodeProcess(
            tmp_path / "node", port=free_port(), bundle=bundle, send_to=[archive.peer], config=HASTY
        ).start()
        yield Link(node, archive)
        node.close()


@pytest.mark.parametrize(
    ("event", "count"),
    [
        ("association-released", 1),
        ("study-answered", 1),
        ("study-answered", STUDIES),
        ("instance-delivered", 1),
        ("instance-delivered", 2 * STUDIES),
    ],
)
def test_killed_after_an_event_it_answers_every_study_once(event: str, count: int, link: Link, tmp_path: Path) -> None:
    assert link.send(written_studies(tmp_path / "files")) == 0
    wait_until(lambda: len(link.node.events(event)) >= count, WITHIN_S, event)
    link.node.kill()
    link.node.start()
    require_one_answer_each(link)


STEPS: dict[str, Callable[["Link"], object]] = {
    "accept: the first bytes are written": lambda link: link.node.blobs(),
    "accept: the first row is committed": lambda link: link.node.count("instance"),
    "assemble: a study waits for its quiet time": lambda link: link.node.count("job"),
    "infer: a study is in work": lambda link: link.node.count("job", "state <> 'collecting'"),
    "encode: a result's bytes are written": lambda link: (
        len(link.node.blobs()) > STUDIES and link.node.count("instance") == STUDIES
    ),
    "finish: the results are committed": lambda link: link.node.count("result"),
    "send: a delivery is claimed": lambda link: link.node.count("delivery", "state <> 'waiting'"),
    "send: the archive has an object": lambda link: link.archive.sent,
    "send: the delivery is committed": lambda link: link.node.count("delivery", "state = 'delivered'"),
}
"""The steps of a study, each as what can be seen, from then on, in the store or in the archive."""


@pytest.mark.parametrize("step", STEPS)
def test_killed_at_a_step_it_answers_every_study_once(step: str, link: Link, tmp_path: Path) -> None:
    files = written_studies(tmp_path / "files")
    sending = threading.Thread(target=link.send, args=(files,))
    sending.start()
    end = time.monotonic() + STEP_WITHIN_S
    while not STEPS[step](link):
        assert time.monotonic() < end, step
        time.sleep(0.01)
    link.node.kill()
    sending.join()
    link.node.start()
    # A sender that was not told of success sends again; one that was told may do so too.
    assert link.send(files) == 0
    require_one_answer_each(link)


@dataclass(frozen=True)
class CommitmentStep:
    """A step between request and report: `count` grows with it, and the archive does not do what is `held_up`."""

    count: Callable[[NodeProcess, CommittingArchive], int]
    held_up: Literal["respond", "report"] | None = None


COMMITMENT_STEPS = {
    "the request is written down": CommitmentStep(lambda node, archive: node.count("commitment_request")),
    "the archive is asked": CommitmentStep(lambda node, archive: len(archive.asked), held_up="respond"),
    "the archive has answered": CommitmentStep(
        lambda node, archive: len(node.events("commitment-requested")), held_up="report"
    ),
    "the archive has an association to report over": CommitmentStep(
        lambda node, archive: archive.knocks, held_up="report"
    ),
    "the report is written down": CommitmentStep(lambda node, archive: node.count("commitment", COMMITTED)),
}


def test_killed_between_a_request_for_commitment_and_its_report_everything_is_committed_once(tmp_path: Path) -> None:
    port, bundle = free_port(), make_bundle(tmp_path / "bundle")
    with CommittingArchive(port) as archive:
        config = HASTY + committing(archive.ae_title, archive.port)
        node = NodeProcess(tmp_path / "node", port=port, bundle=bundle, config=config).start()
        try:
            for number, (name, step) in enumerate(COMMITMENT_STEPS.items(), start=1):
                kill_at(name, step, node, archive, encode(build("dx", seed=number)))
                wait_until(
                    lambda number=number: node.count("commitment", COMMITTED) == 2 * number,
                    STEP_WITHIN_S,
                    f"the commitment after: {name}",
                )
            # No report was about a transaction that the node had forgotten.
            wait_until(lambda: sorted(archive.heard) == sorted(archive.asked), STEP_WITHIN_S, "an end to the reports")
            require_one_answer_each(Link(node, archive), len(COMMITMENT_STEPS))
        finally:
            node.close()
    assert node.count("commitment") == 2 * len(COMMITMENT_STEPS)


def kill_at(name: str, step: CommitmentStep, node: NodeProcess, archive: CommittingArchive, part10: bytes) -> None:
    """Have an image sent, end the node as soon as it has come so far, and start it again."""
    before = step.count(node, archive)
    if step.held_up is not None:
        getattr(archive, step.held_up).clear()
    assert is_acknowledged(node, part10)
    wait_until(lambda: step.count(node, archive) > before, STEP_WITHIN_S, name)
    node.kill()
    archive.respond.set()
    archive.report.set()
    node.start()


def test_killed_while_receiving_it_answers_what_it_promised(link: Link, tmp_path: Path) -> None:
    files = written_studies(tmp_path / "files")
    sending = threading.Thread(target=link.send, args=(files,))
    sending.start()
    wait_until(lambda: link.node.events("instance-received"), WITHIN_S, "the first promise")
    link.node.kill()
    sending.join()
    promised = len({event["study"] for event in link.node.events("instance-received")})
    link.node.start()
    wait_until(lambda: len(link.archive.datasets) >= 2 * promised, WITHIN_S, "the answers to what was promised")
    # The sender was told of the failure, so it sends again, as a PACS would.
    assert link.send(files) == 0
    require_one_answer_each(link)


def written_studies(folder: Path) -> Path:
    folder.mkdir()
    for number in range(STUDIES):
        (folder / f"{number}.dcm").write_bytes(encode(build("dx", seed=number + 1)))
    return folder


def require_one_answer_each(link: Link, expected: int = STUDIES) -> None:
    wait_until(lambda: len(link.archive.datasets) >= 2 * expected, WITHIN_S, "an answer to every study")
    wait_until(lambda: owes_nothing(link.node), WITHIN_S, "an empty queue")
    assert link.node.terminate() == 0
    check = link.node.command("store", "check")
    assert check.returncode == 0, check.stdout + check.stderr
    studies = {str(dataset.StudyInstanceUID) for dataset in link.archive.datasets.values()}
    assert len(studies) == expected
    for study in studies:
        assert {kind: len(found) for kind, found in link.archive.of_study(study).items()} == {"SR": 1, "OT": 1}
