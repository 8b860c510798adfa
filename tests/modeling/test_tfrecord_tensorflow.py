"""TensorFlow reads what is written without it, and the other way round; first-system files through `tf.data`."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dicomnode.domain.errors import ConfigurationError
from modeling.preparation.dataset import numpy_batches, tf_dataset
from modeling.preparation.records import Record, encode_record, read_records, record_files
from modeling.preparation.tfrecord import framed

pytestmark = pytest.mark.training
tf = pytest.importorskip("tensorflow", reason="TensorFlow is not installed")


def image(seed: int, mode: str = "L", kind: str = "PNG", side: int = 32) -> bytes:
    random = np.random.default_rng(seed)
    smooth = np.add.outer(np.arange(side), np.arange(side)) * 2 + random.integers(0, 40, size=(side, side))
    encoded = io.BytesIO()
    Image.fromarray(smooth.astype(np.uint8)).convert(mode).save(encoded, kind)
    return encoded.getvalue()


def full(seed: int, **over: object) -> Record:
    labels = tuple(int(bit) for bit in np.random.default_rng(seed).integers(0, 2, 14))
    known = {"label": 1, "labels": labels, "mask": (1,) * 14, "patient": "ü1", "view": "AP", "sex": "M", "age": 3}
    return Record(image=image(seed), name=f"{seed}.png", fold=4, **{**known, **over})  # type: ignore[arg-type]


def as_tensorflow_writes(record: Record) -> bytes:
    def of_bytes(value: bytes) -> object:
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))

    def of_ints(*values: int) -> object:
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values))

    features = {
        "image": of_bytes(record.image),
        "image_idx": of_bytes(record.name.encode()),
        "label": of_ints(record.label or 0),
    }
    if record.labels and record.mask and record.patient and record.view and record.sex:
        features |= {"labels": of_ints(*record.labels), "mask": of_ints(*record.mask)}
        features |= {"patient_id": of_bytes(record.patient.encode()), "view": of_bytes(record.view.encode())}
        features |= {"sex": of_bytes(record.sex.encode()), "age": of_ints(record.age or 0)}
        features |= {"fold": of_ints(record.fold or 0)}
    example = tf.train.Example(features=tf.train.Features(feature=features))
    return bytes(example.SerializeToString(deterministic=True))


def test_the_bytes_are_those_that_tensorflow_writes(tmp_path: Path) -> None:
    records = [full(seed) for seed in range(3)]
    with tf.io.TFRecordWriter(str(tmp_path / "theirs.tfrec")) as writer:
        for record in records:
            writer.write(as_tensorflow_writes(record))
    ours = b"".join(framed(encode_record(record)) for record in records)
    assert ours == (tmp_path / "theirs.tfrec").read_bytes()


def test_tensorflow_reads_every_value_back(tmp_path: Path) -> None:
    record = full(5)
    path = tmp_path / "x00-1.tfrec"
    path.write_bytes(framed(encode_record(record)))
    (raw,) = tf.data.TFRecordDataset(str(path))
    feature = tf.train.Example.FromString(raw.numpy()).features.feature
    assert feature["image"].bytes_list.value[0] == record.image
    assert tuple(feature["labels"].int64_list.value) == record.labels
    assert tuple(feature["mask"].int64_list.value) == record.mask
    assert feature["patient_id"].bytes_list.value[0].decode() == "ü1"
    assert (feature["age"].int64_list.value[0], feature["fold"].int64_list.value[0]) == (3, 4)


def test_the_first_systems_files_are_read_by_both_readers_alike(tmp_path: Path) -> None:
    with tf.io.TFRecordWriter(str(tmp_path / "train00-4.tfrec")) as writer:
        for seed in range(4):
            first = Record(image=image(seed, "RGB", "JPEG"), name=f"{seed}.jpg", label=seed % 2)
            writer.write(as_tensorflow_writes(first))
    files = record_files(tmp_path)
    assert [record.labels for record in read_records(files[0])] == [None] * 4
    (batch,) = numpy_batches(files, side=32, batch_size=8)
    elements = list(tf_dataset(files, side=32).as_numpy_iterator())
    assert [element["name"].decode() for element in elements] == list(batch.names)
    assert [int(element["label"]) for element in elements] == [0, 1, 0, 1]
    assert all(not element["mask"].any() for element in elements)
    # Two JPEG decoders round colour differently, by one grey level.
    difference = np.stack([element["pixels"][..., 0] for element in elements]).astype(int) - batch.pixels
    assert np.abs(difference).max() <= 1


@pytest.mark.parametrize("side", [32, 20, 48])
def test_both_readers_give_the_same_pixels_and_labels(tmp_path: Path, side: int) -> None:
    for number in range(3):
        path = tmp_path / f"fold0-{number:02d}-2.tfrec"
        path.write_bytes(b"".join(framed(encode_record(full(2 * number + i))) for i in range(2)))
    files = record_files(tmp_path)
    (batch,) = numpy_batches(files, side=side, batch_size=8)
    elements = {element["name"].decode(): element for element in tf_dataset(files, side=side).as_numpy_iterator()}
    assert set(elements) == set(batch.names)
    for name, pixels, labels in zip(batch.names, batch.pixels, batch.labels, strict=True):
        np.testing.assert_array_equal(elements[name]["pixels"][..., 0], pixels)
        np.testing.assert_array_equal(elements[name]["labels"], labels)


def test_a_shuffled_dataset_has_every_record_once_and_the_seed_says_the_order(tmp_path: Path) -> None:
    for number in range(4):
        path = tmp_path / f"fold0-{number:02d}-5.tfrec"
        path.write_bytes(b"".join(framed(encode_record(full(5 * number + i))) for i in range(5)))
    files = record_files(tmp_path)
    plain, one, same, other = (
        [element["name"] for element in tf_dataset(files, side=32, shuffle_seed=seed).as_numpy_iterator()]
        for seed in (None, 1, 1, 2)
    )
    assert sorted(one) == sorted(plain) == sorted(other)
    assert one == same
    assert one != other


def test_a_wrong_count_stops_the_dataset_before_its_first_element(tmp_path: Path) -> None:
    (tmp_path / "x00-2.tfrec").write_bytes(framed(encode_record(full(1))))
    with pytest.raises(ConfigurationError, match="holds 1 records, but its name says 2"):
        tf_dataset(record_files(tmp_path), side=32)
