"""The node as a process between a sender and an archive, with a tiny model: the whole path on real sockets."""

import contextlib
import os
import signal
import socket
import stat
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydicom import Dataset

from tests.support.archives import Archive
from tests.support.bundles import make_bundle
from tests.support.make import CANARIES, build, encode
from tests.support.processes import NodeProcess, free_port, run_cxrnode, wait_until

WITHIN_S = 30.0
CONFIG = """
[scp]
bind = "127.0.0.1"
[assembly]
quiet_s = 0.3
[delivery.retry]
first_delay_s = 0.3
max_delay_s = 0.5
"""

StartNode = Callable[..., NodeProcess]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture
def archive() -> Iterator[Archive]:
    with Archive() as running:
        yield running


@pytest.fixture
def start_node(tmp_path: Path, bundle: Path) -> Iterator[StartNode]:
    nodes: list[NodeProcess] = []

    def start(
        *, send_to: tuple[str, ...] = (), config: str = CONFIG, folder: str = "node", http: str | None = "off"
    ) -> NodeProcess:
        nodes.append(
            NodeProcess(tmp_path / folder, port=free_port(), bundle=bundle, send_to=send_to, config=config, http=http)
        )
        return nodes[-1].start()

    yield start
    for node in nodes:
        node.close()


def send(node: NodeProcess, folder: Path, *datasets: Dataset) -> None:
    folder.mkdir(exist_ok=True)
    for file in folder.iterdir():
        file.unlink()
    for number, dataset in enumerate(datasets):
        (folder / f"{number}.dcm").write_bytes(encode(dataset))
    sent = run_cxrnode("send", f"CXRNODE@127.0.0.1:{node.port}", str(folder))
    assert sent.returncode == 0, sent.stdout + sent.stderr


def uid(dataset: Dataset) -> str:
    return str(dataset.StudyInstanceUID)


def test_a_study_comes_back_as_one_report_and_one_heatmap(
    start_node: StartNode, archive: Archive, tmp_path: Path
) -> None:
    node = start_node(send_to=(archive.peer,))
    source = build("dx")
    send(node, tmp_path / "out", source)
    wait_until(lambda: len(archive.sent) == 2, WITHIN_S, "the delivery")
    found = archive.of_study(uid(source))
    assert {kind: len(results) for kind, results in found.items()} == {"SR": 1, "OT": 1}
    for result in (found["SR"][0], found["OT"][0]):
        assert (result.PatientID, result.AccessionNumber) == (source.PatientID, source.AccessionNumber)
    story = node.command("why", uid(source)).stdout
    assert "It is answered and everything is delivered." in story
    assert "view: PA (View Position); body part: the chest (Body Part Examined)" in " ".join(story.split())


def test_a_late_image_makes_a_new_version_that_names_the_former(
    start_node: StartNode, archive: Archive, tmp_path: Path
) -> None:
    node = start_node(send_to=(archive.peer,))
    first = build("cr", seed=1, study_uid="1.2.826.1")
    late = build("cr", seed=2, study_uid="1.2.826.1")
    send(node, tmp_path / "out", first)
    wait_until(lambda: len(archive.sent) == 2, WITHIN_S, "the first answer")
    former = archive.of_study("1.2.826.1")["SR"][0]
    send(node, tmp_path / "out", late)
    wait_until(lambda: len(archive.sent) == 5, WITHIN_S, "the second answer")
    newer = next(sr for sr in archive.of_study("1.2.826.1")["SR"] if sr.SOPInstanceUID != former.SOPInstanceUID)
    named = newer.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
    assert named.ReferencedSOPInstanceUID == former.SOPInstanceUID


def test_own_results_coming_back_get_no_answer(start_node: StartNode, archive: Archive, tmp_path: Path) -> None:
    node = start_node(send_to=(archive.peer,))
    source = build("dx")
    send(node, tmp_path / "out", source)
    wait_until(lambda: len(archive.sent) == 2, WITHIN_S, "the delivery")
    heatmap = archive.of_study(uid(source))["OT"][0]
    # Another node sees the first one's heatmap as any peer's object: only what it says of itself can give it away.
    other = start_node(send_to=(archive.peer,), folder="other")
    send(other, tmp_path / "out", heatmap)
    wait_until(lambda: "own-result" in other.command("why", uid(source)).stdout, WITHIN_S, "the rejection")
    send(node, tmp_path / "out", heatmap)
    wait_until(
        lambda: "A result of this node was received and left alone" in node.command("why", uid(source)).stdout,
        WITHIN_S,
        "the recognition",
    )
    assert len(archive.sent) == 2


def test_the_same_study_sent_twice_is_answered_once(start_node: StartNode, archive: Archive, tmp_path: Path) -> None:
    node = start_node(send_to=(archive.peer,))
    source = build("dx")
    send(node, tmp_path / "out", source)
    wait_until(lambda: len(archive.sent) == 2, WITHIN_S, "the delivery")
    send(node, tmp_path / "out", source)
    wait_until(lambda: "again" in node.command("why", uid(source)).stdout, WITHIN_S, "the second reception")
    assert node.terminate() == 0
    assert set(archive.sent.values()) == {1}


def test_a_late_lateral_changes_nothing_in_the_pacs(start_node: StartNode, archive: Archive, tmp_path: Path) -> None:
    node = start_node(send_to=(archive.peer,))
    frontal = build("dx", seed=1, study_uid="1.2.826.2")
    lateral = build("dx", seed=2, study_uid="1.2.826.2", view="LL")
    send(node, tmp_path / "out", frontal)
    wait_until(lambda: len(archive.sent) == 2, WITHIN_S, "the delivery")
    send(node, tmp_path / "out", lateral)
    wait_until(lambda: "lateral-view" in node.command("why", "1.2.826.2").stdout, WITHIN_S, "the rejection")
    assert node.terminate() == 0
    assert len(archive.sent) == 2


def test_a_rejected_study_can_get_a_report_that_says_so(
    start_node: StartNode, archive: Archive, tmp_path: Path
) -> None:
    node = start_node(send_to=(archive.peer,), config=CONFIG + "[results]\nreport_rejected = true\n")
    source = build("cr", body_part="HAND")
    send(node, tmp_path / "out", source)
    wait_until(lambda: len(archive.sent) == 1, WITHIN_S, "the report")
    (report,) = archive.of_study(uid(source))["SR"]
    codes = str(report.ContentSequence)
    assert "111245" in codes
    assert "Probability" not in codes


def test_a_study_of_two_patients_is_reported_once_its_images_are_corrected(
    start_node: StartNode, archive: Archive, tmp_path: Path
) -> None:
    node = start_node(send_to=(archive.peer,), config=CONFIG + "[results]\nreport_rejected = true\n")
    of_one = build("cr", seed=1, study_uid="1.2.826.3", patient_id="ONE")
    of_another = build("cr", seed=2, study_uid="1.2.826.3", patient_id="ANOTHER", patient_name="ROE^MARY")
    send(node, tmp_path / "out", of_one, of_another)
    wait_until(lambda: node.events("patient-mismatch"), WITHIN_S, "the alert")
    assert "patient-mismatch" in node.command("why", "1.2.826.3").stdout
    of_another.PatientID, of_another.PatientName = "ONE", of_one.PatientName
    send(node, tmp_path / "out", of_another)
    wait_until(lambda: len(archive.sent) == 3, WITHIN_S, "the results")
    results = [result for made in archive.of_study("1.2.826.3").values() for result in made]
    assert {result.PatientID for result in results} == {"ONE"}


def test_without_a_destination_results_stay_and_the_log_says_where(start_node: StartNode, tmp_path: Path) -> None:
    node = start_node()
    source = build("dx")
    send(node, tmp_path / "out", source)
    wait_until(lambda: node.events("study-answered"), WITHIN_S, "the answer")
    (warning,) = node.events("no-destination")
    assert warning["results_stay_in"] == str(node.store)
    assert "results are in the store" in node.command("why", uid(source)).stdout


def test_nothing_of_the_patient_reaches_logs_ledger_or_file_names(
    start_node: StartNode, archive: Archive, tmp_path: Path
) -> None:
    unreachable = f"NOWHERE@127.0.0.1:{free_port()}"
    node = start_node(send_to=(archive.peer, unreachable))
    canary = {"StudyDescription": "CANARY study", "SeriesDescription": "CANARY series", "PatientComments": "CANARY"}
    good = build("dx", seed=1, tags=canary)
    rejected = build("cr", seed=2, body_part="CANARY HAND", tags=canary)
    broken = build("dx", seed=3, tags={**canary, "Rows": 7})
    send(node, tmp_path / "out", good, rejected, broken)
    wait_until(lambda: len(node.events("study-answered")) == 3, WITHIN_S, "three answers")
    wait_until(lambda: node.events("delivery-deferred"), WITHIN_S, "a failed delivery")
    texts = [node.log(), node.command("queue", "list").stdout]
    texts += [node.command("why", uid(dataset)).stdout for dataset in (good, rejected, broken)]
    names = [str(path) for path in node.store.rglob("*")]
    for canary_text in CANARIES:
        assert not [text for text in (*texts, *names) if canary_text in text]


def test_the_store_is_for_its_owner_only(start_node: StartNode, tmp_path: Path) -> None:
    node = start_node()
    send(node, tmp_path / "out", build("dx"))
    wait_until(lambda: node.events("study-answered"), WITHIN_S, "the answer")
    for path in (node.store, *node.store.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_exits_with_0(start_node: StartNode, number: signal.Signals) -> None:
    node = start_node()
    assert node.terminate(number) == 0
    assert node.events("node-stopped")


def test_a_port_in_use_is_said_and_ends_with_2(start_node: StartNode, bundle: Path, tmp_path: Path) -> None:
    node = start_node()
    other = run_cxrnode("serve", "--port", str(node.port), "--store", str(tmp_path / "other"), "--bundle", str(bundle))
    assert other.returncode == 2
    assert "already in use" in other.stderr


def test_a_second_node_on_one_store_is_refused(start_node: StartNode, bundle: Path) -> None:
    node = start_node()
    other = run_cxrnode("serve", "--port", str(free_port()), "--store", str(node.store), "--bundle", str(bundle))
    assert other.returncode == 2
    assert "in use" in other.stderr


def test_a_waiting_delivery_is_shown_with_its_reason_dropped_and_brought_back(
    start_node: StartNode, tmp_path: Path
) -> None:
    port = free_port()
    node = start_node(send_to=(f"ARCHIVE@127.0.0.1:{port}",))
    send(node, tmp_path / "out", build("dx"))
    wait_until(lambda: node.events("delivery-deferred"), WITHIN_S, "a failed delivery")
    listed = node.command("queue", "list").stdout
    assert "waiting" in listed
    assert "refused" in listed.lower()
    assert node.command("queue", "drop", "D1", "D2").returncode == 0
    with Archive(port) as archive:
        assert node.command("queue", "retry", "D1", "D2").returncode == 0
        wait_until(lambda: len(archive.sent) == 2, WITHIN_S, "the delivery")
    assert "0 analyses and 0 deliveries unfinished" in node.command("queue", "list").stdout


def test_check_says_what_is_wrong(bundle: Path, tmp_path: Path) -> None:
    nowhere = f"PACS@127.0.0.1:{free_port()}"
    checked = run_cxrnode(
        "check",
        "--store",
        str(tmp_path / "store"),
        "--bundle",
        str(bundle),
        "--port",
        str(free_port()),
        "--send-to",
        nowhere,
    )
    assert checked.returncode == 1
    lines = checked.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["ok", "ok", "ok", "ok", "ok", "wrong"]
    assert nowhere in lines[-1]


def test_check_is_content_when_all_is_well(archive: Archive, bundle: Path, tmp_path: Path) -> None:
    checked = run_cxrnode(
        "check",
        "--store",
        str(tmp_path),
        "--bundle",
        str(bundle),
        "--port",
        str(free_port()),
        "--send-to",
        archive.peer,
    )
    assert checked.returncode == 0, checked.stdout
    assert "answers C-ECHO" in checked.stdout


def test_check_tries_the_page(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXRNODE_HTTP__ENABLED", "true")
    words = ("check", "--bundle", str(bundle), "--store", str(tmp_path / "store"), "--port", str(free_port()))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setenv("CXRNODE_HTTP__PORT", str(taken.getsockname()[1]))
        checked = run_cxrnode(*words)
        assert checked.returncode == 1
        assert "wrong page: " in checked.stdout
        assert "--http off" in checked.stdout
    monkeypatch.setenv("CXRNODE_HTTP__PORT", "0")
    assert "ok    page: http://127.0.0.1:" in run_cxrnode(*words).stdout
    monkeypatch.setenv("CXRNODE_HTTP__BIND", "0.0.0.0")
    assert "lets other machines in" in run_cxrnode(*words).stdout


def test_check_beside_the_running_node_finds_nothing_wrong(start_node: StartNode) -> None:
    node = start_node()
    checked = node.command("check", "--port", str(node.port))
    assert checked.returncode == 0, checked.stdout
    assert "node: runs on this store already (process " in checked.stdout
    assert "is in use, by the node that runs on this store" in checked.stdout


def test_a_store_open_to_other_accounts_is_logged(start_node: StartNode) -> None:
    node = start_node()
    assert node.events("store-exposed") == []
    node.terminate()
    node.store.chmod(0o777)
    (told,) = node.start().events("store-exposed")
    assert "mode 0777" in told["cause"]


def test_check_names_a_damaged_bundle(bundle: Path, tmp_path: Path) -> None:
    damaged = make_bundle(tmp_path / "bundle")
    os.truncate(damaged / "model.onnx", 100)
    checked = run_cxrnode(
        "check", "--bundle", str(damaged), "--store", str(tmp_path / "store"), "--port", str(free_port())
    )
    assert checked.returncode == 1
    assert "is not the file its manifest names" in checked.stdout


def test_a_study_without_a_route_waits_for_a_rule_and_an_operator(
    start_node: StartNode, archive: Archive, tmp_path: Path
) -> None:
    title, port = archive.peer.split("@")[0], archive.peer.rsplit(":", 1)[1]
    destination = f'[[delivery.destinations]]\nname = "pacs"\nae_title = "{title}"\nhost = "127.0.0.1"\nport = {port}\n'
    node = start_node(config=f"{CONFIG}[delivery]\ndefault_destinations = []\n{destination}")
    source = build("dx")
    send(node, tmp_path / "out", source)
    wait_until(lambda: node.events("study-unrouted"), WITHIN_S, "the alert")
    listed = node.command("queue", "list").stdout
    assert "dead" in listed
    assert "no rule of delivery.routes" in listed
    assert "No destination was found for the results" in node.command("why", uid(source)).stdout
    assert node.terminate() == 0
    rule = 'routes = [{ calling_ae = "CXR*", destinations = ["pacs"] }]'
    node.config.write_text(f"{CONFIG}[delivery]\ndefault_destinations = []\n{rule}\n{destination}")
    node.start()
    assert node.command("queue", "retry", "--all-dead").returncode == 0
    wait_until(lambda: len(archive.sent) == 2, WITHIN_S, "the delivery")
    assert set(archive.of_study(uid(source))) == {"SR", "OT"}


def test_the_page_is_served_and_ends_with_the_node(start_node: StartNode) -> None:
    node = start_node(http="127.0.0.1:0")
    (started,) = node.events("node-started")
    with urllib.request.urlopen(started["page"], timeout=60) as answer:
        assert b"Overview" in answer.read()
    assert node.terminate() == 0


def test_a_default_address_that_is_taken_costs_the_page_and_not_the_studies(
    start_node: StartNode, archive: Archive, tmp_path: Path
) -> None:
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # if another program has it already, that is as good
            stack.enter_context(socket.create_server(("127.0.0.1", 8080)))
        node = start_node(send_to=(archive.peer,), http=None)
    (told,) = node.events("page-not-served")
    assert "127.0.0.1:8080" in told["cause"]
    assert "--http HOST:PORT" in told["cause"]
    send(node, tmp_path / "out", build("dx"))
    wait_until(lambda: len(archive.sent) == 2, WITHIN_S, "the delivery")
    status = node.command("status")
    assert status.returncode == 1
    assert "a node runs on this store, without its page" in status.stdout
    assert "no  page: the web page cannot have 127.0.0.1:8080" in status.stdout
    assert node.terminate() == 0
    other = start_node(http="127.0.0.1:0")
    assert "running, version" in other.command("status").stdout, "its free port is found by what it wrote down"


def test_a_port_of_the_page_in_use_is_said_with_what_to_do(start_node: StartNode, bundle: Path, tmp_path: Path) -> None:
    node = start_node(http="127.0.0.1:0")
    taken = node.events("node-started")[0]["page"].removeprefix("http://").rstrip("/")
    other = run_cxrnode(
        "serve", "--port", str(free_port()), "--store", str(tmp_path / "b"), "--bundle", str(bundle), "--http", taken
    )
    assert other.returncode == 2
    assert taken in other.stderr
    assert "--http off" in other.stderr
