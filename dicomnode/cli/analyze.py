"""`cxrnode analyze`: the node's pipeline on files and folders, without a network and without a store.

One study is in memory at a time: its results are written and let go before the next study is read.
"""

import csv
import hashlib
import json
import os
import re
import stat
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Annotated, TextIO

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dicomnode.analysis.loading import load_pipeline
from dicomnode.analysis.pipeline import Pipeline
from dicomnode.cli.terminal import BundleOption, ConfigOption, err, escape, out, settings_from
from dicomnode.dicom.header import read_header
from dicomnode.domain.answer import ResultKind, StudyAnswer
from dicomnode.domain.errors import ConfigurationError, UnreadableObject
from dicomnode.domain.finding import Presence
from dicomnode.domain.instance import StoredInstance
from dicomnode.domain.job import Job
from dicomnode.domain.summary import FindingSummary
from dicomnode.formatting import format_size
from dicomnode.imaging.codecs.process import CodecProcess
from dicomnode.monitoring.export import safe_cell
from dicomnode.node import utc_now
from dicomnode.results.summary import summary_to_json
from dicomnode.telemetry import log_uncaught, start_logging
from dicomnode.web.imagery import capture_png

_FILE_NAMES = {
    ResultKind.STRUCTURED_REPORT: "report",
    ResultKind.SECONDARY_CAPTURE: "heatmap",
    ResultKind.FINDING_CAPTURE: "finding",
    ResultKind.PRESENTATION_STATE: "contours",
    ResultKind.PARAMETRIC_MAP: "map",
    ResultKind.DOCUMENT: "document",
}
_STRONGEST = 3
_LONGEST_NAME = 40
_MARKS = {Presence.PRESENT: "*", Presence.UNDETERMINED: "?"}


@dataclass(frozen=True, slots=True, kw_only=True)
class FileOutcome:
    """What became of one file: a row of `summary.csv` and some lines in the terminal.

    `outcome` is "analysed", "unreadable", "duplicate", or the reason of the image's rejection; `detail` is a sentence
    for what was not analysed.
    """

    file: Path
    outcome: str
    detail: str = ""
    folder: str = ""
    findings: tuple[FindingSummary, ...] = ()


@dataclass(slots=True, kw_only=True)
class _Sorted:
    """The files by study, of each instance the first file; and the files that are left out."""

    studies: dict[str, dict[str, StoredInstance]] = field(default_factory=dict)
    left_out: list[FileOutcome] = field(default_factory=list)


def analyze(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="DICOM files and folders.")],
    output: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Where results are written.")] = Path(
        "out"
    ),
    png: Annotated[bool, typer.Option("--png", help="Write each heatmap as a PNG file, too.")] = False,
    bundle: BundleOption = None,
    config: ConfigOption = None,
) -> None:
    """Analyse DICOM files; write reports, heatmaps and summaries to a folder of each study.

    DIR gets summary.csv with a row for each file, summary.json with all studies,
    and a folder for each study, named after its first file.

    Exit code 0: at least one image was analysed. 1: none was.

    Example: cxrnode analyze chest.dcm more-studies/ --out results --png
    """
    settings = settings_from(config, bundle=bundle)
    start_logging(settings.log.model_copy(update={"level": "ERROR", "format": "text"}))
    log_uncaught()
    files = list(_files(paths, output))
    _require_writable(output)
    model, pipeline = load_pipeline(settings, CodecProcess())
    sorted_files = _sort(files, settings.scp.maximum_object_bytes, utc_now())
    labels = [label.name for label in model.manifest.labels]
    outcomes: list[FileOutcome] = []
    with _summaries(output, labels) as (table, studies), _progress() as progress:
        for outcome in sorted_files.left_out:
            table.add(outcome)
        names = _Names()
        for study, instances in progress.track(sorted_files.studies.items(), total=len(sorted_files.studies)):
            analysed = _analyse(pipeline, study, list(instances.values()), output / names.of(instances), png=png)
            studies.add(analysed.summary)
            for outcome in analysed.outcomes:
                table.add(outcome)
            outcomes += analysed.outcomes
    _print([*outcomes, *sorted_files.left_out], len(sorted_files.studies), output)
    sys.exit(0 if any(outcome.outcome == "analysed" for outcome in outcomes) else 1)


def _progress() -> Progress:
    columns = (TextColumn("analysing"), BarColumn(), MofNCompleteColumn(), TextColumn("studies"), TimeRemainingColumn())
    return Progress(*columns, console=err, transient=True)


def _files(paths: Sequence[Path], output: Path) -> Iterator[Path]:
    """Yield the regular files among these paths and below them, each once, without those that results are written to.

    Raises: ConfigurationError, for a path that is neither a file nor a folder, such as a device or a pipe.
    """
    known: set[Path] = set()
    results = output.resolve()
    for path in paths:
        if not path.exists():
            raise ConfigurationError(f"there is no file or folder {path}")
        if not path.is_dir() and not path.is_file():
            raise ConfigurationError(f"{path} is a device or a pipe; name DICOM files and folders")
        below = sorted(found for found in path.rglob("*") if found.is_file()) if path.is_dir() else [path]
        for file in below:
            place = file.resolve()
            if place not in known and not (path.is_dir() and place.is_relative_to(results)):
                known.add(place)
                yield file


def _require_writable(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"results cannot be written to {output}: {error.strerror}") from error


def _sort(files: Sequence[Path], maximum_bytes: int, now: datetime) -> _Sorted:
    """Sort readable files by study. Nothing of a file is kept but its UIDs and its digest."""
    found = _Sorted()
    for file in files:
        try:
            instance = _instance(file, maximum_bytes, now)
        except UnreadableObject as error:
            found.left_out.append(FileOutcome(file=file, outcome="unreadable", detail=str(error)))
            continue
        instances = found.studies.setdefault(instance.ref.study, {})
        first = instances.setdefault(instance.ref.sop_instance, instance)
        if first is not instance:
            detail = f"holds the same SOP instance as {first.blob}"
            found.left_out.append(FileOutcome(file=file, outcome="duplicate", detail=detail))
    return found


def _instance(file: Path, maximum_bytes: int, now: datetime) -> StoredInstance:
    part10 = read_regular_file(file, maximum_bytes)
    header = read_header(part10)
    return StoredInstance(
        ref=header.ref,
        transfer_syntax=header.transfer_syntax,
        blob=str(file),
        sha256=hashlib.sha256(part10).hexdigest(),
        size_bytes=len(part10),
        calling_ae="",
        received_at=now,
    )


def read_regular_file(file: Path, maximum_bytes: int) -> bytes:
    """Return a file's bytes. A device or a pipe, which may have no end, is not read.

    Raises: UnreadableObject.
    """
    try:
        # Without O_NONBLOCK the opening of a pipe would wait for somebody to write to it.
        with os.fdopen(os.open(file, os.O_RDONLY | os.O_NONBLOCK), "rb") as opened:
            if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
                raise UnreadableObject("is a device or a pipe")
            content = opened.read(maximum_bytes + 1)
    except OSError as error:
        raise UnreadableObject(f"cannot be read: {error.strerror}") from error
    if len(content) > maximum_bytes:
        raise UnreadableObject(f"is larger than {format_size(maximum_bytes)} (scp.maximum_object_bytes)")
    return content


class _Names:
    """Names for the studies' folders: the name of a study's first file, other characters than ASCII ones replaced."""

    def __init__(self) -> None:
        self._given: set[str] = set()

    def of(self, instances: Mapping[str, StoredInstance]) -> str:
        """Return a name that no other study has."""
        first = Path(next(iter(instances.values())).blob)
        stem = re.sub(r"[^A-Za-z0-9._-]+", "_", first.stem).strip("._")[:_LONGEST_NAME] or "study"
        name, number = stem, 1
        while name in self._given:
            number += 1
            name = f"{stem}-{number}"
        self._given.add(name)
        return name


@dataclass(frozen=True, slots=True, kw_only=True)
class _Analysed:
    summary: dict[str, object]
    outcomes: tuple[FileOutcome, ...]


def _analyse(pipeline: Pipeline, study: str, instances: list[StoredInstance], folder: Path, *, png: bool) -> _Analysed:
    """Answer one study and write its results; return what is told of it, without the results."""
    job = Job(job_id=0, study=study, version=1, attempts=1, instances=tuple(instances))
    answer = pipeline.answer(job, _bytes_of, utc_now().astimezone())
    files = {instance.ref.sop_instance: Path(instance.blob) for instance in instances}
    try:
        summary = _write(folder, answer, files, png=png)
    except OSError as error:
        raise ConfigurationError(f"results cannot be written to {folder}: {error.strerror}") from error
    return _Analysed(summary=summary, outcomes=tuple(_outcomes(answer, files, folder.name)))


def _bytes_of(instance: StoredInstance) -> bytes:
    return read_regular_file(Path(instance.blob), instance.size_bytes)


def _write(folder: Path, answer: StudyAnswer, files: Mapping[str, Path], *, png: bool) -> dict[str, object]:
    folder.mkdir(parents=True, exist_ok=True)
    written: dict[str, str] = {}
    for result in answer.results:
        name = _FILE_NAMES[result.kind]
        count = sum(known.startswith(name) for known in written)
        stem = f"{name}-{count + 1}" if count else name
        (folder / f"{stem}.dcm").write_bytes(result.part10)
        written[f"{stem}.dcm"] = result.ref.sop_instance
        picture = capture_png(result.part10) if png and result.kind is ResultKind.SECONDARY_CAPTURE else None
        if picture is not None:
            (folder / f"{stem}.png").write_bytes(picture)
    summary = {
        **summary_to_json(answer.summary),
        "folder": folder.name,
        "files": {uid: str(path) for uid, path in files.items()},
        "results": written,
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    return summary


def _outcomes(answer: StudyAnswer, files: Mapping[str, Path], folder: str) -> Iterator[FileOutcome]:
    for image in answer.summary.images:
        yield FileOutcome(file=files[image.sop_instance], outcome="analysed", folder=folder, findings=image.labels())
    for rejection in answer.rejections:
        file = files[rejection.source.sop_instance]
        yield FileOutcome(file=file, outcome=rejection.reason.value, detail=rejection.detail, folder=folder)


class _TableFile:
    """Writes `summary.csv`: one row for each file."""

    def __init__(self, file: TextIO, labels: Sequence[str]) -> None:
        self._writer, self._labels = csv.writer(file), labels
        of_labels = (f"{label}_{what}" for label in labels for what in ("probability", "presence"))
        self._writer.writerow(["file", "outcome", "detail", "folder", *map(safe_cell, of_labels)])

    def add(self, outcome: FileOutcome) -> None:
        """Write a row."""
        found = {finding.label: finding for finding in outcome.findings}
        cells: list[object] = [safe_cell(str(outcome.file)), outcome.outcome, safe_cell(outcome.detail), outcome.folder]
        for label in self._labels:
            finding = found.get(label)
            cells += ["", ""] if finding is None else [finding.probability, finding.presence.value]
        self._writer.writerow(cells)


class _ListFile:
    """Writes `summary.json`, a list of studies, as they come."""

    def __init__(self, file: TextIO) -> None:
        self._file, self._is_first = file, True
        file.write("[")

    def add(self, summary: Mapping[str, object]) -> None:
        """Write an entry."""
        self._file.write("\n" if self._is_first else ",\n")
        self._file.write(json.dumps(summary))
        self._is_first = False

    def end(self) -> None:
        """Write the end of the list."""
        self._file.write("\n]\n")


@contextmanager
def _summaries(output: Path, labels: Sequence[str]) -> Iterator[tuple[_TableFile, _ListFile]]:
    """Give the two summaries of a run to write to; they get their names when the run ends."""
    table, studies = output / "summary.csv", output / "summary.json"
    half_table, half_studies = (file.with_name(f"{file.name}.part") for file in (table, studies))
    try:
        with (
            half_table.open("w", encoding="utf-8", errors="backslashreplace", newline="") as rows,
            half_studies.open("w", encoding="utf-8") as entries,
        ):
            written = _ListFile(entries)
            yield _TableFile(rows, labels), written
            written.end()
        half_table.replace(table)
        half_studies.replace(studies)
    except OSError as error:
        raise ConfigurationError(f"results cannot be written to {output}: {error.strerror}") from error


def _print(outcomes: Sequence[FileOutcome], studies: int, output: Path) -> None:
    for outcome in outcomes:
        for line in _lines(outcome):
            out.print(line)
    analysed = len({outcome.folder for outcome in outcomes if outcome.outcome == "analysed"})
    unreadable = sum(outcome.outcome == "unreadable" for outcome in outcomes)
    duplicates = sum(outcome.outcome == "duplicate" for outcome in outcomes)
    if analysed:
        out.print("* above its threshold, ? the members of the ensemble disagree")
    out.print(
        f"{analysed} of {studies} studies analysed, {unreadable} files unreadable, {duplicates} duplicates; "
        f"results in {escape(str(output))}"
    )


def _lines(outcome: FileOutcome) -> Iterator[str]:
    """Yield what is printed of a file: its name and outcome, then findings or the reason, each line short."""
    name = escape(outcome.file.name)
    if outcome.outcome != "analysed":
        yield f"[bold]{name}[/]  {escape(outcome.outcome)}"
        yield f"    {escape(outcome.detail)}"
        return
    abnormality, *findings = outcome.findings
    ranked = sorted(findings, key=lambda finding: -finding.probability)[:_STRONGEST]
    yield f"[bold]{name}[/]  analysed, in {escape(outcome.folder)}/"
    yield "    " + escape("  ".join(_marked(finding) for finding in (abnormality, *ranked)))


def _marked(finding: FindingSummary) -> str:
    return f"{finding.label.replace('_', ' ')} {finding.probability:.2f}{_MARKS.get(finding.presence, '')}"
