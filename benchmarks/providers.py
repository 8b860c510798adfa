"""ONNX Runtime's execution providers: OpenVINO against the default on the processor, each as the node runs it.

OpenVINO is no part of the project, since its package takes ONNX Runtime's place. `BENCH_OPENVINO` names a folder that
holds it, by default `build/openvino`: `pip install --no-deps --target build/openvino onnxruntime-openvino`.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import numpy as np

from benchmarks.bench import Bench, apart, milliseconds
from benchmarks.flagship import flagship_bundle
from benchmarks.table import Row
from dicomnode.settings.node import default_bundle


def measure(bench: Bench) -> Iterator[Row]:
    build = Path("build").resolve()
    installed = Path(os.environ.get("BENCH_OPENVINO", build / "openvino")).resolve()
    bundles = {"shipped ensemble": default_bundle(), "flagship's shape": flagship_bundle(build / "flagship")}
    for name, bundle in bundles.items():
        what = f"{name}, one image, OpenVINO"
        if not (installed / "onnxruntime").exists():
            yield Row(what=what, absent="onnxruntime-openvino is not installed")
            continue
        with ExitStack() as stack:
            ours, about = stack.enter_context(_reading("openvino", bundle, installed))
            theirs, _ = stack.enter_context(_reading("cpu", bundle, None))
            found = bench.interleaved({"openvino": ours, "cpu": theirs}, "ms")
        yield Row(what=what, ours=found["openvino"], peer="the default provider", theirs=found["cpu"])
        bench.note(f"{name}: {about}.")


def _reading(
    provider: str, bundle: Path, installed: Path | None
) -> AbstractContextManager[tuple[Callable[[], float], str]]:
    """Return a contender that measures the ms of one image in its own process, and the process's first line."""
    first = [] if installed is None else [str(installed)]
    path = os.pathsep.join([*first, *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "benchmarks.providers", provider, str(bundle)]
    return apart(command, environment=os.environ | {"PYTHONPATH": path})


def main() -> None:
    """Read an image for every line of the input, and print the milliseconds it took."""
    import onnxruntime

    from dicomnode.bundle.reader import open_bundle
    from dicomnode.inference.predictor import Predictor

    provider, folder = sys.argv[1:]
    bundle = open_bundle(Path(folder))
    predictor = Predictor(bundle, threads=0, providers=(provider,))
    difference = predictor.replay_golden()
    print(f"ONNX Runtime {onnxruntime.__version__}, golden outputs to within {difference:.1g}", flush=True)
    side = bundle.manifest.input.side
    read_image = milliseconds(lambda: predictor.read_batch([np.full((side, side), 0.5, np.float32)]))
    read_image()
    for _ in sys.stdin:
        print(read_image(), flush=True)


if __name__ == "__main__":
    main()
