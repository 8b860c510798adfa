"""From the ledger to an audit repository: nothing left out, nothing told twice, and nothing else waits for it."""

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

import pytest

from dicomnode.audit.message import Endpoint, Reporter
from dicomnode.audit.syslog import FileSink
from dicomnode.audit.trail import AuditTrail
from dicomnode.domain.audit import Alert, AuditKind, AuditRecord, InstanceTransfer
from dicomnode.domain.delivery import Accepted, Refused, RetryPolicy
from dicomnode.domain.errors import PeerUnavailable
from dicomnode.settings.node import AssemblySettings, RetentionSettings, StoreSettings
from dicomnode.store import Store
from tests.support.make import CANARY_ID, CANARY_NAME, build, encode, ref_of
from tests.support.stores import (
    CR,
    EXPLICIT_LE,
    QUIET_S,
    accept,
    answer,
    association,
    at,
    claim,
    open_store,
    rejection_of_all,
    to,
)

REPORTER = Reporter(node=Endpoint(user="CXRNODE", ae_title="CXRNODE", address="here"), source_id="CXRNODE")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path / "store") as opened:
        opened.audit.begin()
        yield opened


class MemorySink:
    """Remembers what it is told; `failing` as often as it says."""

    def __init__(self, failing: int = 0) -> None:
        self.lines: list[bytes] = []
        self.failing = failing

    def send(self, lines: Sequence[bytes]) -> None:
        if self.failing:
            self.failing -= 1
            raise PeerUnavailable("the audit repository is down")
        self.lines += lines


class Clock:
    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds

    def __call__(self) -> datetime:
        return at(self.seconds)


def trail(store: Store, sink: MemorySink | FileSink, clock: Clock) -> AuditTrail:
    return AuditTrail(
        store.audit, sink, REPORTER, read_blob=store.blobs.read, clock=clock, randomness=lambda: 0.5, host="here"
    )


def records(store: Store, seconds: float) -> tuple[AuditRecord, ...]:
    while store.audit.gather(at(seconds)):
        pass
    return store.audit.pending(1000)


def transfers(store: Store, seconds: float) -> list[InstanceTransfer]:
    return [record.about for record in records(store, seconds) if isinstance(record.about, InstanceTransfer)]


def deliver(store: Store, seconds: float, outcome: Accepted | Refused) -> None:
    for delivery in store.outbox.claim("pacs", 10, at(seconds)):
        store.outbox.record(delivery, outcome, at(seconds), RetryPolicy(), 0.5)


def test_what_came_over_one_association_of_one_study_is_one_record(store: Store) -> None:
    for number in range(3):
        accept(store, "1.1", number, seconds=number)
    accept(store, "1.9", seconds=3)
    store.reception.association_released("one", at(4))
    first, second = transfers(store, 10)
    assert (first.study, first.peer, first.address, first.action) == ("1.1", "MODALITY", "10.0.0.7", "C")
    assert first.instances == {CR: ["1.1.2.0", "1.1.2.1", "1.1.2.2"]}
    assert second.study == "1.9"


def test_a_record_waits_for_the_end_of_its_association_but_not_for_ever(store: Store) -> None:
    store.reception.association_opened("one", at(0))
    accept(store, seconds=0)
    assert transfers(store, 50) == []
    assert len(transfers(store, 61)) == 1


def test_a_clock_that_is_set_back_holds_up_no_record(store: Store) -> None:
    accept(store, seconds=7200)
    store.reception.association_released("one", at(7201))
    assert len(transfers(store, 0)) == 1


def test_what_came_again_is_told_with_what_it_changed(store: Store) -> None:
    accept(store, seconds=0)
    accept(store, seconds=1)
    accept(store, content=b"other", seconds=2)
    store.reception.association_released("one", at(3))
    assert [found.action for found in transfers(store, 10)] == ["C", "R", "U"]


def test_results_are_told_with_where_they_went_and_whether_they_got_there(store: Store) -> None:
    accept(store)
    store.reception.association_released("one", at(0))
    job = claim(store, 10)
    store.inbox.finish(job, answer(job), to("pacs"), at(11))
    deliver(store, 12, Accepted(warning=0xB000))
    (sent,) = [found for found in transfers(store, 20) if found.peer == "pacs"]
    assert (sent.study, sent.failure, sum(map(len, sent.instances.values()))) == ("1.1", "", 2)
    assert set(sent.instances) == {"1.2.840.10008.5.1.4.1.1.88.34", "1.2.840.10008.5.1.4.1.1.7"}


def test_a_fallback_is_told_as_what_really_went(store: Store) -> None:
    accept(store)
    store.reception.association_released("one", at(0))
    job = claim(store, 10)
    store.inbox.finish(job, answer(job), to("pacs"), at(11))
    other = ref_of(build("sc", study_uid="1.1"))
    for delivery in store.outbox.claim("pacs", 10, at(12)):
        store.outbox.record(delivery, Accepted(), at(12), RetryPolicy(), 0.5, sent_as=other)
    (sent,) = [found for found in transfers(store, 20) if found.peer == "pacs"]
    assert sent.instances == {other.sop_class: [other.sop_instance] * 2}


def test_a_dead_letter_is_told_as_a_failure_with_its_cause(store: Store) -> None:
    accept(store)
    store.reception.association_released("one", at(0))
    job = claim(store, 10)
    store.inbox.finish(job, answer(job), to("pacs"), at(11))
    deliver(store, 12, Refused(status=0xC001, cause="C001: cannot understand", permanent=True))
    (sent,) = [found for found in transfers(store, 20) if found.peer == "pacs"]
    assert sent.failure == "C001: cannot understand"


def test_an_old_ledger_is_not_told_when_the_trail_begins(tmp_path: Path) -> None:
    with open_store(tmp_path / "store") as store:
        accept(store, "1.1")
        store.audit.begin()
        accept(store, "1.2", seconds=1)
        assert [found.study for found in transfers(store, 100)] == ["1.2"]
        store.audit.begin()
        assert [found.study for found in transfers(store, 100)] == ["1.2"]


def test_events_far_more_than_are_read_at_once_are_each_told_once(store: Store) -> None:
    for number in range(450):
        accept(store, f"1.{number % 7}", number, seconds=number / 1000)
    told = [uid for found in transfers(store, 100) for uids in found.instances.values() for uid in uids]
    assert len(told) == len(set(told)) == 450


def test_a_crash_between_reading_the_ledger_and_telling_leaves_nothing_out_and_doubles_nothing(tmp_path: Path) -> None:
    class PowerLost(BaseException):
        pass

    class Failing(FileSink):
        def send(self, lines: Sequence[bytes]) -> None:
            super().send(lines)
            raise PowerLost

    file = tmp_path / "audit.log"
    with open_store(tmp_path / "store") as store:
        store.audit.begin()
        accept(store)
        with pytest.raises(PowerLost):
            trail(store, Failing(file), Clock(100)).step()
    assert len(file.read_bytes().splitlines()) == 1
    with open_store(tmp_path / "store") as store:
        trail(store, FileSink(file), Clock(200)).step()
        assert store.audit.waiting() == 0
    assert len(file.read_bytes().splitlines()) == 1


def test_a_line_that_power_cut_off_is_written_whole(tmp_path: Path) -> None:
    file = tmp_path / "audit.log"
    FileSink(file).send([b"one"])
    with file.open("ab") as opened:
        opened.write(b"tw")
    FileSink(file).send([b"two", b"three"])
    assert file.read_bytes() == b"one\ntwo\nthree\n"


def test_a_line_counts_as_told_once_it_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, synced, sync = tmp_path / "audit.log", [], os.fsync

    def failing_once(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_size)
        if len(synced) == 1:
            raise OSError(errno.EIO, "Input/output error")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", failing_once)
    with pytest.raises(PeerUnavailable, match="Input/output error"):
        FileSink(file).send([b"one"])
    FileSink(file).send([b"one"])
    assert synced == [4, 4]
    assert file.read_bytes() == b"one\n"


def test_the_file_is_its_owners_only_and_no_link_leads_elsewhere(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        FileSink(tmp_path / "new" / "audit.log").send([b"one"])
    finally:
        os.umask(before)
    for path, mode in ((tmp_path / "new", 0o700), (tmp_path / "new" / "audit.log", 0o600)):
        assert stat.S_IMODE(path.stat().st_mode) == mode
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PeerUnavailable):
        FileSink(tmp_path / "link").send([b"one"])


def test_a_repository_that_is_down_is_asked_again_later_and_told_everything_in_order(store: Store) -> None:
    sink, clock = MemorySink(failing=2), Clock(100)
    told = trail(store, sink, clock)
    accept(store, "1.1", seconds=0)
    told.step()
    accept(store, "1.2", seconds=0)
    told.step()
    assert sink.failing == 1
    clock.seconds += 1.5
    told.step()
    assert sink.failing == 0
    clock.seconds += 1.5
    told.step()
    assert sink.lines == []
    clock.seconds += 1.0
    assert told.step() == 2
    assert [b"1.1.2.1" in line for line in sink.lines] == [True, False]
    assert store.audit.waiting() == 0
    # Once told, its next failure is a first one again.
    accept(store, "1.3", seconds=0)
    sink.failing = 1
    told.step()
    clock.seconds += 1.5
    assert told.step() == 1


def test_the_patient_is_read_from_the_object_and_stands_nowhere_in_the_store(store: Store) -> None:
    ds = build("cr", study_uid="1.1")
    store.reception.accept(ref_of(ds), EXPLICIT_LE, encode(ds), association(), at(0))
    sink = MemorySink()
    told = trail(store, sink, Clock(100))
    assert records(store, 100)
    told.step()
    (line,) = sink.lines
    assert CANARY_ID.encode() in line
    assert CANARY_NAME.encode() in line


def test_an_object_that_cannot_be_read_leaves_it_to_another_of_the_study_to_name_the_patient(store: Store) -> None:
    ds = build("cr", study_uid="1.1")
    accept(store, "1.1", seconds=0)  # no DICOM at all
    store.reception.accept(ref_of(ds), EXPLICIT_LE, encode(ds), association(), at(1))
    store.reception.association_released("one", at(2))
    sink = MemorySink()
    trail(store, sink, Clock(100)).step()
    (line,) = sink.lines
    assert CANARY_ID.encode() in line


def test_the_patient_is_named_however_late_and_however_soon_files_are_removed(tmp_path: Path) -> None:
    ds = build("cr", study_uid="1.1")
    at_once = RetentionSettings(images_days=0.0, results_days=0.0)
    with Store.open(
        StoreSettings(path=tmp_path, minimum_free_bytes=0),
        AssemblySettings(quiet_s=QUIET_S),
        exclusive=True,
        retention=at_once,
        audited=True,
    ) as store:
        store.audit.begin()
        store.reception.accept(ref_of(ds), EXPLICIT_LE, encode(ds), association(), at(0))
        store.reception.association_released("one", at(1))
        job = claim(store, 10)
        store.inbox.finish(job, rejection_of_all(job), to("pacs"), at(11))
        sink, clock = MemorySink(failing=3), Clock(20)
        told = trail(store, sink, clock)
        while not sink.lines:
            store.retention.purge(clock())
            told.step()
            clock.seconds += 60
        assert CANARY_ID.encode() in sink.lines[0]
        assert store.retention.purge(clock()).files == 1


def test_an_object_that_names_nobody_is_told_all_the_same(store: Store) -> None:
    accept(store)
    sink = MemorySink()
    trail(store, sink, Clock(100)).step()
    assert b'ParticipantObjectID="(not stated)"' in sink.lines[0]


def test_start_and_stop_are_told_and_what_cannot_be_told_then_waits(store: Store) -> None:
    sink = MemorySink()
    told = trail(store, sink, Clock(100))
    told.start()
    accept(store, seconds=100)
    told.stop()
    assert [b"110120" in line for line in sink.lines] == [True, False, False]
    assert b"110121" in sink.lines[-1]
    down = trail(store, MemorySink(failing=1000), Clock(200))
    down.start()
    down.stop()
    assert [record.kind for record in store.audit.pending(10)] == ["application-start", "application-stop"]


def test_a_repository_that_is_back_when_the_node_stops_is_told_everything_then(store: Store) -> None:
    sink = MemorySink(failing=1)
    told = trail(store, sink, Clock(100))
    accept(store, seconds=0)
    told.step()
    assert sink.lines == []
    told.stop()
    assert len(sink.lines) == 2
    assert store.audit.waiting() == 0


def test_alerts_are_counted_and_bounded_whatever_peers_do(store: Store) -> None:
    told = trail(store, MemorySink(failing=1000), Clock(100))
    for number in range(2000):
        told.alert(f"10.0.{number % 500}.1", "STRANGER", "association-rejected: calling-ae")
    told.step()
    alerts = [record.about for record in store.audit.pending(1000) if record.kind is AuditKind.ALERT]
    assert len(alerts) <= 257
    assert sum(alert.times for alert in alerts if isinstance(alert, Alert)) == 2000


def test_a_record_survives_as_it_was_written(store: Store) -> None:
    about = Alert(address="::1", calling_ae="É", reason="connection-refused: not-dicom", times=3)
    store.audit.note(AuditKind.ALERT, about, at(1))
    assert store.audit.pending(1) == (AuditRecord(number=1, at=at(1), kind=AuditKind.ALERT, about=about),)
    store.audit.done(1)
    store.audit.note(AuditKind.APPLICATION_START, None, at(2))
    assert store.audit.pending(1)[0].number == 2


def test_who_was_shown_a_patient_is_told_with_the_patient(store: Store) -> None:
    ds = build("cr", study_uid="1.1")
    store.reception.accept(ref_of(ds), EXPLICIT_LE, encode(ds), association(), at(0))
    sink = MemorySink()
    told = trail(store, sink, Clock(100))
    told.shown("anna", "10.0.0.9", ["1.1"])
    told.step()
    line = next(line for line in sink.lines if b"110103" in line)
    for part in (b'UserID="anna"', b"10.0.0.9", b"1.1", CANARY_ID.encode(), CANARY_NAME.encode()):
        assert part in line
