"""What unit tests share: an empty store."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from dicomnode.store import Store
from tests.stores import open_store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path / "store") as opened:
        yield opened
