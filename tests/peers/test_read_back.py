"""DCMTK, highdicom, pydicom and Orthanc read in the results what the pipeline said, and the patient's right name."""

import functools
import subprocess
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import dcmread

from dicomnode.domain.answer import DEFAULT_OUTPUTS, ResultKind
from tests.peers.readers import by_dsr2html, by_dsrdump, by_highdicom, said
from tests.peers.sources import answer, shipped_manifest
from tests.support.names import DECLARED, NAMES, named
from tests.support.processes import Orthanc, free_port, require

pytestmark = pytest.mark.peer

READ = (
    *DECLARED, "ascii-undeclared", "utf-8-undeclared", "latin-1-undeclared", "japanese-undeclared", "japanese-roman",
    "korean-alone", "korean-without-escapes", "chinese-undeclared", "latin-1-as-utf-8", "utf-8-as-japanese",
)  # fmt: skip
BEYOND_ICONV = {name for name in READ if "japanese" in name and NAMES[name].written != "ISO_IR 192"}
"""DCMTK built with the C library's iconv converts no Japanese; there it shows the bytes as they are."""
_NO_CONVERSION = b"is not supported by the utilized character set conversion library"
_REPORT, _PICTURE = ResultKind.STRUCTURED_REPORT.value, ResultKind.SECONDARY_CAPTURE.value


ResultOf = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def result_of(tmp_path_factory: pytest.TempPathFactory) -> ResultOf:
    """Have the pipeline answer a study of the patient; give the file of a name and a kind."""
    folder = tmp_path_factory.mktemp("results")

    @functools.cache
    def made(name: str) -> dict[str, Path]:
        answered = answer([named(name)], outputs=DEFAULT_OUTPUTS, institution="General Hospital")
        written = {}
        for result in answered.results:
            file = folder / f"{name}--{result.kind.value}.dcm"
            file.write_bytes(result.part10)
            written[result.kind.value] = file
        return written

    return lambda name, kind: made(name)[kind]


def shown(program: str, *options: str | Path) -> tuple[bytes, str]:
    """Return what a program of DCMTK printed, converted to UTF-8 where it can, and what it complained of."""
    done = subprocess.run([require(program), "+U8", *options], capture_output=True, timeout=60, check=False)
    if _NO_CONVERSION in done.stderr:
        done = subprocess.run([require(program), *options], capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout, done.stderr.decode()


def expected(name: str) -> bytes:
    """Return the name as DCMTK prints it."""
    if name not in BEYOND_ICONV:
        return NAMES[name].says.encode()
    return NAMES["japanese" if name == "japanese-roman" else name].raw


def encoding_of(name: str) -> str:
    return "shift_jis" if name in BEYOND_ICONV else "utf-8"


@pytest.mark.parametrize("name", READ)
def test_dcmtk_reads_name_and_findings(name: str, result_of: ResultOf) -> None:
    dumped, complaints = shown("dsrdump", result_of(name, _REPORT))
    assert "E:" not in complaints
    assert b"Patient             : " + expected(name) + b" (" in dumped
    assert by_dsrdump(dumped.decode(encoding_of(name))) == said(shipped_manifest())
    dumped, _ = shown("dcmdump", "+P", "PatientName", result_of(name, _PICTURE))
    assert b"[" + expected(name) + b"]" in dumped


@pytest.mark.parametrize("name", READ)
def test_dcmtk_renders_a_page_with_name_and_findings(name: str, result_of: ResultOf) -> None:
    page, complaints = shown("dsr2html", "+Cc", result_of(name, _REPORT))
    assert "E:" not in complaints
    family, _, given = expected(name).partition(b"=")[0].partition(b"^")
    assert b"<td>" + (given + b" " + family).strip() + b" (" in page
    assert by_dsr2html(page.decode(encoding_of(name))) == said(shipped_manifest())


@pytest.mark.parametrize("name", READ)
def test_highdicom_and_pydicom_read_name_and_findings(name: str, result_of: ResultOf) -> None:
    assert by_highdicom(result_of(name, _REPORT)) == said(shipped_manifest())
    for kind in (_REPORT, _PICTURE):
        assert str(dcmread(result_of(name, kind)).PatientName) == NAMES[name].says


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    pacs = Orthanc(tmp_path_factory.mktemp("orthanc"), node_port=free_port()).start()
    yield pacs
    pacs.stop()


def shown_by(pacs: Orthanc, part10: bytes) -> str:
    pacs.upload(part10)
    uid = dcmread(BytesIO(part10), stop_before_pixels=True, specific_tags=["SOPInstanceUID"]).SOPInstanceUID
    return str(pacs.tags(str(uid))["PatientName"])


@pytest.mark.parametrize("name", READ)
def test_orthanc_shows_the_name(name: str, result_of: ResultOf, orthanc: Orthanc) -> None:
    # Orthanc 1.10 does not know kanji beside half-width letters; then results must look as the source does.
    right = shown_by(orthanc, named(name)) if name == "japanese-half-width" else NAMES[name].says
    for kind in (_REPORT, _PICTURE):
        assert shown_by(orthanc, result_of(name, kind).read_bytes()) == right


def test_the_findings_said_are_of_every_kind() -> None:
    found = said(shipped_manifest())
    assert {one.presence for one in found} == {"present", "absent", "undetermined"}
    assert len({one.code for one in found}) == len(found) == 15
