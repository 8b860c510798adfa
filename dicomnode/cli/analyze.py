"""`cxrnode analyze`: the node's pipeline on files and folders, without a network and without a store."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from dicomnode.analysis.loading import load_pipeline
from dicomnode.analysis.pipeline import Pipeline
from dicomnode.cli.terminal import BundleOption, ConfigOption, err, escape, out, settings_from
from dicomnode.dicom.reader import read, ref_of
from dicomnode.domain.answer import ResultKind, StudyAnswer
from dicomnode.domain.errors import ConfigurationError, UnreadableObject
from dicomnode.domain.finding import Presence
from dicomnode.domain.instance import StoredInstance
from dicomnode.domain.job import Job
from dicomnode.domain.summary import FindingSummary
from dicomnode.node import utc_now
from dicomnode.results.summary import summary_to_json
from dicomnode.telemetry import log_uncaught, start_logging

_FILE_NAMES = {
    ResultKind.STRUCTURED_REPORT: "report",
    ResultKind.SECONDARY_CAPTURE: "heatmap",
    ResultKind.FINDING_CAPTURE: "finding",
    ResultKind.PRESENTATION_STATE: "contours",
    ResultKind.PARAMETRIC_MAP: "map",
    ResultKind.DOCUMENT: "document",
}
_STRONGEST = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answered:
    study: str
    folder: Path
    files: dict[str, Path]
    answer: StudyAnswer


def analyze(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="DICOM files and folders.")],
    output: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Where results are written.")] = Path(
        "out"
    ),
    bundle: BundleOption = None,
    config: ConfigOption = None,
) -> None:
    """Write SR, SC and a JSON summary for every study among the files, and print what was found or why not."""
    settings = settings_from(config, bundle=bundle)
    start_logging(settings.log.model_copy(update={"level": "ERROR", "format": "text"}))
    log_uncaught()
    files = _files(paths)
    _require_writable(output)
    _, pipeline = load_pipeline(settings)
    studies, unreadable = _studies(files, utc_now())
    columns = (TextColumn("analysing"), BarColumn(), MofNCompleteColumn(), TextColumn("studies"), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True) as progress:
        answered = [
            _analyse(pipeline, study, instances, output)
            for study, instances in progress.track(studies.items(), total=len(studies))
        ]
    out.print(_table(answered, unreadable))
    analysed = sum(bool(one.answer.results) for one in answered)
    out.print(f"{analysed} of {len(studies)} studies analysed, {len(unreadable)} files unreadable; results in {output}")


def _files(paths: Sequence[Path]) -> list[Path]:
    def below() -> Iterator[Path]:
        for path in paths:
            if not path.exists():
                raise ConfigurationError(f"there is no file or folder {path}")
            yield from sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]

    return list(dict.fromkeys(below()))


def _require_writable(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"results cannot be written to {output}: {error.strerror}") from error


def _studies(files: Sequence[Path], now: datetime) -> tuple[dict[str, list[StoredInstance]], dict[Path, str]]:
    """Group readable files by study; name the others with the reason."""
    studies: dict[str, dict[str, StoredInstance]] = {}
    unreadable: dict[Path, str] = {}
    for file in files:
        try:
            instance = _instance(file, now)
        except UnreadableObject as error:
            unreadable[file] = str(error)
            continue
        held = studies.setdefault(instance.ref.study, {})
        if instance.ref.sop_instance in held:
            unreadable[file] = "another file holds the same SOP instance"
        held.setdefault(instance.ref.sop_instance, instance)
    return {study: list(held.values()) for study, held in studies.items()}, unreadable


def _instance(file: Path, now: datetime) -> StoredInstance:
    try:
        part10 = file.read_bytes()
    except OSError as error:
        raise UnreadableObject(f"cannot be read: {error.strerror}") from error
    dataset = read(part10)
    return StoredInstance(
        ref=ref_of(dataset),
        transfer_syntax=str(dataset.file_meta.get("TransferSyntaxUID", "")),
        blob=str(file),
        sha256=hashlib.sha256(part10).hexdigest(),
        size_bytes=len(part10),
        calling_ae="",
        received_at=now,
    )


def _analyse(pipeline: Pipeline, study: str, instances: list[StoredInstance], output: Path) -> _Answered:
    job = Job(job_id=0, study=study, version=1, attempts=1, instances=tuple(instances))
    answer = pipeline.answer(job, lambda instance: Path(instance.blob).read_bytes(), utc_now().astimezone())
    # A study UID is somebody else's string: it names the folder by its digest only.
    folder = output / hashlib.sha256(study.encode()).hexdigest()[:12]
    files = {instance.ref.sop_instance: Path(instance.blob) for instance in instances}
    try:
        _write(folder, answer, files)
    except OSError as error:
        raise ConfigurationError(f"results cannot be written to {folder}: {error.strerror}") from error
    return _Answered(study=study, folder=folder, files=files, answer=answer)


def _write(folder: Path, answer: StudyAnswer, files: dict[str, Path]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    written: dict[str, str] = {}
    for result in answer.results:
        name = _FILE_NAMES[result.kind]
        count = sum(known.startswith(name) for known in written)
        file = f"{name}-{count + 1}.dcm" if count else f"{name}.dcm"
        (folder / file).write_bytes(result.part10)
        written[file] = result.ref.sop_instance
    summary = {
        **summary_to_json(answer.summary),
        "files": {uid: str(path) for uid, path in files.items()},
        "results": written,
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")


def _table(answered: Sequence[_Answered], unreadable: dict[Path, str]) -> Table:
    table = Table(
        title_justify="left", caption="* present, ? undetermined at its operating point", caption_justify="left"
    )
    table.add_column("file", overflow="fold")
    table.add_column("outcome", no_wrap=True)
    table.add_column("abnormal", no_wrap=True)
    table.add_column("strongest findings, or why there are none")
    table.add_column("folder", no_wrap=True)
    for row in (row for one in answered for row in _rows(one)):
        table.add_row(*(escape(cell) for cell in row))
    for file, reason in unreadable.items():
        table.add_row(escape(file.name), "unreadable", "", escape(reason), "")
    return table


def _rows(one: _Answered) -> Iterator[tuple[str, ...]]:
    for image in one.answer.summary.images:
        ranked = sorted(image.findings, key=lambda finding: -finding.probability)
        yield (
            one.files[image.sop_instance].name,
            "analysed",
            _marked(image.abnormality),
            ", ".join(f"{finding.label} {_marked(finding)}" for finding in ranked[:_STRONGEST]),
            one.folder.name,
        )
    for rejection in one.answer.rejections:
        file = one.files[rejection.source.sop_instance].name
        yield file, rejection.reason.value, "", rejection.detail, one.folder.name


def _marked(finding: FindingSummary) -> str:
    mark = {Presence.PRESENT: "*", Presence.UNDETERMINED: "?"}.get(finding.presence, "")
    return f"{finding.probability:.2f}{mark}"
