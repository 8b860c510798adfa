"""SIGKILL at each step from reception to delivery: what was promised is answered, once, after the restart."""

import threading
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
def test_killed_after_an_event_it_answers_every_study_once(event: str, count: int, tmp_path: Path) -> None:
    files = written_studies(tmp_path / "files")
    with Archive() as archive:
        node = NodeProcess(
            tmp_path / "node",
            port=free_port(),
            bundle=make_bundle(tmp_path / "bundle"),
            send_to=[archive.peer],
            config=CONFIG,
        ).start()
        try:
            sent = run_cxrnode("send", f"CXRNODE@127.0.0.1:{node.port}", str(files))
            assert sent.returncode == 0, sent.stdout + sent.stderr
            wait_until(lambda: len(node.events(event)) >= count, WITHIN_S, event)
            node.kill()
            node.start()
            require_one_answer_each(archive, node)
        finally:
            node.close()


def test_killed_while_receiving_it_answers_what_it_promised(tmp_path: Path) -> None:
    files = written_studies(tmp_path / "files")
    with Archive() as archive:
        node = NodeProcess(
            tmp_path / "node",
            port=free_port(),
            bundle=make_bundle(tmp_path / "bundle"),
            send_to=[archive.peer],
            config=CONFIG,
        ).start()
        try:
            peer = f"CXRNODE@127.0.0.1:{node.port}"
            sending = threading.Thread(target=run_cxrnode, args=("send", peer, str(files)))
            sending.start()
            wait_until(lambda: node.events("instance-received"), WITHIN_S, "the first promise")
            node.kill()
            sending.join()
            promised = len({event["study"] for event in node.events("instance-received")})
            node.start()
            wait_until(lambda: len(archive.datasets) >= 2 * promised, WITHIN_S, "the answers to what was promised")
            # The sender was told of the failure, so it sends again, as a PACS would.
            assert run_cxrnode("send", peer, str(files)).returncode == 0
            require_one_answer_each(archive, node)
        finally:
            node.close()


def written_studies(folder: Path) -> Path:
    folder.mkdir()
    for number in range(STUDIES):
        (folder / f"{number}.dcm").write_bytes(encode(build("dx", seed=number + 1)))
    return folder


def require_one_answer_each(archive: Archive, node: NodeProcess) -> None:
    wait_until(lambda: len(archive.datasets) >= 2 * STUDIES, WITHIN_S, "an answer to every study")
    settled = "0 analyses and 0 deliveries unfinished"
    wait_until(lambda: settled in node.command("queue", "list").stdout, WITHIN_S, "an empty queue")
    assert node.terminate() == 0
    studies = {str(dataset.StudyInstanceUID) for dataset in archive.datasets.values()}
    assert len(studies) == STUDIES
    for study in studies:
        assert {kind: len(results) for kind, results in archive.of_study(study).items()} == {"SR": 1, "OT": 1}
