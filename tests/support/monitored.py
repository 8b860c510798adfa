"""A store, a bundle and a node that is none: what metrics, probes and reports are made of."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from dicomnode.bundle.manifest import ScoreReference
from dicomnode.bundle.reader import Bundle
from dicomnode.bundle.scores import score_bound
from dicomnode.certificates import ServedCertificate
from dicomnode.domain.answer import Rejection, RejectionReason, Stage, StudyAnswer
from dicomnode.domain.finding import Presence
from dicomnode.domain.summary import FindingSummary, ImageSummary, StudySummary
from dicomnode.monitoring.health import Running
from dicomnode.monitoring.metrics import Metrics
from dicomnode.monitoring.monitored_node import MonitoredNode
from dicomnode.monitoring.quality import QualityReport
from dicomnode.settings.node import Settings
from dicomnode.store import Store
from dicomnode.store.counters import ADD_IMAGE, ADD_SCORE, week_of
from tests.support.bundles import NIH_LABELS
from tests.support.stores import QUIET_S, accept, answer, at, claim, to

LABELS = tuple(name for name, _, _ in NIH_LABELS[:2])
ABNORMAL, OTHER = LABELS
NOW = at(20 * 7 * 86400)


@dataclass
class FakeNode:
    threads: dict[str, bool] = field(default_factory=lambda: {"worker": True, "sender-PACS": True})
    listens: bool = True
    refused: dict[tuple[str, str], int] = field(default_factory=dict)
    certificates: dict[str, ServedCertificate] = field(default_factory=dict)

    def running(self) -> Running:
        return Running(
            threads=lambda: self.threads,
            listening=lambda: self.listens,
            associations=lambda: 2,
            accepted=lambda: 7,
            refused=lambda: self.refused,
            circuit_breakers_open=lambda: {"PACS": True},
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
    def monitored(self) -> MonitoredNode:
        return MonitoredNode(
            settings=self.settings,
            store=self.store,
            bundle=self.bundle,
            operating_point="youden",
            running=self.node.running(),
            clock=lambda: NOW,
        )

    def scrape(self) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
        found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
        for family in text_string_to_metric_families(Metrics(self.monitored).text().decode()):
            for sample in family.samples:
                found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
        return found

    def report(self) -> QualityReport:
        return self.monitored.report()

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
        self.store.inbox.finish(job, StudyAnswer(results=(), rejections=(given,)), to("PACS"), at(seconds + 3))

    def scored(self, given: StudyAnswer, uid: str, probability: float) -> StudyAnswer:
        abnormality, *findings = (
            FindingSummary(
                label=label,
                probability=probability,
                spread=0.0,
                presence=Presence.ABSENT,
                operating_point="youden",
                threshold=0.5,
            )
            for label in LABELS
        )
        image = ImageSummary(sop_instance=uid, abnormality=abnormality, findings=tuple(findings))
        summary = StudySummary(model=self.bundle.identity, images=(image,))
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


def with_reference(bundle: Bundle, *, positives: int, images: int, scores: ScoreReference | None = None) -> Bundle:
    """Return a bundle whose labels were derived on these images."""
    labels = tuple(
        label.model_copy(update={"positives": positives, "scores": scores}) for label in bundle.manifest.labels
    )
    provenance = bundle.manifest.provenance.model_copy(update={"images": images})
    return replace(bundle, manifest=bundle.manifest.model_copy(update={"labels": labels, "provenance": provenance}))
