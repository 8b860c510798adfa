"""The report on quality: the last weeks compared with this site's first weeks, and with the bundle's reference.

The bundle's reference are the images on which its operating points were derived. They are of another place and usually
enriched with findings, so a difference from them is expected; a difference from this site's own past needs an
explanation. Bundles that hold `scores` have the whole distribution. Those are scores of single members, so the
distribution of the served mean of all members is narrower.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from dicomnode.bundle.manifest import LabelEntry, Manifest
from dicomnode.bundle.scores import SCORE_BOUNDS
from dicomnode.monitoring.drift import Change, Rate, RateComparison, Shift, compare_rates, shift
from dicomnode.store.counters import ANALYSED, Watching, WeeklyImages, WeeklyScores, week_of

WEEKS_SHOWN = 12
RECENT_WEEKS = 4
BASELINE_IMAGES = 500
"""The site's own reference is its first weeks with a bundle, as many as hold this number of images."""

OWN_RESULT = "own-result"


@dataclass(frozen=True, slots=True, kw_only=True)
class Week:
    """The images of one week, by outcome."""

    week: str
    analysed: int
    rejected: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FindingQuality:
    """One label: the share of images at or above its threshold in the last weeks, the first weeks, and the bundle.

    `weekly`: the rate of each shown week, with the week's name. `disagreed`: the images of the last weeks on which the
    ensemble's members disagreed.
    """

    label: str
    threshold: float
    recent: Rate
    baseline: Rate
    reference: Rate
    disagreed: Rate
    mean: float | None
    weekly: tuple[tuple[str, Rate], ...]
    against_baseline: RateComparison
    against_reference: RateComparison
    shift: Shift
    reference_shift: Shift

    @property
    def change(self) -> Change:
        """The verdict on its scores, compared with this site's first weeks."""
        return self.shift.change


@dataclass(frozen=True, slots=True, kw_only=True)
class CallerQuality:
    """The images of one calling AE title in the last weeks: share and reasons of rejections, compared with before."""

    calling_ae: str
    recent: Rate
    before: Rate
    reasons: tuple[tuple[str, int], ...]
    against_before: RateComparison


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityReport:
    """The report on one bundle at one operating point.

    `since`: the first of the recent weeks. `baseline`: the first and the last week of the site's own reference; None
    while there are no weeks before the recent ones.
    """

    made_at: datetime
    operating_point: str
    since: str
    baseline: tuple[str, str] | None
    weeks: tuple[Week, ...]
    findings: tuple[FindingQuality, ...]
    callers: tuple[CallerQuality, ...]

    @property
    def worst(self) -> Change:
        """The gravest verdict on any finding's scores."""
        order = list(Change)
        return max((entry.change for entry in self.findings), key=order.index, default=Change.UNKNOWN)


def quality_report(
    watching: Watching, manifest: Manifest, bundle_hash: str, operating_point: str, now: datetime
) -> QualityReport:
    """Compare the last four weeks, including this one, with the site's first weeks and with the bundle's reference.

    Raises: StoreUnavailable.
    """
    since = week_of(now - timedelta(weeks=RECENT_WEEKS - 1))
    images = watching.images()
    scores = watching.scores(bundle_hash, operating_point)
    baseline = _baseline_weeks(scores, since)
    by_label: dict[str, list[WeeklyScores]] = {}
    for entry in scores:
        by_label.setdefault(entry.label, []).append(entry)
    weeks = tuple(week_of(now - timedelta(weeks=age)) for age in reversed(range(WEEKS_SHOWN)))
    return QualityReport(
        made_at=now,
        operating_point=operating_point,
        since=since,
        baseline=(baseline[0], baseline[-1]) if baseline else None,
        weeks=tuple(_week(week, images) for week in weeks),
        findings=tuple(
            _finding(label, manifest, operating_point, by_label.get(label.name, []), since, baseline, weeks)
            for label in manifest.labels
        ),
        callers=_callers(images, since),
    )


def reference_rate(label: LabelEntry, operating_point: str, images: int) -> Rate:
    """Return the share of the bundle's reference images at or above the threshold.

    It follows from sensitivity, specificity and number of positives, if the label is known of each of `images`.
    """
    point = label.operating_points[operating_point]
    known = max(images, label.positives)
    hits = point.sensitivity * label.positives + (1 - point.specificity) * (known - label.positives)
    return Rate(hits=round(hits), images=known)


def _baseline_weeks(scores: Sequence[WeeklyScores], since: str) -> tuple[str, ...]:
    """Return the first weeks that together hold enough images, of those before the recent ones."""
    images: dict[str, int] = {}
    for entry in scores:
        if entry.week < since:
            images[entry.week] = max(images.get(entry.week, 0), entry.images)
    found: list[str] = []
    images_counted = 0
    for week in sorted(images):
        if images_counted >= BASELINE_IMAGES:
            break
        found.append(week)
        images_counted += images[week]
    return tuple(found)


def _week(week: str, images: Sequence[WeeklyImages]) -> Week:
    of_week = [entry for entry in images if entry.week == week and entry.outcome != OWN_RESULT]
    return Week(
        week=week,
        analysed=sum(entry.images for entry in of_week if entry.outcome == ANALYSED),
        rejected=sum(entry.images for entry in of_week if entry.outcome != ANALYSED),
    )


def _finding(
    label: LabelEntry,
    manifest: Manifest,
    point: str,
    scores: Sequence[WeeklyScores],
    since: str,
    baseline: Sequence[str],
    weeks: Sequence[str],
) -> FindingQuality:
    recent = [entry for entry in scores if entry.week >= since]
    first = [entry for entry in scores if entry.week in baseline]
    by_week = {entry.week: entry for entry in scores}
    comparisons = len(manifest.labels)
    recent_rate, first_rate = _above(recent), _above(first)
    reference = reference_rate(label, point, manifest.provenance.images)
    images_scored = sum(entry.images for entry in recent)
    return FindingQuality(
        label=label.name,
        threshold=label.operating_points[point].threshold,
        recent=recent_rate,
        baseline=first_rate,
        reference=reference,
        disagreed=Rate(hits=sum(entry.undetermined for entry in recent), images=images_scored),
        mean=sum(entry.total for entry in recent) / images_scored if images_scored else None,
        weekly=tuple((week, _above([by_week[week]] if week in by_week else [])) for week in weeks),
        against_baseline=compare_rates(recent_rate, first_rate, comparisons=comparisons),
        against_reference=compare_rates(recent_rate, reference, comparisons=comparisons),
        shift=shift(_counts(recent), _counts(first), comparisons=comparisons),
        reference_shift=_reference_shift(recent, label, comparisons),
    )


def _reference_shift(recent: Sequence[WeeklyScores], label: LabelEntry, comparisons: int) -> Shift:
    if label.scores is None or label.scores.bounds != SCORE_BOUNDS:
        return Shift(psi=None, chance=None, bins=0, change=Change.UNKNOWN)
    return shift(_counts(recent), label.scores.counts, comparisons=comparisons)


def _above(scores: Sequence[WeeklyScores]) -> Rate:
    return Rate(hits=sum(entry.above for entry in scores), images=sum(entry.images for entry in scores))


def _counts(scores: Sequence[WeeklyScores]) -> tuple[int, ...]:
    return (
        tuple(map(sum, zip(*(entry.counts for entry in scores), strict=True))) if scores else (0,) * len(SCORE_BOUNDS)
    )


def _callers(images: Sequence[WeeklyImages], since: str) -> tuple[CallerQuality, ...]:
    """Return the senders of the last weeks, the most images first, without the node's own results that came back."""
    by_caller: dict[str, list[WeeklyImages]] = {}
    for entry in images:
        if entry.outcome != OWN_RESULT:
            by_caller.setdefault(entry.calling_ae, []).append(entry)
    found = [_caller(name, entries, since, len(by_caller)) for name, entries in by_caller.items()]
    return tuple(sorted((entry for entry in found if entry.recent.images), key=lambda entry: -entry.recent.images))


def _caller(name: str, entries: Sequence[WeeklyImages], since: str, callers: int) -> CallerQuality:
    recent = [entry for entry in entries if entry.week >= since]
    reasons: dict[str, int] = {}
    for entry in recent:
        if entry.outcome != ANALYSED:
            reasons[entry.outcome] = reasons.get(entry.outcome, 0) + entry.images
    now, before = _rejected(recent), _rejected([entry for entry in entries if entry.week < since])
    return CallerQuality(
        calling_ae=name,
        recent=now,
        before=before,
        reasons=_most_first(reasons),
        against_before=compare_rates(now, before, comparisons=callers),
    )


def _rejected(entries: Sequence[WeeklyImages]) -> Rate:
    return Rate(
        hits=sum(entry.images for entry in entries if entry.outcome != ANALYSED),
        images=sum(entry.images for entry in entries),
    )


def _most_first(counts: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(counts.items(), key=lambda entry: (-entry[1], entry[0])))
