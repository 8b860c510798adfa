"""Storage Commitment against a destination that reports over the same association, over another, partly, or never."""

import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from dicomnode.domain.commitment import CommitmentState
from dicomnode.domain.delivery import DeliveryState, RetryPolicy
from dicomnode.domain.errors import PeerUnavailable
from dicomnode.net.scu import commitment
from tests.support.committing import CR, WITHIN_S, Archive, bench, looping, now
from tests.support.dimse import EXPLICIT, Peer
from tests.support.processes import wait_until
from tests.support.stores import open_store


@pytest.mark.parametrize("over", ["same", "another"])
def test_a_report_counts_over_whichever_association_it_comes(tmp_path: Path, over: str) -> None:
    with Archive(over=over).running() as archive, bench(tmp_path, archive, commitment_linger_s=5) as found:
        uids = found.deliver()
        assert found.committer.ask_due() == 2
        wait_until(lambda: found.all_are(CommitmentState.COMMITTED), WITHIN_S, "the commitment")
        wait_until(lambda: archive.answers == [0x0000], WITHIN_S, "the answer to the report")
    assert sorted(archive.asked[0]) == sorted(uids)


@pytest.mark.parametrize("over", ["same", "another"])
def test_a_report_that_overtakes_the_response_counts(tmp_path: Path, over: str) -> None:
    with Archive(over=over, overtakes=True).running() as archive, bench(tmp_path, archive) as found:
        found.deliver()
        found.committer.ask_due()
        assert found.all_are(CommitmentState.COMMITTED)


def test_the_association_is_left_as_soon_as_the_report_is_there(tmp_path: Path) -> None:
    with Archive().running() as archive, bench(tmp_path, archive, commitment_linger_s=60) as found:
        found.deliver()
        began = time.monotonic()
        found.committer.ask_due()
        assert time.monotonic() - began < 30
        assert found.all_are(CommitmentState.COMMITTED)


def test_what_is_not_kept_is_delivered_again_as_the_same_instance(tmp_path: Path) -> None:
    lost: list[str] = []

    def lose_one_once(uids: list[str]) -> dict[str, int]:
        if lost:
            return {}
        lost.append(uids[1])
        return {uids[1]: 0x0112}

    with (
        Archive(decide=lose_one_once).running() as archive,
        bench(tmp_path, archive, commitment_linger_s=5) as found,
        looping(found),
    ):
        uids = found.deliver()
        found.committer.loop.wake()
        wait_until(lambda: CommitmentState.FAILED in found.states(), WITHIN_S, "the failure")
        again = wait_until(found.deliver, WITHIN_S, "the second delivery")
        found.committer.loop.wake()
        wait_until(lambda: found.all_are(CommitmentState.COMMITTED), WITHIN_S, "the commitment")
    assert again == lost
    assert set(again) < set(uids)
    assert archive.asked[1] == lost
    assert len(set(archive.transactions)) == 2


def test_silence_is_an_alert_and_is_asked_again_with_another_transaction(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    silent = [True]
    with (
        Archive(decide=lambda uids: None if silent[0] else {}).running() as archive,
        bench(tmp_path, archive, commitment_timeout_s=0.5, commitment_linger_s=0) as found,
        looping(found),
    ):
        uids = found.deliver()
        found.committer.loop.wake()
        wait_until(lambda: len(found.store.ledger.uncommitted()) == 2, WITHIN_S, "the alert")
        alerts = [record for record in caplog.records if record.message == "commitment-overdue"]
        assert {record.levelname for record in alerts} == {"WARNING"}
        assert sorted(record.instance for record in alerts) == sorted(uids)
        silent[0] = False
        archive.over = "another"
        wait_until(lambda: found.all_are(CommitmentState.COMMITTED), WITHIN_S, "the commitment")
        assert found.committer.loop.stop(WITHIN_S)
        archive.settle()
    assert len(archive.transactions) == len(set(archive.transactions)) >= 2
    assert {entry.state for entry in found_deliveries(tmp_path)} == {DeliveryState.DELIVERED}


def found_deliveries(path: Path) -> list[Any]:
    with open_store(path / "store") as store:
        return list(store.ledger.deliveries_of("1.1"))


def test_a_destination_that_refuses_is_asked_again_later(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Archive(status=0x0124).running() as archive, bench(tmp_path, archive) as found:
        found.deliver()
        found.committer.ask_due()
        assert found.states() == {CommitmentState.DUE}
        (record,) = [record for record in caplog.records if record.message == "commitment-not-requested"]
        assert record.cause == "the destination refused to commit itself: 0124"
        archive.status = 0x0000
        wait_until(found.committer.ask_due, WITHIN_S, "the second request")
        wait_until(lambda: found.all_are(CommitmentState.COMMITTED), WITHIN_S, "the commitment")


def test_a_destination_that_cannot_be_asked_is_left_alone_after_two_requests(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Archive(status=0x0110).running() as archive, bench(tmp_path, archive) as found:
        found.deliver()
        wait_until(found.committer.ask_due, WITHIN_S, "the first request")
        wait_until(found.committer.ask_due, WITHIN_S, "the second request")
        assert found.committer.breaker.state.is_open
        assert found.committer.ask_due() == 0
        assert len(archive.asked) == 2
        (told,) = [record for record in caplog.records if record.message == "destination-unavailable"]
        assert (told.destination, told.service) == ("pacs", "commitment")
        archive.status = 0x0000
        wait_until(lambda: found.committer.ask_due() or not found.committer.breaker.state.is_open, WITHIN_S, "a trial")
        assert len(archive.asked[2]) == 1
        wait_until(
            lambda: found.committer.ask_due() or found.all_are(CommitmentState.COMMITTED), WITHIN_S, "the second trial"
        )
        wait_until(lambda: found.all_are(CommitmentState.COMMITTED), WITHIN_S, "the commitment")


def test_a_destination_that_is_back_is_asked_within_half_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times, there = [now()], [False]

    def unreachable(*_: object, **__: object) -> None:
        raise PeerUnavailable("nobody there")

    with (
        Archive().running() as archive,
        bench(tmp_path, archive, clock=lambda: times[0], is_there=lambda: there[0]) as found,
    ):
        found.deliver()
        patient = RetryPolicy(first_delay_s=3600, max_delay_s=3600)
        found.committer._policy = found.committer.breaker._policy = patient
        with monkeypatch.context() as patched:
            patched.setattr(commitment, "open_association", unreachable)
            for _ in range(2):
                times[0] += timedelta(seconds=4000)
                assert found.committer.ask_due() == 2
        assert found.committer.ask_due() == 0
        retry_at = found.committer.breaker.state.retry_at
        due = [entry.commitment_next_at for entry in found.store.ledger.deliveries_of("1.1")]
        assert retry_at is not None
        assert all(entry is not None and entry >= retry_at for entry in due)
        times[0] += timedelta(seconds=31)
        assert found.committer.ask_due() == 0
        there[0] = True
        times[0] += timedelta(seconds=31)
        assert found.committer.ask_due() == 1
        assert found.committer.ask_due() == 1
        wait_until(lambda: found.all_are(CommitmentState.COMMITTED), WITHIN_S, "the commitment")


def test_a_destination_without_the_service_is_asked_again_later(tmp_path: Path) -> None:
    archive = Archive()
    with Peer({CR: [EXPLICIT]}) as peer:
        archive.peer = peer
        with bench(tmp_path, archive) as found:
            found.deliver()
            found.committer.ask_due()
            assert found.states() == {CommitmentState.DUE}
            assert "no presentation context" in str(found.store.ledger.deliveries_of("1.1")[0].commitment_error)
