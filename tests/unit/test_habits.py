"""What contributors rely on: the list of make's targets, and the hooks before a commit."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT

MAKEFILE = (ROOT / "Makefile").read_text()
CONFIG = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
HOOKS = [hook for repo in CONFIG["repos"] for hook in repo["hooks"]]


def test_make_lists_every_target() -> None:
    done = subprocess.run(["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True)
    listed = set(re.findall(r"^  ([a-z]+) +[A-Z]", done.stdout, flags=re.MULTILINE))
    (phony,) = re.findall(r"^\.PHONY: (.+)$", MAKEFILE, flags=re.MULTILINE)
    assert listed == set(phony.split())


def test_the_hooks_need_no_network() -> None:
    assert [repo["repo"] for repo in CONFIG["repos"]] == ["local"]
    assert {hook["language"] for hook in HOOKS} == {"system", "script"}
    assert {hook["id"] for hook in HOOKS} == {"ruff-check", "ruff-format", "mypy", "commit-subject"}


@pytest.mark.parametrize(
    ("subject", "fits"),
    [
        ("fix(store): keep a blob until its row is gone", True),
        ("docs: say where each question is answered", True),
        ("feat(web)!: drop the former addresses", True),
        ("Merge branch 'other' into main", True),
        ("fix(store): keep a blob; test(store): the same", False),
        ("Fixed something", False),
        ("fix(store): keep a blob.", False),
        ("fix(store): " + "x" * 61, False),
        ("fix(store): " + "x" * 60, True),
        ("", False),
    ],
)
def test_the_subject_of_a_commit_is_checked(subject: str, fits: bool, tmp_path: Path) -> None:
    (tmp_path / "message").write_text(f"{subject}\n\nWhy.\n")
    done = subprocess.run(
        [ROOT / ".ci" / "check-subject", tmp_path / "message"], capture_output=True, text=True, check=False
    )
    assert (done.returncode == 0) == fits, done.stderr
    assert fits or done.stderr.startswith("commit subject: ")
