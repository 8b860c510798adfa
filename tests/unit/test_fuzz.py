"""What fuzzing begins with, and what it once found, goes through its targets without a fault; so do random changes."""

import random
from pathlib import Path

import pytest

from tests.fuzz import NAMES
from tests.fuzz.seeds import seeds
from tests.fuzz.targets import TARGETS, run

CRASHES = Path(__file__).parents[1] / "fuzz" / "crashes"
CHANGES = {"frame": 60, "study": 6, "association": 300, "file-head": 300, "pdu": 300}


def test_the_targets_are_those_that_are_named() -> None:
    assert tuple(TARGETS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_seeds_and_former_crashes_pass(name: str) -> None:
    former = [path.read_bytes() for path in sorted((CRASHES / name).glob("*"))]
    for data in (*seeds(name), *former):
        run(TARGETS[name], data)


@pytest.mark.parametrize("name", NAMES)
def test_changed_seeds_pass(name: str) -> None:
    chance = random.Random(1)
    honest = list(seeds(name))
    for _ in range(CHANGES[name]):
        data = bytearray(chance.choice(honest))
        for _ in range(chance.choice([1, 3, 20])):
            data[chance.randrange(len(data))] = chance.randrange(256)
        run(TARGETS[name], bytes(data[: chance.choice([len(data), chance.randrange(len(data))])]))
