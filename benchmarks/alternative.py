"""A user's alternative: TorchXRayVision's DenseNet-121 at 224 px in PyTorch, against the ensembles with all their maps.

Two threads each, the same image. Theirs is one bare network of 18 outputs, random weights, no maps; ours prepares the
image, runs five members and gives 15 maps. PyTorch is no part of the project: `BENCH_TORCH` names an interpreter that
has it, by default that of a virtual environment `build/torch`.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np

from benchmarks.bench import Bench, apart, milliseconds
from benchmarks.flagship import flagship_bundle
from benchmarks.table import Goal, Row
from dicomnode.bundle.reader import open_bundle
from dicomnode.domain.frame import FloatArray
from dicomnode.inference.predictor import Predictor
from dicomnode.settings.node import default_bundle

SIDE, THREADS = 224, 2
NOT_SLOWER = Goal(at_most=1.0)
_PEER = "DenseNet-121 in PyTorch"


def measure(bench: Bench) -> Iterator[Row]:
    build = Path("build").resolve()
    interpreter = Path(os.environ.get("BENCH_TORCH", build / "torch" / "bin" / "python"))
    image = np.random.default_rng(0).random((SIDE, SIDE), dtype=np.float32)
    bundles = {"shipped ensemble": default_bundle(), "flagship's shape": flagship_bundle(build / "flagship")}
    ours = {name: _reading(bundle, image) for name, bundle in bundles.items()}
    if not interpreter.exists():
        found = bench.interleaved(ours, "ms")
        for name in bundles:
            yield Row(what=name, ours=found[name], peer=_PEER, goal=NOT_SLOWER, absent="not installed")
        return
    with _densenet(interpreter, image) as (theirs, version):
        found = bench.interleaved(ours | {_PEER: theirs}, "ms")
    for name in bundles:
        yield Row(what=name, ours=found[name], peer=_PEER, theirs=found[_PEER], goal=NOT_SLOWER)
    bench.note(f"PyTorch {version}; the network is defined in `benchmarks/densenet.py`, with TorchXRayVision's layers.")


def _reading(bundle: Path, image: FloatArray) -> Callable[[], float]:
    predictor = Predictor(open_bundle(bundle), threads=THREADS)
    predictor.replay_golden()
    return milliseconds(lambda: predictor.read_batch([image]))


def _densenet(interpreter: Path, image: FloatArray) -> AbstractContextManager[tuple[Callable[[], float], str]]:
    """Return what gives the ms of one pass in a process of its own, and PyTorch's version."""
    program = Path(__file__).with_name("densenet.py")
    return apart([str(interpreter), str(program), str(SIDE), str(THREADS)], asked=image.tobytes().hex())
