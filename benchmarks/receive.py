"""Receiving, durably: our listener and store against Orthanc (synced), DCMTK's storescp and `dd conv=fsync`.

One sender for all, which has every byte ready before the clock starts; loopback; each receiver a process of its own.
"""

import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from benchmarks import machine
from benchmarks.bench import Bench, seconds
from benchmarks.images import ImageFiles, Images
from benchmarks.table import Goal, Row
from tests.support.processes import Orthanc, free_port, wait_until

GOALS = {"Orthanc": Goal(at_least=2.5), "storescp": Goal(at_least=1.5), "dd": Goal(at_least=0.6)}
PEERS = {"Orthanc": "Orthanc, synced", "storescp": "DCMTK storescp, not durable", "dd": "dd conv=fsync"}
PDU_BYTES = 131_072
"""The largest that DCMTK takes; its default of 16 kB would cost it half as much again."""

Receive = Callable[[ImageFiles], float]


@dataclass(frozen=True, slots=True)
class ReceiveCase:
    what: str
    images: Images
    files: int
    associations: int


def measure(bench: Bench) -> Iterator[Row]:
    large, small = Images.uncompressed(), Images.compressed()
    cases = (
        ReceiveCase("10 MB uncompressed, 1 association", large, 12, 1),
        ReceiveCase("10 MB uncompressed, 4 associations", large, 16, 4),
        ReceiveCase("500 kB compressed, 1 association", small, 30, 1),
        ReceiveCase("500 kB compressed, 4 associations", small, 60, 4),
    )
    with ExitStack() as opened:
        receivers = {
            "ours": opened.enter_context(our_node(bench.folder / "ours")),
            "dd": dd(bench.folder / "dd"),
        }
        for name, peer in {"Orthanc": orthanc, "storescp": storescp}.items():
            if machine.program(name) is not None:
                receivers[name] = opened.enter_context(peer(bench.folder / name))
        for case in cases:
            yield from _rows(bench, case, receivers)
    bench.note(_profile(bench, large, small))


_serial = count()


def _rows(bench: Bench, case: ReceiveCase, receivers: dict[str, Receive]) -> Iterator[Row]:
    def contender(receive: Receive) -> Callable[[], float]:
        def rate() -> float:
            # Of new instances each time: a duplicate would be no reception.
            files = case.images.write(bench.folder / f"files-{next(_serial)}", case.files, case.associations)
            taken_s = receive(files)
            files.remove()
            return files.size_bytes / 1e6 / taken_s

        return rate

    found = bench.interleaved({name: contender(receive) for name, receive in receivers.items()}, "MB/s")
    for name, peer in PEERS.items():
        absent = "" if name in found else f"{name} is not installed"
        yield Row(
            what=case.what,
            ours=found["ours"],
            peer=peer,
            theirs=found.get(name),
            goal=GOALS[name],
            absent=absent,
        )


def send(folder: Path, port: int, called_ae: str, files: ImageFiles) -> float:
    """Send the files over as many associations as they are divided for, and return the seconds it took."""
    first, last = send_between(folder, port, called_ae, files)
    return last - first


def send_between(folder: Path, port: int, called_ae: str, files: ImageFiles) -> tuple[float, float]:
    """Send the files, and return the wall-clock times of the first byte sent and of the last response."""
    job = folder / "job.json"
    about = {"port": port, "called_ae": called_ae, "sop_class": files.sop_class}
    paths = [[str(path) for path in part] for part in files.parts]
    job.write_text(json.dumps({**about, "transfer_syntax": files.transfer_syntax, "files": paths}))
    command = [sys.executable, "-m", "benchmarks.sender", str(job)]
    first, last = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return float(first), float(last)


@contextmanager
def our_node(folder: Path, *options: str, printed: list[str] | None = None) -> Iterator[Receive]:
    """Run our listener on a store in this folder; what it prints at its end is added to `printed`."""
    folder.mkdir()
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.receiver", str(port), str(folder / "store"), *options]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield lambda files: send(folder, port, "CXRNODE", files)
        rest, _ = process.communicate()
        if printed is not None:
            printed.append(rest)


@contextmanager
def orthanc(folder: Path) -> Iterator[Receive]:
    more = {"SyncStorageArea": True, "MaximumPduLength": PDU_BYTES, "DicomThreadsCount": 4}
    server = Orthanc(folder, node_port=free_port(), more=more).start()
    try:
        yield lambda files: send(folder, server.dicom_port, "ORTHANC", files)
    finally:
        server.stop()


@contextmanager
def storescp(folder: Path) -> Iterator[Receive]:
    folder.mkdir()
    kept, port = folder / "kept", free_port()
    kept.mkdir()
    program = str(machine.program("storescp"))
    options = ["--fork", "--max-pdu", str(PDU_BYTES), "+xa", "--output-directory", str(kept)]
    log = (folder / "log").open("wb")
    process = subprocess.Popen([program, *options, str(port)], stdout=log, stderr=log)
    try:
        wait_until(lambda: answers(port), 30, "the start of storescp")
        yield lambda files: send(folder, port, "STORESCP", files)
    finally:
        process.terminate()
        process.wait()


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def dd(folder: Path) -> Receive:
    """Return a receiver that writes each file with one `dd`, in as many shells as there are associations."""
    folder.mkdir()

    def receive(files: ImageFiles) -> float:
        scripts = [_dd_script(part, folder / str(number)) for number, part in enumerate(files.parts)]

        def run() -> None:
            shells = [subprocess.Popen(["sh", "-ec", script], stderr=subprocess.DEVNULL) for script in scripts]
            for shell in shells:
                if shell.wait() != 0:
                    raise ChildProcessError("dd failed")

        return seconds(run)

    return receive


def _dd_script(files: list[Path], out: Path) -> str:
    out.mkdir(exist_ok=True)
    return "\n".join(f"dd if='{file}' of='{out / file.name}' bs=1M conv=fsync" for file in files)


def _profile(bench: Bench, *kinds: Images) -> str:
    """Return where the listener's threads spent their time during four associations, in shares of the samples not
    waiting.
    """
    told = []
    for number, images in enumerate(kinds):
        printed: list[str] = []
        with our_node(bench.folder / f"profiled-{number}", "--profile", printed=printed) as receive:
            files = images.write(bench.folder / f"files-{next(_serial)}", 48, 4)
            receive(files)
            files.remove()
        samples = json.loads(printed[0])
        everything = sum(samples.values())
        shares = sorted(samples.items(), key=lambda entry: -entry[1])
        listed = ", ".join(f"{place} {taken / everything:.0%}" for place, taken in shares if taken / everything >= 0.01)
        told.append(f"{images.name}: {listed}")
    return f"Where the listener's threads were found, sampled, with four associations. {'. '.join(told)}."
