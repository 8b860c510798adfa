"""Processes that share the work on one source of images, report how far they are, and end when their parent does."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import ClassVar, TypeVar

from dicomnode.domain.errors import Transient
from modeling.files import Files
from modeling.preparation.sources import open_source, probe

Argument = TypeVar("Argument")
Result = TypeVar("Result")
Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many images are done, and how many there are."""

_POLL_S = 0.25


class _Process:
    """What one worker process holds: the opened images, and the count it shares with the others."""

    source: ClassVar[Files]
    done: ClassVar["Synchronized[int]"]
    opened: ClassVar[ExitStack] = ExitStack()


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerPool:
    """Running worker processes. `done` counts the images they have been through."""

    executor: ProcessPoolExecutor
    done: "Synchronized[int]"
    progress: Progress

    def run(self, what: str, task: Callable[[Argument], Result], work: Sequence[Argument], images: int) -> list[Result]:
        """Return the result of each piece of work, in order. `images`: how many there are in all pieces.

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
                "a worker process died (out of memory?); the same command goes on where this one stopped"
            ) from error
        return [future.result() for future in futures]


@contextmanager
def worker_pool(images: Path, processes: int, progress: Progress) -> Iterator[WorkerPool]:
    """Start processes that have opened `images`; on an error or Ctrl-C they end at once, whatever they are at."""
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
    """End this process when the parent closes its end, or dies: waiting for work would otherwise last for ever."""
    alive.poll(None)
    os._exit(1)
