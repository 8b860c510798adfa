"""Memory over many studies: the node with the shipped bundle, 1,000 studies of one image of 10 MB each.

`BENCH_STUDIES` names another number. Results are sent to DCMTK's storescp, which keeps nothing, and what has arrived
there is removed within ten minutes, so that the disk holds it all.
"""

import os
from collections.abc import Iterator

from benchmarks import machine
from benchmarks.bench import Bench
from benchmarks.footprint import CONFIG, memory
from benchmarks.receive import PDU_BYTES
from benchmarks.send import sink
from benchmarks.table import Row
from dicomnode.settings.node import default_bundle

STUDIES = int(os.environ.get("BENCH_STUDIES", "1000"))
_REMOVED = "[retention]\nimages_days = 0.0\nresults_days = 0.0\n"


def measure(bench: Bench) -> Iterator[Row]:
    if machine.program("storescp") is None:
        yield Row(what="resident memory", absent="DCMTK is not installed")
        return
    with sink(PDU_BYTES) as port:
        yield from memory(
            bench.folder / "node",
            "shipped bundle",
            default_bundle(),
            studies=STUDIES,
            config=CONFIG + _REMOVED,
            send_to=[f"STORESCP@127.0.0.1:{port}"],
        )
