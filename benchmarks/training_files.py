"""Record files through `tf.data` against the same bytes as plain image files, and against what training reads."""

import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bench import Bench, seconds
from benchmarks.table import Goal, Row
from dicomnode.domain.frame import FloatArray
from modeling.phantom import chest_phantom
from modeling.pixel_store import EncodedImages, stored_pixels
from modeling.preparation.dataset import tf_dataset
from modeling.preparation.framing import framed
from modeling.preparation.records import FINDINGS, Record, encode_record, read_records

IMAGES, A_FILE, SIDE, BATCH = 2048, 256, 256, 32
_DRAWN = 32
_ENCODINGS = {"PNG": ".png", "JPEG": ".jpg"}
NOT_SLOWER = {"in the page cache": Goal(at_least=0.9), "from the disk": Goal(at_least=1.0)}
"""Once they are in memory both are the same decoding; there is more to read of the records, which hold the labels."""


def rows(bench: Bench) -> Iterator[Row]:
    for encoding, suffix in _ENCODINGS.items():
        records, plain = _written(bench.folder / encoding, suffix)
        of_records, of_plain = tf_dataset(records, side=SIDE), _plain(plain)
        for elements in (of_records, of_plain):
            _drain(elements)
        for disk, goal in NOT_SLOWER.items():
            forget = disk == "from the disk"
            found = bench.interleaved(
                {
                    "records": _rate(partial(_drain, of_records), records if forget else ()),
                    "plain": _rate(partial(_drain, of_plain), plain if forget else ()),
                },
                "images/s",
            )
            yield Row(
                what=f"{encoding} of {SIDE} px {disk}: TFRecords through tf.data",
                ours=found["records"],
                peer="plain files through tf.data",
                theirs=found["plain"],
                goal=goal,
            )
        yield _once(bench, encoding, records, partial(_drain, of_records))


def _once(bench: Bench, encoding: str, records: list[Path], each_epoch: Callable[[], None]) -> Row:
    """What `cxrnode train` does before its first epoch, and never again in a run."""
    from benchmarks.training import drawn_run

    spec = drawn_run("nih-b2-256", BATCH, BATCH).config.input
    images = EncodedImages(
        where=records[0].parent,
        names=[str(number) for number in range(IMAGES)],
        read=lambda: (record.image for file in records for record in read_records(file)),
        content=[],
        least_side=SIDE,
    )
    contenders = {"once": _rate(lambda: stored_pixels(images, spec, None)), "each epoch": _rate(each_epoch)}
    found = bench.interleaved(contenders, "images/s", rounds=min(3, bench.rounds))
    return Row(
        what=f"{encoding} of {SIDE} px: decoded and standardised into memory, once a run",
        ours=found["once"],
        peer="tf.data, which only decodes, each epoch",
        theirs=found["each epoch"],
    )


def _rate(work: Callable[[], object], forget: Iterable[Path] = ()) -> Callable[[], float]:
    """Return a contender that reads all images; files to `forget` are first put out of the page cache."""

    def measure() -> float:
        for path in forget:
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return IMAGES / seconds(work)

    return measure


def _drain(elements: Any) -> None:
    for _ in elements.batch(BATCH).prefetch(2):
        pass


def _plain(paths: list[Path]) -> Any:
    """Return plain files as `tf.data` reads them: the elements that the records give, with labels from memory."""
    import tensorflow as tf

    names = [str(path) for path in paths]
    known = {"name": names, "label": np.ones(IMAGES, np.int64), "labels": _findings(0.0), "mask": _findings(1.0)}

    def read(element: dict[str, Any]) -> dict[str, Any]:
        encoded = tf.io.read_file(element["name"])
        pixels = tf.io.decode_jpeg(encoded, channels=1, dct_method="INTEGER_ACCURATE")
        return {**element, "pixels": tf.ensure_shape(pixels, (SIDE, SIDE, 1))}

    elements = tf.data.Dataset.from_tensor_slices(known)
    return elements.map(read, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


def _findings(value: float) -> FloatArray:
    return np.full((IMAGES, len(FINDINGS)), value, np.float32)


def _written(folder: Path, suffix: str) -> tuple[list[Path], list[Path]]:
    """Write the same encoded images as records and as plain files, durably, so that both can be forgotten."""
    import cv2

    folder.mkdir()
    random = np.random.default_rng(0)
    chests = [(255 * chest_phantom(SIDE, random)).astype(np.uint8) for _ in range(_DRAWN)]
    encoded = [cv2.imencode(suffix, chest)[1].tobytes() for chest in chests]
    records, plain = [], []
    for first in range(0, IMAGES, A_FILE):
        numbers = range(first, first + A_FILE)
        payloads = [_record(number, encoded[number % _DRAWN]) for number in numbers]
        records.append(_durable(folder / f"fold0-{first // A_FILE:02d}-{A_FILE}.tfrec", b"".join(payloads)))
        plain += [_durable(folder / f"{number:08d}{suffix}", encoded[number % _DRAWN]) for number in numbers]
    return records, plain


def _record(number: int, image: bytes) -> bytes:
    known = {"label": 1, "labels": (0,) * 14, "mask": (1,) * 14, "patient": str(number), "view": "PA", "fold": 0}
    return framed(encode_record(Record(image=image, name=f"{number:08d}_000.png", **known)))


def _durable(path: Path, content: bytes) -> Path:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return path
