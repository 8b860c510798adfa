"""SIGKILL at each step from reception to delivery: what was promised is answered, once, after the restart."""

import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
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
STEP_WITHIN_S = 150.0
"""The sender is a process that starts while the step is waited for."""
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

    def blobs(self) -> Iterator[Path]:
        return (self.node.store / "blobs").rglob("*")

    def count(self, table: str, where: str = "1") -> int:
        """Count rows as a look beside the running node sees them."""
        with closing(sqlite3.connect(f"file:{self.node.store / 'store.db'}?mode=ro", uri=True)) as connection:
            return int(connection.execute(f"SELECT COUNT(*) FROM {table} WHERE {where}").fetchone()[0])


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


STEPS: dict[str, Callable[["Link"], object]] = {
    "accept: the first bytes are written": lambda link: any(entry.is_file() for entry in link.blobs()),
    "accept: the first row is committed": lambda link: link.count("instance"),
    "assemble: a study waits for its quiet time": lambda link: link.count("job"),
    "infer: a study is in work": lambda link: link.count("job", "state <> 'collecting'"),
    "encode: a result's bytes are written": lambda link: (
        sum(entry.is_file() for entry in link.blobs()) > STUDIES and link.count("instance") == STUDIES
    ),
    "finish: the results are committed": lambda link: link.count("result"),
    "send: a delivery is claimed": lambda link: link.count("delivery", "state <> 'waiting'"),
    "send: the archive has an object": lambda link: link.archive.sent,
    "send: the delivery is committed": lambda link: link.count("delivery", "state = 'delivered'"),
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
    check = link.node.command("store", "check")
    assert check.returncode == 0, check.stdout + check.stderr
    studies = {str(dataset.StudyInstanceUID) for dataset in link.archive.datasets.values()}
    assert len(studies) == STUDIES
    for study in studies:
        assert {kind: len(found) for kind, found in link.archive.of_study(study).items()} == {"SR": 1, "OT": 1}
