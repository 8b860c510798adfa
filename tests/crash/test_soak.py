"""A short soak: the command of `make soak`, with few studies, so that it cannot rot."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.crash


def test_nothing_is_lost_or_doubled_among_faults() -> None:
    words = ["--studies", "14", "--kills", "2", "--absences", "1", "--seed", "3"]
    # pynetdicom leaves its sockets to the collector when a peer is killed, so it has a process of its own.
    soak = subprocess.run(
        [sys.executable, "-m", "tests.soak", *words], capture_output=True, text=True, timeout=280, check=False
    )
    assert soak.returncode == 0, soak.stdout + soak.stderr
    assert "14 studies, 16 images acknowledged" in soak.stdout
    assert "node killed 2 times" in soak.stdout
    assert "away 1" in soak.stdout
