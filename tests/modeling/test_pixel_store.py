"""Pixels beyond memory: a mapped file that is whole or absent, and that of the same images or written again."""

import errno
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from dicomnode.bundle.manifest import InputSpec
from dicomnode.domain.errors import ConfigurationError, DiskFull
from modeling import pixel_store
from modeling.pixel_store import NOTE, PIXELS, EncodedImages, stored_pixels

SPEC = InputSpec(side=96, source_side=64)
RANDOM = np.random.default_rng(0)
PICTURES = [
    cv2.imencode(".png", RANDOM.integers(0, 256, (rows, 80), dtype=np.uint8))[1].tobytes() for rows in range(70, 110)
]


@pytest.fixture
def mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixel_store, "IN_MEMORY_BYTES", 0)


class Read:
    """Images that count how often they were read."""

    def __init__(self, pictures: list[bytes | str] | None = None, *, content: str = "1") -> None:
        self.times = 0
        self.pictures = list(PICTURES) if pictures is None else pictures
        names = [f"{number}.png" for number in range(len(self.pictures))]
        self.images = EncodedImages(where=Path("here"), names=names, read=self.read, content=[content], least_side=64)

    def read(self) -> Iterator[bytes | str]:
        self.times += 1
        yield from self.pictures


def in_memory() -> np.ndarray:
    return stored_pixels(Read().images, SPEC, None)[0]


def test_images_keep_their_rows_and_their_longer_sides() -> None:
    pixels, sides = stored_pixels(Read().images, SPEC, None)
    assert pixels.shape == (40, 64, 64)
    for row in (0, 17, 39):
        alone, _ = stored_pixels(Read([PICTURES[row]]).images, SPEC, None)
        assert np.array_equal(pixels[row], alone[0])
    assert sides.tolist() == [max(rows, 80) for rows in range(70, 110)]


def test_few_images_stay_in_memory(tmp_path: Path) -> None:
    stored_pixels(Read().images, SPEC, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("mapped")
def test_mapped_pixels_are_those_of_memory_and_are_read_once(tmp_path: Path) -> None:
    read = Read()
    pixels, sides = stored_pixels(read.images, SPEC, tmp_path / "run")
    again, sides_again = stored_pixels(read.images, SPEC, tmp_path / "run")
    assert np.array_equal(pixels, in_memory())
    assert np.array_equal(again, pixels)
    assert np.array_equal(sides, sides_again)
    assert isinstance(again.base, np.memmap)
    assert not again.flags.writeable
    assert read.times == 1


@pytest.mark.usefixtures("mapped")
@pytest.mark.parametrize(
    ("content", "spec", "times"),
    [("2", SPEC, 1), ("1", SPEC.model_copy(update={"low_percentile": 2.0}), 1),
     ("1", SPEC.model_copy(update={"side": 128}), 0)],
)  # fmt: skip
def test_other_images_or_another_standard_are_other_pixels(
    tmp_path: Path, content: str, spec: InputSpec, times: int
) -> None:
    stored_pixels(Read().images, SPEC, tmp_path)
    other = Read(content=content)
    stored_pixels(other.images, spec, tmp_path)
    assert other.times == times


@pytest.mark.usefixtures("mapped")
@pytest.mark.parametrize("damage", ["note", "no-note", "cut", "empty", "other-length"])
def test_a_damaged_file_is_written_again(tmp_path: Path, damage: str) -> None:
    stored_pixels(Read().images, SPEC, tmp_path)
    note, pixels = tmp_path / NOTE, tmp_path / PIXELS
    held = json.loads(note.read_bytes())
    {
        "note": lambda: note.write_text("{"),
        "no-note": note.unlink,
        "cut": lambda: os.truncate(pixels, 5000),
        "empty": lambda: os.truncate(pixels, 0),
        "other-length": lambda: note.write_text(json.dumps(held | {"sides": [80]})),
    }[damage]()
    read = Read()
    assert np.array_equal(stored_pixels(read.images, SPEC, tmp_path)[0], in_memory())
    assert read.times == 1


@pytest.mark.usefixtures("mapped")
def test_a_run_killed_while_it_writes_leaves_no_pixels_to_take_for_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            stored_pixels(Read().images, SPEC, tmp_path)
    read = Read()
    stored_pixels(read.images, SPEC, tmp_path)
    assert read.times == 1
    assert {path.name for path in tmp_path.iterdir()} == {PIXELS, NOTE, "pixels.lock"}


@pytest.mark.usefixtures("mapped")
def test_an_unreadable_image_leaves_no_file_behind(tmp_path: Path) -> None:
    read = Read([PICTURES[0], b"", "gone", cv2.imencode(".png", np.zeros((63, 90)))[1].tobytes()])
    with pytest.raises(ConfigurationError, match=r"2 images of here cannot be decoded: 1\.png \(.*\), 2\.png \(gone\)"):
        stored_pixels(read.images, SPEC, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["pixels.lock"]
    with pytest.raises(ConfigurationError, match=r"1 images of here are smaller than 64 px: 1\.png"):
        stored_pixels(Read([PICTURES[0], read.pictures[3]]).images, SPEC, tmp_path)


@pytest.mark.usefixtures("mapped")
def test_a_full_disk_is_called_that_before_anything_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    read = Read()
    with pytest.raises(DiskFull, match=r"for 0\.0 GB"):
        stored_pixels(read.images, SPEC, tmp_path)
    assert read.times == 0
    assert [path.name for path in tmp_path.iterdir()] == ["pixels.lock"]


@pytest.mark.usefixtures("mapped")
def test_processes_that_ask_at_once_write_once(tmp_path: Path) -> None:
    read = Read()
    found: list[np.ndarray] = []
    threads = [
        threading.Thread(target=lambda: found.append(stored_pixels(read.images, SPEC, tmp_path)[0])) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert read.times == 1
