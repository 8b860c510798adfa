"""A prepared folder: its description, and its images for training as numpy batches or as `tf.data`."""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError

from dicomnode.domain.errors import ConfigurationError
from modeling.preparation.plan import ImageFormat, PlannedShard
from modeling.preparation.records import (
    FINDINGS,
    Record,
    decode_pixels,
    parse_shard_name,
    read_records,
    require_counts,
)
from modeling.preparation.shards import WrittenShard
from modeling.preparation.tables import NO_FINDING

DATASET, MANIFEST = "dataset.json", "manifest.csv"
MANIFEST_COLUMNS = (
    "image", "shard", "split", "fold", "label", "labels", "patient", "view", "age", "sex", "px", "rows", "columns"
)  # fmt: skip
_NO_LABELS = (0,) * len(FINDINGS)


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ShardInfo(_Strict):
    """One record file; `fold` is None for the official test."""

    file: str
    fold: int | None
    count: int
    size_bytes: int
    sha256: str


class DatasetInfo(_Strict):
    """The description of a prepared folder.

    `binary_head` is what `label` means: "any-finding" is 1 where the table names one of the 14 findings, "lists" is the
    0 or 1 of the lists given as `--binary-labels`.
    """

    schema_version: Literal[1]
    side: int
    image_format: ImageFormat
    folds: int
    seed: int
    findings: tuple[str, ...]
    binary_head: Literal["any-finding", "lists"]
    plan: str
    shards: tuple[ShardInfo, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedFolder:
    """A complete prepared folder whose files have the sizes they were written with."""

    path: Path
    info: DatasetInfo

    def files(self, *, folds: Iterable[int] | None = None, test: bool = False) -> list[Path]:
        """Return the record files of these folds (all by default), or of the official test."""
        if test:
            chosen = [shard for shard in self.info.shards if shard.fold is None]
        else:
            wanted = set(range(self.info.folds)) if folds is None else set(folds)
            chosen = [shard for shard in self.info.shards if shard.fold in wanted]
        return [self.path / shard.file for shard in chosen]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Images and their labels, one row per image.

    `pixels`: (B, side, side) uint8. `label`: (B,) float32 of 0 and 1. `labels`, `mask`: (B, 14) float32; the mask is 0
    where a record has no label. `label_mask`: (B,) float32.
    """

    names: tuple[str, ...]
    pixels: npt.NDArray[np.uint8]
    label: npt.NDArray[np.float32]
    label_mask: npt.NDArray[np.float32]
    labels: npt.NDArray[np.float32]
    mask: npt.NDArray[np.float32]


def open_prepared(path: Path) -> PreparedFolder:
    """Open a prepared folder.

    Raises: ConfigurationError when the folder was not prepared, is not finished, or lacks a file.
    """
    try:
        info = DatasetInfo.model_validate_json((path / DATASET).read_bytes())
    except OSError as error:
        raise ConfigurationError(f"{path} holds no {DATASET}: it is not prepared, or not finished") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ConfigurationError(f"{path / DATASET} is of another version: {first['loc']}: {first['msg']}") from error
    for shard in info.shards:
        file = path / shard.file
        if not file.is_file() or file.stat().st_size != shard.size_bytes:
            raise ConfigurationError(f"{file} is missing, or not the file that was written")
    return PreparedFolder(path=path, info=info)


def numpy_batches(
    files: Sequence[Path], *, side: int, batch_size: int, shuffle: np.random.Generator | None = None
) -> Iterator[Batch]:
    """Yield batches of every record of the files, the last one possibly smaller, without TensorFlow.

    With `shuffle`, files come in random order, and so do the records within a file. Records of different files are not
    mixed: each file is already a random draw of its fold.

    Raises: ConfigurationError when a file is damaged or its count is wrong.
    """
    require_counts(files)
    order = list(files) if shuffle is None else [files[index] for index in shuffle.permutation(len(files))]
    waiting: list[Record] = []
    for file in order:
        records = list(read_records(file))
        waiting += records if shuffle is None else [records[index] for index in shuffle.permutation(len(records))]
        while len(waiting) >= batch_size:
            yield _batch(waiting[:batch_size], side)
            waiting = waiting[batch_size:]
    if waiting:
        yield _batch(waiting, side)


def tf_dataset(files: Sequence[Path], *, side: int, shuffle_seed: int | None = None) -> Any:
    """Return a `tf.data.Dataset` of the files' records, of this project or of the first system.

    An element is a dictionary: `pixels` (side, side, 1) uint8, `name`, `label` (-1 where not known), `labels` and
    `mask` (14,) float32. Batching, repeating and prefetching are the caller's.

    Raises: ConfigurationError when a count is wrong.
    """
    import tensorflow as tf

    total = require_counts(files)
    names = [str(path) for path in files]
    if shuffle_seed is None:
        records = tf.data.TFRecordDataset(names)
    else:
        paths = tf.data.Dataset.from_tensor_slices(names).shuffle(len(names), seed=shuffle_seed)
        records = paths.interleave(
            tf.data.TFRecordDataset, cycle_length=4, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
        )
        largest = max(parse_shard_name(path).count for path in files)
        records = records.shuffle(max(1, 2 * largest), seed=shuffle_seed)
    parsed = records.map(lambda raw: _tf_parse(tf, raw, side), num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return parsed.apply(tf.data.experimental.assert_cardinality(total))


def manifest_text(shards: Sequence[PlannedShard], written: Sequence[WrittenShard]) -> str:
    """Return the manifest: one row for each image of the record files, in the order of the files."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(MANIFEST_COLUMNS)
    for shard, there in zip(shards, written, strict=True):
        recorded = set(there.names)
        for image in shard.images:
            matched, entry = image.matched, image.matched.entry
            if entry.name in recorded:
                findings = "|".join(entry.findings) or NO_FINDING
                fold = "" if image.fold is None else image.fold
                size = (max(image.rows, image.columns), image.rows, image.columns)
                known = (entry.patient, entry.view, entry.age, entry.sex)
                writer.writerow((entry.name, there.file, matched.split, fold, matched.label, findings, *known, *size))
    return text.getvalue()


def _batch(records: Sequence[Record], side: int) -> Batch:
    return Batch(
        names=tuple(record.name for record in records),
        pixels=np.stack([decode_pixels(record.image, side) for record in records]),
        label=np.array([record.label or 0 for record in records], dtype=np.float32),
        label_mask=np.array([record.label is not None for record in records], dtype=np.float32),
        labels=np.array([record.labels or _NO_LABELS for record in records], dtype=np.float32),
        mask=np.array([record.mask or _NO_LABELS for record in records], dtype=np.float32),
    )


def _tf_parse(tf: Any, raw: Any, side: int) -> dict[str, Any]:
    many, none = len(FINDINGS), [0] * len(FINDINGS)
    features = tf.io.parse_single_example(
        raw,
        {
            "image": tf.io.FixedLenFeature([], tf.string),
            "image_idx": tf.io.FixedLenFeature([], tf.string, ""),
            "label": tf.io.FixedLenFeature([], tf.int64, -1),
            "labels": tf.io.FixedLenFeature([many], tf.int64, none),
            "mask": tf.io.FixedLenFeature([many], tf.int64, none),
        },
    )

    # INTEGER_ACCURATE gives the same pixels as Pillow; `decode_jpeg` reads PNG as well.
    stored = tf.io.decode_jpeg(features["image"], channels=1, dct_method="INTEGER_ACCURATE")

    def decoded_and_resized() -> Any:
        def decode(encoded: Any) -> Any:
            return decode_pixels(encoded.numpy(), side)[..., np.newaxis]

        # OpenCV resizes, as in `numpy_batches`: TensorFlow's own resizing gives other pixels.
        return tf.py_function(decode, [features["image"]], tf.uint8)

    as_it_is = tf.reduce_all(tf.shape(stored)[:2] == (side, side))
    pixels = tf.ensure_shape(tf.cond(as_it_is, lambda: stored, decoded_and_resized), (side, side, 1))
    return {
        "pixels": pixels,
        "name": features["image_idx"],
        "label": features["label"],
        "labels": tf.cast(features["labels"], tf.float32),
        "mask": tf.cast(features["mask"], tf.float32),
    }
