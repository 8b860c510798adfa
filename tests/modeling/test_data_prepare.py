"""`cxrnode data prepare`: patient-wise folds, and records that hold what the release held."""

import gzip
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from dicomnode.cli.main import app
from dicomnode.domain.errors import ConfigurationError
from modeling.preparation.dataset import open_prepared
from modeling.preparation.plan import Matched, Pixels, PlannedImage, digest, plan_shards
from modeling.preparation.prepare import PreparationRequest, prepare
from modeling.preparation.problems import Kind, Problem, as_csv, counted
from modeling.preparation.records import decode_pixels, read_records, record_files
from modeling.preparation.splits import parse_shares, random_split
from modeling.preparation.tables import Entry, read_table
from tests.conftest import ROOT
from tests.modeling.nih_release import table_rows, write_table
from tests.modeling.preparing import content, manifest, prepared, problems_of_images, quietly

pytestmark = pytest.mark.training


@pytest.fixture(scope="module")
def whole(release: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder prepared of the undamaged release with its official split."""
    out = tmp_path_factory.mktemp("whole") / "out"
    prepared(release, out, official_split=release, processes=2)
    return out


def test_every_image_is_in_one_record_with_its_row_and_its_pixels(whole: Path, release: Path) -> None:
    rows = {str(row[0]): row for row in table_rows(release / "Data_Entry_2017.csv")}
    records = {record.name: record for path in record_files(whole) for record in read_records(path)}
    assert set(records) == set(rows)
    assert problems_of_images(whole) == []
    for name, record in records.items():
        _, findings, _, patient, age, sex, view = rows[name]
        assert (record.patient, record.age, record.sex, record.view) == (patient, int(str(age)), sex, view)
        assert record.labels is not None
        assert sum(record.labels) == (0 if findings == "No Finding" else str(findings).count("|") + 1)
        assert record.label == int(findings != "No Finding")
        assert record.mask == (1,) * 14
        assert decode_pixels(record.image).shape == (64, 64)


def test_pixels_of_the_stored_size_are_stored_exactly(release: Path, tmp_path: Path) -> None:
    prepared(release, tmp_path / "out", side=72)
    for path in record_files(tmp_path / "out"):
        for record in read_records(path):
            original = np.asarray(Image.open(release / "images" / record.name))
            np.testing.assert_array_equal(decode_pixels(record.image), original)


def test_no_patient_is_in_two_folds_and_the_test_is_in_none(whole: Path, release: Path) -> None:
    test_list = set((release / "test_list.txt").read_text().split())
    folds: dict[str, set[str]] = {}
    for row in manifest(whole):
        folds.setdefault(row["patient"], set()).add(row["fold"])
        assert (row["split"] == "test") == (row["image"] in test_list) == (row["fold"] == "")
    assert {len(held) for held in folds.values()} == {1}
    assert {fold for held in folds.values() for fold in held} == {"", "0", "1", "2"}


def test_manifest_records_and_description_agree(whole: Path) -> None:
    opened = open_prepared(whole)
    stated = {row["image"]: (row["shard"], row["fold"]) for row in manifest(whole)}
    there = {
        record.name: (path.name, "" if record.fold is None else str(record.fold))
        for path in (*opened.files(), *opened.files(test=True))
        for record in read_records(path)
    }
    assert there == stated
    assert sum(shard.count for shard in opened.info.shards) == len(stated)
    assert {path.name.split("-")[0] for path in opened.files(folds=(1,))} == {"fold1"}
    assert {path.name.split("-")[0] for path in opened.files(test=True)} == {"test"}


def test_folds_hold_alike_shares_of_images_and_of_a_common_finding(whole: Path) -> None:
    rows = [row for row in manifest(whole) if row["fold"]]
    for wanted in ("", "Atelectasis"):
        counts = [sum(row["fold"] == fold and wanted in row["labels"] for row in rows) for fold in "012"]
        assert max(counts) <= 1.5 * min(counts)


def test_archive_directory_and_any_number_of_processes_give_the_same_files(release: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "images.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted((release / "images").iterdir()):
            archive.write(path, f"images/{path.name}")
    prepared(release, tmp_path / "a", processes=1)
    prepared(release, tmp_path / "b", images=tmp_path / "images.zip", processes=2)
    of_a, of_b = content(tmp_path / "a"), content(tmp_path / "b")
    # The plan names files as their source does.
    for differing in ("state/plan.json", "dataset.json"):
        of_a.pop(differing)
        of_b.pop(differing)
    assert of_a == of_b


def test_gzip_tables_and_lists_are_read_too(own_release: Path, whole: Path, tmp_path: Path) -> None:
    for name in ("Data_Entry_2017.csv", "train_val_list.txt", "test_list.txt"):
        (own_release / f"{name}.gz").write_bytes(gzip.compress((own_release / name).read_bytes()))
        (own_release / name).unlink()
    labels = own_release / "Data_Entry_2017.csv.gz"
    prepared(own_release, tmp_path / "out", labels=labels, official_split=own_release)
    assert content(tmp_path / "out") == content(whole)


@pytest.mark.parametrize(("written", "years"), [("058Y", 58), ("011M", 0), ("030M", 2), ("58", 58), ("", None)])
def test_ages_are_read_as_both_releases_write_them(tmp_path: Path, written: str, years: int | None) -> None:
    from modeling.preparation.tables import read_table

    write_table(tmp_path / "table.csv", [("a.png", "Mass", 0, 1, written, "M", "PA")])
    assert read_table(tmp_path / "table.csv").entries[0].age == years


def test_an_unfinished_or_incomplete_folder_is_not_opened(release: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ConfigurationError, match="not prepared, or not finished"):
        open_prepared(out)
    prepared(release, out)
    record_files(out)[0].unlink()
    with pytest.raises(ConfigurationError, match="missing, or not the file that was written"):
        open_prepared(out)


def test_the_trainer_gets_from_records_what_it_gets_from_the_images(release: Path, tmp_path: Path) -> None:
    from dicomnode.bundle.manifest import InputSpec
    from modeling.nih import read_radiographs, training_set

    prepared(release, tmp_path / "out", side=72, official_split=release)
    spec = InputSpec(side=64, source_side=64)
    expected = read_radiographs(release / "images", release / "Data_Entry_2017.csv", spec)
    of_name = {name: row for row, name in enumerate(expected.names)}
    folder = open_prepared(tmp_path / "out")
    (training, folds), (test, none) = (training_set(folder, spec, test=test) for test in (False, True))
    assert sorted((*training.names, *test.names)) == sorted(expected.names)
    assert (set(folds), set(none)) == ({0, 1, 2}, {-1})
    for part in (training, test):
        rows = [of_name[name] for name in part.names]
        for field in ("pixels", "labels", "patients", "views", "source_px"):
            np.testing.assert_array_equal(getattr(part, field), getattr(expected, field)[rows])
    with pytest.raises(ConfigurationError, match="of 72 px, the model's input needs 128"):
        training_set(folder, InputSpec(side=192))


def test_real_radiographs_round_trip_with_their_labels_and_no_patient_crosses(
    shared_data: Path, tmp_path: Path
) -> None:
    nih = shared_data / "nih"
    with zipfile.ZipFile(nih / "nih-train_val.zip") as archive:
        names = [name for name in archive.namelist() if name.endswith(".jpg")][:6000:20]
        for name in names:
            archive.extract(name, tmp_path / "real")
    request = PreparationRequest(
        images=tmp_path / "real",
        labels=nih / "Data_Entry_2017_v2020.csv.gz",
        official_split=nih,
        out=tmp_path / "out",
        side=128,
        min_side=64,
        shard_size=50,
        min_positives=0,
        processes=2,
    )
    result = prepare(request, quietly)
    assert result.problems["image-missing"] == 112120 - 300
    assert "image-unreadable" not in result.problems
    rows = manifest(tmp_path / "out")
    assert len(rows) == 300
    folds: dict[str, set[str]] = {}
    for row in rows:
        folds.setdefault(row["patient"], set()).add(row["fold"])
    assert {len(held) for held in folds.values()} == {1}
    of_size = {row["image"] for row in rows if (row["rows"], row["columns"]) == ("128", "128")}
    assert of_size
    by_stem = {path.stem: path for path in (tmp_path / "real").rglob("*.jpg")}
    for path in open_prepared(tmp_path / "out").files():
        for record in read_records(path):
            if record.name in of_size:
                original = np.asarray(Image.open(by_stem[Path(record.name).stem]).convert("L"))
                np.testing.assert_array_equal(decode_pixels(record.image), original)


def test_train_takes_a_prepared_folder_with_the_folds_it_was_written_with(release: Path, tmp_path: Path) -> None:
    from modeling.commands import training_images
    from modeling.config import read_config

    prepared(release, tmp_path / "out", side=72)
    recipe = (ROOT / "conf" / "train" / "smoke.toml").read_text()
    (tmp_path / "three.toml").write_text(recipe.replace("folds = 2", "folds = 3"))
    settings = read_config(tmp_path / "three.toml")
    radiographs, folds = training_images(tmp_path / "out", None, settings)
    expected = {entry["image"]: entry["fold"] for entry in manifest(tmp_path / "out")}
    assert {name: str(fold) for name, fold in zip(radiographs.names, folds, strict=True)} == expected
    with pytest.raises(ConfigurationError, match="leave --labels out"):
        training_images(tmp_path / "out", release / "Data_Entry_2017.csv", settings)
    with pytest.raises(ConfigurationError, match="has 3 folds, the configuration asks for 2"):
        training_images(tmp_path / "out", None, read_config(ROOT / "conf" / "train" / "smoke.toml"))


def test_a_random_split_shares_no_patient_and_has_the_shares_asked_for(release: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shares = parse_shares("60/20/20")
    prepared(release, out, random_split=shares, folds=shares.folds)
    rows = manifest(out)
    sides: dict[str, set[str]] = {}
    for row in rows:
        sides.setdefault(row["patient"], set()).add(row["split"])
    assert {len(found) for found in sides.values()} == {1}
    test = [row for row in rows if row["split"] == "test"]
    assert len(test) / len(rows) == pytest.approx(0.2, abs=0.02)
    assert {row["fold"] for row in rows if row["split"] != "test"} == {"0", "1", "2", "3"}
    assert sorted(row["image"] for row in test) == (out / "test_list.txt").read_text().split()


def test_the_same_seed_draws_the_same_random_split_and_another_one_another(release: Path) -> None:
    entries = read_table(release / "Data_Entry_2017.csv").entries
    shares = parse_shares("80/5/15")
    assert random_split(entries, shares, seed=1) == random_split(tuple(reversed(entries)), shares, seed=1)
    assert random_split(entries, shares, seed=1) != random_split(entries, shares, seed=2)


@pytest.mark.parametrize("text", ["80/5", "80/5/10", "80/-5/25", "a/b/c", "10/50/40"])
def test_shares_that_are_no_random_split_are_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="random split"):
        parse_shares(text)


def test_eighty_five_fifteen_has_seventeen_folds_of_five_percent() -> None:
    assert parse_shares("80/5/15").folds == 17


def test_a_random_split_beside_the_official_one_is_refused(release: Path, tmp_path: Path) -> None:
    options = ["--images", str(release / "images"), "--labels", str(release / "Data_Entry_2017.csv")]
    both = ["--random-split", "80/5/15", "--official-split", str(release)]
    result = CliRunner().invoke(app, ["data", "prepare", *options, "--out", str(tmp_path / "out"), *both])
    assert isinstance(result.exception, ConfigurationError)
    assert "--random-split goes with neither" in str(result.exception)


def test_many_rows_without_an_image_are_one_line_with_their_number() -> None:
    missing = [Problem(kind=Kind.IMAGE_MISSING, subject=f"{number}.png", detail="no file") for number in range(101)]
    other = Problem(kind=Kind.IMAGE_TWICE, subject="a.png", detail="b.png is used")
    assert as_csv([*missing[:100], other]).count("\n") == 102
    lines = as_csv([*missing, other]).splitlines()
    assert len(lines) == 3
    assert lines[1].startswith("image-missing,101 rows,yes,")
    assert "0.png" in lines[1]
    assert counted([*missing, other])["image-missing"] == 101


def test_the_source_of_an_image_does_not_change_the_plan() -> None:
    def planned(source: str | None) -> str:
        entry = Entry(name="a.png", findings=(), patient="1", source=source)
        matched = Matched(entry=entry, label=0, split="train_val", file="a.png", size_bytes=9)
        image = PlannedImage(matched=matched, rows=64, columns=64, fold=0)
        return digest(plan_shards([image], shard_size=1, seed=0), Pixels(side=64, min_side=64, image_format="png"))

    assert planned("clinic") == planned(None)
