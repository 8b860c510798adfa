"""Start and size: until the first C-ECHO is answered, memory under load, and what the serving install takes on disk.

The node is `cxrnode serve` as a user runs it, once with the shipped bundle and once with one of the flagship's shape;
the load is 10 MB images, each a study of its own, over one association after the other.
"""

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from itertools import count
from pathlib import Path

from packaging.requirements import Requirement
from pynetdicom import AE

from benchmarks.bench import Bench
from benchmarks.flagship import flagship_bundle
from benchmarks.images import Images
from benchmarks.receive import send
from benchmarks.table import Goal, Measured, Row
from dicomnode.settings.node import default_bundle
from tests.support.processes import NodeProcess, free_port, wait_until

VERIFICATION = "1.2.840.10008.1.1"
STUDIES, A_PART = int(os.environ.get("BENCH_STUDIES", "120")), 20
"""Studies, in all and per part, that the node gets while its memory is measured; `flatness` sends more."""
WITHIN_S = 600.0
CONFIG = "[assembly]\nquiet_s = 0.0\n[log]\nformat = 'json'\n"
_LARGEST = 6


def measure(bench: Bench) -> Iterator[Row]:
    numbers = count()
    bundles = {
        "shipped bundle": default_bundle(),
        "flagship's shape": flagship_bundle(Path("build").resolve() / "flagship"),
    }

    def contender(bundle: Path) -> Callable[[], float]:
        return lambda: _until_echo(NodeProcess(bench.folder / f"{next(numbers)}", port=free_port()), bundle)

    starts = bench.interleaved({name: contender(bundle) for name, bundle in bundles.items()}, "s")
    for name, taken in starts.items():
        yield Row(what=f"start to first C-ECHO, {name}", ours=taken, goal=Goal(at_most=3.0, unit="s"))
    for name, bundle in bundles.items():
        yield from memory(bench.folder / f"node-{next(numbers)}", name, bundle, studies=STUDIES)
    sizes = _install_sizes()
    largest = sorted(sizes, key=lambda name: -sizes[name])[:_LARGEST]
    total = Measured((sum(sizes.values()),), "MB")
    yield Row(what="a serving install", ours=total, goal=Goal(at_most=500.0, unit="MB"))
    bench.note("Of the install, the largest: " + ", ".join(f"{name} {sizes[name]:.0f} MB" for name in largest) + ".")


def _until_echo(node: NodeProcess, bundle: Path) -> float:
    node.config.write_text(CONFIG)
    began = time.perf_counter()
    with _serving(node, bundle):
        entity = AE()
        entity.add_requested_context(VERIFICATION)
        while True:
            with socket.socket() as probe:
                answers = probe.connect_ex(("127.0.0.1", node.port)) == 0
            if answers:
                break
            time.sleep(0.01)
        association = entity.associate("127.0.0.1", node.port, ae_title="CXRNODE")
        status = association.send_c_echo()
        taken_s = time.perf_counter() - began
        association.release()
        if status.get("Status") != 0:
            raise ConnectionError("the node did not answer C-ECHO")
    return taken_s


@contextmanager
def _serving(node: NodeProcess, bundle: Path) -> Iterator[subprocess.Popen[bytes]]:
    options = ["--config", str(node.config), "--port", str(node.port), "--store", str(node.store), "--http", "off"]
    command = [sys.executable, "-m", "dicomnode", "serve", *options, "--bundle", str(bundle)]
    with (node.folder / "node.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            yield process
        finally:
            process.terminate()
            process.wait(60)


def memory(
    folder: Path, name: str, bundle: Path, *, studies: int, config: str = CONFIG, send_to: Sequence[str] = ()
) -> Iterator[Row]:
    """Give the node studies in parts, and read its memory after each."""
    node = NodeProcess(folder, port=free_port(), bundle=bundle, config=config, send_to=send_to).start()
    images, resident_mb = Images.uncompressed(), []
    try:
        for part in range(studies // A_PART):
            files = images.write(folder / f"files-{part}", A_PART, 1)
            send(folder, node.port, "CXRNODE", files)
            files.remove()
            done = (part + 1) * A_PART
            wait_until(partial(_answered, node, done), WITHIN_S, "the answers")
            resident_mb.append(_status_mb(node.pid, "VmRSS"))
        peak = _status_mb(node.pid, "VmHWM")
    finally:
        node.close()
    yield Row(
        what=f"resident memory at most, {name}, {studies:,} studies of 10 MB",
        ours=Measured((peak,), "MB"),
        goal=Goal(at_most=700.0, unit="MB"),
    )
    half = len(resident_mb) // 2
    yield Row(
        what=f"resident memory, {name}, last half of the studies",
        ours=Measured(tuple(resident_mb[-half:]), "MB"),
        peer="first half",
        theirs=Measured(tuple(resident_mb[-2 * half : -half]), "MB"),
        goal=Goal(at_most=1.1),
    )


def _answered(node: NodeProcess, studies: int) -> bool:
    return node.count("job", "state IN ('done', 'rejected')") >= studies


def _status_mb(pid: int, what: str) -> float:
    found = re.search(rf"^{what}:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1000


def _install_sizes() -> dict[str, float]:
    """Return the MB of every package that serving needs, from what is installed here, and of our own with its model."""
    own = [folder for name in ("dicomnode", "modeling") for folder in (Path(__file__).parents[1] / name).rglob("*.*")]
    own += default_bundle().iterdir()
    sizes = {"cxrnode with its model": sum(map(_bytes, own)) / 1e6}
    waiting = ["cxrnode"]
    while waiting:
        name = waiting.pop()
        try:
            found = distribution(name)
        except PackageNotFoundError:
            continue
        if name == "cxrnode":
            waiting += _needs(found)
        elif (key := found.metadata["Name"].lower()) not in sizes:
            sizes[key] = sum(_bytes(Path(str(file.locate()))) for file in found.files or ()) / 1e6
            waiting += _needs(found)
    return sizes


def _needs(found: Distribution) -> list[str]:
    wanted = (Requirement(line) for line in found.requires or ())
    return [
        requirement.name
        for requirement in wanted
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    ]


def _bytes(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
