"""The first system's records: an image, its name and whether it is abnormal; nothing of findings or patients."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dicomnode.bundle.manifest import InputSpec
from dicomnode.domain.errors import ConfigurationError
from modeling.commands import training_images
from modeling.config import read_config
from modeling.nih import first_systems_set
from modeling.preparation.records import Record, encode_record
from modeling.preparation.tfrecord import framed

SPEC = InputSpec(side=64, source_side=64)
TANG = Path(__file__).parents[2] / "conf" / "train" / "tang-binary.toml"


def record(name: str, label: int | None, *, side: int = 64, **known: object) -> Record:
    encoded = io.BytesIO()
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (side, side), dtype=np.uint8)).save(encoded, "PNG")
    return Record(image=encoded.getvalue(), name=name, label=label, **known)


def write(folder: Path, *records: Record) -> Path:
    content = b"".join(framed(encode_record(entry)) for entry in records)
    (folder / f"train00-{len(records)}.tfrec").write_bytes(content)
    return folder


def test_the_binary_label_is_known_and_the_findings_are_not(tmp_path: Path) -> None:
    read = first_systems_set(write(tmp_path, record("00000001_000.png", 1), record("00000001_001.png", 0)), SPEC)
    assert read.labels[:, 0].tolist() == [1.0, 0.0]
    assert np.isnan(read.labels[:, 1:]).all()
    assert read.labels.shape == (2, 15)
    assert read.patients.tolist() == ["00000001", "00000001"]
    assert read.pixels.shape == (2, 64, 64)


def test_a_finding_counts_only_where_its_mask_says_so(tmp_path: Path) -> None:
    labels, mask = (1,) * 14, (1, 0) * 7
    read = first_systems_set(write(tmp_path, record("00000001_000.png", 1, labels=labels, mask=mask)), SPEC)
    assert read.labels[0, 1:3].tolist()[0] == 1.0
    assert np.isnan(read.labels[0, 2])


def test_a_folder_of_such_records_trains_by_patient(tmp_path: Path) -> None:
    records = [
        record(f"{patient:08d}_{image:03d}.png", (patient + image) % 2, side=256)
        for patient in range(8)
        for image in range(2)
    ]
    config = read_config(TANG)
    radiographs, folds = training_images(write(tmp_path, *records), None, config)
    assert len(set(folds)) == config.train.folds
    for patient in set(radiographs.patients):
        assert len(set(folds[radiographs.patients == patient])) == 1


def test_records_of_a_test_are_not_trained_on_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, record("00000001_000.png", 1))
    content = framed(encode_record(record("00000002_000.png", 0)))
    (tmp_path / "test00-1.tfrec").write_bytes(content)
    assert first_systems_set(tmp_path, SPEC).names == ("00000001_000.png",)
    assert "1 records of a test are not trained on: test00-1.tfrec" in caplog.text
    (tmp_path / "train00-1.tfrec").unlink()
    with pytest.raises(ConfigurationError, match="holds records of a test only"):
        first_systems_set(tmp_path, SPEC)


@pytest.mark.parametrize(
    ("records", "says"),
    [
        ([record("00000001_000.png", None)], r"1 images carry no label: 00000001_000\.png"),
        ([record("00000001_000.png", 1), record("00000001_000.png", 0)], "1 images are there more than once"),
        ([record("00000001_000.png", 1, patient="1", fold=0)], r"without its dataset\.json: it is not finished"),
    ],
)
def test_records_that_cannot_be_trained_on_are_counted_and_named(
    tmp_path: Path, records: list[Record], says: str
) -> None:
    with pytest.raises(ConfigurationError, match=says):
        first_systems_set(write(tmp_path, *records), SPEC)


def test_a_damaged_picture_in_a_record_is_named(tmp_path: Path) -> None:
    write(tmp_path, record("00000001_000.png", 1), Record(image=b"no picture", name="00000002_000.png", label=0))
    with pytest.raises(ConfigurationError, match=r"1 images of .* cannot be decoded: 00000002_000\.png \(no PNG"):
        first_systems_set(tmp_path, SPEC)


def test_a_record_file_that_lost_a_record_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, record("00000001_000.png", 1), record("00000002_000.png", 0))
    (tmp_path / "train00-2.tfrec").rename(tmp_path / "train00-3.tfrec")
    with pytest.raises(ConfigurationError, match="holds 2 records, but its name says 3"):
        first_systems_set(tmp_path, SPEC)


def test_a_folder_of_pictures_trains_on_tangs_own_list(drawn_archive: Path, tmp_path: Path) -> None:
    listed = tmp_path / "train.txt"
    listed.write_text("".join(f"{number:08d}_000.png {number % 2}\n" for number in range(50)))
    config = read_config(TANG)
    config = config.model_copy(update={"input": SPEC})
    radiographs, folds = training_images(drawn_archive, listed, config)
    assert radiographs.labels[:, 0].tolist() == [0.0, 1.0] * 25
    assert np.isnan(radiographs.labels[:, 1:]).all()
    assert radiographs.patients[:2].tolist() == ["00000000", "00000001"]
    assert set(folds) == set(range(config.train.folds))


def test_labels_beside_records_are_refused(tmp_path: Path) -> None:
    write(tmp_path, record("00000001_000.png", 1))
    with pytest.raises(ConfigurationError, match="leave --labels out"):
        training_images(tmp_path, tmp_path / "labels.csv", read_config(TANG))


def test_a_name_without_a_patient_and_an_image_too_small_are_named(tmp_path: Path) -> None:
    write(tmp_path, record("chest.png", 1))
    with pytest.raises(ConfigurationError, match=r"1 images do not begin with NIH's patient number: chest\.png"):
        first_systems_set(tmp_path, SPEC)
    other = tmp_path / "other"
    other.mkdir()
    write(other, record("00000001_000.png", 1, side=32))
    with pytest.raises(ConfigurationError, match=r"1 images of .* are smaller than 64 px: 00000001_000\.png"):
        first_systems_set(other, SPEC)
