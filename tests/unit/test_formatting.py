"""Times as people read them: a next attempt is never in the past."""

from datetime import UTC, datetime, timedelta

from dicomnode.formatting import format_due, format_time

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def test_an_attempt_whose_time_has_come_is_due_now() -> None:
    assert format_due(NOW - timedelta(hours=3), NOW) == "due now"
    assert format_due(NOW, NOW) == "due now"


def test_a_later_attempt_has_its_time_and_none_has_no_text() -> None:
    later = NOW + timedelta(seconds=1)
    assert format_due(later, NOW) == format_time(later)
    assert format_due(None, NOW) == ""
