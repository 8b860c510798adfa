"""Training and test images: official lists and folds, none of which share a patient."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from sklearn.model_selection import StratifiedGroupKFold

from dicomnode.domain.errors import ConfigurationError
from modeling.files import write_durably
from modeling.preparation.problems import Kind, Problem, first_few
from modeling.preparation.records import FINDINGS
from modeling.preparation.tables import Entry, read_list

TRAIN_VAL, TEST = "train_val", "test"


@dataclass(frozen=True, slots=True, kw_only=True)
class OfficialSplit:
    """The images of NIH's two lists, or of a random split like them."""

    train_val: frozenset[str]
    test: frozenset[str]

    def side_of(self, name: str) -> str | None:
        """Return the list that names an image, or None."""
        if name in self.test:
            return TEST
        return TRAIN_VAL if name in self.train_val else None


def read_official_split(folder: Path) -> OfficialSplit:
    """Read `train_val_list.txt` and `test_list.txt`, plain or gzip.

    Raises: ConfigurationError when a list is missing, or an image stands in both.
    """
    lists = {side: frozenset(read_list(_list_file(folder, f"{side}_list.txt"))) for side in (TRAIN_VAL, TEST)}
    both = sorted(lists[TRAIN_VAL] & lists[TEST])
    if both:
        raise ConfigurationError(f"{len(both)} images are in both lists of {folder}: {first_few(both)}")
    return OfficialSplit(train_val=lists[TRAIN_VAL], test=lists[TEST])


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitShares:
    """Percentages of a random split: of training, validation and test images; they sum to 100."""

    training: int
    validation: int
    test: int

    @property
    def folds(self) -> int:
        """Return the number of folds of which one has the validation's share."""
        return round((self.training + self.validation) / self.validation)


def parse_shares(text: str) -> SplitShares:
    """Return the shares of a text such as `80/5/15`.

    Raises: ConfigurationError when they are not three percentages that sum to 100.
    """
    parts = text.split("/")
    if len(parts) != 3 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ConfigurationError(
            f"a random split is TRAINING/VALIDATION/TEST in percent, such as 80/5/15, not {text!r}"
        )
    training, validation, test = map(int, parts)
    if training + validation + test != 100:
        raise ConfigurationError(f"the shares of a random split sum to {training + validation + test}, not to 100")
    if validation > training:
        raise ConfigurationError("the validation share of a random split is no larger than the training share")
    return SplitShares(training=training, validation=validation, test=test)


def random_split(entries: Sequence[Entry], shares: SplitShares, *, seed: int) -> OfficialSplit:
    """Return a split in which random patients, with about the test's share of the images, are the test.

    The order of patients follows a hash of the seed and the patient, which no library's next version changes.

    Raises: ConfigurationError when there are too few patients for both sides.
    """
    images: dict[str, list[str]] = {}
    for entry in entries:
        images.setdefault(entry.patient, []).append(entry.name)
    wanted = len(entries) * shares.test / 100
    test: list[str] = []
    for patient in sorted(images, key=lambda name: hashlib.sha256(f"{seed}\0{name}".encode()).digest()):
        if len(test) + len(images[patient]) / 2 > wanted:
            break
        test += images[patient]
    train_val = {entry.name for entry in entries} - set(test)
    if not test or not train_val:
        raise ConfigurationError(f"{len(images)} patients are too few for a random split with {shares.test} % test")
    return OfficialSplit(train_val=frozenset(train_val), test=frozenset(test))


def write_lists(folder: Path, split: OfficialSplit) -> None:
    """Write `train_val_list.txt` and `test_list.txt`, as NIH's official split has them."""
    for name, images in ((TRAIN_VAL, split.train_val), (TEST, split.test)):
        write_durably(folder / f"{name}_list.txt", "".join(f"{image}\n" for image in sorted(images)).encode())


def require_no_shared_patient(entries: Sequence[Entry], split: OfficialSplit) -> None:
    """Check that no patient is on both sides of the split.

    Raises: ConfigurationError, saying how many are.
    """
    patients: dict[str | None, set[str]] = {TRAIN_VAL: set(), TEST: set(), None: set()}
    for entry in entries:
        patients[split.side_of(entry.name)].add(entry.patient)
    both = sorted(patients[TRAIN_VAL] & patients[TEST])
    if both:
        # Patient identifiers stay out of messages.
        raise ConfigurationError(
            f"{len(both)} patients are on both sides of the split: a test on them would not be independent"
        )


def assign_folds(entries: Sequence[Entry], source_px: Sequence[int], *, folds: int, seed: int) -> npt.NDArray[np.int64]:
    """Return each image's fold, (N,); all images of a patient share one.

    Folds are stratified by an image's rarest finding and by the side it came in, since sources and labels are
    confounded in subsets.

    Raises: ConfigurationError when there are fewer patients than folds.
    """
    patients = np.array([entry.patient for entry in entries])
    if len(set(patients)) < folds:
        raise ConfigurationError(f"{folds} folds need at least as many patients, not {len(set(patients))}")
    strata = _strata(entries, source_px, folds)
    splitter = StratifiedGroupKFold(n_splits=folds, shuffle=True, random_state=seed)
    assigned = np.empty(len(entries), dtype=np.int64)
    for fold, (_, held_out) in enumerate(splitter.split(strata, strata, groups=patients)):
        assigned[held_out] = fold
    return assigned


def few_positives(positives: Mapping[int, Mapping[str, int]], minimum: int) -> tuple[Problem, ...]:
    """Return a problem for every finding that has positives, but in first_few fold fewer than `minimum`.

    `positives`: the count of each finding by fold.
    """
    problems = []
    for finding in FINDINGS:
        counts = {fold: by_finding.get(finding, 0) for fold, by_finding in sorted(positives.items())}
        least = min(counts, key=lambda fold: counts[fold])
        if sum(counts.values()) and counts[least] < minimum:
            detail = f"fold {least} holds {counts[least]} of {sum(counts.values())} positives, needs {minimum}"
            problems.append(Problem(kind=Kind.FEW_POSITIVES, subject=finding, detail=detail))
    return tuple(problems)


def require_positives(problems: Sequence[Problem]) -> None:
    """Raise ConfigurationError when a finding has too few positives for a fold."""
    if problems:
        listed = "; ".join(f"{problem.subject}: {problem.detail}" for problem in problems)
        raise ConfigurationError(
            f"too few positives for a fold: {listed}. Use fewer folds, or accept it with --min-positives 0"
        )


def _list_file(folder: Path, name: str) -> Path:
    found = [path for path in (folder / name, folder / f"{name}.gz") if path.is_file()]
    if not found:
        raise ConfigurationError(f"{folder} lacks {name}, plain or gzip")
    return found[0]


def _strata(entries: Sequence[Entry], source_px: Sequence[int], folds: int) -> npt.NDArray[np.int64]:
    """Return each image's stratum, (N,), every stratum with at least as many images as folds, if there are so many.

    A stratum too small joins those of the same finding, and then the largest of all.
    """
    frequency = Counter(finding for entry in entries for finding in entry.findings)
    rarest = [min(entry.findings, key=lambda name: (frequency[name], name), default="") for entry in entries]
    by_source = [(finding, px) for finding, px in zip(rarest, source_px, strict=True)]
    sizes = Counter(by_source)
    merged = [key if sizes[key] >= folds else (key[0], 0) for key in by_source]
    sizes = Counter(merged)
    largest = max(sizes, key=lambda key: (sizes[key], key))
    final = [key if sizes[key] >= folds else largest for key in merged]
    order = {key: number for number, key in enumerate(sorted(set(final)))}
    return np.array([order[key] for key in final], dtype=np.int64)
