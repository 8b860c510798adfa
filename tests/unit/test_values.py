"""Values by a table are the very values that samples give one by one."""

import numpy as np
import pytest

from dicomnode.domain.frame import FloatArray
from dicomnode.imaging.greyscale import logarithm
from dicomnode.imaging.values import Values, percentile


def modality(inputs: FloatArray) -> FloatArray:
    return np.asarray(inputs * np.float32(1.7) - np.float32(300), dtype=np.float32)


def bent(inputs: FloatArray) -> FloatArray:
    """A line, its ends cut, and a sigmoid: what windows are made of."""
    straight = np.clip((inputs - np.float32(700)) * np.float32(1 / 3000), 0, 1)
    return np.asarray(straight + 1 / (1 + np.exp(-inputs / np.float32(900))), dtype=np.float32)


@pytest.mark.parametrize("further", [bent, logarithm, lambda inputs: inputs], ids=["bent", "logarithm", "as it is"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16, np.float32])
@pytest.mark.parametrize("shape", [(300, 257), (20, 30)], ids=["table", "one by one"])
def test_every_sample_gets_the_value_it_would_get_by_itself(shape, dtype, further):
    kind = np.iinfo(dtype if dtype is not np.float32 else np.int16)
    stored = np.random.default_rng(1).integers(kind.min, kind.max, shape, endpoint=True).astype(dtype)
    stored[0, :2] = kind.min, kind.max

    found = Values(stored, modality).through(further)

    assert found.dtype == np.float32
    assert np.array_equal(found, further(modality(stored.astype(np.float32))))


def test_what_is_returned_is_not_what_is_stored():
    stored = np.zeros((20, 30), np.float32)
    Values(stored, lambda inputs: inputs).through(lambda inputs: inputs)[:] = 1

    assert not stored.any()


def test_values_are_of_the_rows_and_columns_that_are_asked_for():
    stored = np.arange(12, dtype=np.int16).reshape(3, 4)

    assert np.array_equal(
        Values(stored, modality).at((slice(None, None, 2), slice(1, 3))), modality(np.float32([[1, 2], [9, 10]]))
    )


@pytest.mark.parametrize("size", [1, 2, 3, 10, 1001, 40_000])
def test_percentiles_are_numpys(size):
    random = np.random.default_rng(size)
    percents = np.linspace(0, 100, 201)
    for values in (random.normal(1000, 300, size), random.exponential(1, size) ** 9, random.integers(0, 50, size)):
        found = [percentile(values.astype(np.float32), percent) for percent in percents]
        assert found == pytest.approx(np.percentile(values, percents), rel=1e-6)
