"""The page: one, with the findings, the model and the mark on it, whatever the patient is called."""

import base64
import re
import zlib
from typing import Any

import pytest
from pydicom import Dataset

from dicomnode.domain.answer import ResultKind
from dicomnode.results.part10 import decode
from dicomnode.results.pdf import shown_in
from tests.support.assessments import MODEL
from tests.support.make import build
from tests.support.products import image_results


def document(source: Dataset, **repair: Any) -> Dataset:
    (made,) = image_results(ResultKind.DOCUMENT, source, {"Pleural_Thickening": 0.7, "Mass": 0.5}, **repair)
    return decode(made.part10)


def pdf_of(ds: Dataset) -> bytes:
    return bytes(ds.EncapsulatedDocument[: ds.EncapsulatedDocumentLength])


def text_of(ds: Dataset) -> str:
    """Return what the page writes, line by line."""
    streams = re.findall(rb"ASCII85Decode /FlateDecode \] /Length \d+\s*>>\s*stream\s+(.*?~>)", pdf_of(ds), re.DOTALL)
    drawn = b"".join(zlib.decompress(base64.a85decode(b"<~" + stream, adobe=True)) for stream in streams)
    return b"\n".join(re.findall(rb"\((.*?)(?<!\\)\) Tj", drawn)).decode("latin-1")


def test_it_is_one_page_of_the_same_study() -> None:
    source = build("cr")
    ds = document(source)
    assert pdf_of(ds).startswith(b"%PDF-")
    assert pdf_of(ds).rstrip().endswith(b"%%EOF")
    assert pdf_of(ds).count(b"/Type /Page\n") == 1
    assert len(ds.EncapsulatedDocument) % 2 == 0
    assert (ds.Modality, ds.MIMETypeOfEncapsulatedDocument, ds.InstanceNumber) == ("DOC", "application/pdf", 2)
    assert ds.StudyInstanceUID == source.StudyInstanceUID
    assert ds.SourceInstanceSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
    assert ds.SeriesDescription == "AI document - Research use only - not for diagnosis"


def test_the_page_states_findings_model_mark_and_whose_it_is() -> None:
    text = text_of(document(build("cr", patient_name="Müller^Jörg", patient_id="P-1")))
    lines = text.split("\n")
    for finding, probability in (("Pleural Thickening", "70.0%"), ("Mass", "50.0%")):
        row = lines.index(finding)
        assert lines[row : row + 4] == [finding, probability, "30.0%", "above threshold"]
    assert lines.count("below threshold") == 12
    assert not any("of its size" in line for line in lines)
    assert "Research use only - not for diagnosis" in lines
    assert any(MODEL.name in line and MODEL.version in line and MODEL.bundle_hash[:12] in line for line in lines)
    assert any("Patient: M" in line and "ID: P-1    Study date: 2024-02-29" in line for line in lines)
    assert any(line.startswith("Image: ") for line in lines)
    assert "Shown: Pleural Thickening, Mass" in lines


def test_what_the_source_does_not_state_is_said_to_be_missing() -> None:
    source = build("cr", patient_name="", study_date="", accession="")
    assert "Patient: not stated" in text_of(document(source))
    assert "Study date: not stated    Accession number: not stated" in text_of(document(source))


def test_a_page_without_a_heatmap_says_so() -> None:
    (made,) = image_results(ResultKind.DOCUMENT, build("cr"), {"Mass": 0.29}, abnormality=0.29)
    text = text_of(decode(made.part10))
    assert "Nothing is above threshold." in text.split("\n")
    assert "Nothing is above its threshold." in text


def test_its_title_is_coded_and_nobody_has_verified_it() -> None:
    ds = document(build("cr"))
    assert (ds.DocumentTitle, ds.VerificationFlag) == ("Chest radiograph: computer analysis", "UNVERIFIED")
    (title,) = ds.ConceptNameCodeSequence
    assert (title.CodeValue, title.CodingSchemeDesignator) == ("126000", "DCM")
    assert ds.BurnedInAnnotation == "YES"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("Yamada^Tarou=山田^太郎", "Patient: Yamada Tarou"),
        ("Иванов^Иван=Ivanov^Ivan", "Patient: Ivanov Ivan"),
        ("王^小东", "Patient: in characters that this page cannot show"),
    ],
)
def test_a_name_is_written_right_or_not_at_all(name: str, shown: str) -> None:
    text = text_of(document(build("cr", patient_name=name, character_set="ISO_IR 192")))
    assert shown in text
    assert "?" not in text


@pytest.mark.parametrize(
    ("name", "character_set"),
    [
        ("Иванов^Иван", "ISO_IR 144"),
        ("Yamada^Tarou=山田^太郎", "ISO_IR 192"),
        ("王^小东", "GB18030"),
        ("(Weird\\) 'Name^", "ISO_IR 100"),
        ("", "ISO_IR 100"),
    ],
)
def test_a_name_that_the_font_cannot_show_does_not_break_the_page(name: str, character_set: str) -> None:
    ds = document(build("cr", patient_name=name, character_set=character_set))
    assert "Pleural Thickening" in text_of(ds)
    assert str(ds.PatientName) == name or "\\" in name


def test_characters_that_the_fonts_lack_become_question_marks() -> None:
    assert shown_in("Müller Иван €") == "Müller ???? €"


def test_repairs_of_the_image_are_stated() -> None:
    text = text_of(document(build("cr"), turns=1, inverted=True))
    assert "turned by 90" in text
    assert "inverted" in text


def test_the_same_arguments_give_the_same_bytes() -> None:
    first, second = (image_results(ResultKind.DOCUMENT, build("cr"), {"Mass": 0.7})[0] for _ in range(2))
    assert first.part10 == second.part10
