"""A support archive says how a node does, and names no patient, no UID, no host and no secret."""

import json
import re
import stat
import zipfile
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dicomnode.cli.main import app
from dicomnode.cli.support import redacted
from dicomnode.settings.node import Settings, read_settings
from tests.support.bundles import make_bundle
from tests.support.make import CANARIES, build, encode, ref_of
from tests.support.stores import EXPLICIT_LE, answer, association, at, claim, open_store, rejection_of_all, to

SECRETS = ("pacs.example.org", "cloud.example.org", "SECRETUSER", "SECRET_TOKEN", "SECRETAE", "hospital", "10.0.0.7")
CONFIG = """
[scp]
port = 11113
calling_ae_titles = ["SECRETAE"]
also_accept = ["1.2.840.10008.5.1.4.1.1.2"]
[results]
institution = "hospital"
[delivery]
return_to_sender = { SECRETAE = "archive of the hospital" }
[[delivery.destinations]]
name = "archive of the hospital"
ae_title = "SECRETAE"
host = "pacs.example.org"
port = 104
[[delivery.destinations]]
kind = "stow"
url = "https://cloud.example.org/dicom-web"
authentication = "basic"
username = "SECRETUSER"
secret_env = "SECRET_TOKEN"
outputs = ["sr", "pdf"]
"""
LOG = [
    {"at": "2026-03-01T12:00:00.000+00:00", "level": "info", "event": "instance-received", "study": "1.2.3",
     "peer": "10.0.0.7", "calling_ae": "SECRETAE", "size_bytes": 5},
    {"at": "2026-03-01T12:00:01.000+00:00", "level": "error", "event": "study-failed", "study": "1.2.3",
     "cause": "CANARY at https://cloud.example.org", "raised": "ValueError in read (reader.py:30)"},
    {"at": "CANARY^NAME/1", "event": "CANARY says", "level": "info"},
    {"at": "x", "event": "fine", "raised": "CANARY^NAME/1=2"},
]  # fmt: skip


@pytest.fixture
def archive(tmp_path: Path) -> dict[str, str]:
    """Make an archive beside a store that holds an answered and a rejected study, and a log."""
    with open_store(tmp_path / "store") as store:
        for seed, to_answer in ((1, answer), (2, rejection_of_all)):
            ds = build("cr", seed=seed)
            store.reception.accept(ref_of(ds), EXPLICIT_LE, encode(ds), association(calling_ae="SECRETAE"), at(0))
            store.reception.association_released("one", at(0))
            job = claim(store, 10)
            store.inbox.finish(job, to_answer(job), to("archive of the hospital"), at(11))
    (tmp_path / "node.toml").write_text(CONFIG)
    log = tmp_path / "node.log"
    log.write_text("\n".join(["CANARY is no JSON", *map(json.dumps, LOG)]))
    done = run(tmp_path, "--log", str(log))
    assert done.exit_code == 0, done.output
    file = tmp_path / "help.zip"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    with zipfile.ZipFile(file) as opened:
        return {name: opened.read(name).decode() for name in opened.namelist()}


def run(folder: Path, *more: str) -> Any:
    where = ["--config", str(folder / "node.toml"), "--store", str(folder / "store")]
    return CliRunner().invoke(app, ["support-bundle", "--out", str(folder / "help.zip"), *where, *more])


def test_nothing_of_a_patient_a_host_or_a_secret_is_in_it(archive: dict[str, str], tmp_path: Path) -> None:
    for name, text in archive.items():
        assert not [word for word in (*CANARIES, *SECRETS, str(tmp_path)) if word in text], name


def test_no_uid_of_an_object_is_in_it_but_the_same_study_has_the_same_name(archive: dict[str, str]) -> None:
    known = re.compile(r"1\.2\.840\.10008\.[0-9.]+")
    for name, text in archive.items():
        assert not re.findall(r"(?<![\w.])[0-2](?:\.[0-9]+){5,}", known.sub("", text)), name
        assert "1.2.3" not in text or name == "versions.json"
    studies = {step["study"] for step in json.loads(archive["store.json"])["newest_steps"]}
    assert len(studies) == 2
    assert all(re.fullmatch("[0-9a-f]{12}", study) for study in studies)


def test_it_says_what_the_store_holds(archive: dict[str, str]) -> None:
    told = json.loads(archive["store.json"])
    assert (told["sound"], told["sizes"]["studies"], told["sizes"]["blob_files"]) == (True, 2, 4)
    assert told["counts"]["jobs_by_state"] == {"done": 1, "rejected": 1}
    assert told["counts"]["rejections_by_reason"] == {"lateral-view": 1}
    assert told["counts"]["deliveries_by_state"] == {"waiting": 2}
    assert (told["balance"]["pending"], told["balance"]["rejected"], told["balance"]["unaccounted"]) == (1, 1, 0)


def test_it_says_what_runs_where_and_how_it_is_set(archive: dict[str, str]) -> None:
    assert json.loads(archive["versions.json"])["libraries"]["pynetdicom"]
    assert json.loads(archive["machine.json"])["memory_bytes"] > 0
    assert json.loads(archive["model.json"])["hashes_agree"] is True
    settings = json.loads(archive["settings.json"])
    assert settings["scp"]["port"] == 11113
    pacs, cloud = settings["delivery"]["destinations"]
    assert (pacs["kind"], pacs["host"], cloud["kind"], cloud["outputs"]) == (
        "dimse", "(set, not shown)", "stow", ["sr", "pdf"],
    )  # fmt: skip


def test_of_the_log_only_what_is_known_to_name_nobody_is_in_it(archive: dict[str, str]) -> None:
    lines = [json.loads(line) for line in archive["log.jsonl"].splitlines()]
    assert [line["event"] for line in lines] == ["instance-received", "study-failed", "fine"]
    assert lines[0].keys() == {"at", "level", "event", "study", "size_bytes"}
    assert lines[0]["study"] == lines[1]["study"] != "1.2.3"
    assert lines[1]["raised"] == "ValueError in read (reader.py:30)"
    assert lines[2] == {"event": "fine", "at": "x"}


def test_without_a_store_there_is_an_archive_all_the_same_and_none_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "node.toml").write_text("")
    assert run(tmp_path).exit_code == 0
    with zipfile.ZipFile(tmp_path / "help.zip") as opened:
        assert json.loads(opened.read("store.json")) == {"error": "ConfigurationError"}
        assert "log.jsonl" not in opened.namelist()
    assert run(tmp_path).exit_code != 0


def contents(folder: Path, *more: str) -> dict[str, str]:
    """Make an archive, read it and remove it."""
    done = run(folder, *more)
    assert done.exit_code == 0, done.output
    file = folder / "help.zip"
    with zipfile.ZipFile(file) as opened:
        read = {name: opened.read(name).decode() for name in opened.namelist()}
    file.unlink()
    return read


def test_of_a_long_log_the_newest_lines_are_in_it_and_a_study_has_another_name_in_each_archive(tmp_path: Path) -> None:
    (tmp_path / "node.toml").write_text("")
    log = tmp_path / "node.log"
    log.write_text("\n".join(json.dumps({"event": "seen", "study": "1.2.3", "attempt": n}) for n in range(2500)))
    first, second = (
        [json.loads(line) for line in contents(tmp_path, "--log", str(log))["log.jsonl"].splitlines()] for _ in "ab"
    )
    assert [line["attempt"] for line in first] == list(range(500, 2500))
    assert first[0]["study"] == first[-1]["study"] != second[0]["study"]


def test_the_name_of_a_sites_own_model_is_not_in_it(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    (tmp_path / "node.toml").write_text(f'[inference]\nbundle = "{bundle}"\n')
    told = json.loads(contents(tmp_path)["model.json"])
    assert (told["name"], told["hashes_agree"]) == ("(set, not shown)", True)


def test_defaults_are_shown_as_they_are() -> None:
    shown = redacted(Settings())
    assert shown == json.loads(json.dumps(Settings().model_dump(mode="json"))) | {
        "delivery": shown["delivery"],
        "assembly": shown["assembly"],
    }
    assert shown["scp"]["ae_title"] == "CXRNODE"


@pytest.mark.parametrize("text", ["CANARY", "a host.example.org"])
def test_no_text_that_somebody_set_is_shown(text: str) -> None:
    changed = read_settings(None, {"results": {"institution": text}, "audit": {"source_id": text}})
    assert text not in json.dumps(redacted(changed), default=str)
