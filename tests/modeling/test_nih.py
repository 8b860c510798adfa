import gzip
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from dicomnode.bundle.manifest import InputSpec
from dicomnode.domain.errors import ConfigurationError
from modeling.nih import LABELS, check_folds, patient_folds, read_radiographs

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
