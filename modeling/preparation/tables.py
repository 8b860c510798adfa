"""Label tables and lists of images, plain or gzip: NIH's `Data_Entry_2017`, a subset's manifest, official lists."""

import csv
import gzip
import io
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from dicomnode.domain.errors import ConfigurationError
from modeling.preparation.problems import Kind, Problem, first_few
from modeling.preparation.records import FINDINGS

NO_FINDING = "No Finding"
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".dcm", ".dicom"})

_COLUMNS = {
    "name": ("Image Index", "image"),
    "findings": ("Finding Labels", "labels"),
    "patient": ("Patient ID", "patient"),
    "view": ("View Position", "view"),
    "sex": ("Patient Gender", "Patient Sex", "sex"),
    "age": ("Patient Age", "age"),
    "source": ("source",),
}
_NEEDED = ("name", "findings", "patient")
_AGE = re.compile(r"0*(?P<number>[0-9]{1,4})(?P<unit>[YMWDymwd]?)")
_PER_YEAR = {"Y": 1, "M": 12, "W": 52, "D": 365}
_OLDEST = 120
_BINARY = frozenset({"0", "1"})
_NIH_NAME = re.compile(r"(?P<patient>[0-9]{8})_")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One image of a label table; `findings` in the order of `FINDINGS`, none for No Finding. None is not known."""

    name: str
    findings: tuple[str, ...]
    patient: str
    view: str | None = None
    sex: str | None = None
    age: int | None = None
    source: str | None = None

    @property
    def labels(self) -> tuple[int, ...]:
        """Return 14 of 0 and 1, in the order of `FINDINGS`."""
        return tuple(int(name in self.findings) for name in FINDINGS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """The usable rows of a label table, and the problems of the others."""

    entries: tuple[Entry, ...]
    problems: tuple[Problem, ...]


def read_table(path: Path) -> Table:
    """Read a label table.

    Raises: ConfigurationError when it cannot be read, is empty, or lacks a column.
    """
    return parse_table(read_text(path), path)


def parse_table(text: str, path: Path) -> Table:
    """Parse the text of a label table; `path` is named in messages.

    Raises: ConfigurationError when it is empty, or lacks a column.
    """
    reader = csv.DictReader(io.StringIO(text))
    columns = _columns(path, reader.fieldnames or ())
    entries: dict[str, Entry] = {}
    problems: list[Problem] = []
    contradicting: set[str] = set()
    for line, row in enumerate(_rows(path, reader), start=2):
        cells = {meaning: (row.get(column) or "").strip() for meaning, column in columns.items()}
        entry = _entry(cells, line, problems)
        if entry is None:
            continue
        former = entries.setdefault(entry.name, entry)
        if former is not entry:
            kind = Kind.ROW_TWICE if former == entry else Kind.ROWS_CONTRADICT
            problems.append(Problem(kind=kind, subject=entry.name, detail=f"again in line {line}"))
            contradicting |= {entry.name} if kind is Kind.ROWS_CONTRADICT else set()
    if not entries and not problems:
        raise ConfigurationError(f"{path} holds no rows")
    kept = tuple(entry for name, entry in entries.items() if name not in contradicting)
    return Table(entries=kept, problems=tuple(problems))


def read_list(path: Path) -> tuple[str, ...]:
    """Return the images that a list names: the first word of each line, whatever follows it.

    Raises: ConfigurationError when it cannot be read or names none.
    """
    names = tuple(words[0] for words in _words(read_text(path)))
    if not names:
        raise ConfigurationError(f"{path} names no images")
    return names


def read_binary_labels(paths: list[Path]) -> dict[str, int]:
    """Return 0 or 1 of each image that the lists name, one `NAME 0|1` a line, as Tang et al. publish theirs.

    There 1 is abnormal and 0 is normal by the radiologist's report, which covers more than the 14 findings. Source:
    Tang et al., npj Digital Medicine 2020.

    Raises: ConfigurationError when a list cannot be read, a label is neither, or two lists disagree.
    """
    labels: dict[str, int] = {}
    for path in paths:
        for words in _words(read_text(path)):
            if len(words) != 2 or words[1] not in _BINARY:
                raise ConfigurationError(f"{path}: the line of {words[0]} is not a name and 0 or 1")
            if labels.setdefault(words[0], int(words[1])) != int(words[1]):
                raise ConfigurationError(f"{path}: {words[0]} is labelled 0 and 1")
    return labels


def is_binary_list(text: str) -> bool:
    """Tell whether a text is a list of names with 0 or 1 rather than a table, by its first line that names an image."""
    words = next(_words(text), [])
    return len(words) == 2 and words[1] in _BINARY


def nih_patient(name: str) -> str | None:
    """Return the patient's number that NIH's name of an image begins with, `00000001_000.png`; None of other names."""
    match = _NIH_NAME.match(name)
    return match["patient"] if match else None


def read_text(path: Path) -> str:
    """Return a text file's contents, unpacked if it is gzip.

    Raises: ConfigurationError.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    return text_of(raw, path)


def text_of(raw: bytes, path: Path) -> str:
    """Return a text file's bytes as text, unpacked if they are gzip.

    Raises: ConfigurationError.
    """
    try:
        unpacked = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
        return unpacked.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path} is not UTF-8 text") from error
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigurationError(f"{path} cannot be unpacked: {error}") from error


def _rows(path: Path, reader: "csv.DictReader[str]") -> Iterator[dict[str, str]]:
    try:
        yield from reader
    except csv.Error as error:
        raise ConfigurationError(f"{path} is not a CSV table: {error}") from error


def _words(text: str) -> Iterator[list[str]]:
    for line in text.splitlines():
        words = line.replace(",", " ").split()
        # A heading names no image.
        if words and "." in words[0]:
            yield words


def _columns(path: Path, there: object) -> dict[str, str]:
    names = tuple(there) if isinstance(there, list | tuple) else ()
    columns = {
        meaning: next(alias for alias in aliases if alias in names)
        for meaning, aliases in _COLUMNS.items()
        if set(aliases) & set(names)
    }
    lacking = [_COLUMNS[meaning][0] for meaning in _NEEDED if meaning not in columns]
    if lacking:
        raise ConfigurationError(f"{path} lacks the column {first_few(lacking)}: it is no label table of a known kind")
    return columns


def _entry(cells: dict[str, str], line: int, problems: list[Problem]) -> Entry | None:
    name = cells["name"]
    empty = [_COLUMNS[meaning][0] for meaning in _NEEDED if not cells[meaning]]
    if empty:
        problems.append(
            Problem(kind=Kind.ROW_INCOMPLETE, subject=name or f"line {line}", detail=f"no {first_few(empty)}")
        )
        return None
    named = {label.strip() for label in cells["findings"].split("|")}
    unknown = sorted(named - set(FINDINGS) - {NO_FINDING})
    if unknown:
        problems.append(Problem(kind=Kind.LABEL_UNKNOWN, subject=name, detail=first_few(unknown)))
        return None
    if NO_FINDING in named and len(named) > 1:
        problems.append(Problem(kind=Kind.LABELS_CONTRADICT, subject=name, detail="No Finding beside a finding"))
        return None
    return Entry(
        name=name,
        findings=tuple(label for label in FINDINGS if label in named),
        patient=cells["patient"],
        view=cells.get("view") or None,
        sex=cells.get("sex") or None,
        age=_age(cells.get("age", ""), name, problems),
        source=cells.get("source") or None,
    )


def _age(text: str, name: str, problems: list[Problem]) -> int | None:
    """Return whole years of `58`, or of `058Y`, `011M`, `028D` as NIH's first release wrote them."""
    if not text:
        return None
    match = _AGE.fullmatch(text)
    years = None if match is None else int(match["number"]) // _PER_YEAR[match["unit"].upper() or "Y"]
    if years is None or years > _OLDEST:
        problems.append(Problem(kind=Kind.AGE_IMPLAUSIBLE, subject=name, detail=f"age {text} is taken as unknown"))
        return None
    return years


def image_key(name: str) -> str:
    """Return the name by which an image is known: without folders, and without the suffix of an image format."""
    path = PurePosixPath(name)
    return path.stem if path.suffix.lower() in IMAGE_SUFFIXES else path.name
