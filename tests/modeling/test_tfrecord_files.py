"""Record files: framing, examples, names and counts, without TensorFlow."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dicomnode.domain.errors import ConfigurationError
from modeling.preparation.dataset import numpy_batches
from modeling.preparation.records import (
    Record,
    decode_pixels,
    decode_record,
    encode_record,
    read_records,
    record_files,
    require_counts,
)
from modeling.preparation.tfrecord import count_frames, decode, encode, framed, frames


def png(value: int = 7, side: int = 4) -> bytes:
    encoded = io.BytesIO()
    Image.fromarray(np.full((side, side), value, dtype=np.uint8)).save(encoded, "PNG")
    return encoded.getvalue()


FULL = Record(
    image=png(),
    name="00000001_000.png",
    label=1,
    labels=(1,) + (0,) * 13,
    mask=(1,) * 14,
    patient="1",
    view="PA",
    sex="F",
    age=58,
    fold=3,
)


def write(path: Path, *records: Record) -> Path:
    path.write_bytes(b"".join(framed(encode_record(record)) for record in records))
    return path


def first_system(name: str, label: int) -> Record:
    return Record(image=png(), name=name, label=label)


def test_a_record_comes_back_as_it_was_and_serialises_to_the_same_bytes() -> None:
    serialised = encode_record(FULL)
    assert decode_record(serialised) == FULL
    assert encode_record(decode_record(serialised)) == serialised


def test_what_is_not_known_is_absent_rather_than_a_special_value() -> None:
    assert set(decode(encode_record(first_system("a.png", 0)))) == {"image", "image_idx", "label"}


def test_the_first_systems_record_is_read_and_its_labels_are_unknown() -> None:
    for name in ([b"00000001_000.png"], [17]):
        record = decode_record(encode({"image": [png()], "image_idx": name, "label": [1]}))
        assert (record.label, record.labels, record.mask, record.fold) == (1, None, None, None)
        assert record.name in {"00000001_000.png", "17"}


@pytest.mark.parametrize(
    ("features", "says"),
    [
        ({"image_idx": [b"a"], "label": [1]}, "no image"),
        ({"image": [b"x"], "label": [2]}, "neither 0 nor 1"),
        ({"image": [b"x"], "labels": [1, 0]}, "not 14"),
        ({"image": [b"x"], "labels": [3] * 14}, "not 14"),
    ],
)
def test_a_record_that_makes_no_sense_is_refused(features: dict[str, list[bytes] | list[int]], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        decode_record(encode(features))


def test_bytes_that_are_no_example_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"no tf\.train\.Example"):
        decode_record(b"\xff\xff\xff")


def test_the_checksum_is_crc32c_of_the_published_test_vector() -> None:
    # RFC 3720 B.4: 32 bytes of zeros have the CRC 0x8A9136AA, which TensorFlow rotates by 15 and offsets.
    crc = 0x8A9136AA
    masked = (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
    assert framed(bytes(32))[-4:] == masked.to_bytes(4, "little")


def test_a_flipped_bit_anywhere_is_noticed(tmp_path: Path) -> None:
    whole = framed(b"first") + framed(b"second")
    path = tmp_path / "x.tfrec"
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 0x10
        path.write_bytes(damaged)
        with pytest.raises(ConfigurationError, match=r"damaged|cut short"):
            list(frames(path))


def test_a_file_cut_anywhere_but_between_records_is_noticed(tmp_path: Path) -> None:
    whole = framed(b"first") + framed(b"second")
    path = tmp_path / "x.tfrec"
    for length in set(range(1, len(whole))) - {len(framed(b"first"))}:
        path.write_bytes(whole[:length])
        with pytest.raises(ConfigurationError, match="cut short"):
            list(frames(path))
        with pytest.raises(ConfigurationError, match="cut short"):
            count_frames(path)


def test_a_count_in_the_name_that_is_not_the_number_of_records_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "train00-3.tfrec", first_system("a.png", 0), first_system("b.png", 1))
    with pytest.raises(ConfigurationError, match="holds 2 records, but its name says 3"):
        list(read_records(path))
    with pytest.raises(ConfigurationError, match="holds 2 records, but its name says 3"):
        require_counts([path])
    with pytest.raises(ConfigurationError, match="holds 2 records, but its name says 3"):
        next(numpy_batches([path], side=4, batch_size=1))


def test_a_name_without_a_count_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "train.tfrec", FULL)
    with pytest.raises(ConfigurationError, match="count is unknown"):
        record_files(tmp_path)


def test_more_than_a_hundred_files_are_all_read_and_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in range(117):
        write(tmp_path / f"train{number:02d}-1.tfrec", first_system(f"{number}.png", number % 2))
    files = record_files(tmp_path)
    assert [record.name for path in files for record in read_records(path)] == [f"{n}.png" for n in range(117)]


def test_a_missing_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    for number in (0, 1, 3):
        write(tmp_path / f"train{number:02d}-1.tfrec", FULL)
    with pytest.raises(ConfigurationError, match="lacks 1 files of trainNN: 02"):
        record_files(tmp_path)


def test_two_files_of_one_number_are_an_error(tmp_path: Path) -> None:
    write(tmp_path / "train00-1.tfrec", FULL)
    write(tmp_path / "train00-2.tfrec", FULL, FULL)
    with pytest.raises(ConfigurationError, match="same number of trainNN: 00"):
        record_files(tmp_path)


def test_prefixes_are_told_apart(tmp_path: Path) -> None:
    for name in ("fold0-00-1.tfrec", "fold0-01-1.tfrec", "fold1-00-1.tfrec", "test-00-1.tfrec"):
        write(tmp_path / name, FULL)
    assert [path.name for path in record_files(tmp_path, "fold0-")] == ["fold0-00-1.tfrec", "fold0-01-1.tfrec"]
    assert len(record_files(tmp_path)) == 4


def test_batches_lose_no_row_whatever_the_batch_and_the_order(tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path / f"train{number:02d}-5.tfrec", *(first_system(f"{number}{i}.png", i % 2) for i in range(5)))
    files = record_files(tmp_path)
    for shuffle in (None, np.random.default_rng(1)):
        batches = list(numpy_batches(files, side=4, batch_size=4, shuffle=shuffle))
        assert [len(batch.names) for batch in batches] == [4, 4, 4, 3]
        names = [name for batch in batches for name in batch.names]
        assert sorted(names) == sorted(f"{n}{i}.png" for n in range(3) for i in range(5))
        assert (names == sorted(names)) == (shuffle is None)


def test_batches_mask_what_the_first_system_does_not_say(tmp_path: Path) -> None:
    path = write(tmp_path / "x00-2.tfrec", first_system("a.png", 1), FULL)
    batch = next(numpy_batches([path], side=4, batch_size=2))
    np.testing.assert_array_equal(batch.mask.sum(axis=1), [0, 14])
    np.testing.assert_array_equal(batch.label, [1, 1])
    np.testing.assert_array_equal(batch.label_mask, [1, 1])


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1"])
def test_an_image_of_any_mode_is_grey(mode: str) -> None:
    encoded = io.BytesIO()
    Image.fromarray(np.full((4, 4), 255, dtype=np.uint8)).convert(mode).save(encoded, "PNG")
    np.testing.assert_array_equal(decode_pixels(encoded.getvalue()), np.full((4, 4), 255))


def test_sixteen_bits_are_reduced_to_the_upper_eight_rather_than_clipped() -> None:
    encoded = io.BytesIO()
    Image.fromarray(np.array([[0, 257, 32896, 65535]], dtype=np.uint16)).save(encoded, "PNG")
    np.testing.assert_array_equal(decode_pixels(encoded.getvalue()), [[0, 1, 128, 255]])


def test_a_damaged_image_in_a_record_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match="cannot be decoded"):
        decode_pixels(png(side=64)[:-30])


def test_neither_preparing_nor_reading_loads_a_training_framework() -> None:
    modules = ("preparation.prepare", "preparation.dataset", "preparation.summary", "nih")
    script = "import sys\n" + "".join(f"import modeling.{name}\n" for name in modules)
    script += "print(*({'tensorflow', 'keras', 'jax'} & set(sys.modules)))"
    told = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert told.stdout.strip() == ""
