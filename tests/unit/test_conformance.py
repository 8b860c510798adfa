"""The conformance statement is what the code's tables say: nothing missing or stale, and the committed file is it."""

import re
import warnings
from collections.abc import Callable

import pytest
from pydicom import Dataset
from pydicom.uid import UID
from typer.testing import CliRunner

from dicomnode.cli.main import app
from dicomnode.conformance.objects import AttributeRow, ContentRow, Observed, attribute_rows, content_rows
from dicomnode.conformance.samples import Samples, Variant, make_samples
from dicomnode.conformance.statement import conformance_statement
from dicomnode.domain.answer import ResultInstance, ResultKind
from dicomnode.domain.terminology import entries
from dicomnode.net import contexts
from dicomnode.net.status import StoreStatus, describe
from dicomnode.results.modules import Place, iod_of, place_of
from dicomnode.results.part10 import decode
from dicomnode.settings.node import Settings
from tests.conftest import ROOT
from tests.support.make import build
from tests.support.products import (
    document_of,
    finding_heatmap_of,
    heatmap_of,
    parametric_map_of,
    presentation_state_of,
    report_on,
)

COMMITTED = ROOT / "CONFORMANCE.md"
SR, SC = ResultKind.STRUCTURED_REPORT, ResultKind.SECONDARY_CAPTURE


@pytest.fixture(scope="module")
def samples() -> Samples:
    return make_samples()


@pytest.fixture(scope="module")
def statement() -> str:
    return conformance_statement()


@pytest.fixture(scope="module")
def rows(samples: Samples) -> dict[ResultKind, dict[tuple[str, ...], AttributeRow]]:
    return {kind: {row.path: row for row in attribute_rows(samples, kind)} for kind in ResultKind}


@pytest.fixture(scope="module")
def tree(samples: Samples) -> list[ContentRow]:
    return content_rows(samples)


def test_the_committed_statement_is_the_generated_one(statement: str) -> None:
    assert COMMITTED.read_text(encoding="utf-8") == statement, "CONFORMANCE.md is stale: run `make conformance`"


def test_the_command_writes_the_same_text_again_to_a_file(tmp_path, statement: str) -> None:
    file = tmp_path / "statement.md"
    done = CliRunner().invoke(app, ["conformance", "--out", str(file)])
    assert done.exit_code == 0, done.output
    assert file.read_text(encoding="utf-8") == statement


def test_every_sop_class_of_the_tables_is_stated(statement: str) -> None:
    tables = [value for value in vars(contexts).values() if isinstance(value, tuple | contexts.SopClass)]
    classes = {
        entry.uid
        for value in tables
        for entry in (value if isinstance(value, tuple) else (value,))
        if isinstance(entry, contexts.SopClass)
    }
    assert len(classes) > 10
    overview = statement.split("### 1.2", maxsplit=1)[0]
    assert {uid for uid in classes if f"`{uid}`" not in overview} == set()


@pytest.mark.parametrize("transfer_syntax", contexts.ACCEPTED_TRANSFER_SYNTAXES)
def test_every_transfer_syntax_of_the_table_is_stated(transfer_syntax: str, statement: str) -> None:
    accepted = statement.split("### 7.2")[1].split("### 7.3", maxsplit=1)[0]
    assert f"{UID(transfer_syntax).name} `{transfer_syntax}`" in accepted


def test_every_status_is_stated_with_its_behaviour(statement: str) -> None:
    section = statement.split("### 5.2")[1].split("### 5.3", maxsplit=1)[0]
    for status in StoreStatus:
        assert re.search(rf"^\| `{describe(status)}` \| [^|]+ \| [^|]+ \|$", section, flags=re.MULTILINE)


def test_every_parameter_of_the_configuration_is_stated(statement: str) -> None:
    section = statement.split("## 6 Configuration")[1].split("## 7 ", maxsplit=1)[0]
    blocks = dict(re.findall(r"^### `\[([^\]]+)\]`\n(.*?)(?=^### |\Z)", section, flags=re.MULTILINE | re.DOTALL))
    for name, field in Settings.model_fields.items():
        stated = set(re.findall(r"^\| `([a-z0-9_]+)` \|", blocks[name], flags=re.MULTILINE))
        assert stated == set(type(field.get_default()).model_fields), name
    assert any(name.startswith("delivery.destinations") and "stow" in name for name in blocks)


def test_every_kind_of_object_has_its_annex(statement: str) -> None:
    annex = statement.rsplit("## Annex A", maxsplit=1)[-1]
    assert re.findall(r"^### A\.\d+ .+ \(`(.+)`\)$", annex, flags=re.MULTILINE) == [kind.value for kind in ResultKind]


def test_every_code_of_the_results_is_stated(statement: str) -> None:
    annex = statement.rsplit("## Annex E", maxsplit=1)[-1]
    for entry in entries():
        code = entry.code
        fixed = f"| {code.scheme} | {code.value} | {code.meaning} | {entry.source} |"
        assert fixed in annex or f'| ({code.value}, {code.scheme}, "{code.meaning}") | {entry.source} |' in annex, code
    mass, lung = '(4147007, SCT, "Mass") | PS3.16 CID 6104', '(39607008, SCT, "Lung") | PS3.16 CID 8134'
    assert f"| Mass | {mass} | {lung} |" in annex


def test_no_date_and_no_derived_uid_of_a_sample_gets_into_the_statement(statement: str, samples: Samples) -> None:
    for sample in (samples.base, *samples.variants.values(), samples.refusal):
        for result in sample.results.values():
            for keyword in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "InstanceCreationDate"):
                assert str(result[keyword].value) not in statement


@pytest.mark.parametrize(
    ("kind", "path", "presence", "origin"),
    [
        (SR, ("PatientName",), "VNAP", "COPY"),
        (SR, ("StudyInstanceUID",), "ALWAYS", "COPY"),
        (SR, ("Modality",), "ALWAYS", "FIXED"),
        (SR, ("Manufacturer",), "ALWAYS", "CONFIG"),
        (SR, ("ContentDate",), "ALWAYS", "AUTO from time"),
        (SR, ("SOPInstanceUID",), "ALWAYS", "AUTO from source image, configuration and model"),
        (SR, ("ReferencedPerformedProcedureStepSequence",), "EMPTY", "FIXED"),
        (SR, ("PredecessorDocumentsSequence",), "ANAP", "FIXED"),
        (SC, ("Columns",), "ALWAYS", "CALC from the source image"),
        (SC, ("LossyImageCompression",), "ALWAYS", "CALC from the source image"),
        (SC, ("ContributingEquipmentSequence", "ManufacturerModelName"), "ALWAYS", "AUTO from model"),
    ],
    ids=lambda value: value[-1] if isinstance(value, tuple) else str(value),
)
def test_presence_and_origin_are_found_by_comparison(rows, kind, path, presence: str, origin: str) -> None:
    row = rows[kind][path]
    assert (row.presence, row.origin) == (presence, origin)


def test_fixed_values_are_stated_and_others_are_not(rows) -> None:
    assert rows[SR]["Modality",].value == "SR"
    assert rows[SC]["ImageType",].value == "DERIVED\\SECONDARY"
    assert rows[SR]["SoftwareVersions",].value == "the software's version"
    assert {row.value for kind in rows for row in rows[kind].values() if row.origin != "FIXED"} == {""}


def test_modules_and_types_are_the_standards(rows) -> None:
    assert rows[SR]["CompletionFlag",].place == Place(module="SR Document General", type="1")
    assert rows[SC]["ConversionType",].place == Place(module="SC Equipment", type="1")
    assert rows[SC]["PatientOrientation",].place == Place(module="General Image", type="2C")
    assert place_of("1.2.840.10008.5.1.4.1.1.7", ["Pneumothorax"]) is None
    assert (iod_of("1.2.3"), place_of("1.2.3", ["PatientName"])) == (None, None)


def test_no_attribute_of_a_result_is_outside_its_iod(rows) -> None:
    for kind in ResultKind:
        assert [path for path, row in rows[kind].items() if row.place is None] == [], kind


def paths_of(ds: Dataset, above: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
    found = set()
    for element in ds:
        if element.keyword != "ContentSequence":
            found.add((*above, element.keyword))
            for item in element.value if element.VR == "SQ" else []:
                found |= paths_of(item, (*above, element.keyword))
    return found


@pytest.mark.parametrize(
    ("kind", "write"),
    [
        (SR, report_on),
        (SC, heatmap_of),
        (ResultKind.FINDING_CAPTURE, finding_heatmap_of),
        (ResultKind.PRESENTATION_STATE, presentation_state_of),
        (ResultKind.PARAMETRIC_MAP, parametric_map_of),
        (ResultKind.DOCUMENT, document_of),
    ],
    ids=lambda value: getattr(value, "value", ""),
)
@pytest.mark.parametrize("source", ["cr", "dx", "sc"])
def test_results_of_other_sources_hold_no_attribute_that_is_not_stated(
    rows, kind: ResultKind, write: Callable[[Dataset], ResultInstance], source: str
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = decode(write(build(source, tags={"PixelSpacingCalibrationType": "FIDUCIAL"})).part10)
    assert paths_of(made) - set(rows[kind]) == set()


def test_the_content_tree_says_how_often_and_whence(tree: list[ContentRow]) -> None:
    found = {row.key[2].split('"')[1]: row for row in tree}
    assert (found["Imaging Measurement Report"].depth, found["Imaging Measurement Report"].value) == (0, "TID 1500")
    assert found["Imaging Measurements"].multiplicity == "0-1"
    assert (found["Measurement Group"].multiplicity, found["Measurement Group"].value) == ("1-n", "TID 1501")
    assert (found["Finding Site"].multiplicity, found["Finding Site"].origin) == ("0-1", "AUTO from analysis")
    presence = found["Presence"]
    assert presence.origin == "AUTO from model and analysis" or presence.origin == "AUTO from analysis"
    assert {"Present", "Absent", "Undetermined"} == set(re.findall(r'"(.+?)"', presence.value))
    assert found["Tracking Unique Identifier"].value == ""


BASE = ("a",)


@pytest.mark.parametrize(
    ("variants", "others", "presence", "origin"),
    [
        ({}, (), "ALWAYS", "FIXED"),
        ({Variant.SETTINGS: ("b",)}, (), "ALWAYS", "CONFIG"),
        ({Variant.SOURCE: ("b",)}, (), "ALWAYS", "CALC from the source image"),
        ({Variant.SOURCE: ("a", "a")}, (), "ALWAYS", "CALC from the source image"),
        ({Variant.MODEL: ("b",), Variant.TIME: ("b",)}, (), "ALWAYS", "AUTO from model and time"),
        ({Variant.SPARSE: ()}, (), "ANAP", "FIXED"),
        ({Variant.SPARSE: ("",)}, (), "VNAP", "FIXED"),
        ({Variant.SPARSE: ("b",)}, (), "ALWAYS", "CALC from the source image"),
        ({Variant.BARE: ("b",)}, (), "ALWAYS", "CONFIG"),
        ({}, ((),), "ANAP", "FIXED"),
    ],
)
def test_what_changes_with_an_input_comes_from_it(variants, others, presence: str, origin: str) -> None:
    observed = Observed(base=BASE, variants=variants, others=others)
    assert (observed.presence, observed.origin()) == (presence, origin)


def test_a_value_that_is_the_sources_own_is_a_copy_and_one_never_there_is_empty() -> None:
    assert Observed(base=BASE, variants={Variant.SOURCE: ("b",)}).origin(copied=True) == "COPY"
    assert Observed(base=("",), variants={Variant.SOURCE: ("",)}).presence == "EMPTY"
    assert Observed(base=BASE, variants={Variant.SOURCE: ("b", "a")}).distinct() == "a; b"
