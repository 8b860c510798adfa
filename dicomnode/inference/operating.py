"""Scores read at operating points become findings."""

from collections.abc import Sequence

from dicomnode.bundle.manifest import CodeEntry, LabelEntry, Manifest
from dicomnode.domain.errors import ConfigurationError
from dicomnode.domain.finding import Code, Finding, OperatingPoint, Presence, Score
from dicomnode.domain.terminology import ABNORMAL

_DISAGREEMENT = 0.4
"""Share of members that must vote against the others before their disagreement counts (2 of 5)."""


def choose_operating_point(manifest: Manifest, name: str | None) -> str:
    """Return the operating point to use: the one asked for, or the bundle's default.

    Raises: ConfigurationError, naming those that the bundle has.
    """
    chosen = name or manifest.default_operating_point
    common = set.intersection(*(set(label.operating_points) for label in manifest.labels))
    if chosen not in common:
        raise ConfigurationError(
            f"the bundle has no operating point {chosen!r} for all labels; it has {', '.join(sorted(common))}"
        )
    return chosen


def findings_of(scores: Sequence[Score], manifest: Manifest, operating_point: str) -> tuple[Finding, ...]:
    """Return one finding per score, in the manifest's order, abnormality first."""
    return tuple(
        _finding(score, label, manifest, operating_point) for score, label in zip(scores, manifest.labels, strict=True)
    )


def presence_of(score: Score, threshold: float, undetermined_spread: float) -> Presence:
    """Read one score at a threshold.

    Undetermined: the members' probabilities spread by at least `undetermined_spread` and at least two fifths of them
    stand on the other side of the threshold.
    """
    votes = sum(p >= threshold for p in score.member_probabilities)
    minority = min(votes, len(score.member_probabilities) - votes) / len(score.member_probabilities)
    if score.spread >= undetermined_spread and minority >= _DISAGREEMENT:
        return Presence.UNDETERMINED
    return Presence.PRESENT if score.probability >= threshold else Presence.ABSENT


def _finding(score: Score, label: LabelEntry, manifest: Manifest, name: str) -> Finding:
    entry = label.operating_points[name]
    return Finding(
        label=label.name,
        code=_code(label.code) or ABNORMAL.code,
        site=_code(label.site),
        probability=score.probability,
        spread=score.spread,
        operating_point=OperatingPoint(
            name=name,
            threshold=entry.threshold,
            sensitivity=entry.sensitivity,
            specificity=entry.specificity,
            derived_on=entry.derived_on,
            chosen_by=entry.chosen_by,
        ),
        presence=presence_of(score, entry.threshold, manifest.undetermined_spread),
        base_rate=manifest.base_rate(label),
    )


def _code(entry: CodeEntry | None) -> Code | None:
    return None if entry is None else Code(value=entry.value, scheme=entry.scheme, meaning=entry.meaning)
