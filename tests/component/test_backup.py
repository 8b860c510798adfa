"""Backup and restore, by the very commands of docs/operating.md, lose no acknowledged image."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dicomnode.settings.node import AssemblySettings, StoreSettings
from dicomnode.store import Store
from dicomnode.store.ledger import Balance
from tests.conftest import ROOT
from tests.support.documents import blocks, section
from tests.support.make import build, encode, ref_of
from tests.support.stores import EXPLICIT_LE, answer, association, at, to

TEXT = section("Back up and restore", (ROOT / "docs" / "operating.md").read_text(encoding="utf-8"))
BACK_UP, RESTORE = blocks("sh", TEXT)


@pytest.fixture
def run(tmp_path: Path) -> "Run":
    return Run(tmp_path)


class Run:
    """Runs blocks of the documentation on a store and its backup."""

    def __init__(self, folder: Path) -> None:
        self.store, self.backup = folder / "store", folder / "backup"
        self._programs = folder / "bin"
        self._programs.mkdir()
        command = self._programs / "cxrnode"
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m dicomnode "$@"\n')
        command.chmod(0o755)

    def __call__(self, block: str) -> None:
        environment = os.environ | {
            "PATH": f"{self._programs}:{os.environ['PATH']}",
            "STORE": str(self.store),
            "BACKUP": str(self.backup),
        }
        script = f"set -eu\n{block}"
        done = subprocess.run(
            ["bash", "-c", script], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=180, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def open(self) -> Store:
        settings = StoreSettings(path=self.store, minimum_free_bytes=0)
        return Store.open(settings, AssemblySettings(quiet_s=2.0), exclusive=True)


def receive(store: Store, study: str, seconds: float) -> None:
    ds = build("dx", study_uid=study)
    store.reception.accept(ref_of(ds), EXPLICIT_LE, encode(ds), association(study), at(seconds))


def answer_all(store: Store) -> set[str]:
    studies = set()
    while (job := store.inbox.claim(at(10**9))) is not None:
        store.inbox.finish(job, answer(job), to(), at(10**9))
        studies.add(job.study)
    return studies


def test_what_was_received_since_the_backup_is_taken_in_by_the_restore(run: Run) -> None:
    with run.open() as store:
        receive(store, "1.2.826.1", 0)
        answer_all(store)
        receive(store, "1.2.826.2", 100)
    run(BACK_UP)
    with run.open() as store:
        receive(store, "1.2.826.3", 200)
        answer_all(store)
        receive(store, "1.2.826.4", 300)
    run(RESTORE)
    with run.open() as store:
        assert answer_all(store) == {"1.2.826.2", "1.2.826.3", "1.2.826.4"}
        assert store.ledger.balance() == Balance(answered=4)
        assert store.watching.operations().images_without_row == 0


def test_a_backup_restores_a_store_that_is_gone(run: Run) -> None:
    with run.open() as store:
        receive(store, "1.2.826.1", 0)
    run(BACK_UP)
    shutil.rmtree(run.store)
    run(RESTORE)
    with run.open() as store:
        assert answer_all(store) == {"1.2.826.1"}


def test_an_older_database_alone_is_told_by_the_check_and_mended_by_its_repair(run: Run) -> None:
    with run.open() as store:
        receive(store, "1.2.826.1", 0)
    run(BACK_UP)
    with run.open() as store:
        receive(store, "1.2.826.2", 100)
    shutil.copy(run.backup / "store.db", run.store / "store.db")
    check = 'cxrnode store check --store "$STORE"'
    run(f"if {check}; then exit 1; fi")
    run(check.replace("check", "check --repair"))
    run(check)
    with run.open() as store:
        assert answer_all(store) == {"1.2.826.1", "1.2.826.2"}
