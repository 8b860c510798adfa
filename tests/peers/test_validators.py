"""Independent programs accept what the node writes: dciodvfy, PixelMed's DicomSRValidator, DCMTK."""

import subprocess
import warnings
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from pydicom import Dataset, dcmread

from dicomnode.domain.instance import InstanceRef
from dicomnode.domain.job import Rejection, RejectionReason, ResultInstance
from dicomnode.results.context import SourceContext
from dicomnode.results.fallback import as_comprehensive, as_enhanced
from dicomnode.results.sc import write_heatmap
from dicomnode.results.sr import write_not_analysed, write_report
from tests.assessments import NOW, assessment, equipment, frame, identity
from tests.make import build, chest
from tests.processes import missing_peer, require

pytestmark = pytest.mark.peer

PIXELMED = Path("/usr/share/java/pixelmed.jar")
BATCH = Path(__file__).with_name("ValidateReports.java")
_WITHOUT_XPATH_LIMITS = [f"-Djdk.xml.xpath{name}Limit=0" for name in ("ExprOp", "TotalOp", "ExprGrp")]
KNOWN = 'CODE (705057003,SCT,"Presence"): Content Item not in template'
_LIMIT_S = 280

_OPTIONAL = (
    "PatientAge", "PatientOrientation", "StudyID", "StudyDate", "StudyTime", "AccessionNumber", "PatientBirthDate",
    "PatientSex", "ReferringPhysicianName", "Modality", "BodyPartExamined", "SpecificCharacterSet",
)  # fmt: skip


def _stripped() -> Dataset:
    ds = build("sc", patient_name="NONE", spacing_mm=None)
    for keyword in _OPTIONAL:
        ds.pop(keyword, None)
    return ds


def _lossy() -> Dataset:
    return build("cr", tags={"LossyImageCompression": "01", "LossyImageCompressionRatio": ["10", "4"]})


SYNTHETIC: dict[str, Callable[[], Dataset]] = {
    "cr": lambda: build("cr"),
    "dx": lambda: build("dx"),
    "dx-for-processing": lambda: build("dx-for-processing"),
    "sc": lambda: build("sc", tags={"PixelSpacingCalibrationType": "GEOMETRY"}),
    "without-optional-attributes": _stripped,
    "lossy": _lossy,
    "utf-8": lambda: build("cr", character_set="ISO_IR 192", patient_name="Wang^XiaoDong=王^小東"),
    "gb18030": lambda: build("cr", character_set="GB18030", patient_name="Wang^XiaoDong=王^小东"),
    "japanese": lambda: build("cr", character_set=["", "ISO 2022 IR 87"], patient_name="Yamada^Tarou=山田^太郎"),
    "korean": lambda: build("cr", character_set=["", "ISO 2022 IR 149"], patient_name="Hong^Gildong=洪^吉洞=홍^길동"),
    "cyrillic": lambda: build("cr", character_set="ISO_IR 144", patient_name="Иванов^Иван"),
    "deidentified": lambda: build("cr", tags={"PatientIdentityRemoved": "YES", "TimezoneOffsetFromUTC": "+0545"}),
}
REAL = (
    "chest-pa-monochrome1-j2k.dcm",
    "chest-pa-secondary-capture-jpeg.dcm",
    "chest-pa-view-in-patient-position.dcm",
)


def report_on(source: Dataset, *, rejections: tuple[Rejection, ...] = ()) -> ResultInstance:
    context = SourceContext.of(source)
    former = InstanceRef(
        study=context.ref.study, series="1.2.3", sop_class="1.2.840.10008.5.1.4.1.1.88.34", sop_instance="1.2.3.4"
    )
    said = assessment(context.ref, {"Mass": 0.7, "Effusion": 0.4}, undetermined=("Nodule",), abnormality=0.8)
    return write_report(
        sources={context.ref.sop_instance: context},
        assessments=[said],
        rejections=rejections,
        predecessors=[former],
        equipment=equipment(institution="Hôpital général"),
        identity=identity(context.ref.study),
        now=NOW,
    )


def heatmap_of(source: Dataset) -> ResultInstance:
    context = SourceContext.of(source)
    return write_heatmap(
        source=context,
        frame=frame(context.ref, chest(640, 560)),
        assessment=assessment(context.ref, {"Mass": 0.7}),
        equipment=equipment(institution="Hôpital général"),
        identity=identity(context.ref.study),
        now=NOW,
    )


def refusal_of(source: Dataset) -> ResultInstance:
    context = SourceContext.of(source)
    refusal = Rejection(source=context.ref, reason=RejectionReason.LATERAL_VIEW, detail="View Position is LL")
    return write_not_analysed(
        sources={context.ref.sop_instance: context},
        rejections=[refusal],
        predecessors=(),
        equipment=equipment(),
        identity=identity(context.ref.study),
        now=NOW,
    )


def program(name: str) -> str:
    return require(name)


def run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, timeout=_LIMIT_S, check=False)
    return (done.stdout + done.stderr).decode("utf-8", "replace")


def errors_of_dciodvfy(part10: bytes, folder: Path) -> list[str]:
    file = folder / "object.dcm"
    file.write_bytes(part10)
    said = run(program("dciodvfy"), file)
    assert said.strip(), "dciodvfy said nothing at all"
    return [line for line in said.splitlines() if line.startswith("Error")]


def complaints_of_pixelmed(folder: Path, **objects: bytes) -> dict[str, list[str]]:
    """Return errors and warnings by object; one Java machine for all, since each object costs ten seconds.

    What stands in the wrong place draws a warning only, so these count too. The one exception: Presence in a group,
    which IHE AIR asks for and the validator's edition of TID 1501 does not know.
    """
    if not PIXELMED.is_file():
        missing_peer("PixelMed is not installed")
    program("javac")  # the batch is compiled when it starts
    files = []
    for name, part10 in objects.items():
        files.append(folder / f"{name}.dcm")
        files[-1].write_bytes(part10)
    said = run(program("java"), *_WITHOUT_XPATH_LIMITS, "-cp", PIXELMED, BATCH, *files)
    assert said.count("Root Template Validation Complete") == said.count("IOD validation complete") == len(files), said
    sections = said.split("=== ")[1:]
    return {
        name: [line for line in section.splitlines() if line.startswith(("Error", "Warning")) and KNOWN not in line]
        for name, section in zip(objects, sections, strict=True)
    }


@pytest.mark.parametrize("name", SYNTHETIC)
def test_dciodvfy_finds_no_error_in_results_from_synthetic_sources(name: str, tmp_path: Path) -> None:
    source = SYNTHETIC[name]()
    assert errors_of_dciodvfy(report_on(source).part10, tmp_path) == []
    assert errors_of_dciodvfy(heatmap_of(source).part10, tmp_path) == []


@pytest.mark.parametrize("name", REAL)
def test_dciodvfy_finds_no_error_in_results_from_real_sources(name: str, shared_data: Path, tmp_path: Path) -> None:
    source = real(shared_data, name)
    assert errors_of_dciodvfy(report_on(source).part10, tmp_path) == []
    assert errors_of_dciodvfy(heatmap_of(source).part10, tmp_path) == []


def test_dciodvfy_finds_no_error_in_older_sop_classes_and_in_a_refusal(tmp_path: Path) -> None:
    part10 = report_on(build("cr")).part10
    for variant in (as_comprehensive(part10), as_enhanced(part10), refusal_of(build("cr")).part10):
        assert errors_of_dciodvfy(variant, tmp_path) == []


def test_pixelmed_finds_no_error_in_any_kind_of_report(tmp_path: Path) -> None:
    failed = Rejection(
        source=InstanceRef(study="1.2", series="1.3", sop_class="1.2.840.10008.5.1.4.1.1.1", sop_instance="1.4"),
        reason=RejectionReason.CORRUPT_PIXELS,
        detail="the pixel data ends early",
    )
    part10 = report_on(build("cr", character_set="ISO_IR 192", patient_name="王^小東"), rejections=(failed,)).part10
    found = complaints_of_pixelmed(
        tmp_path,
        comprehensive_3d=part10,
        comprehensive=as_comprehensive(part10),
        enhanced=as_enhanced(part10),
        refusal=refusal_of(_stripped()).part10,
        broken=part10.replace(b"HAS CONCEPT MOD ", b"HAS OBS CONTEXT "),
    )
    assert any(line.startswith("Error") for line in found.pop("broken"))
    assert found == {"comprehensive_3d": [], "comprehensive": [], "enhanced": [], "refusal": []}


def test_dsrdump_reads_the_findings(tmp_path: Path) -> None:
    file = tmp_path / "report.dcm"
    for part10 in (lambda p: p, as_comprehensive, as_enhanced):
        file.write_bytes(part10(report_on(build("cr")).part10))
        said = run(program("dsrdump"), file)
        assert 'CODE:(,,"Finding")=(4147007,SCT,"Mass")' in said
        assert 'NUM:(,,"Probability")="0.7" (1,UCUM,"no units")' in said
        assert said.count('CODE:(,,"Presence")=(52101004,SCT,"Present")') == 3
        assert "\nE: " not in said


def test_dcmtk_renders_the_heatmap_as_it_was_drawn(tmp_path: Path) -> None:
    result = heatmap_of(build("cr"))
    file, image = tmp_path / "heatmap.dcm", tmp_path / "heatmap.ppm"
    file.write_bytes(result.part10)
    said = run(program("dcmj2pnm"), "+opw", file, image)
    assert image.is_file(), said
    seen = cv2.cvtColor(cv2.imread(str(image)), cv2.COLOR_BGR2RGB)
    assert np.array_equal(seen, dcmread(file).pixel_array)


def real(shared_data: Path, name: str) -> Dataset:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the object in the wild is not conformant
        return dcmread(shared_data / "dicom" / name)
