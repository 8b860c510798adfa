"""What eight emulated devices cost beside one, at the same batch: JAX on the processor, each in a process of its own.

python -m benchmarks.training_devices    trains on every line of its input, and says how many ms a step took
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import numpy as np

from benchmarks.bench import Bench, apart, seconds
from benchmarks.table import Goal, Row

DEVICES = 8
RECIPE, BATCH, STEPS = "baseline-cnn", 32, 4
"""Of plain convolutions: XLA takes minutes for the depthwise ones of the others on a processor."""
CHEAP = Goal(at_most=1.25)


def rows(bench: Bench) -> Iterator[Row]:
    with ExitStack() as stack:
        contenders = {count: stack.enter_context(_training_on(count)) for count in (1, DEVICES)}
        found = bench.interleaved({str(count): step for count, step in contenders.items()}, "ms")
    yield Row(
        what=f"{RECIPE} in JAX, a step of {BATCH} images on {DEVICES} emulated devices",
        ours=found[str(DEVICES)],
        peer="on one",
        theirs=found["1"],
        goal=CHEAP,
    )


@contextmanager
def _training_on(devices: int) -> Iterator[Callable[[], float]]:
    """Yield what gives the ms of a step on so many devices, which share this machine's cores."""
    environment = {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"}
    environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    command = [sys.executable, "-m", "benchmarks.training_devices"]
    with apart(command, environment=os.environ | environment) as (step, _):
        # The first one compiles.
        step()
        yield step


def main() -> None:
    from benchmarks.training import drawn_run, fit
    from modeling.devices import spread_over_devices
    from modeling.network import build_network

    spread = spread_over_devices()
    run = drawn_run(RECIPE, BATCH, BATCH * STEPS)
    network = build_network(run, spread)
    side = run.config.input.side
    ready = np.random.default_rng(0).random((len(run.folds), side, side, 1), np.float32)
    print(spread.describe(), flush=True)
    for _ in sys.stdin:
        print(1000 * seconds(lambda: fit(run, network, lambda wanted: ready[wanted])) / STEPS, flush=True)


if __name__ == "__main__":
    main()
