"""A bundle of other findings, served as it is: its results carry its labels, codes and meanings, for every peer."""

import json
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread

from dicomnode.bundle.manifest import Manifest, read_manifest
from dicomnode.domain.answer import ResultKind
from tests.peers.readers import by_dsrdump, by_highdicom, said
from tests.peers.sources import answer
from tests.peers.test_validators import complaints, pixelmed, run
from tests.support.bundles import OTHER_LABELS, make_bundle
from tests.support.make import build, encode, write
from tests.support.processes import require, run_cxrnode
from tests.unit.test_pdf import text_of

pytestmark = pytest.mark.peer

NAMES = [name for name, _, _ in OTHER_LABELS]
CODES = [("REVIEW", "99HOSPITAL", "To be seen before discharge")] + [
    (code.value, code.scheme, code.meaning) for _, code, _ in OTHER_LABELS[1:] if code
]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundle"), labels=OTHER_LABELS)


@pytest.fixture(scope="module")
def manifest(bundle: Path) -> Manifest:
    return read_manifest(bundle / "manifest.json")


@pytest.fixture(scope="module")
def made(manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> dict[ResultKind, list[Path]]:
    """Return the files of every kind of object, made of what the fixed predictor says of these labels."""
    folder = tmp_path_factory.mktemp("results")
    files: dict[ResultKind, list[Path]] = {}
    for number, result in enumerate(answer([encode(build("dx", rows=320, columns=280))], manifest=manifest).results):
        file = folder / f"{number}-{result.kind.value}.dcm"
        file.write_bytes(result.part10)
        files.setdefault(result.kind, []).append(file)
    return files


def of(made: dict[ResultKind, list[Path]], kind: ResultKind) -> Dataset:
    return dcmread(made[kind][0])


def test_readers_find_the_bundles_codes_and_meanings_in_the_report(
    made: dict[ResultKind, list[Path]], manifest: Manifest
) -> None:
    (report,) = made[ResultKind.STRUCTURED_REPORT]
    found = by_highdicom(report)
    assert found == by_dsrdump(run(require("dsrdump"), "+U8", report)) == said(manifest)
    by_label = {finding.label: finding for finding in found}
    assert {label: finding.code for label, finding in by_label.items()} == dict(zip(NAMES, CODES, strict=True))
    assert [by_label[name].site for name in NAMES] == ["", "Lung", "Rib", "Trachea", ""]


def test_the_report_identifies_the_hospitals_own_coding_scheme(made: dict[ResultKind, list[Path]]) -> None:
    (scheme,) = of(made, ResultKind.STRUCTURED_REPORT).CodingSchemeIdentificationSequence
    assert (scheme.CodingSchemeDesignator, scheme.CodingSchemeName) == ("99HOSPITAL", "Findings of the model tiny")


def test_pictures_and_pages_name_the_labels(made: dict[ResultKind, list[Path]]) -> None:
    shown = [dcmread(file).SeriesDescription for file in made[ResultKind.FINDING_CAPTURE]]
    assert {text.split(" - ")[0] for text in shown} == {"AI: Tube (endotracheal)"}
    assert "Tube (endotracheal)" in of(made, ResultKind.SECONDARY_CAPTURE).DerivationDescription
    graphics = of(made, ResultKind.PRESENTATION_STATE).GraphicAnnotationSequence
    texts = [text.UnformattedTextValue for item in graphics for text in item.get("TextObjectSequence", [])]
    assert any(text.startswith("AI: Tube (endotracheal) ") for text in texts)
    page = text_of(of(made, ResultKind.DOCUMENT))
    assert all(name in page for name in ("Tuberculosis", "Rib fracture", "Silhouette sign"))


def test_validators_find_no_error(made: dict[ResultKind, list[Path]]) -> None:
    program = require("dciodvfy")
    answers = {file.name: run(program, file) for files in made.values() for file in files}
    assert len(answers) >= len(ResultKind)
    assert all(text.strip() for text in answers.values())
    assert complaints(answers, "Error") == {}
    assert complaints(pixelmed(made[ResultKind.STRUCTURED_REPORT]), "Error") == {}


def test_the_whole_path_runs_with_the_bundle(bundle: Path, tmp_path: Path) -> None:
    source = write(build("dx", rows=640, columns=560), tmp_path / "in.dcm")
    done = run_cxrnode("analyze", str(source), "--out", str(tmp_path / "out"), "--bundle", str(bundle))
    assert done.returncode == 0, done.stdout + done.stderr
    files = sorted((tmp_path / "out").rglob("*.dcm"))
    (report,) = [file for file in files if dcmread(file, stop_before_pixels=True).Modality == "SR"]
    (summary,) = [json.loads(file.read_text()) for file in (tmp_path / "out").glob("*/summary.json")]
    codes = {finding.label: finding.code for finding in by_highdicom(report)}
    assert codes == dict(zip(NAMES, CODES, strict=True))
    assert len(files) == 2
    assert all(name in json.dumps(summary) for name in NAMES)


def test_the_node_says_which_code_of_a_bundle_is_wrong(tmp_path: Path) -> None:
    broken = make_bundle(tmp_path / "bundle", labels=OTHER_LABELS)
    manifest = broken / "manifest.json"
    manifest.write_text(manifest.read_text().replace("154283005", "154283006"))
    done = run_cxrnode("check", "--bundle", str(broken))
    assert done.returncode == 1
    assert "labels.1.code" in done.stdout + done.stderr
