"""End to end: a study into a running node, its report and heatmap stored in a real Orthanc, without the quiet time.

The quiet time is a second, in which the node works ahead, and is taken off. Against what the image costs at the least:
the bare decoder and one forward pass, measured in turns on the same machine.
"""

import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from benchmarks import machine
from benchmarks.bench import Bench, seconds
from benchmarks.images import Images
from benchmarks.picture import stacks
from benchmarks.receive import send_between
from benchmarks.stages import stages
from benchmarks.studies import Bare
from benchmarks.table import Goal, Measured, Row
from dicomnode.bundle.reader import MANIFEST
from dicomnode.dicom.part10 import read_file_head
from dicomnode.settings.node import default_bundle
from tests.support.processes import NodeProcess, Orthanc, free_port

STUDIES, SUSTAINED, RESULTS = 9, 10, 2
_WITHIN_S, _POLL_S = 120.0, 0.004
_QUIET_S = 1.0
_CONFIG = f"[assembly]\nquiet_s = {_QUIET_S}\n"
FLAGSHIP = Path("build") / "flagship"
"""A throw-away bundle of five B2 at 256 px with random weights, where one was made."""
_serial = count()


@dataclass(frozen=True, slots=True)
class StudyCase:
    what: str
    bundle: Path
    images: Images


def measure(bench: Bench) -> Iterator[Row]:
    if machine.program("Orthanc") is None or machine.program("storescu") is None:
        yield Row(what="a study of one image", absent="Orthanc or DCMTK is not installed")
        return
    large, small = Images.uncompressed(), Images.compressed()
    cases = [StudyCase(f"{images.name}, shipped bundle", default_bundle(), images) for images in (large, small)]
    if (FLAGSHIP / MANIFEST).exists():
        cases.append(StudyCase(f"{large.name}, flagship's shape", FLAGSHIP.resolve(), large))
    else:
        yield Row(what=f"{large.name}, flagship's shape", absent=f"there is no bundle in {FLAGSHIP}")
    shares = {}
    for case in cases:
        taken = _measured(bench, case)
        yield from _rows(case.what, taken)
        shares[case.what] = parts = stages(bench.folder / f"stages-{next(_serial)}", case.bundle, case.images)
        yield Row(
            what=f"{case.what}: the outbox, which is left to do of writing then, of that p50",
            ours=Measured((100 * parts["outbox"] / taken.alone.median,), "%"),
            goal=Goal(at_most=15, unit="%"),
        )
    for what, parts in shares.items():
        writing = sum(parts[name] for name in ("heatmap", "report", "staged", "outbox"))
        share = 100 * writing / sum(parts.values())
        yield Row(what=f"{what}: heatmap, report and outbox, of the work", ours=Measured((share,), "%"))
    stacks("where-the-time-goes", shares, "ms")
    bench.note("![where the time of a study goes](../docs/where-the-time-goes.svg)")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Taken:
    """The milliseconds of studies sent one by one, and of what each is held against; studies/s of many at once."""

    alone: Measured
    least: Measured
    by_storescu: Measured
    sustained: Measured


def _measured(bench: Bench, case: StudyCase) -> _Taken:
    bare = Bare(case.bundle)
    with ExitStack() as opened:
        folder = bench.folder / f"{next(_serial)}"
        port = free_port()
        archive = Orthanc(folder / "orthanc", node_port=port, more={"MaximumPduLength": 131_072}).start()
        opened.callback(archive.stop)
        node = NodeProcess(folder / "node", port=port, bundle=case.bundle, send_to=[archive.peer], config=_CONFIG)
        node.start()
        opened.callback(node.close)
        _deliver(bench, case, port, archive, 1)
        results = list(archive.all_files().values())
        contenders = {
            "alone": lambda: 1000 * _deliver(bench, case, port, archive, 1),
            "least": lambda: 1000 * bare.seconds(case.images.one()),
            "storescu": lambda: 1000 * _storescu(folder, archive, results),
        }
        found = bench.interleaved(contenders, "ms", rounds=STUDIES)
        rate = SUSTAINED / _deliver(bench, case, port, archive, SUSTAINED)
        node.terminate()
    sustained = Measured((rate,), "studies/s")
    return _Taken(alone=found["alone"], least=found["least"], by_storescu=found["storescu"], sustained=sustained)


def _rows(what: str, taken: _Taken) -> Iterator[Row]:
    bare = "bare decode and inference"
    yield Row(
        what=f"{what}: last byte to SR and SC stored, p50",
        ours=taken.alone,
        peer=bare,
        theirs=taken.least,
        goal=Goal(at_most=2.0),
    )
    sending = "sending such an SR and SC to that archive, by storescu"
    yield Row(what=f"{what}: the same", ours=taken.alone, peer=sending, theirs=taken.by_storescu)
    ordered = sorted(taken.alone.values)
    slowest = Measured((ordered[round(0.95 * (len(ordered) - 1))],), "ms")
    middle = Measured((taken.alone.median,), "ms")
    yield Row(what=f"{what}: p95", ours=slowest, peer="p50", theirs=middle, goal=Goal(at_most=2.0))
    most = Measured((1000 / taken.least.median,), "studies/s")
    yield Row(what=f"{what}: sustained", ours=taken.sustained, peer=bare, theirs=most, goal=Goal(at_least=0.85))


def _storescu(folder: Path, archive: Orthanc, results: Sequence[bytes]) -> float:
    """Send results under new names to the archive by DCMTK's storescu, and return how long that takes."""
    files = [folder / f"result-{next(_serial)}.dcm" for _ in results]
    for file, part10 in zip(files, results, strict=True):
        uid = read_file_head(part10).sop_instance
        file.write_bytes(part10.replace(uid.encode(), f"{uid[:-6]}{100_000 + next(_serial)}".encode()))
    command = [str(machine.program("storescu")), "--required", "--call", archive.ae_title, "127.0.0.1"]
    command = [*command, str(archive.dicom_port), *map(str, files)]
    taken_s = seconds(lambda: subprocess.run(command, check=True, capture_output=True))
    for file in files:
        file.unlink()
    return taken_s


def _deliver(bench: Bench, case: StudyCase, port: int, archive: Orthanc, studies: int) -> float:
    """Send studies of one image each, and return the time until the archive has the results, less the quiet time.

    Of one study from its last byte on; of several from the first byte of the first.
    """
    before = archive.count()
    files = case.images.write(bench.folder / f"files-{next(_serial)}", studies, 1)
    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(send_between, bench.folder, port, "CXRNODE", files)
        deadline = time.monotonic() + _WITHIN_S
        while (stored := archive.count() - before) < RESULTS * studies:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{stored} results of {studies} studies are stored")
            time.sleep(_POLL_S)
        ended = time.time()
        first, last = sending.result()
    files.remove()
    return ended - (last if studies == 1 else first) - _QUIET_S
