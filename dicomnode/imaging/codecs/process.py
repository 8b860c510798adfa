"""The codecs at arm's length: one long-lived process that decodes frames within limits, replaced whenever it dies.

A frame that makes a codec crash, hang or allocate beyond its limit costs its own image a coded rejection, and nothing
else. What dies in a process that has served other frames is tried once more in a fresh one, since a former frame may
have left it damaged; and no process grows old, since codecs leak.
Frames go there and samples come back in memory that both see (`shared`), by pipes where a system has none: the pipes
take 5 to 10 ms for a radiograph of five megapixels, the memory 1.
"""

import atexit
import contextlib
import fcntl
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dicomnode.domain.errors import DecoderUnavailable, UndecodablePixels
from dicomnode.imaging.codecs.shared_memory import SharedMemory, shared_memory

if TYPE_CHECKING:  # it imports the codecs, which this process is to be spared
    from dicomnode.imaging.codecs.child import Answer, Encoded, Request

log = logging.getLogger(__name__)

StoredArray = npt.NDArray[Any]

_CHILD = Path(__file__).with_name("child.py")
_ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    # Codecs ask for as much memory as an image has, and let it go. In pages of 4 KiB that costs 8 ms of five megapixels
    # in JPEG, whose decoding takes 10, and up to 40 elsewhere; in large ones nearly nothing.
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
"""All that the process is told, and no secret of the node's."""
_START_S = 120.0
"""Half a second on an idle machine, more where a cold disk is read and everything else starts too."""
_STOP_S = 2.0
"""The process ends when its input ends, unless it hangs in a frame whose answer is no longer awaited."""
_FRAMES = 500
"""What leaks is gone after so many, and of each frame a new start costs 1 ms."""
_PIPE_BYTES = 1 << 20
"""The most that Linux lets a pipe have unless told otherwise."""
_LONGEST_LINE = 4096
"""An answer has some 100 characters, and that of a process that is out of its mind is not to fill the memory."""
_BROKEN_TALK = (OSError, EOFError, LookupError, TypeError, ValueError)
_SAMPLES = frozenset({"|u1", "|i1", "<u2", "<i2"})
_SAMPLE_BYTES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class CodecLimits:
    """What one frame may cost: wall clock, and memory, each as a part of its own and a part per sample.

    Samples are those that the tags state and `pixels.maximum_pixels` admits, times three in colour.

    `deadline_s_per_sample`: eight times what the slowest codec takes, 0.13 µs (JPEG 2000, lossless), for machines that
    are slow or busy; `deadline_s` for a process that waits for its turn or its memory. A radiograph of five megapixels
    has 35 s, the largest that is admitted by default 110.
    `memory_bytes_per_sample`: the most that a codec takes, 15 (GDCM, which copies what it has decoded again and again;
    the others take 5 to 12); `memory_bytes` for what does not depend on the size, as tables and the 64 MiB of addresses
    that glibc reserves for each thread. It is in addition to what the process has before its first frame.
    """

    deadline_s: float = 30.0
    deadline_s_per_sample: float = 1e-6
    memory_bytes: int = 512 << 20
    memory_bytes_per_sample: int = 16

    def seconds(self, samples: int) -> float:
        """Return the deadline of a frame of so many samples."""
        return self.deadline_s + self.deadline_s_per_sample * samples

    def bytes(self, samples: int) -> int:
        """Return the memory that a frame of so many samples may take."""
        return self.memory_bytes + self.memory_bytes_per_sample * samples


class _Died(Exception):
    """The process ended, or did not answer as agreed, in the middle of a frame."""


class CodecProcess:
    """The process of the codecs, started with the first frame; frames of several threads wait for each other."""

    def __init__(self, limits: CodecLimits | None = None) -> None:
        self._limits = limits or CodecLimits()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._shared: SharedMemory | None = None
        self._owner = 0
        self._served = 0

    @property
    def pid(self) -> int | None:
        """Return the id of the process that runs now."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start the process without waiting until it is ready, so that the first frame need not.

        Raises: DecoderUnavailable.
        """
        with self._lock:
            self._ensure()

    def stop(self) -> None:
        """End the process after the frame at hand; the next frame would start another."""
        with self._lock:
            self._discard()

    def decode(self, encoded: "Encoded", frame: bytes) -> StoredArray:
        """Return the frame's samples, (rows, columns) or (rows, columns, 3).

        Raises: UndecodablePixels; DecoderUnavailable when no process can be had, which is not the frame's fault.
        """
        samples = encoded["rows"] * encoded["columns"] * encoded["samples"]
        request: Request = {
            **encoded,
            "frame_bytes": len(frame),
            "shared_bytes": 0,
            "limit_bytes": self._limits.bytes(samples),
            "limit_s": self._limits.seconds(samples),
        }
        with self._lock:
            self._ensure()
            if self._served:
                with contextlib.suppress(_Died):
                    return self._exchange(request, frame)
                self._ensure()
            try:
                return self._exchange(request, frame)
            except _Died as died:
                raise UndecodablePixels(f"no decoder could read the frame ({died})") from None

    def _ensure(self) -> None:
        """Have a process that is alive and this process' own: a fork inherits the pipes, but must not share them."""
        usable = self._owner == os.getpid() and self._served < _FRAMES
        if self._process is not None and usable and self._process.poll() is None:
            return
        self._discard()
        self._shared = shared_memory()
        try:
            self._process = _spawn(self._shared)
        except OSError as error:
            raise DecoderUnavailable(f"the decoding process cannot be started: {error.strerror}") from None
        self._owner, self._served = os.getpid(), 0
        self._widen_pipes(self._process)
        atexit.register(self.stop)

    def _exchange(self, request: "Request", frame: bytes) -> StoredArray:
        """Ask the process; whatever happens, leave either one that waits for the next frame, or none.

        Raises: _Died, UndecodablePixels, DecoderUnavailable.
        """
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None  # noqa: S101, PT018
        if not self._served:
            self._await_ready(process, process.stdout)
        answer: StoredArray | str | None = None
        try:
            with _deadline(process, request["limit_s"]) as expired, contextlib.suppress(*_BROKEN_TALK):
                _ask(process.stdin, request, frame, self._shared)
                answer = _read_answer(process.stdout, request, self._shared)
        finally:
            if answer is None:
                process.kill()
        if answer is None or expired.is_set():
            raise self._bury(process, request, expired=expired.is_set())
        self._served += 1
        if isinstance(answer, str):
            log.warning("frame-refused", extra={"tried": answer, "transfer_syntax": request["transfer_syntax"]})
            raise UndecodablePixels("no decoder could read the compressed frame")
        return answer

    def _await_ready(self, process: subprocess.Popen[bytes], answers: IO[bytes]) -> None:
        with _deadline(process, _START_S):
            ready = answers.readline(_LONGEST_LINE) == b"ready\n"
        if not ready:
            self._discard()
            raise DecoderUnavailable("the decoding process ended before it was ready")

    def _bury(self, process: subprocess.Popen[bytes], request: "Request", *, expired: bool) -> _Died:
        """Say how the process, which was killed if it had not ended, came to its end."""
        code = process.wait()
        how = "killed at its deadline" if expired else _ending(code)
        about = {"how": how, "transfer_syntax": request["transfer_syntax"], "frames_before": self._served}
        log.warning("decoder-died", extra=about)
        self._discard()
        return _Died(f"{'/'.join(request['decoders'])}: {how}")

    def _discard(self) -> None:
        process, self._process = self._process, None
        shared, self._shared = self._shared, None
        if shared is not None:
            shared.close()
        if process is None:
            return
        mine = self._owner == os.getpid()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()
        if not mine:
            process.returncode = 0  # it is the parent's to wait for
            return
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        atexit.unregister(self.stop)

    @staticmethod
    def _widen_pipes(process: subprocess.Popen[bytes]) -> None:
        """Ask for pipes of 1 MiB, which halves the cost of a large image; a user's quota may deny it."""
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)


def _spawn(shared: SharedMemory | None) -> subprocess.Popen[bytes]:
    """Start a process that inherits nothing but its pipes and the memory. Raises: OSError."""
    with contextlib.nullcontext() if shared is None else shared.lend() as descriptor:
        lent = [] if descriptor is None else [descriptor]
        return subprocess.Popen(  # noqa: S603 this interpreter, and a file of this package
            [sys.executable, "-I", str(_CHILD), *map(str, lent)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # codecs quote what they read
            pass_fds=lent,
            env=_ENVIRONMENT,
            cwd="/",
        )


@contextlib.contextmanager
def _deadline(process: subprocess.Popen[bytes], seconds: float) -> Iterator[threading.Event]:
    """Kill the process after a time, which ends every read and write that waits for it; yield whether that happened."""
    expired = threading.Event()

    def kill() -> None:
        expired.set()
        process.kill()

    timer = threading.Timer(seconds, kill)
    timer.daemon = True
    timer.start()
    try:
        yield expired
    finally:
        timer.cancel()
        timer.join()


def _ask(target: IO[bytes], request: "Request", frame: bytes, shared: SharedMemory | None) -> None:
    if shared is not None:
        room_bytes = _SAMPLE_BYTES * request["rows"] * request["columns"] * request["samples"]
        request = {**request, "shared_bytes": shared.put(frame, room_bytes)}
    target.write(json.dumps(request).encode() + b"\n")
    if shared is None:
        target.write(frame)
    target.flush()


def _read_answer(source: IO[bytes], request: "Request", shared: SharedMemory | None) -> StoredArray | str:
    """Return the samples, or what was tried in vain. Raises: what is in _BROKEN_TALK."""
    answer: Answer = json.loads(source.readline(_LONGEST_LINE))
    if answer["errors"]:
        return ", ".join(answer["errors"])
    shape = (request["rows"], request["columns"], *((3,) if request["samples"] == 3 else ()))
    if answer["dtype"] not in _SAMPLES or tuple(answer["shape"]) != shape:
        raise ValueError(answer["dtype"])
    if shared is not None:
        return shared.take(answer["dtype"], shape)
    samples = np.empty(shape, dtype=answer["dtype"])
    view = memoryview(samples.data).cast("B")
    if source.readinto(view) != len(view):  # type: ignore[attr-defined]
        raise EOFError
    return samples


def _ending(code: int) -> str:
    if code < 0:
        return f"ended by {signal.Signals(-code).name}"
    return "broke off"
