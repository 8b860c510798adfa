"""A clock that jumps: whatever it does, every study is answered once, and soon."""

from pathlib import Path

import pytest

from dicomnode.domain.delivery import NoAnswer, RetryPolicy
from dicomnode.store.ledger import Balance
from tests.support.stores import accept, answer, at, claim, open_store, to

HOUR = 3600.0
POLICY = RetryPolicy(first_delay_s=600, max_delay_s=600, give_up_after_s=10 * HOUR)


def test_a_study_received_before_the_clock_was_set_back_is_answered_at_once(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        assert store.inbox.claim(at(0)) is None
        accept(store, seconds=1)
        assert store.inbox.claim(at(-HOUR)) is not None


def test_a_retry_planned_before_the_clock_was_set_back_is_due(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        accept(store)
        store.inbox.fail(claim(store, 10), "Transient", at(20), at(10))
        assert store.inbox.claim(at(-HOUR)) is not None


def test_a_delivery_planned_before_the_clock_was_set_back_is_due(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        accept(store)
        job = claim(store, 10)
        store.inbox.finish(job, answer(job), to("PACS"), at(10))
        for delivery in store.outbox.claim("PACS", 10, at(11)):
            store.outbox.record(delivery, NoAnswer(cause="no connection"), at(11), POLICY, 0.5)
        assert store.inbox.claim(at(-HOUR)) is None
        assert len(store.outbox.claim("PACS", 10, at(-HOUR))) == 2


def test_a_clock_set_back_while_no_node_ran_holds_nothing_up(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        accept(store)
    with open_store(tmp_path) as store:
        store.inbox.recover(at(-HOUR), maximum_attempts=5)
        assert store.inbox.claim(at(-HOUR)) is not None


def test_callers_that_read_the_clock_in_another_order_change_nothing(tmp_path: Path) -> None:
    """A study that is being received is not taken for one from the future."""
    with open_store(tmp_path) as store:
        store.inbox.claim(at(0.9))
        accept(store, seconds=1)
        assert store.inbox.claim(at(0.8)) is None
        assert store.inbox.claim(at(2.9)) is None
        assert store.inbox.claim(at(3)) is not None


@pytest.mark.parametrize("jump", [HOUR, 24 * HOUR, 365 * 24 * HOUR])
def test_a_clock_set_forward_loses_and_doubles_nothing(tmp_path: Path, jump: float) -> None:
    with open_store(tmp_path) as store:
        accept(store, number=1)
        job = claim(store, jump)
        accept(store, number=2, seconds=jump + 1)
        store.inbox.finish(job, answer(job), to("PACS"), at(jump + 2))
        late = claim(store, jump + 10)
        store.inbox.finish(late, answer(late), to("PACS"), at(jump + 11))
        assert [len(one.instances) for one in (job, late)] == [1, 2]
        assert store.ledger.balance() == Balance(pending=2)
        assert store.inbox.claim(at(2 * jump)) is None
