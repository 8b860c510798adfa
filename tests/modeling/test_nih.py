import gzip
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from dicomnode.bundle.manifest import InputSpec
from dicomnode.domain.errors import ConfigurationError
from modeling.nih import LABELS, Radiographs, check_folds, patient_folds, read_radiographs

SPEC = InputSpec(side=64, source_side=64)


def archive_with(path: Path, table: str, **files: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("manifest.csv", table)
        for name, content in files.items():
            archive.writestr(f"images/{name}.jpg", content)
    return path


def test_reads_images_with_labels_in_the_order_of_the_outputs(drawn_archive: Path) -> None:
    radiographs = read_radiographs(drawn_archive, None, SPEC)
    assert radiographs.pixels.shape == (60, 64, 64)
    assert radiographs.labels[0].tolist() == [0.0] * 15
    assert radiographs.labels[1, 0] == 1.0
    assert radiographs.labels[1, LABELS.index("Atelectasis")] == 1.0


def test_no_patient_is_in_two_folds(drawn_archive: Path) -> None:
    radiographs = read_radiographs(drawn_archive, None, SPEC)
    folds = patient_folds(radiographs, folds=5, seed=3)
    assert set(folds) == {0, 1, 2, 3, 4}
    for patient in set(radiographs.patients):
        assert len(set(folds[radiographs.patients == patient])) == 1


def test_folds_depend_on_the_seed_alone(drawn_archive: Path) -> None:
    radiographs = read_radiographs(drawn_archive, None, SPEC)
    first = patient_folds(radiographs, folds=3, seed=3)
    assert np.array_equal(first, patient_folds(radiographs, folds=3, seed=3))


def test_reads_nih_s_own_table_for_the_images_at_hand(drawn_archive: Path, tmp_path: Path) -> None:
    table = tmp_path / "Data_Entry_2017.csv.gz"
    rows = (
        "Image Index,Finding Labels,Follow-up #,Patient ID,View Position\n"
        "00000003_000.png,Hernia|Mass,0,7,PA\n99999999_000.png,No Finding,0,8,AP\n"
    )
    table.write_bytes(gzip.compress(rows.encode()))
    radiographs = read_radiographs(drawn_archive, table, SPEC)
    assert radiographs.names == ("00000003_000.png",)
    assert radiographs.patients.tolist() == ["7"]
    assert radiographs.labels[0, LABELS.index("Hernia")] == 1.0


def test_an_image_named_but_absent_is_an_error(tmp_path: Path) -> None:
    path = archive_with(tmp_path / "a.zip", "image,labels,view,patient\ngone.png,No Finding,PA,1\n")
    with pytest.raises(ConfigurationError, match=r"lacks 1 of the images named: gone\.png"):
        read_radiographs(path, None, SPEC)


def test_an_undecodable_image_is_an_error(tmp_path: Path) -> None:
    path = archive_with(tmp_path / "a.zip", "image,labels,view,patient\nbad.png,No Finding,PA,1\n", bad=b"not a JPEG")
    with pytest.raises(ConfigurationError, match=r"1 images .* cannot be decoded: bad\.png"):
        read_radiographs(path, None, SPEC)


def test_a_label_that_is_not_nih_s_is_an_error(tmp_path: Path) -> None:
    path = archive_with(tmp_path / "a.zip", "image,labels,view,patient\na.png,Gout,PA,1\n", a=b"")
    with pytest.raises(ConfigurationError, match="Gout"):
        read_radiographs(path, None, SPEC)


def test_a_file_that_is_no_archive_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "images.zip"
    path.write_bytes(b"PK")
    with pytest.raises(ConfigurationError, match="neither a directory nor a readable ZIP"):
        read_radiographs(path, None, SPEC)


def test_an_image_too_small_to_be_a_radiograph_is_counted_and_named(tmp_path: Path) -> None:
    thumbnail = cv2.imencode(".jpg", np.zeros((70, 40), dtype=np.uint8))[1].tobytes()
    path = archive_with(tmp_path / "a.zip", "image,labels,view,patient\na.png,Mass,PA,1\n", a=thumbnail)
    with pytest.raises(ConfigurationError, match=r"1 images .* are smaller than 64 px: a\.png"):
        read_radiographs(path, None, SPEC)


def test_folds_that_leave_an_output_nothing_to_learn_are_refused_by_name() -> None:
    labels = np.array([[0, 1], [1, 0], [0, 0], [1, 0]], dtype=np.float32)
    folds = np.array([0, 0, 1, 1])
    with pytest.raises(ConfigurationError, match=r"without fold 0 .* Mass to train on: 0 positives and 2 negatives"):
        check_folds(labels, folds, ("Abnormal", "Mass"))
    check_folds(labels[:, :1], folds, ("Abnormal",))


def test_a_label_that_no_image_tells_is_nothing_to_learn_from() -> None:
    labels = np.array([[0, np.nan], [1, np.nan], [0, np.nan], [1, np.nan]], dtype=np.float32)
    with pytest.raises(ConfigurationError, match="Mass to train on: 0 positives and 0 negatives"):
        check_folds(labels, np.array([0, 0, 1, 1]), ("Abnormal", "Mass"))


def test_what_is_left_out_is_counted_and_named(
    drawn_archive: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = tmp_path / "table.csv"
    rows = "00000003_000.png,Hernia,7,PA\n99999999_000.png,No Finding,8,AP\n"
    table.write_text("Image Index,Finding Labels,Patient ID,View Position\n" + rows)
    assert read_radiographs(drawn_archive, table, SPEC).names == ("00000003_000.png",)
    assert "1 image-missing: 99999999_000.png" in caplog.text
    assert "59 image-without-row: images/00000000_000.jpg, " in caplog.text


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ("a.png,Mass|No Finding,PA,1\n", r"1 rows .*1 labels-contradict\): a\.png \(No Finding beside a finding\)"),
        ("a.png,Mass,PA,1\na.png,Hernia,PA,2\n", r"1 rows .*1 rows-contradict\): a\.png"),
        ("a.png,Mass\n", r"1 rows .*1 row-incomplete\): a\.png \(no Patient ID\)"),
        ("a.png,Gout,PA,1\nb.png,Flu,PA,1\n", r"2 rows .*2 label-unknown\): a\.png \(Gout\), b\.png \(Flu\)"),
    ],
)
def test_rows_that_cannot_be_used_are_counted_and_named(tmp_path: Path, rows: str, says: str) -> None:
    path = archive_with(tmp_path / "a.zip", "image,labels,view,patient\n" + rows, a=b"")
    with pytest.raises(ConfigurationError, match=says):
        read_radiographs(path, None, SPEC)


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"\x1f\x8bno gzip", "cannot be unpacked"), (b"\xff\xfe", "is not UTF-8"), (b"image\nx\n", "lacks the column")],
)
def test_a_label_table_that_cannot_be_read_is_an_error(
    drawn_archive: Path, tmp_path: Path, content: bytes, says: str
) -> None:
    (tmp_path / "table.csv").write_bytes(content)
    with pytest.raises(ConfigurationError, match=says):
        read_radiographs(drawn_archive, tmp_path / "table.csv", SPEC)


def test_an_image_that_the_archive_lost_is_named(tmp_path: Path) -> None:
    picture = cv2.imencode(".jpg", np.zeros((70, 70), dtype=np.uint8))[1].tobytes()
    path = archive_with(tmp_path / "a.zip", "image,labels,view,patient\na.png,Mass,PA,1\n", a=picture)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(picture, picture[:-9] + bytes(9)))
    with pytest.raises(ConfigurationError, match=r"1 images .* cannot be decoded: a\.png \(Bad CRC-32"):
        read_radiographs(path, None, SPEC)


@pytest.mark.parametrize(
    ("lines", "says"),
    [("00000000_000.png 1\nchest.png 0\n", r"1 names .* patient number: chest\.png"),
     ("00000000_000.png 1\n00000000_000.png 0\n", "labelled 0 and 1"),
     ("00000000_000.png 1\n00000001_000.png 2\n", "is not a name and 0 or 1")],
)  # fmt: skip
def test_a_list_of_normal_and_abnormal_that_makes_no_sense_is_refused(
    drawn_archive: Path, tmp_path: Path, lines: str, says: str
) -> None:
    (tmp_path / "list.txt").write_text(lines)
    with pytest.raises(ConfigurationError, match=says):
        read_radiographs(drawn_archive, tmp_path / "list.txt", SPEC)


def few(labels: list[float], sides: list[int]) -> Radiographs:
    many = len(labels)
    return Radiographs(
        names=tuple(map(str, range(many))),
        pixels=np.zeros((many, 1, 1), dtype=np.uint8),
        labels=np.array(labels, dtype=np.float32)[:, None],
        patients=np.arange(many).astype(str),
        views=np.full(many, ""),
        source_px=np.array(sides),
    )


def test_strata_too_rare_for_every_fold_and_unknown_labels_are_dealt_out_too() -> None:
    folds = patient_folds(few([0, 0, 0, 0, 0, 1, np.nan, 0], [64] * 7 + [96]), folds=4, seed=1)
    assert np.bincount(folds).tolist() == [2, 2, 2, 2]


def test_more_folds_than_patients_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="4 folds need at least as many patients"):
        patient_folds(few([0, 1, 0], [64] * 3), folds=4, seed=1)
