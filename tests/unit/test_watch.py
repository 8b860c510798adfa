"""Health, metrics and drift: what is said, of what, and that little is said of few images."""

import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from dicomnode.bundle.manifest import ScoreReference
from dicomnode.bundle.reader import Bundle, open_bundle
from dicomnode.bundle.scores import SCORE_BOUNDS, score_bound, score_counts
from dicomnode.certificates import Served
from dicomnode.domain.job import Accepted, NoAnswer, Rejection, RejectionReason, RetryPolicy, Stage, StudyAnswer
from dicomnode.domain.wilson import wilson
from dicomnode.settings import Settings, read_settings
from dicomnode.store import Store
from dicomnode.store.tallies import ADD_IMAGE, ADD_SCORE, OTHER_CALLERS, week_of
from dicomnode.watch.drift import Change, Rate, compare_rates, newcombe, shift
from dicomnode.watch.health import Running, alive, disk
from dicomnode.watch.metrics import MOST_LABELS, Metrics, sanitised
from dicomnode.watch.report import WatchReport, reference_rate
from dicomnode.watch.views import watch_pages
from dicomnode.watch.watched import Watched
from dicomnode.web.app import create_app
from dicomnode.web.parts import Parts
from tests.bundles import NIH_LABELS, make_bundle
from tests.stores import QUIET_S, accept, answer, at, claim, open_store, to
from tests.web import no_gallery

LABELS = tuple(name for name, _, _ in NIH_LABELS[:2])
ABNORMAL, OTHER = LABELS
NOW = at(20 * 7 * 86400)


@dataclass
class FakeNode:
    threads: dict[str, bool] = field(default_factory=lambda: {"worker": True, "sender-PACS": True})
    listens: bool = True
    refused: dict[tuple[str, str], int] = field(default_factory=dict)
    certificates: dict[str, Served] = field(default_factory=dict)

    def running(self) -> Running:
        return Running(
            threads=lambda: self.threads,
            listening=lambda: self.listens,
            associations=lambda: 2,
            accepted=lambda: 7,
            refused=lambda: self.refused,
            left_alone=lambda: {"PACS": True},
            certificates=lambda: self.certificates,
        )


@dataclass
class World:
    """A store, a bundle and settings, and what a scrape says of them."""

    settings: Settings
    store: Store
    bundle: Bundle
    node: FakeNode = field(default_factory=FakeNode)

    @property
    def watched(self) -> Watched:
        return Watched(
            settings=self.settings,
            store=self.store,
            bundle=self.bundle,
            operating_point="youden",
            running=self.node.running(),
            clock=lambda: NOW,
        )

    def scrape(self) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
        found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
        for family in text_string_to_metric_families(Metrics(self.watched).text().decode()):
            for sample in family.samples:
                found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
        return found

    def report(self) -> WatchReport:
        return self.watched.report()

    def study(self, number: int, seconds: float, probability: float, **more: Any) -> None:
        """Take in a study of one image and answer it with this probability of everything."""
        study = f"1.{number}"
        accept(self.store, study, seconds=seconds, over=study, **more)
        job = claim(self.store, seconds + QUIET_S)
        self.store.inbox.finish(
            job, self.scored(answer(job), job.instances[0].ref.sop_instance, probability), to("PACS"), at(seconds + 3)
        )

    def reject(self, number: int, seconds: float, reason: RejectionReason, **more: Any) -> None:
        study = f"1.{number}"
        accept(self.store, study, seconds=seconds, over=study, **more)
        job = claim(self.store, seconds + QUIET_S)
        given = Rejection(source=job.instances[0].ref, reason=reason, detail="no")
        self.store.inbox.finish(
            job, StudyAnswer(results=(), rejections=(given,), summary={}), to("PACS"), at(seconds + 3)
        )

    def scored(self, given: StudyAnswer, uid: str, probability: float) -> StudyAnswer:
        said = [
            {
                "label": label,
                "probability": probability,
                "spread": 0.0,
                "presence": "absent",
                "operating_point": "youden",
                "threshold": 0.5,
            }
            for label in LABELS
        ]
        identity = self.bundle.identity
        model = {"name": identity.name, "version": identity.version, "bundle_hash": identity.bundle_hash}
        one = {"sop_instance": uid, "abnormality": said[0], "findings": said[1:]}
        summary: dict[str, object] = {"model": model, "images": [one], "rejected": []}
        return replace(given, summary=summary, seconds={Stage.INFER: 0.3})

    def fill(self, week: int, shares: Mapping[float, int], *, calling_ae: str = "MODALITY") -> None:
        """Count images as if so many had come in a week with each probability."""
        facts: dict[str, object] = {
            "week": week_of(at(week * 7 * 86400)),
            "calling_ae": calling_ae,
            "outcome": "analysed",
            "bundle": self.bundle.identity.bundle_hash,
            "point": "youden",
            "undetermined": 0,
        }
        with self.store._database.transaction() as connection:
            for probability in (share for share, count in shares.items() for _ in range(count)):
                connection.execute(ADD_IMAGE, facts)
                scored = {"bound": score_bound(probability), "above": int(probability >= 0.5), "total": probability}
                for label in LABELS:
                    connection.execute(ADD_SCORE, facts | scored | {"label": label})


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
    parts = Parts(
        settings=world.settings, store=world.store, bundle=world.bundle, gallery=no_gallery(), clock=lambda: NOW
    )
    return TestClient(
        create_app(parts, extra=watch_pages(world.watched)), base_url="http://127.0.0.1", client=("127.0.0.1", 1)
    )


def with_reference(bundle: Bundle, *, positives: int, images: int, scores: ScoreReference | None = None) -> Bundle:
    """Return a bundle whose labels were derived on these images."""
    labels = tuple(
        label.model_copy(update={"positives": positives, "scores": scores}) for label in bundle.manifest.labels
    )
    provenance = bundle.manifest.provenance.model_copy(update={"images": images})
    return replace(bundle, manifest=bundle.manifest.model_copy(update={"labels": labels, "provenance": provenance}))


# Intervals and the index


def test_the_certificates_that_are_shown_are_told_with_their_end(world: World) -> None:
    assert "cxrnode_certificate_current" not in world.scrape()
    world.node.certificates = {
        "listener": Served(expires_at=at(0), is_current=True),
        "page": Served(expires_at=at(60), is_current=False),
    }
    scraped = world.scrape()
    assert scraped["cxrnode_certificate_current"] == {(("of", "listener"),): 1.0, (("of", "page"),): 0.0}
    expires = scraped["cxrnode_certificate_expires_timestamp_seconds"]
    assert expires[(("of", "page"),)] - expires[(("of", "listener"),)] == 60


def test_wilson_is_that_of_the_textbook() -> None:
    low, high = wilson(15, 148)
    assert (round(low, 4), round(high, 4)) == (0.0624, 0.1605), "Newcombe 1998, table I"
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(0, 20)[0] == 0.0
    assert round(wilson(0, 20)[1], 4) == 0.1611


def test_the_interval_of_a_difference_is_that_of_the_textbook() -> None:
    low, high = newcombe(Rate(hits=56, images=70), Rate(hits=48, images=80))
    assert (round(low, 4), round(high, 4)) == (0.0524, 0.3339), "Newcombe 1998, table II"


@pytest.mark.parametrize(("later", "former"), [((5, 99), (50, 1000)), ((50, 1000), (5, 99)), ((0, 0), (5, 1000))])
def test_of_few_images_nothing_is_said(later: tuple[int, int], former: tuple[int, int]) -> None:
    found = compare_rates(Rate(hits=later[0], images=later[1]), Rate(hits=former[0], images=former[1]))
    assert (found.change, found.difference) == (Change.FEW, None)
    assert shift((later[1],), (former[1],)).change is Change.FEW


@pytest.mark.parametrize(
    ("later", "change"),
    [
        (0.10, Change.NONE),
        (0.13, Change.SLIGHT),
        (0.17, Change.MODERATE),
        (0.40, Change.LARGE),
        (0.02, Change.MODERATE),
    ],
)
def test_a_difference_of_rates_has_a_size(later: float, change: Change) -> None:
    assert compare_rates(Rate(hits=round(later * 3000), images=3000), Rate(hits=300, images=3000)).change is change


def test_more_comparisons_ask_for_more() -> None:
    later, former = Rate(hits=66, images=500), Rate(hits=43, images=500)
    assert compare_rates(later, former).change is not Change.NONE
    assert compare_rates(later, former, comparisons=15).change is Change.NONE


def test_the_index_is_that_of_its_definition() -> None:
    found = shift((3000, 4000, 3000), (2000, 5000, 3000))
    assert found.psi == pytest.approx(0.1 * math.log(1.5) - 0.1 * math.log(0.8), rel=0.01)
    assert (found.bins, found.change) == (3, Change.SLIGHT)
    assert shift((100, 100, 800), (800, 100, 100)).change is Change.LARGE


def test_the_same_distribution_is_no_shift_however_often_it_is_drawn() -> None:
    draws = random.Random(4)
    flagged = 0
    for _ in range(400):
        former = score_counts(draws.betavariate(1, 8) for _ in range(500))
        later = score_counts(draws.betavariate(1, 8) for _ in range(200))
        flagged += shift(later, former).change is not Change.NONE
    assert flagged <= 0.08 * 400, "one of twenty is meant"


def test_rare_bins_are_joined_so_that_none_decides_alone() -> None:
    found = shift((0, 0, 990, 0, 10), (1, 2, 980, 3, 14))
    assert found.bins <= 2
    assert found.change in (Change.NONE, Change.UNKNOWN)


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
    verdict = world.watched.readiness()
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
    assert str(1 << 60) in disk(world.settings).reason


def test_a_store_that_takes_no_writes_is_not_ready(world: World) -> None:
    world.store._database.close()
    assert [check.name for check in failed(world)] == ["store"]


def failed(world: World) -> list[Any]:
    verdict = world.watched.readiness()
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
    assert found["cxrnode_destination_circuit_open"] == {(("destination", "PACS"),): 1}
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


def test_drift_is_a_metric(world: World) -> None:
    for week in (5, 6, 7):
        world.fill(week, {0.04: 170, 0.6: 30})
    world.fill(20, {0.6: 300})
    found = world.scrape()
    assert found["cxrnode_drift_level"][(("finding", ABNORMAL),)] == 3
    assert found["cxrnode_drift_psi"][(("finding", OTHER),)] > found["cxrnode_drift_psi_chance"][(("finding", OTHER),)]


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
    page = client(world).get("/watch").text
    assert "large difference" in page
    assert f"The scores of {ABNORMAL}, {OTHER} differ from this site's first weeks" in page
    assert "100.0 % (98.7–100.0)" in page
    assert "&lt;b&gt;CR&lt;/b&gt;" in page
    assert "<b>CR" not in page
    assert "holds no distribution of scores" in page


def test_the_page_of_an_empty_store_is_shown(world: World) -> None:
    page = client(world).get("/watch")
    assert page.status_code == 200
    assert "no images" in page.text
    assert "Nothing came in these weeks" in page.text


def test_a_bundle_says_how_scores_were_distributed_or_is_refused() -> None:
    with pytest.raises(ValueError, match="one count"):
        ScoreReference(bounds=(0.5, 1.0), counts=(1,))
    with pytest.raises(ValueError, match="one count"):
        ScoreReference(bounds=(0.5, 1.0), counts=(1, -1))
    with pytest.raises(ValueError, match="grow"):
        ScoreReference(bounds=(1.0, 0.5), counts=(1, 1))
