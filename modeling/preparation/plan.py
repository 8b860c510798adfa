"""Which image goes into which record file; decided before writing, so that a continued run writes the same files."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Literal

from modeling.preparation.problems import Kind, Problem
from modeling.preparation.records import ShardName
from modeling.preparation.splits import TEST, TRAIN_VAL, OfficialSplit
from modeling.preparation.tables import Entry

ImageFormat = Literal["png", "jpeg"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pixels:
    """How images are stored: squares of `side`, as PNG or JPEG; sources below `min_side` are not enlarged to it."""

    side: int
    min_side: int
    image_format: ImageFormat


@dataclass(frozen=True, slots=True, kw_only=True)
class Matched:
    """A row of the label table with its image file. `label` is the binary head's."""

    entry: Entry
    label: int
    split: str
    file: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedImage:
    """A matched image with its (rows, columns) and its fold; images of the test have none."""

    matched: Matched
    rows: int
    columns: int
    fold: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedShard:
    """A record file to be written: `prefix` and `number` of its name, with the number in `width` digits."""

    prefix: str
    number: int
    width: int
    images: tuple[PlannedImage, ...]

    @property
    def stem(self) -> str:
        """Return the name without its count."""
        return f"{self.prefix}{self.number:0{self.width}d}"

    def file_name(self, count: int) -> str:
        """Return the file name for the number of records that were written."""
        return ShardName(prefix=self.prefix, number=self.number, count=count).file_name(self.width)


def match(
    entries: Sequence[Entry],
    sizes: dict[str, int],
    split: OfficialSplit | None,
    binary: dict[str, int] | None,
) -> tuple[list[Matched], list[Problem]]:
    """Match rows and image files by the name without its suffix, and list rows without a file.

    `sizes`: bytes of each file. `split`: rows in neither list are left out. `binary`: labels of the binary head, by
    name, instead of "any of the 14 findings"; rows without one are left out.
    """
    files, problems = _by_stem(sizes)
    matched = []
    for entry in entries:
        side = TRAIN_VAL if split is None else split.side_of(entry.name)
        label = int(bool(entry.findings)) if binary is None else binary.get(entry.name)
        file = files.get(_stem(entry.name))
        if side is None:
            problems.append(Problem(kind=Kind.IN_NO_LIST, subject=entry.name, detail="in neither official list"))
        elif label is None:
            problems.append(Problem(kind=Kind.NO_BINARY_LABEL, subject=entry.name, detail="in no list of labels"))
        elif file is None:
            problems.append(Problem(kind=Kind.IMAGE_MISSING, subject=entry.name, detail="no file of this name"))
        else:
            matched.append(Matched(entry=entry, label=label, split=side, file=file, size_bytes=sizes[file]))
    return matched, problems


def without_counterpart(
    names: set[str], sizes: dict[str, int], split: OfficialSplit | None, binary: dict[str, int] | None
) -> list[Problem]:
    """List image files and names in lists that no row of the label table names. `names`: those of all rows."""
    stems = {_stem(name) for name in names}
    problems = [
        Problem(kind=Kind.IMAGE_WITHOUT_ROW, subject=file, detail="the label table does not name it")
        for file in sizes
        if _stem(file) not in stems
    ]
    listed = set() if split is None else split.train_val | split.test
    problems += [
        Problem(kind=Kind.LISTED_WITHOUT_ROW, subject=name, detail="the label table does not name it")
        for name in sorted((listed | set(binary or ())) - names)
    ]
    return problems


def plan_shards(images: Sequence[PlannedImage], *, shard_size: int, seed: int) -> tuple[PlannedShard, ...]:
    """Return the record files of every fold and of the test, each a random draw of its images.

    The order follows a hash of the seed and the name, which no library's next version changes.
    """
    groups: dict[str, list[PlannedImage]] = defaultdict(list)
    for image in images:
        groups[TEST if image.fold is None else f"fold{image.fold}"].append(image)
    shards = []
    for group, members in sorted(groups.items()):
        ordered = sorted(members, key=lambda image: _shuffle_key(seed, image.matched.entry.name))
        parts = [tuple(ordered[start : start + shard_size]) for start in range(0, len(ordered), shard_size)]
        width = max(2, len(str(len(parts) - 1)))
        shards += [
            PlannedShard(prefix=f"{group}-", number=number, width=width, images=part)
            for number, part in enumerate(parts)
        ]
    return tuple(shards)


def digest(shards: Sequence[PlannedShard], pixels: Pixels) -> str:
    """Return a hash of everything that the record files depend on; images enter by name and size in bytes."""
    hashed = hashlib.sha256(json.dumps(asdict(pixels), sort_keys=True).encode())
    for shard in shards:
        hashed.update(json.dumps(asdict(shard, dict_factory=_without_source), sort_keys=True).encode())
    return hashed.hexdigest()


def _without_source(items: list[tuple[str, object]]) -> dict[str, object]:
    """Leave out what record files do not contain, so that it does not change the plan."""
    return {name: value for name, value in items if name != "source"}


def _by_stem(sizes: dict[str, int]) -> tuple[dict[str, str], list[Problem]]:
    files: dict[str, str] = {}
    problems = []
    for file in sizes:
        first = files.setdefault(_stem(file), file)
        if first != file:
            problems.append(Problem(kind=Kind.IMAGE_TWICE, subject=file, detail=f"{first} is used"))
    return files, problems


def _stem(name: str) -> str:
    return PurePosixPath(name).stem


def _shuffle_key(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{name}".encode()).digest()
