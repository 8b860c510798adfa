"""DCMTK and Poppler read what the node makes besides reports and pictures, and find in it what the node meant.

Presentation states: DCMTK shows the image through them. Parametric maps: the numbers. Documents: the page.
"""

import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import ExplicitVRLittleEndian

from dicomnode.imaging.pixels import render
from dicomnode.settings.node import PixelSettings
from tests.peers.programs import TOOLS, run, run_each
from tests.peers.sources import SYNTHETIC, Product
from tests.support.decoding import CODECS, radiograph_of
from tests.support.processes import require

pytestmark = [pytest.mark.peer, pytest.mark.timeout(900)]


def of_kind(products: list[Product], kind: str) -> list[Product]:
    chosen = [product for product in products if product.kind == kind]
    assert len(chosen) > 30
    return chosen


def test_dcmdump_reads_every_object_to_its_end(products: list[Product]) -> None:
    said = run_each("dcmdump", products, "+P", "SOPInstanceUID")
    for product in products:
        uid = dcmread(product.file, specific_tags=["SOPInstanceUID"]).SOPInstanceUID
        assert f"[{uid}]" in said[product.name]
        assert "E: " not in said[product.name]


def test_dcmpschk_finds_nothing_wrong_with_any_presentation_state(products: list[Product]) -> None:
    states = of_kind(products, "gsps")
    said = run_each("dcmpschk", states)
    assert [state.name for state in states if not passes(dcmread(state.file), said[state.name])] == []
    assert sum("Test passed" in text for text in said.values()) > 20


def passes(ds: Dataset, said: str) -> bool:
    """Tell whether it found nothing wrong, but for what it does not know: other letters, and empty names (type 2)."""
    if "Test passed" in said:
        return True
    affected = re.findall(r"Affected attribute: (\w+)", said)
    if not affected:
        return "patientName absent or empty" in said and not ds.PatientName
    return said.count("E: Error") == len(affected) and not any(str(ds[keyword].value).isascii() for keyword in affected)


def test_dcmtk_shows_each_image_through_its_presentation_state_as_without_it(
    products: list[Product], tmp_path: Path
) -> None:
    """Or, where the image states no window of its own, as the model saw it."""
    compared = 0
    for product in of_kind(products, "gsps"):
        image = uncompressed(product.source)
        if image is None:
            continue
        ds = dcmread(BytesIO(image))
        (tmp_path / "image.dcm").write_bytes(image)
        through = shown(tmp_path, "--pstate", str(product.file))
        frame = render(radiograph_of(ds), PixelSettings(), CODECS)
        states_none = frame.window is not None and not {"WindowCenter", "VOILUTSequence"} & {e.keyword for e in ds}
        alone = np.round(frame.pixels * 255) if states_none else shown(tmp_path)
        assert np.abs(through - alone).max() <= 2, product.name
        compared += 1
    assert compared > 10


def uncompressed(source: str) -> bytes | None:
    """Return the only image of a source, if DCMTK can show it as it is."""
    images = SYNTHETIC[source]() if source in SYNTHETIC else []
    if len(images) != 1 or dcmread(BytesIO(images[0])).file_meta.TransferSyntaxUID != ExplicitVRLittleEndian:
        return None
    return images[0]


def shown(folder: Path, *options: str) -> np.ndarray:
    picture = folder / "picture.pgm"
    picture.unlink(missing_ok=True)
    said = run(require("dcmp2pgm"), *options, folder / "image.dcm", picture)
    assert picture.is_file(), said
    return cv2.imread(str(picture), cv2.IMREAD_UNCHANGED).astype(np.float32)


def test_dcmdump_reads_the_numbers_of_every_parametric_map(products: list[Product]) -> None:
    maps = of_kind(products, "pm")
    said = run_each("dcmdump", maps, "+L", "+P", "FloatPixelData")
    for product in maps:
        (line,) = said[product.name].strip().splitlines()
        read = np.array(line.split("OF ")[1].split("#")[0].split("\\"), dtype=np.float64)
        written = np.frombuffer(dcmread(product.file).FloatPixelData, "<f4")
        assert np.allclose(read, written, rtol=1e-5)


def test_dcm2pdf_takes_out_every_document_and_poppler_reads_its_page(products: list[Product], tmp_path: Path) -> None:
    documents = of_kind(products, "pdf")
    with ThreadPoolExecutor(TOOLS) as pool:
        pages = list(pool.map(lambda product: page_of(product, tmp_path), documents))
    for product, page in zip(documents, pages, strict=True):
        assert "Research use only - not for diagnosis" in page, product.name
        for finding in ("Abnormality", "Mass", "Pleural Thickening"):
            assert finding in page
        assert "?" not in page
        ds = dcmread(product.file)
        assert f"Image: {ds.SourceInstanceSequence[0].ReferencedSOPInstanceUID}" in page
        assert named(ds) in page


def page_of(product: Product, folder: Path) -> str:
    """Return the text of the document's only page, as Poppler finds it."""
    target = folder / f"{product.name}.pdf"
    said = run(require("dcm2pdf"), product.file, target)
    ds = dcmread(product.file)
    assert target.read_bytes() == ds.EncapsulatedDocument[: ds.EncapsulatedDocumentLength], said
    done = subprocess.run(
        [require("pdftotext"), "-layout", str(target), "-"], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stderr == ""
    assert done.stdout.count("\f") == 1
    return " ".join(done.stdout.split())


def named(ds: Dataset) -> str:
    """Return what the page says of whose it is: the name's first group in letters that it can write."""
    groups = [" ".join(group.replace("^", " ").split()) for group in str(ds.PatientName).split("=")]
    writable = [group for group in groups if group and group.isascii()]
    return f"Patient: {writable[0]}" if writable else "Patient: in characters" if any(groups) else "Patient: not stated"
