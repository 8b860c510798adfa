"""Record files written by several processes: each whole or not at all, and none twice."""

import hashlib
import io
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image

from modeling.preparation.framing import framed
from modeling.preparation.plan import ImageFormat, Pixels, PlannedImage, PlannedShard
from modeling.preparation.problems import Kind, Problem
from modeling.preparation.records import FINDINGS, SUFFIX, GreyImage, Record, encode_record, resized
from modeling.preparation.sources import read_pixels
from modeling.preparation.workers import count, source

STATE_FOLDER = "state"
_JPEG_QUALITY = 95


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenShard:
    """A finished record file, what it holds in order, and what was left out of it."""

    file: str
    size_bytes: int
    sha256: str
    names: tuple[str, ...]
    problems: tuple[Problem, ...]


def write_shard(shard: PlannedShard, pixels: Pixels, folder: Path) -> WrittenShard:
    """Write one record file, or take the finished one that is there; runs in a worker.

    The note of what the file holds is durable before the file gets its name: a name without a note is never seen, and
    a note without its file means that the file is written again.
    """
    finished = _finished(shard, folder)
    if finished is not None:
        count(len(shard.images))
        return finished
    partial = folder / f".{shard.stem}.{os.getpid()}.partial"
    names, problems = [], []
    with partial.open("wb") as file:
        for image in shard.images:
            record = _record(image, pixels)
            if isinstance(record, Record):
                file.write(framed(encode_record(record)))
                names.append(record.name)
            else:
                problems.append(record)
            count(1)
        file.flush()
        os.fsync(file.fileno())
    written = WrittenShard(
        file=shard.file_name(len(names)),
        size_bytes=partial.stat().st_size,
        sha256=_sha256(partial),
        names=tuple(names),
        problems=tuple(problems),
    )
    write_durably(folder / STATE_FOLDER / f"{shard.stem}.json", json.dumps(asdict(written), indent=1).encode())
    for former in folder.glob(f"{shard.stem}-*{SUFFIX}"):
        former.unlink()
    partial.replace(folder / written.file)
    sync_folder(folder)
    return written


def write_durably(path: Path, content: bytes) -> None:
    """Replace a file's content, whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames within a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def encode_image(pixels: GreyImage, image_format: ImageFormat) -> bytes:
    """Return the image as PNG (lossless) or JPEG (quality 95)."""
    encoded = io.BytesIO()
    if image_format == "png":
        Image.fromarray(pixels).save(encoded, "PNG")
    else:
        Image.fromarray(pixels).save(encoded, "JPEG", quality=_JPEG_QUALITY)
    return encoded.getvalue()


def _record(image: PlannedImage, pixels: Pixels) -> Record | Problem:
    matched, entry = image.matched, image.matched.entry
    decoded = read_pixels(source(), matched.file)
    if isinstance(decoded, str):
        return Problem(kind=Kind.IMAGE_UNREADABLE, subject=entry.name, detail=decoded)
    return Record(
        image=encode_image(resized(decoded, pixels.side), pixels.image_format),
        name=entry.name,
        label=matched.label,
        labels=entry.labels,
        mask=(1,) * len(FINDINGS),
        patient=entry.patient,
        view=entry.view,
        sex=entry.sex,
        age=entry.age,
        fold=image.fold,
    )


def _finished(shard: PlannedShard, folder: Path) -> WrittenShard | None:
    """Return what a former run finished, if the file is still the one it wrote."""
    try:
        held = json.loads((folder / STATE_FOLDER / f"{shard.stem}.json").read_bytes())
        written = WrittenShard(
            file=held["file"],
            size_bytes=held["size_bytes"],
            sha256=held["sha256"],
            names=tuple(held["names"]),
            problems=tuple(Problem(**{**problem, "kind": Kind(problem["kind"])}) for problem in held["problems"]),
        )
        path = folder / written.file
        intact = path.stat().st_size == written.size_bytes and _sha256(path) == written.sha256
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return written if intact else None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
