"""A real node is monitored over HTTP: it is ready, its metrics agree with its books, and a restart loses nothing."""

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.archives import Archive
from tests.support.bundles import make_bundle
from tests.support.make import CANARIES, build, encode
from tests.support.processes import NodeProcess, free_port, run_cxrnode, wait_until

WITHIN_S = 120.0
CONFIG = """
[scp]
bind = "127.0.0.1"
[store]
minimum_free_bytes = 0
[assembly]
quiet_s = 0.3
[http]
port = {port}
"""

Samples = dict[str, dict[tuple[tuple[str, str], ...], float]]


@dataclass
class MonitoredNode:
    node: NodeProcess
    archive: Archive
    http: int
    folder: Path

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http}{path}", timeout=30) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def samples(self) -> Samples:
        code, text = self.get("/metrics")
        assert code == 200
        found: Samples = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
        return found

    def counted(self) -> Samples:
        """Return what comes from the books, which nothing but work changes."""
        of_the_process = ("cxrnode_associations", "cxrnode_refusals", "cxrnode_disk", "process_", "cxrnode_oldest")
        return {name: values for name, values in self.samples().items() if not name.startswith(of_the_process)}


@pytest.fixture(scope="module")
def monitored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MonitoredNode]:
    """A node that has answered a chest and rejected a lateral one, and delivered what it had to say."""
    folder = tmp_path_factory.mktemp("monitored")
    with Archive() as archive:
        http = free_port()
        node = NodeProcess(
            folder / "node",
            port=free_port(),
            bundle=make_bundle(folder / "bundle"),
            send_to=(archive.peer,),
            config=CONFIG.format(port=http),
            http=f"127.0.0.1:{http}",
        ).start()
        try:
            sources = folder / "sources"
            sources.mkdir()
            for number, view in enumerate(("PA", "LL")):
                dataset = build("dx", seed=number + 1, study_uid=f"1.2.826.0.1.{number + 1}", view=view)
                (sources / f"{number}.dcm").write_bytes(encode(dataset))
            sent = run_cxrnode("send", f"CXRNODE@127.0.0.1:{node.port}", str(sources))
            assert sent.returncode == 0, sent.stdout + sent.stderr
            seen = MonitoredNode(node=node, archive=archive, http=http, folder=folder)
            wait_until(lambda: len(node.events("instance-delivered")) == 2, WITHIN_S, "the delivery")
            wait_until(lambda: len(node.events("study-answered")) == 2, WITHIN_S, "both answers")
            yield seen
        finally:
            node.close()


def test_it_lives_and_is_ready(monitored: MonitoredNode) -> None:
    assert monitored.get("/healthz")[0] == 200
    code, text = monitored.get("/readyz")
    said = json.loads(text)
    assert code == 200, said
    assert {name for name, check in said["checks"].items() if check["passed"]} == set(said["checks"])
    assert set(said["checks"]) == {"threads", "listener", "store", "disk", "model"}


def test_metrics_are_those_of_the_studies_it_had(monitored: MonitoredNode) -> None:
    found = monitored.samples()
    assert found["cxrnode_images_total"] == {(("outcome", "analysed"),): 1, (("outcome", "lateral-view"),): 1}
    assert found["cxrnode_answers_total"][(("outcome", "answered"),)] == 1
    assert found["cxrnode_associations_accepted_total"] == {(): 1}
    assert set(found["cxrnode_score_count"].values()) == {1}
    assert len(found["cxrnode_score_count"]) == 15
    assert found["cxrnode_destination_up"] == {(("destination", monitored.archive.peer),): 1}
    attempts = found["cxrnode_delivery_attempts_total"]
    assert attempts[(("destination", monitored.archive.peer), ("outcome", "delivered"))] == 2
    for stage in ("decode", "infer", "encode", "answer", "send", "deliver"):
        assert found["cxrnode_stage_seconds_count"][(("stage", stage),)] in (1, 2), stage
    assert found["cxrnode_stage_seconds_sum"][(("stage", "encode"),)] > 0
    assert set(found["cxrnode_thread_alive"].values()) == {1}


def test_nothing_it_shows_to_monitoring_names_a_patient(monitored: MonitoredNode) -> None:
    told = run_cxrnode("monitoring", "export", "--out", str(monitored.folder / "results.csv"), *_beside(monitored))
    assert told.returncode == 0, told.stdout + told.stderr
    table = (monitored.folder / "results.csv").read_text()
    assert table.count("\n") == 3
    shown = [monitored.get(path)[1] for path in ("/healthz", "/readyz", "/metrics", "/monitoring")]
    for secret in CANARIES:
        assert not [text for text in (*shown, table) if secret in text], secret


def test_the_terminal_says_the_same(monitored: MonitoredNode) -> None:
    told = run_cxrnode("status", "--json", *_beside(monitored))
    assert told.returncode == 0, told.stdout + told.stderr
    said = json.loads(told.stdout)
    assert (said["running"], said["passed"], said["answers"]) == (True, True, {"answered": 1, "rejected": 1})
    assert said["destinations"][monitored.archive.peer]["delivered"] == 2


def test_a_restart_changes_no_count_and_a_stopped_node_is_told_so(monitored: MonitoredNode) -> None:
    before = monitored.counted()
    assert monitored.node.terminate() == 0
    told = run_cxrnode("status", "--json", *_beside(monitored))
    assert told.returncode == 1, told.stdout + told.stderr
    assert json.loads(told.stdout)["said"] == "no node runs on this store"
    assert json.loads(told.stdout)["answers"] == {"answered": 1, "rejected": 1}
    monitored.node.start()
    after = monitored.counted()
    assert {name: after.get(name) for name in before} == before


def _beside(monitored: MonitoredNode) -> tuple[str, ...]:
    return "--config", str(monitored.node.config), "--store", str(monitored.node.store)
