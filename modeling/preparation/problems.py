"""Problems of the input, counted and listed: no image is left out without a reason."""

import csv
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """The kind of a problem. The values are stable: reports contain them."""

    IMAGE_MISSING = "image-missing"
    IMAGE_WITHOUT_ROW = "image-without-row"
    IMAGE_TWICE = "image-twice"
    IMAGE_UNREADABLE = "image-unreadable"
    IMAGE_TOO_SMALL = "image-too-small"
    ROW_INCOMPLETE = "row-incomplete"
    ROW_TWICE = "row-twice"
    ROWS_CONTRADICT = "rows-contradict"
    LABEL_UNKNOWN = "label-unknown"
    LABELS_CONTRADICT = "labels-contradict"
    NO_BINARY_LABEL = "no-binary-label"
    IN_NO_LIST = "in-no-list"
    LISTED_WITHOUT_ROW = "listed-without-row"
    AGE_IMPLAUSIBLE = "age-implausible"
    FEW_POSITIVES = "few-positives"


KEPT = frozenset({Kind.AGE_IMPLAUSIBLE, Kind.FEW_POSITIVES, Kind.IMAGE_TWICE, Kind.ROW_TWICE})
"""Problems that do not exclude the image: its age is then unknown, or a repeated row or file counts once."""


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Problem:
    """One thing wrong with one image, row or file; `subject` is its name."""

    kind: Kind
    subject: str
    detail: str

    @property
    def skipped(self) -> bool:
        """Tell whether the problem excludes the image."""
        return self.kind not in KEPT


def counted(problems: Iterable[Problem]) -> dict[str, int]:
    """Return how often each kind occurred, by its name."""
    return dict(sorted(Counter(problem.kind.value for problem in problems).items()))


def as_csv(problems: Iterable[Problem]) -> str:
    """Return the list as a table: problem, subject, skipped, detail.

    Many rows without an image are one line: the full label table may be given with some of its images.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("problem", "subject", "skipped", "detail"))
    for problem in _with_missing_joined(sorted(problems)):
        writer.writerow((problem.kind.value, problem.subject, "yes" if problem.skipped else "no", problem.detail))
    return text.getvalue()


_NAMED_AT_MOST = 5
MISSING_LISTED_AT_MOST = 100
"""More rows without an image than these are listed as one line with their number."""


def first_few(names: Sequence[str]) -> str:
    """Return the first few names, for a message."""
    return ", ".join(names[:_NAMED_AT_MOST]) + (" …" if len(names) > _NAMED_AT_MOST else "")


def _with_missing_joined(problems: Sequence[Problem]) -> list[Problem]:
    missing = [problem.subject for problem in problems if problem.kind is Kind.IMAGE_MISSING]
    if len(missing) <= MISSING_LISTED_AT_MOST:
        return list(problems)
    joined = Problem(
        kind=Kind.IMAGE_MISSING,
        subject=f"{len(missing)} rows",
        detail=f"no files of these names: {first_few(missing)}",
    )
    return sorted([joined, *(problem for problem in problems if problem.kind is not Kind.IMAGE_MISSING)])
