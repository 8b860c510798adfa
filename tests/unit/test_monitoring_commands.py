"""`cxrnode status` and `cxrnode monitoring`, with and without a running node, and the exported table."""

import csv
import json
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from dicomnode.cli import status as status_command
from dicomnode.cli.main import app
from dicomnode.domain.audit import AuditKind, Disclosure
from dicomnode.domain.delivery import NoAnswer, RetryPolicy
from dicomnode.domain.errors import ConfigurationError
from dicomnode.domain.finding import ModelIdentity, Presence
from dicomnode.domain.job import JobState
from dicomnode.domain.summary import FindingSummary, ImageSummary, RejectionSummary, StudySummary
from dicomnode.formatting import format_age, format_time
from dicomnode.monitoring.export import safe_cell, write_table
from dicomnode.node import utc_now
from dicomnode.store import Store
from dicomnode.store.counters import StudyResult
from dicomnode.store.engine.lock import StoreLock, is_held
from tests.support.make import build, encode, ref_of
from tests.support.stores import EXPLICIT_LE, accept, answer, association, at, claim, open_store, rejection_of_all, to

FINDING = FindingSummary(
    label="Mass",
    probability=0.25,
    spread=0.01,
    presence=Presence.ABSENT,
    operating_point="standard",
    threshold=0.5,
)


CONFIG = """
[store]
minimum_free_bytes = 0
[http]
{http}
[[delivery.destinations]]
name = "pacs"
ae_title = "P"
host = "h"
port = 104
"""


def run(folder: Path, *words: str, http: str = "enabled = false") -> Result:
    config = folder / "node.toml"
    config.write_text(CONFIG.format(http=http))
    return CliRunner().invoke(app, [*words, "--config", str(config), "--store", str(folder / "store")])


def result(study: str = "1.1", version: int = 1, **more: Any) -> StudyResult:
    image = ImageSummary(sop_instance=f"{study}.2", abnormality=FINDING)
    facts: dict[str, Any] = {
        "study": study,
        "version": version,
        "state": JobState.DONE,
        "received_at": at(0),
        "ended_at": at(3),
        "senders": ("CR1",),
        "summary": StudySummary(model=ModelIdentity(name="m", version="1", bundle_hash="b"), images=(image,)),
    }
    return StudyResult(**(facts | more))


def table(*results: StudyResult, **more: Any) -> list[dict[str, str]]:
    file = StringIO()
    assert write_table(lambda: results, file, **more) == file.getvalue().count("\n") - 1
    return list(csv.DictReader(StringIO(file.getvalue())))


@contextmanager
def page(code: int, body: bytes) -> Iterator[int]:
    """Answer every request so; gives the port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(code)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


# The table


def test_an_image_is_a_row_with_every_label() -> None:
    (row,) = table(result())
    assert (row["study_uid"], row["image_uid"], row["study_outcome"], row["image_outcome"]) == (
        "1.1",
        "1.1.2",
        "answered",
        "analysed",
    )
    assert (row["Mass_probability"], row["Mass_presence"], row["operating_point"]) == ("0.25", "absent", "standard")
    assert (row["received_at"], row["answered_at"]) == ("2025-01-31T12:00:00+00:00", "2025-01-31T12:00:03+00:00")
    assert not {"patient_id", "patient_name", "accession_number"} & set(row)


def test_rejected_images_and_dead_letters_are_rows_too() -> None:
    no = StudySummary(rejected=(RejectionSummary(sop_instance="1.1.3", reason="modality"),))
    rows = table(
        result(),
        result("1.2", state=JobState.REJECTED, summary=no),
        result("1.3", state=JobState.DEAD, summary=StudySummary()),
    )
    assert [(row["study_outcome"], row["image_outcome"], row["Mass_probability"]) for row in rows] == [
        ("answered", "analysed", "0.25"),
        ("rejected", "modality", ""),
        ("dead", "", ""),
    ]


def test_a_study_counts_once_unless_every_version_is_wanted() -> None:
    versions = result(), result("1.2"), result(version=2)
    assert [(row["study_uid"], row["version"]) for row in table(*versions)] == [("1.2", "1"), ("1.1", "2")]
    assert len(table(*versions, every_version=True)) == 3


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "  =1", "|calc", "%0A"])
def test_a_cell_that_a_spreadsheet_would_run_is_only_shown(text: str) -> None:
    assert safe_cell(text).startswith("'")
    (row,) = table(result(senders=(text,)), patient_of=lambda _: (text, text, text))
    for name in ("calling_ae", "patient_id", "patient_name", "accession_number"):
        assert row[name].startswith("'"), name
        assert not {"\n", "\r", "\t"} & set(row[name])


def test_a_cell_of_ordinary_text_stays() -> None:
    assert safe_cell("Müller^Anna") == "Müller^Anna"
    assert safe_cell("A=B-C") == "A=B-C"


def test_a_label_that_would_run_is_shown_in_the_header() -> None:
    image = ImageSummary(sop_instance="1.2", abnormality=replace(FINDING, label="=cmd"))
    (row,) = table(result(summary=StudySummary(images=(image,))))
    assert row["'=cmd_probability"] == "0.25"


# Exporting from a store


def received(store: Store, **options: Any) -> None:
    dataset = build("dx", **options)
    store.reception.accept(ref_of(dataset), EXPLICIT_LE, encode(dataset), association(), utc_now())


def test_the_export_names_patients_only_when_asked(tmp_path: Path) -> None:
    with open_store(tmp_path / "store") as store:
        received(store)
        job = claim(store, 1e9)
        given = replace(
            answer(job), summary=StudySummary(images=(ImageSummary(sop_instance="1.2.3", abnormality=FINDING),))
        )
        store.inbox.finish(job, given, to("pacs"), utc_now())
    assert run(tmp_path, "monitoring", "export", "--out", str(tmp_path / "a.csv")).exit_code == 0
    told = run(tmp_path, "monitoring", "export", "--out", str(tmp_path / "b.csv"), "--with-patients")
    assert told.exit_code == 0, told.output
    plain, named = (tmp_path / "a.csv").read_text(), (tmp_path / "b.csv").read_text()
    dataset = build("dx")
    for secret in (str(dataset.PatientID), str(dataset.PatientName), str(dataset.AccessionNumber)):
        assert secret
        shown = secret.replace("^", " ")
        assert not [text for text in (secret, shown) if text in plain]
        assert shown in named
    assert job.study in plain
    assert stat.S_IMODE((tmp_path / "b.csv").stat().st_mode) == 0o600


def test_an_audit_trail_hears_of_every_study_whose_patient_is_exported(tmp_path: Path) -> None:
    with open_store(tmp_path / "store") as store:
        received(store)
        job = claim(store, 1e9)
        store.inbox.finish(job, answer(job), to("pacs"), utc_now())
    audited = f'port = 1\n[audit]\nto = "file"\nfile = "{tmp_path / "audit.log"}"'
    assert run(tmp_path, "monitoring", "export", "--out", str(tmp_path / "a.csv"), http=audited).exit_code == 0
    told = run(tmp_path, "monitoring", "export", "--out", str(tmp_path / "b.csv"), "--with-patients", http=audited)
    assert told.exit_code == 0, told.output
    with open_store(tmp_path / "store") as store:
        (about,) = [record.about for record in store.audit.pending(100) if record.kind is AuditKind.SHOWN]
    assert isinstance(about, Disclosure)
    assert about.study == job.study
    assert "cxrnode monitoring export" in about.visitor


def test_an_export_overwrites_nothing(tmp_path: Path) -> None:
    open_store(tmp_path / "store").close()
    (tmp_path / "a.csv").write_text("mine")
    told = run(tmp_path, "monitoring", "export", "--out", str(tmp_path / "a.csv"))
    assert told.exit_code != 0
    assert (tmp_path / "a.csv").read_text() == "mine"


def test_the_comparison_is_shown_of_a_store_without_results(tmp_path: Path) -> None:
    open_store(tmp_path / "store").close()
    told = run(tmp_path, "monitoring", "show")
    assert run(tmp_path, "watch", "show").output == told.output
    assert told.exit_code == 0, told.output
    assert "no images" in told.output
    assert "Abnormal" in told.output


# Status


def test_a_lock_is_seen_without_being_touched(tmp_path: Path) -> None:
    assert not is_held(tmp_path / "lock")
    held = StoreLock.acquire(tmp_path / "lock")
    assert is_held(tmp_path / "lock")
    held.release()
    assert not is_held(tmp_path / "lock")


def test_a_node_that_does_not_run_is_told_from_its_store(tmp_path: Path) -> None:
    with open_store(tmp_path / "store") as store:
        accept(store)
        job = claim(store, 1e6)
        store.inbox.finish(job, answer(job), to("pacs"), at(3))
        accept(store, "1.2", over="two")
        job = claim(store, 1e6)
        store.inbox.finish(job, rejection_of_all(job), to("pacs"), at(3))
        accept(store, "1.3", over="three")
    told = run(tmp_path, "status")
    assert told.exit_code == 1
    assert "no node runs on this store" in told.output
    found = json.loads(run(tmp_path, "status", "--json").output)
    assert (found["running"], found["passed"], found["answers"]) == (False, False, {"answered": 1, "rejected": 1})
    assert found["studies"]["collecting"]["count"] == 1
    assert (found["destinations"]["pacs"]["waiting"]["count"], found["destinations"]["pacs"]["up"]) == (2, None)


def test_the_queue_tells_of_the_same_work(tmp_path: Path) -> None:
    with open_store(tmp_path / "store") as store:
        accept(store)
        job = claim(store, 1e6)
        store.inbox.finish(job, answer(job), to("pacs"), at(3))
        (delivery,) = store.outbox.claim("pacs", 1, at(4))
        store.outbox.record(delivery, NoAnswer(cause="no", permanent=True), at(5), RetryPolicy(), 0.5)
        accept(store, "1.2", seconds=20, over="two")
    told = run(tmp_path, "queue", "list")
    assert told.exit_code == 0, told.output
    assert "1 analyses and 2 deliveries unfinished; dead letters among them: 0 and 1" in told.output
    assert f"the oldest has waited since {format_time(at(3))}" in told.output


@pytest.mark.parametrize("action", ["retry", "drop"])
@pytest.mark.parametrize("entry", ["D999", "A999", "a2", "D1"])
def test_an_entry_that_is_not_there_is_told_as_such(tmp_path: Path, action: str, entry: str) -> None:
    with open_store(tmp_path / "store") as store:
        accept(store)
    told = run(tmp_path, "queue", action, "A1", entry)
    assert isinstance(told.exception, ConfigurationError), told.output
    assert str(told.exception).startswith(f"there is no such entry: {entry.upper()}")
    with open_store(tmp_path / "store") as store:
        (job,) = store.ledger.jobs_of("1.1")
        assert job.state is JobState.COLLECTING, "A1 is left as it was"


@pytest.mark.parametrize(
    ("seconds", "shown"), [(None, ""), (0.9, "0 s"), (119.9, "119 s"), (120, "2 min"), (7200, "2 h"), (172_800, "2 d")]
)
def test_an_age_is_in_the_unit_that_people_would_use(seconds: float | None, shown: str) -> None:
    assert format_age(seconds) == shown


@pytest.mark.parametrize(("code", "passed"), [(200, True), (503, False)])
def test_a_node_that_runs_is_asked(tmp_path: Path, code: int, passed: bool) -> None:
    checks = {"listener": {"passed": passed, "reason": "listens on port 1"}}
    body = json.dumps({"passed": passed, "checks": checks, "version": "9.9"}).encode()
    with open_store(tmp_path / "store"), page(code, body) as port:
        told = run(tmp_path, "status", http=f"port = {port}")
        found = json.loads(run(tmp_path, "status", "--json", http=f"port = {port}").output)
    assert told.exit_code == (0 if passed else 1)
    assert "running, version 9.9" in told.output
    assert found["checks"] == checks


@pytest.mark.parametrize("permanent", [True, False], ids=["a dead letter", "a destination that is down"])
def test_status_fails_beside_a_node_that_runs_and_says_why(tmp_path: Path, permanent: bool) -> None:
    checks = {"listener": {"passed": True, "reason": "listens on port 1"}}
    body = json.dumps({"passed": True, "checks": checks, "version": "9.9"}).encode()
    with open_store(tmp_path / "store") as store, page(200, body) as port:
        accept(store)
        job = claim(store, 1e6)
        store.inbox.finish(job, answer(job), to("pacs"), at(3))
        assert run(tmp_path, "status", http=f"port = {port}").exit_code == 0
        (delivery,) = store.outbox.claim("pacs", 1, at(4))
        store.outbox.record(delivery, NoAnswer(cause="refused", permanent=permanent), at(5), RetryPolicy(), 0.5)
        told = run(tmp_path, "status", http=f"port = {port}")
    assert told.exit_code == 1
    assert "pacs has taken no result so far. 1 attempt has failed" in told.output
    assert ": refused." in told.output
    assert ("Dead letters" in told.output) == permanent


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"checks": 3}', b"\xff" * 99])
def test_another_program_at_the_address_is_no_node(tmp_path: Path, body: bytes) -> None:
    with open_store(tmp_path / "store"), page(200, body) as port:
        found = json.loads(run(tmp_path, "status", "--json", http=f"port = {port}").output)
    assert found["running"]
    assert "does not answer" in found["said"]


def test_a_node_whose_page_is_off_is_not_asked(tmp_path: Path) -> None:
    with open_store(tmp_path / "store"):
        found = json.loads(run(tmp_path, "status", "--json").output)
    assert found["running"]
    assert list(found["checks"]) == ["disk"]


def test_watching_shows_it_again_until_it_is_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            raise KeyboardInterrupt

    open_store(tmp_path / "store").close()
    monkeypatch.setattr(status_command.time, "sleep", pause)
    told = run(tmp_path, "status", "--watch", "--every", "5")
    assert (told.exit_code, pauses) == (0, [5.0, 5.0, 5.0])
    assert "no node runs on this store" in told.output
