"""What unit tests share: an empty store, and a page of one."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from dicomnode.bundle.reader import open_bundle
from dicomnode.settings.http import HttpSettings
from dicomnode.store import Store
from tests.support.bundles import make_bundle
from tests.support.stores import open_store
from tests.support.web import Web


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path / "store") as opened:
        yield opened


@pytest.fixture(scope="session")
def page_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the bundle of the pages' nodes."""
    return make_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture
def own(tmp_path: Path, page_bundle: Path) -> Iterator[Web]:
    """A node's page that a test may change, where patients may be shown."""
    with Web(tmp_path, bundle=open_bundle(page_bundle), http=HttpSettings(local_patients=True)) as made:
        yield made
