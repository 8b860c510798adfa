"""When a destination is left alone, for how long, and what is tried then."""

from datetime import UTC, datetime, timedelta

import pytest

from dicomnode.domain.delivery import RetryPolicy
from dicomnode.net.scu.circuit_breaker import CircuitBreaker, CircuitState

START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
POLICY = RetryPolicy(first_delay_s=30, factor=2, max_delay_s=100, jitter=0.1)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def failed(*seconds: float, asked_s: float = 0.0) -> CircuitState:
    circuit = CircuitState()
    for moment in seconds:
        circuit = circuit.failed(at(moment), POLICY, 0.5, asked_s)
    return circuit


def test_one_failure_changes_nothing_and_two_in_a_row_open() -> None:
    assert failed(0).allows(at(1), 50) == 50
    assert not failed(0).is_open
    assert failed(0, 1).is_open
    assert failed(0, 1).allows(at(1), 50) == 0


def test_after_the_pause_one_thing_is_tried_if_there_is_one() -> None:
    circuit = failed(0, 0)
    assert circuit.allows(at(29.9), 50) == 0
    assert circuit.allows(at(30), 50) == 1
    assert circuit.allows(at(30), 0) == 0


def test_every_trial_that_fails_lengthens_the_pause_up_to_a_limit() -> None:
    ends = [failed(*[0] * failures).retry_at for failures in (2, 3, 4, 5, 60)]
    assert ends == [at(30), at(60), at(100), at(100), at(100)]


@pytest.mark.parametrize(("asked_s", "waits_s"), [(5.0, 30.0), (120.0, 120.0), (999_999.0, 3600.0)])
def test_a_destinations_wish_to_be_left_alone_is_heeded_within_reason(asked_s: float, waits_s: float) -> None:
    assert failed(0, 0, asked_s=asked_s).retry_at == at(waits_s)


def test_a_clock_that_is_set_back_does_not_lengthen_the_pause() -> None:
    assert failed(0, 0).allows(at(-3600), 50) == 1


def test_an_answer_closes_and_failures_count_anew(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    breaker = CircuitBreaker(
        "pacs", "store", POLICY, retry_requested=lambda since: False, clock=lambda: at(0), randomness=lambda: 0.5
    )
    breaker.failed("refused")
    breaker.answered()
    breaker.failed("refused")
    assert breaker.allows(50) == 50
    assert caplog.messages == []
    breaker.failed("refused")
    breaker.failed("refused")
    assert breaker.allows(50) == 0
    breaker.answered()
    assert breaker.allows(50) == 50
    assert caplog.messages == ["destination-unavailable", "destination-available"]


def test_an_operators_wish_is_asked_for_since_the_last_failure_only() -> None:
    now = [0.0]
    asked: list[datetime] = []
    urges = [False]

    def retry_requested(since: datetime) -> bool:
        asked.append(since)
        return urges[0]

    breaker = CircuitBreaker(
        "pacs", "store", POLICY, retry_requested=retry_requested, clock=lambda: at(now[0]), randomness=lambda: 0.5
    )
    breaker.failed("refused")
    now[0] = 7.0
    breaker.failed("refused")
    assert breaker.allows(50) == 0
    assert asked == [at(7)]
    urges[0] = True
    assert breaker.allows(50) == 1


def test_what_is_due_waits_for_the_end_of_the_pause() -> None:
    breaker = CircuitBreaker(
        "pacs", "store", POLICY, retry_requested=lambda since: False, clock=lambda: at(0), randomness=lambda: 0.5
    )
    breaker.failed("refused")
    assert breaker.not_before(at(5)) == at(5)
    breaker.failed("refused")
    assert breaker.not_before(at(5)) == at(30)
    assert breaker.not_before(at(40)) == at(40)
    assert breaker.not_before(None) is None


def unreachable() -> CircuitState:
    state = CircuitState()
    for _ in range(2):
        state = state.failed(at(0), RetryPolicy(first_delay_s=3600, max_delay_s=3600), 0.5, is_unreachable=True)
    return state


def test_a_destination_that_could_not_be_reached_is_probed_every_half_minute() -> None:
    state = unreachable()
    assert not state.is_probe_due(at(29.9))
    assert state.is_probe_due(at(30))
    later = state.probed(at(30), is_back=False)
    assert not later.is_probe_due(at(59.9))
    assert later.is_probe_due(at(60))
    assert later.allows(at(60), 50) == 0


def test_a_destination_that_is_back_is_tried_with_one_thing_at_once() -> None:
    assert unreachable().probed(at(30), is_back=True).allows(at(30), 50) == 1


def test_a_destination_that_refused_is_not_probed() -> None:
    assert not failed(0, 0).is_probe_due(at(10_000))
