"""Records and their files: contents, file names, and reading, of this project and of the first system.

A record is a `tf.train.Example`: `image` (PNG or JPEG bytes), `image_idx` (NIH's name), `label` (0 or 1, the binary
head); and, where known, `labels` and `mask` (14 each, in the order of `FINDINGS`), `patient_id`, `view`, `sex`, `age`
(years) and `fold`. The first system's files hold the first three only.
"""

import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from dicomnode.domain.errors import ConfigurationError
from dicomnode.domain.terminology import NIH_TERMS
from modeling.files import UNREADABLE_PIXELS, GreyImage, grey, resized
from modeling.preparation.problems import first_few
from modeling.preparation.tfrecord import FeatureValues, count_frames, decode, encode, frames

FINDINGS: tuple[str, ...] = tuple(NIH_TERMS)
SUFFIX = ".tfrec"


_SHARD_NAME = re.compile(r"(?P<prefix>.*?)(?P<number>[0-9]{2,})-(?P<count>[0-9]+)\.tfrec")


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One image of a record file; None where the file has no value.

    `image`: the encoded bytes. `label`: 0 or 1. `labels` and `mask`: 14 of 0 and 1, in the order of `FINDINGS`; a
    label counts where its mask is 1.
    """

    image: bytes
    name: str
    label: int | None = None
    labels: tuple[int, ...] | None = None
    mask: tuple[int, ...] | None = None
    patient: str | None = None
    view: str | None = None
    sex: str | None = None
    age: int | None = None
    fold: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class ShardName:
    """The parts of `{prefix}{NN}-{count}.tfrec`; orders by number, also where the numbers differ in width."""

    prefix: str
    number: int
    count: int

    def file_name(self, width: int = 2) -> str:
        """Return the name with the number in at least `width` digits."""
        return f"{self.prefix}{self.number:0{width}d}-{self.count}{SUFFIX}"


def parse_shard_name(path: Path) -> ShardName:
    """Return the parts of a file's name. Raises: ConfigurationError when the name states no count."""
    match = _SHARD_NAME.fullmatch(path.name)
    if match is None:
        raise ConfigurationError(f"{path.name} is not named {{prefix}}{{NN}}-{{count}}{SUFFIX}: its count is unknown")
    return ShardName(prefix=match["prefix"], number=int(match["number"]), count=int(match["count"]))


def record_files(folder: Path, prefix: str | None = None) -> list[Path]:
    """Return a folder's record files, of one prefix or of all, in the order of their numbers.

    Raises: ConfigurationError when there are none, or when a number is missing or stands twice.
    """
    named = sorted((parse_shard_name(path), path) for path in folder.glob(f"*{SUFFIX}"))
    chosen = [(name, path) for name, path in named if prefix is None or name.prefix == prefix]
    if not chosen:
        raise ConfigurationError(f"{folder} holds no {prefix or ''}*{SUFFIX} files")
    for each in sorted({name.prefix for name, _ in chosen}):
        _require_gapless(folder, each, [name.number for name, _ in chosen if name.prefix == each])
    return [path for _, path in chosen]


def encode_record(record: Record) -> bytes:
    """Return the serialised example; what is None is left out."""
    features: dict[str, FeatureValues] = {"image": (record.image,), "image_idx": (record.name.encode(),)}
    if record.labels is not None:
        features["labels"] = record.labels
    if record.mask is not None:
        features["mask"] = record.mask
    for key, text in (("patient_id", record.patient), ("view", record.view), ("sex", record.sex)):
        if text is not None:
            features[key] = (text.encode(),)
    for key, number in (("label", record.label), ("age", record.age), ("fold", record.fold)):
        if number is not None:
            features[key] = (number,)
    return encode(features)


def decode_record(payload: bytes) -> Record:
    """Return the record of a serialised example, of this project or of the first system.

    Raises: ConfigurationError when it lacks an image, or a label is not one.
    """
    features = decode(payload)
    image = _only(features, "image")
    if not isinstance(image, bytes):
        raise ConfigurationError("a record holds no image")
    label = _number(features, "label")
    if label not in {None, 0, 1}:
        raise ConfigurationError(f"a record's label is {label}, neither 0 nor 1")
    return Record(
        image=image,
        name=_text(features, "image_idx") or "",
        label=label,
        labels=_fourteen(features, "labels"),
        mask=_fourteen(features, "mask"),
        patient=_text(features, "patient_id"),
        view=_text(features, "view"),
        sex=_text(features, "sex"),
        age=_number(features, "age"),
        fold=_number(features, "fold"),
    )


def read_records(path: Path) -> Iterator[Record]:
    """Yield a file's records in order.

    Raises: ConfigurationError when it is damaged, or holds another number of records than its name says.
    """
    stated = parse_shard_name(path).count
    number = 0
    for payload in frames(path):
        try:
            record = decode_record(payload)
        except ConfigurationError as error:
            raise ConfigurationError(f"{path}, record {number}: {error}") from error
        yield record
        number += 1
    _require_count(path, stated, number)


def require_counts(paths: Iterable[Path]) -> int:
    """Check that each file holds as many records as its name says, reading lengths only, and return their sum.

    Raises: ConfigurationError.
    """
    total = 0
    for path in paths:
        stated = parse_shard_name(path).count
        _require_count(path, stated, count_frames(path))
        total += stated
    return total


def decode_pixels(encoded: bytes, side: int | None = None) -> GreyImage:
    """Return the grey image of PNG or JPEG bytes: (rows, columns), or (side, side) if a side is given.

    Raises: ConfigurationError when the bytes are no image, or a damaged one.
    """
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            pixels = grey(image)
    except UNREADABLE_PIXELS as error:
        raise ConfigurationError("a record's image cannot be decoded") from error
    return pixels if side is None else resized(pixels, side)


def _require_gapless(folder: Path, prefix: str, numbers: list[int]) -> None:
    # Numbers may start anywhere, but a hole is a file that was lost, or that a glob of too few digits left out.
    missing = sorted(set(range(min(numbers), max(numbers) + 1)) - set(numbers))
    if missing:
        listed = first_few([f"{number:02d}" for number in missing])
        raise ConfigurationError(f"{folder} lacks {len(missing)} files of {prefix}NN: {listed}")
    if len(set(numbers)) < len(numbers):
        twice = first_few([f"{number:02d}" for number in sorted(set(numbers)) if numbers.count(number) > 1])
        raise ConfigurationError(f"{folder} holds different files of the same number of {prefix}NN: {twice}")


def _require_count(path: Path, stated: int, counted: int) -> None:
    if stated != counted:
        raise ConfigurationError(f"{path} holds {counted} records, but its name says {stated}")


def _only(features: dict[str, list[Any]], key: str) -> Any:
    values = features.get(key, [])
    return values[0] if len(values) == 1 else None


def _text(features: dict[str, list[Any]], key: str) -> str | None:
    value = _only(features, key)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return None if value is None else str(value)


def _number(features: dict[str, list[Any]], key: str) -> int | None:
    value = _only(features, key)
    return int(value) if isinstance(value, int | float) else None


def _fourteen(features: dict[str, list[Any]], key: str) -> tuple[int, ...] | None:
    values = tuple(int(value) for value in features.get(key, []))
    if not values:
        return None
    if len(values) != len(FINDINGS) or not set(values) <= {0, 1}:
        raise ConfigurationError(f"a record's {key} are not {len(FINDINGS)} of 0 and 1")
    return values
