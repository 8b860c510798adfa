"""SIGKILL at each step from reception to delivery: what was promised is answered, once, after the restart."""

import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.archives import Archive
from tests.bundles import make_bundle
from tests.make import build, encode
from tests.processes import NodeProcess, free_port, run_cxrnode, wait_until

pytestmark = pytest.mark.crash

STUDIES = 3
WITHIN_S = 40.0
CONFIG = """
[scp]
bind = "127.0.0.1"
[assembly]
quiet_s = 0.2
[delivery]
batch = 1
[delivery.retry]
first_delay_s = 0.2
max_delay_s = 0.3
[work]
retry_delay_s = 0.1
"""


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
            tmp_path / "node", port=free_port(), bundle=bundle, send_to=[archive.peer], config=CONFIG
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


def require_one_answer_each(link: Link) -> None:
    wait_until(lambda: len(link.archive.datasets) >= 2 * STUDIES, WITHIN_S, "an answer to every study")
    settled = re.compile(r"\b0 analyses and 0 deliveries unfinished")
    wait_until(lambda: settled.search(link.node.command("queue", "list").stdout), WITHIN_S, "an empty queue")
    assert link.node.terminate() == 0
    studies = {str(dataset.StudyInstanceUID) for dataset in link.archive.datasets.values()}
    assert len(studies) == STUDIES
    for study in studies:
        assert {kind: len(found) for kind, found in link.archive.of_study(study).items()} == {"SR": 1, "OT": 1}
