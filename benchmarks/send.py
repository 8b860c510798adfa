"""Sending a batch over one association: our SCU against DCMTK's storescu, to DCMTK's storescp, which keeps nothing.

At the PDU size that DCMTK and Orthanc announce by default, and at the largest that DCMTK takes.
"""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from benchmarks import machine
from benchmarks.bench import Bench, seconds
from benchmarks.images import Images
from benchmarks.receive import PDU_BYTES, answers
from benchmarks.table import Row
from dicomnode.domain.delivery import Accepted, Destination
from dicomnode.net.scu.outgoing import Outgoing
from dicomnode.net.scu.storage import send
from dicomnode.settings.delivery import DeliverySettings
from tests.support.processes import free_port, wait_until

FILES = 8
_serial = count()


def measure(bench: Bench) -> Iterator[Row]:
    images = Images.uncompressed()
    if machine.program("storescp") is None or machine.program("storescu") is None:
        yield Row(what="10 MB uncompressed", absent="DCMTK is not installed")
        return
    for pdu_bytes in (16_384, PDU_BYTES):
        with sink(pdu_bytes) as port:
            rates = bench.interleaved(
                {"ours": _ours(images, port), "theirs": _storescu(images, port, bench.folder)}, "MB/s"
            )
        what = f"10 MB uncompressed, {FILES} over one association, PDUs of {pdu_bytes // 1024} kB"
        yield Row(what=what, ours=rates["ours"], peer="DCMTK storescu", theirs=rates["theirs"])


def _ours(images: Images, port: int) -> Callable[[], float]:
    destination = Destination(name="sink", ae_title="STORESCP", host="127.0.0.1", port=port)

    def rate() -> float:
        files = [images.one() for _ in range(FILES)]
        items = [
            Outgoing(
                sop_class=images.sop_class, transfer_syntax=images.transfer_syntax, read=lambda part10=part10: part10
            )
            for part10 in files
        ]
        outcomes = []
        taken_s = seconds(
            lambda: outcomes.extend(send(destination, items, calling_ae="BENCH", settings=DeliverySettings()))
        )
        if outcomes != [Accepted()] * FILES:
            raise ConnectionError("the sink refused")
        return sum(len(part10) for part10 in files) / 1e6 / taken_s

    return rate


def _storescu(images: Images, port: int, folder: Path) -> Callable[[], float]:
    program = str(machine.program("storescu"))

    def rate() -> float:
        files = images.write(folder / f"files-{next(_serial)}", FILES, 1)
        command = [program, "--max-send-pdu", str(PDU_BYTES), "127.0.0.1", str(port), *map(str, files.parts[0])]
        taken_s = seconds(lambda: subprocess.run(command, check=True, capture_output=True))
        files.remove()
        return files.size_bytes / 1e6 / taken_s

    return rate


@contextmanager
def sink(pdu_bytes: int) -> Iterator[int]:
    port = free_port()
    command = [str(machine.program("storescp")), "--fork", "--ignore", "--max-pdu", str(pdu_bytes), str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: answers(port), 30, "the start of storescp")
        yield port
    finally:
        process.terminate()
        process.wait()
