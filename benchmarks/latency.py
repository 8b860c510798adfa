"""End to end: from the arrival of a study's last image to its SR and SC stored in the PACS, by the node's own ledger.

One study of one image at a time; the quiet time of a second, which the node waits for, is taken off. Beside it is what
decoding and inference alone take for the same image in this process, one after the other.
"""

import sqlite3
import statistics
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import datetime
from pathlib import Path

from benchmarks.bench import Bench, milliseconds
from benchmarks.flagship import flagship_bundle, open_reference
from benchmarks.images import Images
from benchmarks.receive import send
from benchmarks.table import Goal, Measured, Row
from dicomnode.bundle.reader import open_bundle
from dicomnode.imaging.codecs import CODECS
from dicomnode.imaging.decoding import decode, read_layout
from dicomnode.imaging.pixels import render
from dicomnode.imaging.reader import read, ref_of
from dicomnode.inference.predictor import Predictor
from dicomnode.settings import PixelSettings
from tests.archives import Archive
from tests.processes import NodeProcess, free_port, wait_until

QUIET_S = 1.0
STUDIES_A_ROUND = 4
WITHIN_S = 120.0
RESULTS = 2
NEWEST = """
SELECT instance.received_at, MAX(delivery.changed_at) FROM delivery
JOIN result USING (result_id) JOIN instance USING (study)
WHERE instance.instance_id = (SELECT MAX(instance_id) FROM instance)
"""
MEDIAN, TAIL = Goal(at_most=2.0), Goal(at_most=2.0)
_CONFIG = f"[assembly]\nquiet_s = {QUIET_S}\n[log]\nformat = 'json'\n"


def measure(bench: Bench) -> Iterator[Row]:
    flagship = flagship_bundle(Path("build").resolve() / "flagship")
    bundles = {"shipped ensemble": open_reference(bench.folder / "reference"), "flagship's shape": flagship}
    kinds = {"10 MB uncompressed": Images.uncompressed(), "500 kB JPEG 2000": Images.compressed()}
    for number, (name, bundle) in enumerate(bundles.items()):
        folder = bench.folder / f"node-{number}"
        with Archive() as archive:
            node = NodeProcess(folder, port=free_port(), bundle=bundle, send_to=(archive.peer,), config=_CONFIG).start()
            try:
                for what, images in kinds.items():
                    yield from _rows(bench, f"{what}, {name}", images, node, _bare(images, bundle))
            finally:
                node.close()
    CODECS.stop()


def _rows(bench: Bench, what: str, images: Images, node: NodeProcess, bare: Callable[[], object]) -> Iterator[Row]:
    every: list[float] = []

    def ours() -> float:
        taken = [_study_ms(images, node) for _ in range(STUDIES_A_ROUND)]
        every.extend(taken)
        return statistics.median(taken)

    ours()
    every.clear()
    found = bench.interleaved({"ours": ours, "bare": milliseconds(bare, times=STUDIES_A_ROUND)}, "ms")
    yield Row(what=what, ours=found["ours"], peer="bare decoding and inference", theirs=found["bare"], goal=MEDIAN)
    slowest = statistics.quantiles(every, n=20)[-1]
    yield Row(
        what=f"{what}: 95th percentile",
        ours=Measured((slowest,), "ms"),
        peer="median",
        theirs=Measured((statistics.median(every),), "ms"),
        goal=TAIL,
    )


def _study_ms(images: Images, node: NodeProcess) -> float:
    """Send a study and return what passed, by the node's own ledger, from its image to its last result's delivery."""
    before = node.count("delivery", "state = 'delivered'")
    files = images.write(node.folder / "files", 1, 1)
    send(node.folder, node.port, "CXRNODE", files)
    files.remove()
    wait_until(lambda: node.count("delivery", "state = 'delivered'") >= before + RESULTS, WITHIN_S, "the results")
    with closing(sqlite3.connect(f"file:{node.store / 'store.db'}?mode=ro", uri=True)) as connection:
        began, ended = (datetime.fromisoformat(found) for found in connection.execute(NEWEST).fetchone())
    return 1000 * ((ended - began).total_seconds() - QUIET_S)


def _bare(images: Images, bundle: Path) -> Callable[[], object]:
    """Return the decoding and inference of one image; the grey scale is found beforehand."""
    ds, settings = read(images.one()), PixelSettings()
    layout = read_layout(ds, settings.maximum_pixels)
    frame = render(ds, ref_of(ds), settings)
    predictor = Predictor(open_bundle(bundle), threads=0)
    predictor.replay_golden()

    def work() -> None:
        decode(ds, layout)
        predictor.read(frame)

    return work
