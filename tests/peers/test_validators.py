"""Independent programs accept every kind of object the node makes, of every kind of source.

dciodvfy (dicom3tools) and PixelMed's DicomSRValidator find no error and no warning but the listed ones; DCMTK reads
reports and pictures; Orthanc gives back the bytes it got, by its own interface and by DICOMweb.
"""

import fnmatch
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import pytest
from pydicom import dcmread
from pydicom import uid as uids

from dicomnode.domain.answer import ResultKind
from tests.peers.programs import TOOLS, run, run_each
from tests.peers.sources import REAL, REFUSED, SYNTHETIC, Product
from tests.support.processes import Orthanc, free_port, missing_peer, require

pytestmark = pytest.mark.peer

PIXELMED = Path("/usr/share/java/pixelmed.jar")
BATCH = Path(__file__).with_name("ValidateReports.java")
KNOWN = Path(__file__).with_name("known-warnings.txt")
_WITHOUT_XPATH_LIMITS = [f"-Djdk.xml.xpath{name}Limit=0" for name in ("ExprOp", "TotalOp", "ExprGrp")]
_STOW_BATCH = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownWarning:
    """A warning that may occur: of which program, of which kinds of object, in which words, and why it is right."""

    program: str
    kinds: str
    words: str

    def covers(self, program: str, kind: str, line: str) -> bool:
        return program == self.program and fnmatch.fnmatch(kind, self.kinds) and fnmatch.fnmatch(line, self.words)


def known_warnings() -> list[KnownWarning]:
    """Read the list: a comment above each entry gives its reason; `program | kinds | words`, with * and ?."""
    found, reason = [], ""
    for line in KNOWN.read_text(encoding="utf-8").splitlines():
        if line.startswith("#") or not line.strip():
            reason = line.strip("# ")
            continue
        assert reason, f"{KNOWN.name}: no reason above {line!r}"
        program, kinds, words = (part.strip() for part in line.split("|", 2))
        found.append(KnownWarning(program=program, kinds=kinds, words=words))
    return found


def complaints(said: dict[str, str], mark: str) -> dict[str, list[str]]:
    found = {name: [line for line in text.splitlines() if line.startswith(mark)] for name, text in said.items()}
    return {name: lines for name, lines in found.items() if lines}


def check_warnings(program: str, said: dict[str, str], products: list[Product]) -> None:
    """Every warning is on the list, and every entry of the list about this program still occurs."""
    kinds = {product.name: product.kind for product in products}
    entries = [entry for entry in known_warnings() if entry.program == program]
    seen = [(kinds[name], line) for name, lines in complaints(said, "Warning").items() for line in lines]
    new = {pair for pair in seen if not any(entry.covers(program, *pair) for entry in entries)}
    assert new == set(), f"warnings of {program} that {KNOWN.name} does not list"
    gone = [entry for entry in entries if not any(entry.covers(program, *pair) for pair in seen)]
    assert gone == [], f"{KNOWN.name} lists warnings that no longer occur"


def test_every_kind_of_object_was_made_of_every_source_that_is_analysed(products: list[Product]) -> None:
    made = {source: {product.kind for product in products if product.source == source} for source in SYNTHETIC}
    every = {kind.value for kind in ResultKind}
    assert {source for source, kinds in made.items() if not kinds >= every} == REFUSED
    assert all(made[source] == {"sr"} for source in REFUSED)
    assert len(made) > 30


def test_dciodvfy_finds_no_error_and_no_new_warning(products: list[Product]) -> None:
    said = run_each("dciodvfy", products)
    assert [name for name, text in said.items() if not text.strip()] == [], "dciodvfy said nothing at all"
    assert complaints(said, "Error") == {}
    check_warnings("dciodvfy", said, products)


def test_dciodvfy_would_find_an_error(products: list[Product], tmp_path: Path) -> None:
    ds = dcmread(products[0].file)
    del ds.CompletionFlag
    ds.save_as(tmp_path / "broken.dcm")
    broken = Product(source="", kind="sr", file=tmp_path / "broken.dcm", shape="")
    assert complaints(run_each("dciodvfy", [broken]), "Error") != {}


@pytest.mark.timeout(900)
def test_pixelmed_finds_no_error_and_no_new_warning_in_any_shape_of_report(
    products: list[Product], tmp_path: Path
) -> None:
    """One report of each shape of content tree: each costs ten seconds, and values do not change the verdict."""
    reports = list({product.shape: product for product in products if product.is_report}.values())
    smallest = min(reports, key=lambda report: report.file.stat().st_size)
    assert len(reports) >= 4
    broken = tmp_path / "broken.dcm"
    broken.write_bytes(smallest.file.read_bytes().replace(b"HAS CONCEPT MOD ", b"HAS OBS CONTEXT "))
    said = pixelmed([*(report.file for report in reports), broken])
    assert complaints({"broken": said.pop("broken")}, "Error") != {}
    assert complaints(said, "Error") == {}
    check_warnings("pixelmed", said, reports)


def pixelmed(files: list[Path]) -> dict[str, str]:
    """Return what PixelMed says of each file, by name; one Java machine for all."""
    if not PIXELMED.is_file():
        missing_peer("PixelMed is not installed")
    require("javac")  # the batch is compiled when it starts
    said = run(require("java"), *_WITHOUT_XPATH_LIMITS, "-cp", PIXELMED, BATCH, *files)
    assert said.count("Root Template Validation Complete") == said.count("IOD validation complete") == len(files), said
    return dict(zip((file.stem for file in files), said.split("=== ")[1:], strict=True))


def test_dsrdump_reads_the_findings_of_every_report(products: list[Product]) -> None:
    reports = [product for product in products if product.is_report]
    said = run_each("dsrdump", reports)
    assert complaints(said, "E:") == {}
    for report in reports:
        text = said[report.name]
        assert ('CODE:(,,"Reason an image was not analysed")' in text) == (
            report.source in REFUSED or report.source == "with-a-broken-image"
        ), report.name
        if report.source not in REFUSED:
            assert 'CODE:(,,"Finding")=(4147007,SCT,"Mass")' in text
            for value in ("Present", "Absent", "Undetermined"):
                assert f',SCT,"{value}")' in text


def test_dcmtk_renders_every_picture_as_it_was_drawn(products: list[Product], tmp_path: Path) -> None:
    pictures = [product for product in products if product.kind in {"sc", "sc-finding"}]
    assert pictures
    program = require("dcmj2pnm")

    def rendered(product: Product) -> bool:
        target = tmp_path / f"{product.name}.ppm"
        said = run(program, "+opw", product.file, target)
        assert target.is_file(), said
        return np.array_equal(
            cv2.cvtColor(cv2.imread(str(target)), cv2.COLOR_BGR2RGB), dcmread(product.file).pixel_array
        )

    with ThreadPoolExecutor(TOOLS) as pool:
        assert [p.name for p, same in zip(pictures, pool.map(rendered, pictures), strict=True) if not same] == []


def test_orthanc_stores_every_object_and_gives_back_the_same_bytes(products: list[Product], tmp_path: Path) -> None:
    orthanc = Orthanc(tmp_path / "orthanc", node_port=free_port()).start()
    try:
        for product in products:
            orthanc.upload(product.file.read_bytes())
        check_bytes(orthanc, products)
    finally:
        orthanc.stop()


def test_orthanc_takes_every_object_by_stow_rs_and_gives_back_the_same_bytes(
    products: list[Product], tmp_path: Path
) -> None:
    orthanc = Orthanc(tmp_path / "orthanc", node_port=free_port(), plugins=["libOrthancDicomWeb.so"]).start()
    try:
        for start in range(0, len(products), _STOW_BATCH):
            batch = [product.file.read_bytes() for product in products[start : start + _STOW_BATCH]]
            answered = json.loads(orthanc.stow(batch))
            assert not answered.get("00081198", {}).get("Value"), "objects that the service failed to store"
            assert len(answered["00081199"]["Value"]) == len(batch)
        check_bytes(orthanc, products)
    finally:
        orthanc.stop()


def check_bytes(orthanc: Orthanc, products: list[Product]) -> None:
    held = orthanc.all_files()
    for product in products:
        sent = product.file.read_bytes()
        uid = str(dcmread(BytesIO(sent), stop_before_pixels=True, specific_tags=["SOPInstanceUID"]).SOPInstanceUID)
        assert held.get(uid) == sent, product.name
    assert len(held) == len(products)


def test_real_sources_were_there_if_the_shared_data_is(products: list[Product], shared_data: Path) -> None:
    assert len({product.source for product in products if product.source.startswith("real-")}) == len(REAL)
    assert uids.SecondaryCaptureImageStorage in {dcmread(product.file).SOPClassUID for product in products}
