"""`cxrnode data summary`: what a data set holds, counted."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from modeling.preparation.records import FINDINGS
from modeling.preparation.tables import NO_FINDING

GROUPS: tuple[str, ...] = (NO_FINDING, *FINDINGS)
NOT_KNOWN = "not known"
_DECADE = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """What is known of one image. `findings` is None where only the binary label is known; `part`: fold or test."""

    name: str
    findings: tuple[str, ...] | None
    label: int | None = None
    patient: str | None = None
    view: str | None = None
    sex: str | None = None
    age: int | None = None
    part: str | None = None

    @property
    def groups(self) -> tuple[str, ...]:
        """Return the groups it is counted in: its findings, or No Finding."""
        if self.findings is None:
            return ()
        return self.findings or (NO_FINDING,)


@dataclass(frozen=True, slots=True, kw_only=True)
class FindingCount:
    """How common a finding is, and what goes with it: `ap_share` of its images with a known view are AP."""

    images: int
    patients: int
    ap_share: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ages:
    """Ages in whole years; `by_decade` counts images by sex, from each decade's first year."""

    known: int
    minimum: int | None
    median: float | None
    maximum: int | None
    by_decade: dict[int, dict[str, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One fold, or the test."""

    images: int
    patients: int
    findings: dict[str, int]
    binary_positives: int
    views: dict[str, int]
    sexes: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """What two lists, or a list and a part, share. Patients are those of the images the data tells of.

    `within`: every image of one is in the other, as a fold's are in the list it was drawn from.
    """

    first: str
    second: str
    images: int
    patients: int
    within: bool

    @property
    def leaks(self) -> bool:
        """Tell whether training on one and testing on the other would measure memory."""
        return bool(self.images or self.patients) and not self.within


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A list given beside the data: how many images it names, and how many of them the data does not tell of."""

    images: int
    not_in_data: int
    patients: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Counts of a data set. `cooccurrence`: a row and a column for each of `findings`, its images on the diagonal."""

    data: str
    images: int
    patients: int
    most_images_of_a_patient: int
    binary: dict[str, int]
    findings: dict[str, FindingCount]
    findings_in_an_image: dict[int, int]
    cooccurrence: tuple[tuple[int, ...], ...]
    views: dict[str, int]
    sexes: dict[str, int]
    ages: Ages
    parts: dict[str, Part]
    lists: dict[str, Listed]
    overlaps: tuple[Overlap, ...]


def summarise(data: str, images: Sequence[Image], lists: Mapping[str, Sequence[str]]) -> Summary:
    """Count everything. `lists`: image names by the name of a list; `data`: what the images are of, for the title."""
    patients = Counter(image.patient for image in images if image.patient is not None)
    parts = _parts(images)
    return Summary(
        data=data,
        images=len(images),
        patients=len(patients),
        most_images_of_a_patient=max(patients.values(), default=0),
        binary=_sorted(Counter(NOT_KNOWN if image.label is None else str(image.label) for image in images)),
        findings={group: _finding_count(images, group) for group in GROUPS},
        findings_in_an_image=dict(sorted(Counter(len(i.findings) for i in images if i.findings is not None).items())),
        cooccurrence=_cooccurrence(images),
        views=_sorted(Counter(image.view or NOT_KNOWN for image in images)),
        sexes=_sorted(Counter(image.sex or NOT_KNOWN for image in images)),
        ages=_ages(images),
        parts={name: _part(held) for name, held in parts.items()},
        lists=_listed(images, lists),
        overlaps=_overlaps(images, parts, lists),
    )


def _finding_count(images: Sequence[Image], group: str) -> FindingCount:
    held = [image for image in images if group in image.groups]
    viewed = [image.view for image in held if image.view in {"AP", "PA"}]
    return FindingCount(
        images=len(held),
        patients=len({image.patient for image in held if image.patient is not None}),
        ap_share=round(viewed.count("AP") / len(viewed), 4) if viewed else None,
    )


def _cooccurrence(images: Sequence[Image]) -> tuple[tuple[int, ...], ...]:
    present = np.array([[name in image.groups for name in FINDINGS] for image in images], dtype=np.int64)
    counts = present.reshape(-1, len(FINDINGS)).T @ present.reshape(-1, len(FINDINGS))
    return tuple(tuple(int(count) for count in row) for row in counts)


def _ages(images: Sequence[Image]) -> Ages:
    ages = [image.age for image in images if image.age is not None]
    decades: dict[int, Counter[str]] = defaultdict(Counter)
    for image in images:
        if image.age is not None:
            decades[image.age // _DECADE * _DECADE][image.sex or NOT_KNOWN] += 1
    return Ages(
        known=len(ages),
        minimum=min(ages, default=None),
        median=float(np.median(ages)) if ages else None,
        maximum=max(ages, default=None),
        by_decade={decade: _sorted(decades[decade]) for decade in sorted(decades)},
    )


def _parts(images: Sequence[Image]) -> dict[str, list[Image]]:
    parts: dict[str, list[Image]] = defaultdict(list)
    for image in images:
        if image.part is not None:
            parts[image.part].append(image)
    return dict(sorted(parts.items()))


def _part(images: Sequence[Image]) -> Part:
    counts = Counter(group for image in images for group in image.groups)
    return Part(
        images=len(images),
        patients=len({image.patient for image in images if image.patient is not None}),
        findings={group: counts[group] for group in GROUPS},
        binary_positives=sum(image.label == 1 for image in images),
        views=_sorted(Counter(image.view or NOT_KNOWN for image in images)),
        sexes=_sorted(Counter(image.sex or NOT_KNOWN for image in images)),
    )


def _listed(images: Sequence[Image], lists: Mapping[str, Sequence[str]]) -> dict[str, Listed]:
    patient_of = {image.name: image.patient for image in images}
    return {
        name: Listed(
            images=len(set(listed)),
            not_in_data=len(set(listed) - set(patient_of)),
            patients=len(_patients(set(listed), patient_of)),
        )
        for name, listed in lists.items()
    }


def _overlaps(
    images: Sequence[Image], parts: Mapping[str, Sequence[Image]], lists: Mapping[str, Sequence[str]]
) -> tuple[Overlap, ...]:
    patient_of = {image.name: image.patient for image in images}
    sets = {name: {image.name for image in held} for name, held in parts.items()}
    sets |= {name: set(listed) for name, listed in lists.items()}
    return tuple(
        Overlap(
            first=first,
            second=second,
            images=len(sets[first] & sets[second]),
            patients=len(_patients(sets[first], patient_of) & _patients(sets[second], patient_of)),
            within=sets[first] <= sets[second] or sets[second] <= sets[first],
        )
        for first, second in combinations(sets, 2)
    )


def _patients(names: set[str], patient_of: Mapping[str, str | None]) -> set[str]:
    return {patient for name in names if (patient := patient_of.get(name)) is not None}


def _sorted(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items()))
