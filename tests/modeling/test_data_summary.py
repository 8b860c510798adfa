"""`cxrnode data summary`: counts that agree with the table, leaks that are seen, and pictures of each."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture
from typer.testing import CliRunner

from dicomnode.cli.main import app
from dicomnode.domain.errors import ConfigurationError
from modeling.preparation.prepare import PreparationRequest, prepare
from modeling.preparation.records import Record, encode_record
from modeling.preparation.shards import encode_image
from modeling.preparation.summary import FINDINGS, DescribedImage, summarise, write_summary
from modeling.preparation.tfrecord import framed
from tests.modeling.nih_release import table_rows

pytestmark = pytest.mark.training


@pytest.fixture(scope="module")
def prepared(release: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prepared") / "out"
    labels = release / "Data_Entry_2017.csv"
    request = PreparationRequest(
        images=release / "images", labels=labels, official_split=release, out=out, folds=2, side=64, min_positives=0
    )
    prepare(request, lambda what, done, total: None)
    return out


def image(name: str, *findings: str, patient: str = "1", **known: object) -> DescribedImage:
    return DescribedImage(name=name, findings=findings, label=int(bool(findings)), patient=patient, **known)  # type: ignore[arg-type]


def test_counts_are_those_of_the_images() -> None:
    images = [
        image("a", "Mass", "Edema", view="AP", sex="F", age=9),
        image("b", "Mass", view="PA", sex="F", age=10),
        image("c", "Mass", patient="2", view="AP", age=79),
        image("d", patient="2", view="PA", sex="M"),
    ]
    summary = summarise("x", images, {})
    mass, edema = FINDINGS.index("Mass"), FINDINGS.index("Edema")
    assert (summary.images, summary.patients, summary.most_images_of_a_patient) == (4, 2, 2)
    assert (summary.findings["Mass"].images, summary.findings["Mass"].patients) == (3, 2)
    assert summary.findings["Mass"].ap_share == pytest.approx(2 / 3, abs=1e-4)
    assert summary.findings["No Finding"].images == 1
    assert summary.findings_in_an_image == {0: 1, 1: 2, 2: 1}
    assert (summary.cooccurrence[mass][mass], summary.cooccurrence[mass][edema]) == (3, 1)
    assert np.array(summary.cooccurrence).sum() == 3 + 1 + 2
    assert summary.binary == {"0": 1, "1": 3}
    assert summary.sexes == {"F": 2, "M": 1, "not known": 1}
    assert summary.ages.by_decade == {0: {"F": 1}, 10: {"F": 1}, 70: {"not known": 1}}
    assert (summary.ages.known, summary.ages.minimum, summary.ages.median, summary.ages.maximum) == (3, 9, 10.0, 79)


def test_a_patient_in_two_lists_is_a_leak_even_when_no_image_is() -> None:
    images = [image("a"), image("b"), image("c", patient="2")]
    (overlap,) = summarise("x", images, {"train": ["a", "c"], "test": ["b"]}).overlaps
    assert (overlap.images, overlap.patients, overlap.leaks) == (0, 1, True)


def test_a_list_within_another_is_no_leak_and_disjoint_lists_are_none() -> None:
    images = [image("a"), image("b"), image("c", patient="2")]
    within, disjoint = (
        summarise("x", images, lists).overlaps[0]
        for lists in ({"all": ["a", "b", "c"], "some": ["a"]}, {"one": ["a", "b"], "two": ["c"]})
    )
    assert (within.within, within.leaks) == (True, False)
    assert (disjoint.within, disjoint.images, disjoint.patients, disjoint.leaks) == (False, 0, 0, False)


def test_names_that_the_data_does_not_tell_of_are_counted() -> None:
    listed = summarise("x", [image("a")], {"train": ["a", "b", "b"]}).lists["train"]
    assert (listed.images, listed.not_in_data, listed.patients) == (2, 1, 1)


def test_a_prepared_folder_is_summed_up_in_json_and_in_pictures_that_show_something(
    prepared: Path, release: Path, tmp_path: Path
) -> None:
    lists = {"official_test": release / "test_list.txt", "mixed": tmp_path / "mixed.txt"}
    names = [str(row[0]) for row in table_rows(release / "Data_Entry_2017.csv")]
    lists["mixed"].write_text("".join(f"{name} 0 1\n" for name in names[::7]))
    written = write_summary(prepared, tmp_path / "out", lists=lists)
    assert {path.name for path in written.files} == {
        "summary.json", "findings.png", "cooccurrence.png", "people.png", "parts.png", "overlaps.png", "samples.png"
    }  # fmt: skip
    held = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert held["images"] == len(names) == sum(part["images"] for part in held["parts"].values())
    assert set(held["parts"]) == {"fold 0", "fold 1", "test"}
    pairs = {(pair["first"], pair["second"]): pair for pair in held["overlaps"]}
    assert pairs["fold 0", "test"]["patients"] == pairs["fold 0", "fold 1"]["patients"] == 0
    assert pairs["test", "official_test"]["within"]
    assert pairs["test", "mixed"]["images"] > 0
    for path in written.files[1:]:
        pixels = np.asarray(Picture.open(path).convert("L"))
        assert min(pixels.shape) > 300
        assert pixels.std() > 8


def test_samples_are_the_images_they_are_named_after(prepared: Path, release: Path) -> None:
    from modeling.preparation.summary import describe

    described = describe(prepared, None)
    from_table = describe(release / "Data_Entry_2017.csv", release / "images")
    names = sorted(described.with_pixels)[::13]
    assert described.with_pixels == from_table.with_pixels
    stored, original = described.pictures(names), from_table.pictures(names)
    assert set(stored) == set(original) == set(names)
    for name in names:
        # Reduced from 72 to 64 pixels: the mean stays.
        assert abs(stored[name].mean() - original[name].mean()) < 2


def test_a_table_without_images_has_no_sample_sheet(release: Path, tmp_path: Path) -> None:
    written = write_summary(release / "Data_Entry_2017.csv", tmp_path / "out")
    assert [path.name for path in written.files] == ["summary.json", "findings.png", "cooccurrence.png", "people.png"]


def test_the_first_systems_records_are_summed_up_as_far_as_they_tell(tmp_path: Path) -> None:
    records = [
        Record(image=encode_image(np.full((32, 32), 9 * n, dtype=np.uint8), "jpeg"), name=f"{n}.jpg", label=n % 2)
        for n in range(5)
    ]
    (tmp_path / "train00-5.tfrec").write_bytes(b"".join(framed(encode_record(record)) for record in records))
    written = write_summary(tmp_path, tmp_path / "out")
    assert written.summary.binary == {"0": 3, "1": 2}
    assert written.summary.findings["No Finding"].images == 0
    assert [path.name for path in written.files] == ["summary.json", "samples.png"]


def test_lists_that_cannot_be_compared_are_clear_errors(prepared: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "list.txt").write_text("a.png\n")
    with pytest.raises(ConfigurationError, match="names no images"):
        write_summary(prepared, tmp_path / "out", lists={"x": tmp_path / "empty.txt"})
    with pytest.raises(ConfigurationError, match="cannot be called 'fold 0'"):
        write_summary(prepared, tmp_path / "out", lists={"fold 0": tmp_path / "list.txt"})


def test_as_typed_the_commands_prepare_and_sum_up(release: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    options = ["--images", str(release / "images"), "--labels", str(release / "Data_Entry_2017.csv"), "--folds", "2"]
    options += ["--side", "64", "--processes", "1", "--min-positives", "0", "--format", "jpeg"]
    typed = ["data", "prepare", *options, "--official-split", str(release), "--out", str(tmp_path / "records")]
    told = runner.invoke(app, typed)
    assert told.exit_code == 0, told.output
    assert "120 images in 3 files" in told.output
    typed = ["data", "summary", "--data", str(tmp_path / "records"), "--out", str(tmp_path / "summary")]
    told = runner.invoke(app, [*typed, "--list", f"everything={release / 'train_val_list.txt'}"])
    assert told.exit_code == 0, told.output
    assert "120 images of 60 patients" in told.output
    assert "none of 6 pairs" in told.output
    assert isinstance(runner.invoke(app, [*typed, "--list", "nameless"]).exception, ConfigurationError)
