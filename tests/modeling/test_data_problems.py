"""`cxrnode data prepare` on damaged releases: every problem is listed, and every other image kept."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dicomnode.domain.errors import ConfigurationError
from modeling.preparation.prepare import prepare
from tests.modeling.nih_release import table_rows, write_table
from tests.modeling.preparing import found, manifest, prepared, problems, problems_of_images, quietly, request_of

pytestmark = pytest.mark.training


def test_every_problem_is_listed_and_every_other_image_kept(own_release: Path, tmp_path: Path) -> None:
    images, table = own_release / "images", own_release / "Data_Entry_2017.csv"
    rows = table_rows(table)
    names = [str(row[0]) for row in rows]
    (images / names[0]).unlink()
    (images / names[1]).write_bytes((images / names[1]).read_bytes()[:-400])
    (images / names[2]).write_bytes(b"not an image")
    (images / names[3]).write_bytes(b"")
    Image.fromarray(np.zeros((63, 90), dtype=np.uint8)).save(images / names[4])
    (images / "again").mkdir()
    shutil.copy(images / names[5], images / "again" / names[5])
    shutil.copy(images / names[5], images / "unheard_of.png")
    rows[6] = (names[6], "Pneumonitis", *rows[6][2:])
    rows[7] = (names[7], "No Finding|Mass", *rows[7][2:])
    rows[8] = (names[8], rows[8][1], 0, "", *rows[8][4:])
    rows[9] = (*rows[9][:4], "414", *rows[9][5:])
    rows += [rows[10], (names[11], "Hernia", *rows[11][2:])]
    write_table(table, rows)
    result = prepared(own_release, tmp_path / "out")
    assert problems_of_images(tmp_path / "out") == [
        ("age-implausible", names[9]),
        ("image-missing", names[0]),
        ("image-too-small", names[4]),
        ("image-twice", f"again/{names[5]}"),
        *(("image-unreadable", name) for name in sorted(names[1:4])),
        ("image-without-row", "unheard_of.png"),
        ("label-unknown", names[6]),
        ("labels-contradict", names[7]),
        ("row-incomplete", names[8]),
        ("row-twice", names[10]),
        ("rows-contradict", names[11]),
    ]
    assert result.problems["image-unreadable"] == 3
    assert {row["image"] for row in manifest(tmp_path / "out")} == set(names) - {*names[:5], *names[6:9], names[11]}
    ages = {row["image"]: row["age"] for row in manifest(tmp_path / "out")}
    assert (ages[names[9]], ages[names[10]]) == ("", str(rows[10][4]))
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report == {"problems": result.problems, "subjects_left_out": 10, "listed_in": "problems.csv"}


def test_small_images_are_admitted_when_asked_for(own_release: Path, tmp_path: Path) -> None:
    name = next((own_release / "images").iterdir())
    Image.fromarray(np.zeros((40, 40), dtype=np.uint8)).save(name)
    assert found(prepared(own_release, tmp_path / "a")) == {"image-too-small": 1}
    assert found(prepared(own_release, tmp_path / "b", min_side=40)) == {}


def test_a_patient_on_both_sides_is_an_error_that_says_how_many(own_release: Path, tmp_path: Path) -> None:
    both = [own_release / f"{side}_list.txt" for side in ("train_val", "test")]
    train_val, test = (path.read_text().split() for path in both)
    for index, path in ((0, both[0]), (1, both[1])):
        moved = (test[1:3] + train_val, test[:1] + test[3:])[index]
        path.write_text("\n".join(moved))
    with pytest.raises(ConfigurationError, match="2 patients are on both sides"):
        prepared(own_release, tmp_path / "out", official_split=own_release)


def test_an_image_in_both_lists_is_an_error(own_release: Path, tmp_path: Path) -> None:
    with (own_release / "test_list.txt").open("a") as file:
        file.write((own_release / "train_val_list.txt").read_text().split()[0] + "\n")
    with pytest.raises(ConfigurationError, match="1 images are in both lists"):
        prepared(own_release, tmp_path / "out", official_split=own_release)


def test_images_in_no_list_and_names_without_a_row_are_listed(own_release: Path, tmp_path: Path) -> None:
    path = own_release / "train_val_list.txt"
    names = path.read_text().split()
    path.write_text("\n".join(["99999999_000.png", *names[1:]]))
    result = prepared(own_release, tmp_path / "out", official_split=own_release)
    assert found(result) == {"in-no-list": 1, "listed-without-row": 1}


def test_too_few_positives_for_a_fold_is_an_error_that_names_them(own_release: Path, tmp_path: Path) -> None:
    table = own_release / "Data_Entry_2017.csv"
    rows = [row if "Hernia" not in str(row[1]) else (row[0], "Mass", *row[2:]) for row in table_rows(table)]
    rows[0] = (rows[0][0], "Hernia", *rows[0][2:])
    write_table(table, rows)
    request = replace(request_of(own_release, tmp_path / "out"), min_positives=1)
    with pytest.raises(ConfigurationError, match=r"Hernia: fold \d holds 0 of 1 positives, needs 1"):
        prepare(request, quietly)
    assert list((tmp_path / "out").glob("*.tfrec")) == []
    assert ("few-positives", "Hernia") in problems(tmp_path / "out")
    prepare(replace(request, min_positives=0), quietly)
    assert ("few-positives", "Hernia") in problems(tmp_path / "out")


def test_binary_labels_of_lists_replace_any_finding(release: Path, tmp_path: Path) -> None:
    names = [str(row[0]) for row in table_rows(release / "Data_Entry_2017.csv")]
    lists = tmp_path / "train.txt", tmp_path / "val.txt"
    lists[0].write_text("".join(f"{name} {index % 2}\n" for index, name in enumerate(names[:60])))
    lists[1].write_text("".join(f"{name} 1\n" for name in names[60:80]))
    result = prepared(release, tmp_path / "out", binary_labels=lists)
    assert found(result) == {"no-binary-label": 40}
    assert result.info.binary_head == "lists"
    stated = {row["image"]: int(row["label"]) for row in manifest(tmp_path / "out")}
    assert stated == {name: index % 2 if index < 60 else 1 for index, name in enumerate(names[:80])}
    lists[1].write_text(f"{names[0]} 1\n")
    with pytest.raises(ConfigurationError, match="labelled 0 and 1"):
        prepared(release, tmp_path / "other", binary_labels=lists)


@pytest.mark.parametrize(
    ("over", "says"),
    [
        ({"labels": Path("none.csv")}, "cannot be read"),
        ({"images": Path("none.zip")}, "neither a directory nor a readable ZIP"),
        ({"official_split": Path("nowhere")}, "lacks train_val_list.txt"),
        ({"folds": 61}, "61 folds need at least as many patients, not 60"),
        ({"side": 100}, "120 image-too-small"),
    ],
)
def test_input_that_cannot_be_used_is_a_clear_error(
    release: Path, tmp_path: Path, over: dict[str, object], says: str
) -> None:
    with pytest.raises(ConfigurationError, match=says):
        prepared(release, tmp_path / "out", **over)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("Image Index,Finding Labels\na.png,Mass\n", "lacks the column Patient ID"),
        ("Image Index,Finding Labels,Patient ID\n", "holds no rows"),
        ("Image Index,Finding Labels,Patient ID\nelsewhere.png,Mass,1\n", "not one of the 1 rows"),
    ],
)
def test_a_table_that_cannot_be_used_is_a_clear_error(release: Path, tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "table.csv").write_text(text)
    with pytest.raises(ConfigurationError, match=says):
        prepared(release, tmp_path / "out", labels=tmp_path / "table.csv")
