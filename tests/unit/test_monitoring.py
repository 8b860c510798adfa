"""Health, metrics and reports of drift: what is said, and of what."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from dicomnode.bundle.manifest import ScoreReference
from dicomnode.bundle.reader import open_bundle
from dicomnode.bundle.scores import SCORE_BOUNDS, score_counts
from dicomnode.certificates import ServedCertificate
from dicomnode.domain.answer import RejectionReason
from dicomnode.domain.delivery import Accepted, NoAnswer, RetryPolicy
from dicomnode.monitoring.drift import Change, Rate
from dicomnode.monitoring.health import alive, disk
from dicomnode.monitoring.metrics import MOST_LABELS, sanitised
from dicomnode.monitoring.monitored_node import RecentReport
from dicomnode.monitoring.quality import reference_rate
from dicomnode.monitoring.views import monitoring_pages
from dicomnode.settings.node import read_settings
from dicomnode.store.counters import OTHER_CALLERS, week_of
from dicomnode.web.alarms import AlarmKind
from dicomnode.web.app import create_app
from dicomnode.web.context import PageContext
from tests.support.bundles import NIH_LABELS, make_bundle
from tests.support.monitored import ABNORMAL, NOW, OTHER, World, with_reference
from tests.support.stores import accept, at, open_store
from tests.support.web import no_gallery


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    config = tmp_path / "node.toml"
    config.write_text('[delivery]\ndestinations = [{ name = "PACS", ae_title = "PACS", host = "h", port = 104 }]\n')
    settings = read_settings(config, {"store": {"path": tmp_path / "store", "minimum_free_bytes": 0}})
    bundle = open_bundle(make_bundle(tmp_path / "bundle", labels=NIH_LABELS[:2]))
    made = World(settings=settings, store=open_store(tmp_path / "store"), bundle=bundle)
    yield made
    made.store.close()


def client(world: World) -> TestClient:
    context = PageContext(
        settings=world.settings,
        store=world.store,
        bundle=world.bundle,
        gallery=no_gallery(),
        clock=lambda: NOW,
        quality_alarms=RecentReport(world.monitored).alarms,
    )
    return TestClient(
        create_app(context, extra=monitoring_pages(world.monitored)),
        base_url="http://127.0.0.1",
        client=("127.0.0.1", 1),
    )


# The report


def test_a_rate_of_the_bundle_follows_from_its_operating_point(world: World) -> None:
    label = world.bundle.manifest.labels[0].model_copy(update={"positives": 100})
    assert reference_rate(label, "youden", 1000) == Rate(hits=350, images=1000), "0.8 of 100 and 0.3 of 900"


def test_the_last_weeks_are_compared_with_this_sites_first(world: World) -> None:
    for week in (5, 6, 7):
        world.fill(week, {0.04: 170, 0.6: 30})
    world.fill(12, {0.9: 300})
    for week in (17, 18, 19, 20):
        world.fill(week, {0.04: 50, 0.6: 50})
    report = world.report()
    assert report.baseline == (week_of(at(5 * 7 * 86400)), week_of(at(7 * 7 * 86400)))
    finding = report.findings[0]
    assert (finding.baseline.images, finding.recent) == (600, Rate(hits=200, images=400))
    assert finding.change is Change.LARGE
    assert finding.against_baseline.change is Change.LARGE
    assert report.worst is Change.LARGE
    assert finding.mean == pytest.approx(0.32)
    assert [rate.images for _, rate in finding.weekly] == [0, 0, 0, 300, 0, 0, 0, 0, 100, 100, 100, 100]


def test_a_site_without_a_past_is_told_so(world: World) -> None:
    world.fill(20, {0.6: 300})
    report = world.report()
    assert report.baseline is None
    assert {entry.change for entry in report.findings} == {Change.FEW}


def test_the_same_patients_as_before_are_no_change(world: World) -> None:
    for week in (*range(2, 6), *range(17, 21)):
        world.fill(week, {0.04: 120, 0.3: 25, 0.6: 30})
    assert {entry.change for entry in world.report().findings} == {Change.NONE}


def test_a_bundle_with_scores_is_a_reference_of_its_own(world: World) -> None:
    world.fill(20, {0.04: 300})
    assert world.report().findings[0].reference_shift.change is Change.UNKNOWN
    scores = ScoreReference(bounds=SCORE_BOUNDS, counts=score_counts([0.04] * 500 + [0.6] * 500))
    world.bundle = with_reference(world.bundle, positives=100, images=1000, scores=scores)
    finding = world.report().findings[0]
    assert finding.reference_shift.change is Change.LARGE
    assert finding.against_reference.change is Change.LARGE


def test_scores_in_other_bins_are_no_reference(world: World) -> None:
    world.fill(20, {0.04: 300})
    scores = ScoreReference(bounds=(0.5, 1.0), counts=(500, 500))
    world.bundle = with_reference(world.bundle, positives=100, images=1000, scores=scores)
    assert world.report().findings[0].reference_shift.change is Change.UNKNOWN


def test_rejections_are_told_by_sender_and_reason_without_own_results(world: World) -> None:
    week = 20 * 7 * 86400
    world.study(1, week, 0.1, calling_ae="CR1")
    world.reject(2, week + 10, RejectionReason.LATERAL_VIEW, calling_ae="CR1")
    world.reject(3, week + 20, RejectionReason.LATERAL_VIEW, calling_ae="CR1")
    world.reject(4, week + 30, RejectionReason.MODALITY, calling_ae="CT1")
    world.reject(5, week + 40, RejectionReason.OWN_RESULT, calling_ae="PACS")
    report = world.report()
    assert [(entry.calling_ae, entry.recent.hits, entry.recent.images, entry.reasons) for entry in report.callers] == [
        ("CR1", 2, 3, (("lateral-view", 2),)),
        ("CT1", 1, 1, (("modality", 1),)),
    ]
    assert (report.weeks[-1].analysed, report.weeks[-1].rejected) == (1, 3)
    assert {entry.against_before.change for entry in report.callers} == {Change.FEW}


# Health


def test_everything_in_order_is_ready(world: World) -> None:
    assert alive(world.node.running()).passed
    verdict = world.monitored.readiness()
    assert verdict.passed, verdict
    assert [check.name for check in verdict.checks] == ["threads", "listener", "store", "disk", "model"]


def test_a_loop_that_ended_is_named(world: World) -> None:
    world.node.threads["worker"] = False
    assert not alive(world.node.running()).passed
    (check,) = failed(world)
    assert (check.name, "worker" in check.reason) == ("threads", True)


def test_a_node_that_does_not_listen_is_not_ready(world: World) -> None:
    world.node.listens = False
    assert [check.name for check in failed(world)] == ["listener"]
    assert alive(world.node.running()).passed, "to restart it would not help"


def test_too_little_disk_is_not_ready(world: World) -> None:
    world.settings = read_settings(None, {"store": {"path": world.settings.store.path, "minimum_free_bytes": 1 << 60}})
    assert [check.name for check in failed(world)] == ["disk"]
    assert "at least 1048576.0 TiB must stay free" in disk(world.settings).reason


def test_a_store_that_takes_no_writes_is_not_ready(world: World) -> None:
    world.store._database.close()
    assert [check.name for check in failed(world)] == ["store"]


def failed(world: World) -> list[Any]:
    verdict = world.monitored.readiness()
    return [check for check in verdict.checks if not check.passed]


# Metrics


def test_metrics_agree_with_the_books(world: World) -> None:
    for number in range(3):
        world.study(number, 100.0 * number, 0.04 if number else 0.7)
    world.reject(9, 1000, RejectionReason.MODALITY, calling_ae="CT1")
    first, second, *_ = world.store.outbox.claim("PACS", 10, at(2000))
    world.store.outbox.record(first, Accepted(), at(2001), RetryPolicy(), 0.5)
    world.store.outbox.record(second, NoAnswer(cause="no"), at(2002), RetryPolicy(), 0.5)
    accept(world.store, "1.99", seconds=3000, over="last")
    found = world.scrape()
    assert found["cxrnode_answers_total"][(("outcome", "answered"),)] == 3
    assert found["cxrnode_answers_total"][(("outcome", "rejected"),)] == 1
    assert found["cxrnode_images_total"] == {(("outcome", "analysed"),): 3, (("outcome", "modality"),): 1}
    assert found["cxrnode_caller_images_total"][(("calling_ae", "CT1"), ("outcome", "rejected"))] == 1
    assert found["cxrnode_score_count"][(("finding", ABNORMAL),)] == 3
    assert found["cxrnode_score_bucket"][(("finding", ABNORMAL), ("le", "0.05"))] == 2
    assert found["cxrnode_findings_total"][(("finding", ABNORMAL), ("reading", "above"))] == 1
    assert found["cxrnode_stage_seconds_count"][(("stage", "infer"),)] == 3
    assert found["cxrnode_stage_seconds_sum"][(("stage", "infer"),)] == pytest.approx(0.9)
    assert found["cxrnode_stage_seconds_bucket"][(("le", "0.25"), ("stage", "infer"))] == 0
    assert found["cxrnode_stage_seconds_bucket"][(("le", "+Inf"), ("stage", "infer"))] == 3
    assert found["cxrnode_stage_seconds_count"][(("stage", "send"),)] == 2
    assert found["cxrnode_studies"][(("state", "collecting"),)] == 1
    assert found["cxrnode_oldest_study_seconds"][(("state", "collecting"),)] == (NOW - at(3000)).total_seconds()
    assert found["cxrnode_deliveries_waiting"] == {(("destination", "PACS"),): 5}
    assert found["cxrnode_delivery_attempts_total"][(("destination", "PACS"), ("outcome", "failed"))] == 1
    assert found["cxrnode_destination_up"] == {(("destination", "PACS"),): 0}
    assert found["cxrnode_destination_circuit_breaker_open"] == {(("destination", "PACS"),): 1}
    assert found["cxrnode_destination_circuit_open"] == found["cxrnode_destination_circuit_breaker_open"]
    assert found["cxrnode_associations_accepted_total"] == {(): 7}
    assert found["cxrnode_store_readable"] == {(): 1}
    assert found["cxrnode_model_info"] != {}


def test_metrics_are_the_same_after_a_restart(world: World, tmp_path: Path) -> None:
    world.study(1, 0, 0.3)
    before = world.scrape()
    world.store.close()
    world.store = open_store(tmp_path / "store")
    after = world.scrape()
    books = [name for name in before if name.startswith("cxrnode_") and "disk" not in name]
    assert {name: after[name] for name in books} == {name: before[name] for name in books}


def test_no_metric_names_a_study_an_image_or_a_peer_as_it_liked(world: World) -> None:
    world.study(77, 0, 0.3, calling_ae='A"}\n\u00e9\x00x{y="')
    text = client(world).get("/metrics").text
    assert "1.77" not in text
    assert 'calling_ae="A\\"}???x{y=\\""' in text
    assert sanitised("") == "?"
    assert len(sanitised("x" * 99)) == 16


def test_peers_and_reasons_do_not_become_labels_without_end(world: World) -> None:
    for number in range(MOST_LABELS + 5):
        world.study(number, 10.0 * number, 0.3, calling_ae=f"AE{number}")
    world.node.refused = {("association-rejected", f"reason {number}"): 1 for number in range(500)}
    found = world.scrape()
    callers = {dict(labels)["calling_ae"] for labels in found["cxrnode_caller_images_total"]}
    assert len(callers) == MOST_LABELS + 1
    assert found["cxrnode_caller_images_total"][(("calling_ae", OTHER_CALLERS), ("outcome", "analysed"))] == 5
    assert sum(found["cxrnode_refusals_total"].values()) == 500
    assert len(found["cxrnode_refusals_total"]) == 2 * MOST_LABELS + 1


def test_of_a_store_that_cannot_be_read_the_metrics_say_so(world: World) -> None:
    world.store._database.close()
    found = world.scrape()
    assert found["cxrnode_store_readable"] == {(): 0}
    assert found["cxrnode_ready"][(("check", "store"),)] == 0
    assert "cxrnode_answers_total" not in found


def test_the_certificates_that_are_shown_are_told_with_their_end(world: World) -> None:
    assert "cxrnode_certificate_current" not in world.scrape()
    world.node.certificates = {
        "listener": ServedCertificate(expires_at=at(0), is_current=True),
        "page": ServedCertificate(expires_at=at(60), is_current=False),
    }
    scraped = world.scrape()
    assert scraped["cxrnode_certificate_current"] == {(("of", "listener"),): 1.0, (("of", "page"),): 0.0}
    expires = scraped["cxrnode_certificate_expires_timestamp_seconds"]
    assert expires[(("of", "page"),)] - expires[(("of", "listener"),)] == 60


def test_drift_is_a_metric(world: World) -> None:
    for week in (5, 6, 7):
        world.fill(week, {0.04: 170, 0.6: 30})
    world.fill(20, {0.6: 300})
    found = world.scrape()
    assert found["cxrnode_drift_level"][(("finding", ABNORMAL),)] == 3
    assert found["cxrnode_drift_psi"][(("finding", OTHER),)] > found["cxrnode_drift_psi_chance"][(("finding", OTHER),)]


def test_drift_is_an_alarm_of_every_page(world: World) -> None:
    assert RecentReport(world.monitored).alarms() == ()
    for week in (5, 6, 7):
        world.fill(week, {0.04: 170, 0.6: 30})
    world.fill(20, {0.6: 300})
    (alarm,) = RecentReport(world.monitored).alarms()
    assert alarm.kind is AlarmKind.DRIFT
    assert ABNORMAL in alarm.text
    assert alarm.text.partition(" from ")[0] in client(world).get("/model").text


# Views


def test_probes_answer_with_their_checks(world: World) -> None:
    web = client(world)
    assert (web.get("/healthz").status_code, web.get("/readyz").status_code) == (200, 200)
    world.node.listens = False
    answered = web.get("/readyz")
    assert answered.status_code == 503
    assert answered.json()["checks"]["listener"]["passed"] is False
    assert web.get("/healthz").status_code == 200
    world.node.threads["worker"] = False
    assert web.get("/healthz").status_code == 503


def test_the_page_shows_rates_with_intervals_and_says_what_it_cannot_tell(world: World) -> None:
    for week in (5, 6, 7):
        world.fill(week, {0.04: 170, 0.6: 30})
    world.fill(20, {0.6: 300}, calling_ae="<b>CR</b>")
    assert client(world).get("/watch", follow_redirects=False).headers["location"] == "/monitoring"
    page = client(world).get("/monitoring").text
    assert "large difference" in page
    assert f"The scores of {ABNORMAL}, {OTHER} differ from this site's first weeks" in page
    assert "100.0 % (98.7–100.0)" in page
    assert "&lt;b&gt;CR&lt;/b&gt;" in page
    assert "<b>CR" not in page
    assert "has no distribution of scores" in page


def test_the_page_of_an_empty_store_is_shown(world: World) -> None:
    page = client(world).get("/monitoring")
    assert page.status_code == 200
    assert "no images" in page.text
    assert "No image arrived in these weeks" in page.text


def test_a_bundle_says_how_scores_were_distributed_or_is_refused() -> None:
    with pytest.raises(ValueError, match="one count"):
        ScoreReference(bounds=(0.5, 1.0), counts=(1,))
    with pytest.raises(ValueError, match="one count"):
        ScoreReference(bounds=(0.5, 1.0), counts=(1, -1))
    with pytest.raises(ValueError, match="grow"):
        ScoreReference(bounds=(1.0, 0.5), counts=(1, 1))
