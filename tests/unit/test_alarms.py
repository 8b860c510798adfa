"""What needs an operator is said on every page, on the page of problems and by `cxrnode status`, with its reason."""

import json
import re
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from dicomnode.domain.delivery import NoAnswer, RetryPolicy
from dicomnode.domain.job import JobState
from dicomnode.formatting import format_time
from dicomnode.monitoring.status import Status
from dicomnode.settings.http import HttpSettings, HttpToken
from dicomnode.store.counters import UNANSWERED, DestinationFigures, Operations, Waiting
from dicomnode.web.alarms import AlarmKind, alarms
from tests.support.make import build
from tests.support.stores import at
from tests.support.web import HAND, OTHER, STUDY, Web, dead_delivery, image


def operations(*destinations: DestinationFigures, dead: int = 0) -> Operations:
    jobs = {state: Waiting() for state in UNANSWERED} | {JobState.DEAD: Waiting(count=dead)}
    return Operations(jobs=jobs, destinations={one.name: one for one in destinations}, outcomes={}, latencies={})


def told(found: Operations, *, free: int = 1 << 40) -> dict[AlarmKind, str]:
    return {one.kind: one.text for one in alarms(found, (), at(100), free_bytes=free, minimum_free_bytes=1 << 30)}


def failing_delivery(web: Web, cause: str = "connection refused") -> None:
    """Let a delivery fail for now: it waits for its next try."""
    for delivery in web.store.outbox.claim("pacs", 10, web.clock()):
        policy = RetryPolicy(first_delay_s=60)
        web.store.outbox.record(delivery, NoAnswer(cause=cause), web.clock(), policy, 0.5)


def test_a_store_without_trouble_gives_no_alarm() -> None:
    fine = DestinationFigures(name="pacs", delivered=3, failed=1, last_delivered_at=at(1), last_failed_at=at(0))
    assert alarms(operations(fine), ("new",), at(2), free_bytes=1 << 40, minimum_free_bytes=1) == ()


def test_dead_letters_are_counted_by_what_failed() -> None:
    one = told(operations(dead=1))[AlarmKind.DEAD_LETTERS]
    assert "1 study was not analysed." in one
    assert "result" not in one
    both = told(operations(DestinationFigures(name="p", dead=2), dead=3))[AlarmKind.DEAD_LETTERS]
    assert "3 studies were not analysed and 2 results were not delivered." in both


def test_acknowledged_images_that_the_database_does_not_know_are_an_alarm() -> None:
    found = replace(operations(), images_without_row=2)
    text = told(found)[AlarmKind.IMAGES_WITHOUT_ROW]
    assert "2 received images are unknown to the database" in text
    assert "cxrnode store check --repair" in text


def test_a_destination_that_is_down_is_told_with_since_when_why_and_the_next_try() -> None:
    down = DestinationFigures(
        name="pacs",
        waiting=Waiting(count=4, since=at(0)),
        delivered=1,
        failed=2,
        failures_in_row=2,
        last_delivered_at=at(1),
        last_failed_at=at(90),
        last_error="connection refused",
        next_try_at=at(130),
    )
    text = told(operations(down))[AlarmKind.DESTINATION_DOWN]
    assert f"pacs has taken no result since {format_time(at(1))}" in text
    assert f"2 attempts have failed in a row, the last at {format_time(at(90))}: connection refused." in text
    assert f"4 results wait; the next try is at {format_time(at(130))}" in text


def test_the_next_try_is_never_told_as_a_time_in_the_past() -> None:
    down = DestinationFigures(name="p", failed=1, failures_in_row=1, last_failed_at=at(50), next_try_at=at(60))
    text = told(operations(down))[AlarmKind.DESTINATION_DOWN]
    assert "the next try is due now" in text
    assert format_time(at(60)) not in text


def test_little_free_disk_and_overdue_commitments_are_alarms() -> None:
    late = DestinationFigures(name="pacs", delivered=1, overdue_commitments=2)
    found = told(operations(late), free=(2 << 30) - 1)
    assert set(found) == {AlarmKind.COMMITMENTS_OVERDUE, AlarmKind.DISK_LOW}
    assert "2 results" in found[AlarmKind.COMMITMENTS_OVERDUE]
    assert "refused below 1.0 GiB" in found[AlarmKind.DISK_LOW]


@pytest.mark.parametrize("path", ["/", "/studies", f"/studies/{STUDY}", "/problems", "/model", "/nothing"])
def test_every_page_says_that_a_destination_is_down_and_why(own: Web, path: str) -> None:
    own.answer(image())
    assert 'class="alarms"' not in own.client.get(path).text
    failing_delivery(own)
    text = own.client.get(path).text
    assert 'class="alarms"' in text
    assert "pacs has taken no result so far" in text
    assert "connection refused" in text


def test_the_overview_and_the_problems_give_the_reason_of_a_failing_delivery(own: Web) -> None:
    own.answer(image())
    failing_delivery(own, cause="A700: <out> of resources")
    for path in ("/", "/problems"):
        (main,) = re.findall(r"<h1>.*</main>", own.client.get(path).text, re.DOTALL)
        assert "A700: &lt;out&gt; of resources" in main, path
    assert "Destinations that are down" in own.client.get("/problems").text
    assert "all is well" not in own.client.get("/").text


def test_an_operator_tries_a_destination_at_once_from_the_banner(own: Web) -> None:
    own.answer(image())
    failing_delivery(own)
    (entry,) = re.findall(r'name="entry" value="(D\d+)"', own.client.get("/").text)
    assert own.store.outbox.next_due("pacs") > own.clock()
    assert "1 entry will be tried again" in own.post("/problems", act="retry", entry=entry).text
    assert own.store.outbox.next_due("pacs") <= own.clock()


def test_a_visitor_who_may_only_look_is_given_no_button_and_a_stranger_no_banner(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("0123456789abcdef")
    http = HttpSettings(tokens=(HttpToken(name="ward", role="view", file=tmp_path / "token"),))
    with Web(tmp_path, http=http) as web:
        web.answer(image())
        failing_delivery(web)
        assert "pacs has taken" not in web.client.get("/login").text
        web.client.post("/login", data={"form_token": web.form_token(), "token": "0123456789abcdef"})
        text = web.client.get("/").text
    assert "pacs has taken no result" in text
    assert "Try now" not in text


def test_the_tile_and_the_table_of_the_last_hour_agree(own: Web) -> None:
    own.answer(image())
    own.answer(image(OTHER, seed=2))
    own.answer(build("cr", seed=3, body_part="HAND", study_uid=HAND))
    text = own.client.get("/").text
    rows = dict(re.findall(r'<th scope="row">([^<]+)</th><td class="number">(\d+)</td>', text))
    assert (rows["Studies answered"], rows["Studies not analysed"]) == ("2", "1")
    assert '<p class="figure">3</p>\n<p class="quiet">2 answered, 1 not analysed</p>' in text


def test_an_empty_node_says_where_to_send_a_study(own: Web) -> None:
    for path in ("/", "/studies"):
        assert re.search(r"Send one to <code>CXRNODE@[^:]+:11112</code>", own.client.get(path).text), path
    own.answer(image())
    own.clock.now += timedelta(days=2)
    found = own.post("/studies", number="1.2.3.4").text
    assert "No study matches" in found
    assert "Send one to" not in found


def test_status_fails_with_a_dead_letter_and_with_a_destination_that_is_down(own: Web) -> None:
    own.answer(image())
    figures = own.store.watching.operations()
    fine = {"at": own.clock(), "running": True, "said": "", "checks": (), "operations": figures, "destinations": ()}
    assert Status(**fine, alarms=own.context.alarms()).passed
    failing_delivery(own)
    down = Status(**fine, alarms=own.context.alarms())
    assert not down.passed
    own.answer(image(OTHER, seed=2))
    own.clock.advance(hours=1)
    dead_delivery(own)
    dead = Status(**fine, alarms=own.context.alarms())
    assert not dead.passed
    assert "dead-letters" in json.dumps(dead.as_json())
