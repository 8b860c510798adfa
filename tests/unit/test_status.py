"""DIMSE statuses: what the node answers, and what a peer's answer means."""

import pytest

from dicomnode.domain.delivery import Accepted, Refused
from dicomnode.domain.errors import CxrNodeError, DiskFull, StoreUnavailable, UidMismatch, UnreadableObject
from dicomnode.net.status import StoreStatus, is_success, outcome_for, status_for


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (DiskFull(), 0xA700),
        (StoreUnavailable(), 0xA701),
        (UidMismatch(), 0xA900),
        (UnreadableObject(), 0xC000),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_cause_has_its_own_status(error: CxrNodeError, status: int) -> None:
    assert status_for(error) == status


@pytest.mark.parametrize("status", [0x0001, 0x0107, 0x0111, 0x0116, 0xB000, 0xB006, 0xB007, 0xBFFF])
def test_warnings_and_duplicates_count_as_delivered(status: int) -> None:
    assert outcome_for(status) == Accepted(warning=status)


def test_success_is_delivered_without_a_warning() -> None:
    assert outcome_for(0x0000) == Accepted()
    assert is_success(0x0000)
    assert not is_success(0xA700)


@pytest.mark.parametrize("status", [0xA700, 0xA702, 0xA7FF, 0x0110, 0x0210, 0x0213, 0xFE00])
def test_what_may_pass_is_tried_again(status: int) -> None:
    outcome = outcome_for(status)
    assert isinstance(outcome, Refused)
    assert (outcome.status, outcome.permanent) == (status, False)


@pytest.mark.parametrize("status", [0xA900, 0xA9FF, 0xC000, 0xCFFF, 0x0122, 0x0124, 0x0117, 0x0211, 0x0212, 0x1234])
def test_what_cannot_pass_is_refused_for_good(status: int) -> None:
    outcome = outcome_for(status)
    assert isinstance(outcome, Refused)
    assert (outcome.status, outcome.permanent) == (status, True)


@pytest.mark.parametrize(
    ("status", "cause"),
    [
        (0xA701, "A701: out of resources"),
        (0xA900, "A900: data set does not match SOP class"),
        (0xC123, "C123: cannot understand"),
        (0x0122, "0122: SOP class not supported"),
        (0x0124, "0124: not authorised"),
        (0x0211, "0211: refused"),
    ],
)
def test_the_cause_names_the_status_and_its_meaning(status: int, cause: str) -> None:
    outcome = outcome_for(status)
    assert isinstance(outcome, Refused)
    assert outcome.cause == cause


def test_the_nodes_own_statuses_mean_to_a_node_what_they_should() -> None:
    permanent = {status: getattr(outcome_for(status), "permanent", None) for status in StoreStatus}
    assert permanent == {
        StoreStatus.SUCCESS: None,
        StoreStatus.OUT_OF_RESOURCES: False,
        StoreStatus.STORE_UNAVAILABLE: False,
        StoreStatus.DATA_SET_DOES_NOT_MATCH: True,
        StoreStatus.CANNOT_UNDERSTAND: True,
        StoreStatus.INTERNAL_ERROR: True,
    }
