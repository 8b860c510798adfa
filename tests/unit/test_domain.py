"""Identifiers and the retry policy."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicomnode.domain.delivery import RetryPolicy
from dicomnode.domain.identifiers import derive_uid, is_valid_uid


@given(st.lists(st.text(max_size=20), min_size=1, max_size=5))
def test_a_derived_uid_is_valid_and_the_same_every_time(parts: list[str]) -> None:
    assert is_valid_uid(derive_uid(*parts))
    assert derive_uid(*parts) == derive_uid(*parts)


def test_derived_uids_do_not_change_between_releases() -> None:
    assert derive_uid("1.2.3", "digest", "bundle", "sr") == "2.25.20358620772344049811956119294289655176"


def test_parts_are_kept_apart() -> None:
    assert derive_uid("1.2", "3") != derive_uid("1.23", "")


@pytest.mark.parametrize("uid", ["", "1..2", "01.2", "1.02", "1.2.", ".1", "1.2/../3", "1.2\n", "1" * 65, "a.b", "١.٢"])
def test_malformed_uids_are_refused(uid: str) -> None:
    assert not is_valid_uid(uid)


@given(st.text(alphabet=string.digits + ".", max_size=70))
def test_validity_follows_the_standards_rule(uid: str) -> None:
    components = uid.split(".")
    expected = len(uid) <= 64 and all(c != "" and (c == "0" or c[0] != "0") for c in components)
    assert is_valid_uid(uid) == expected


def test_delays_double_up_to_the_longest() -> None:
    policy = RetryPolicy(first_delay_s=30, factor=2, max_delay_s=600)
    assert [policy.delay_s(n, 0.5) for n in (1, 2, 3, 4, 5, 6, 60, 10_000)] == [30, 60, 120, 240, 480, 600, 600, 600]


@given(st.integers(min_value=1, max_value=100), st.floats(min_value=0, max_value=1, exclude_max=True))
def test_jitter_stays_within_a_tenth(attempts: int, randomness: float) -> None:
    policy = RetryPolicy()
    assert abs(policy.delay_s(attempts, randomness) / policy.delay_s(attempts, 0.5) - 1) <= 0.1 + 1e-9


def test_it_gives_up_at_the_age_configured() -> None:
    policy = RetryPolicy(give_up_after_s=100)
    assert (policy.exhausted(99.9), policy.exhausted(100.0)) == (False, True)
