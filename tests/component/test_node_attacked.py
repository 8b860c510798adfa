"""A real node process under every attack of `tests.support.attacks`: good studies are answered, memory is bounded."""

from collections.abc import Iterator

import pytest

from tests.support.archives import Archive
from tests.support.attacks import ATTACKS, MIB, PENDING_BYTES, Attacked
from tests.support.bundles import make_bundle
from tests.support.processes import wait_until

# What the analysis of the good studies itself may come to meanwhile.
_ANALYSIS_BYTES = 300 * MIB


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attacked]:
    folder = tmp_path_factory.mktemp("attacked")
    with Archive() as archive:
        running = Attacked(folder / "node", make_bundle(folder / "bundle"), archive)
        running.answers()
        yield running
        running.node.close()


@pytest.mark.parametrize("name", ATTACKS)
def test_good_studies_are_answered_within_bounds(attacked: Attacked, name: str) -> None:
    outcome = attacked.attack(ATTACKS[name], studies=1)
    # An object held is held once more while it is written down.
    assert outcome.peak - outcome.before < 2 * PENDING_BYTES + _ANALYSIS_BYTES
    wait_until(lambda: attacked.threads() < 40 and attacked.files() < 60, 20, "the end of the attackers' connections")
    if ATTACKS[name].refused is not None:
        assert ATTACKS[name].refused in attacked.refused()
