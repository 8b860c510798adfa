"""Record files written by several worker processes: each file whole or not at all, and none twice."""

import hashlib
import io
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import ClassVar, TypeVar

from PIL import Image

from dicomnode.domain.errors import Transient
from modeling.files import Files, GreyImage, open_source, probe, read_pixels, resized, sync_folder, write_durably
from modeling.preparation.plan import ImageFormat, Pixels, PlannedImage, PlannedShard
from modeling.preparation.problems import Kind, Problem
from modeling.preparation.records import FINDINGS, SUFFIX, Record, encode_record
from modeling.preparation.tfrecord import framed

Argument = TypeVar("Argument")
Result = TypeVar("Result")
ReportProgress = Callable[[str, int, int], None]
"""Called with the name of the present step, the number of images done, and the number of all images."""

_POLL_S = 0.25


class _Process:
    """The state of one worker process: the opened images, and the count that it shares with the others."""

    source: ClassVar[Files]
    done: ClassVar["Synchronized[int]"]
    opened: ClassVar[ExitStack] = ExitStack()


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerPool:
    """Running worker processes. `done` counts the images that they have processed."""

    executor: ProcessPoolExecutor
    done: "Synchronized[int]"
    progress: ReportProgress

    def run(self, what: str, task: Callable[[Argument], Result], work: Sequence[Argument], images: int) -> list[Result]:
        """Return the result of each piece of work, in order. `images`: the number of images in all pieces.

        Raises: Transient when a worker process died; what a task raised.
        """
        with self.done.get_lock():
            self.done.value = 0
        futures = [self.executor.submit(task, piece) for piece in work]
        pending = set(futures)
        try:
            while pending:
                finished, pending = wait(pending, timeout=_POLL_S, return_when=FIRST_EXCEPTION)
                self.progress(what, self.done.value, images)
                for future in finished:
                    future.result()
        except BrokenProcessPool as error:
            raise Transient(
                "a worker process died (out of memory?); the same command continues where this one stopped"
            ) from error
        return [future.result() for future in futures]


@contextmanager
def worker_pool(images: Path, processes: int, progress: ReportProgress) -> Iterator[WorkerPool]:
    """Start processes that have opened `images`; on an error or Ctrl-C they end at once."""
    # Spawned, not forked: the caller may have threads, and a fork would hold the parent's lock on its output.
    context = multiprocessing.get_context("spawn")
    done = context.Value("q", 0)
    alive, keep_alive = context.Pipe(duplex=False)
    executor = ProcessPoolExecutor(processes, mp_context=context, initializer=_start, initargs=(images, done, alive))
    try:
        yield WorkerPool(executor=executor, done=done, progress=progress)
    except BaseException:
        keep_alive.close()
        executor.shutdown(cancel_futures=True)
        raise
    finally:
        executor.shutdown()
        keep_alive.close()
        alive.close()


def source() -> Files:
    """Return the images this worker process has opened."""
    return _Process.source


def count(images: int) -> None:
    """Add to the count of images done; called in a worker."""
    with _Process.done.get_lock():
        _Process.done.value += images


def probe_files(names: Sequence[str]) -> list[tuple[int, int] | str]:
    """Return (rows, columns), or the reason why it cannot be read, for each file; called in a worker."""
    probed = []
    for name in names:
        probed.append(probe(_Process.source, name))
        count(1)
    return probed


def _start(images: Path, done: "Synchronized[int]", alive: Connection) -> None:
    # Ctrl-C reaches the whole process group; the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, args=(alive,), daemon=True).start()
    _Process.source = _Process.opened.enter_context(open_source(images))
    _Process.done = done


def _end_with_parent(alive: Connection) -> None:
    """End this process when the parent closes its end of the pipe or dies, instead of waiting for work for ever."""
    alive.poll(None)
    os._exit(1)


STATE_FOLDER = "state"
_JPEG_QUALITY = 95


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenShard:
    """A finished record file, the names of its images in order, and the problems of images that were left out."""

    file: str
    size_bytes: int
    sha256: str
    names: tuple[str, ...]
    problems: tuple[Problem, ...]


def write_shard(shard: PlannedShard, pixels: Pixels, folder: Path) -> WrittenShard:
    """Write one record file, unless a finished one exists; runs in a worker.

    The note that lists the contents is durable before the file gets its final name. So a named file always has a note,
    and a note without a file means that the file is written again.
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
    """Return the file that a former run finished, if its contents are unchanged."""
    try:
        note = json.loads((folder / STATE_FOLDER / f"{shard.stem}.json").read_bytes())
        written = WrittenShard(
            file=note["file"],
            size_bytes=note["size_bytes"],
            sha256=note["sha256"],
            names=tuple(note["names"]),
            problems=tuple(Problem(**{**problem, "kind": Kind(problem["kind"])}) for problem in note["problems"]),
        )
        path = folder / written.file
        intact = path.stat().st_size == written.size_bytes and _sha256(path) == written.sha256
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return written if intact else None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
