"""What the tests of the node's objects share: every object, of every source, made once."""

import warnings
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import dcmread

from dicomnode.results.sr import as_comprehensive, as_enhanced
from tests.conftest import ROOT
from tests.peers.sources import REAL, SYNTHETIC, Product, answer, shape_of

_VARIANTS = {"comprehensive-sr": as_comprehensive, "enhanced-sr": as_enhanced}


@pytest.fixture(scope="session")
def products(tmp_path_factory: pytest.TempPathFactory, shared_dicom: Path | None) -> list[Product]:
    """Make every object once."""
    folder = tmp_path_factory.mktemp("products")
    sources = {name: make() for name, make in SYNTHETIC.items()}
    if shared_dicom is not None:
        sources |= {f"real-{name.removesuffix('.dcm')}": [(shared_dicom / name).read_bytes()] for name in REAL}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some of the real objects are not conformant
        return [product for name, images in sources.items() for product in _products(name, images, folder)]


@pytest.fixture(scope="session")
def shared_dicom() -> Path | None:
    folder = ROOT.parent / "shared" / "data" / "dicom"
    return folder if folder.is_dir() else None


def _products(source: str, images: list[bytes], folder: Path) -> Iterator[Product]:
    made = [(result.kind.value, result.part10) for result in answer(images).results]
    if source == "with-a-broken-image":
        made += [(kind, variant(dict(made)["sr"])) for kind, variant in _VARIANTS.items()]
    for number, (kind, part10) in enumerate(made):
        file = folder / f"{source}--{kind}--{number}.dcm"
        file.write_bytes(part10)
        yield Product(source=source, kind=kind, file=file, shape=shape_of(dcmread(BytesIO(part10))))
