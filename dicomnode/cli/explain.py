"""`cxrnode explain`: where in an image each finding comes from."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dicomnode import __version__
from dicomnode.bundle.reader import Bundle, open_bundle
from dicomnode.cli.pictures import frame_of
from dicomnode.cli.terminal import BundleOption, ConfigOption, err, escape, out, settings_from
from dicomnode.domain.errors import ConfigurationError, Permanent, UnreadableObject
from dicomnode.domain.finding import Assessment, Presence
from dicomnode.domain.frame import Frame
from dicomnode.imaging.codecs.process import CodecProcess
from dicomnode.inference.gate import Typical, read_upright
from dicomnode.inference.operating import choose_operating_point, findings_of
from dicomnode.inference.predictor import Predictor
from dicomnode.node import utc_now
from dicomnode.results.context import Equipment
from dicomnode.results.overlay import Picture, draw
from dicomnode.results.presentation import by_evidence, findings_with_heat
from dicomnode.settings.node import PixelSettings, default_bundle

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_ALL = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Explainer:
    bundle: Bundle
    predictor: Predictor
    equipment: Equipment
    operating_point: str
    pixels: PixelSettings
    codecs: CodecProcess

    def assess(self, raw: bytes, now: datetime) -> tuple[Frame, Assessment, str]:
        """Return the frame as it was read, what the model says, and the pixel gate's verdict on it.

        Raises: Permanent.
        """
        frame = frame_of(raw, self.pixels, self.codecs)
        judged = read_upright(self.predictor, frame, self.bundle.manifest.gate)
        abnormality, *findings = findings_of(judged.reading.scores, self.bundle.manifest, self.operating_point)
        assessment = Assessment(
            source=frame.source,
            model=self.bundle.identity,
            abnormality=abnormality,
            findings=tuple(findings),
            saliency=judged.reading.saliency,
            assessed_at=now,
            is_unusual=judged.is_unusual,
        )
        doubt = "" if isinstance(judged.verdict, Typical) else type(judged.verdict).__name__.lower()
        return judged.frame, assessment, doubt


def explain(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="PNG, JPEG or DICOM files.")],
    output: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Where overlays are written.")] = Path(
        "explained"
    ),
    bundle: BundleOption = None,
    config: ConfigOption = None,
    finding: Annotated[
        list[str] | None,
        typer.Option(
            "--finding",
            metavar="NAME|all",
            help="Draw these findings instead of those above threshold. May be repeated.",
        ),
    ] = None,
) -> None:
    """Write one Grad-CAM overlay per finding and image as PNG: of those above threshold, else of the strongest."""
    settings = settings_from(config, bundle=bundle)
    opened = open_bundle(settings.inference.bundle or default_bundle())
    asked = _asked(finding or (), opened)
    explainer = _Explainer(
        bundle=opened,
        predictor=Predictor(opened, threads=settings.inference.threads, providers=settings.inference.providers),
        equipment=Equipment(settings=settings.results, model=opened.identity, software_version=__version__),
        operating_point=choose_operating_point(opened.manifest, settings.inference.operating_point),
        pixels=settings.pixels,
        codecs=CodecProcess(),
    )
    explainer.predictor.replay_golden()
    names, failed = _names(images), 0
    columns = (TextColumn("explaining"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True) as progress:
        for path in progress.track(images):
            try:
                lines = _explain(explainer, path, output / names[path], asked)
            except Permanent as error:
                failed += 1
                lines = [f"[red]not explained:[/] {escape(str(error))}"]
            for line in lines:
                out.print(f"{escape(path.name)}: {line}")
    out.print(f"{len(images) - failed} of {len(images)} images explained; overlays in {escape(str(output))}")
    if failed:
        raise typer.Exit(1)


def _explain(explainer: _Explainer, path: Path, folder: Path, asked: Sequence[str]) -> list[str]:
    """Write an image's overlays and say what each shows."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UnreadableObject(f"cannot be read: {error.strerror}") from error
    frame, assessment, doubt = explainer.assess(raw, utc_now())
    lines = [f"[yellow]the node would not analyse this image: it seems {doubt}[/]"] if doubt else []
    by_label = {finding.label: finding for finding in (assessment.abnormality, *assessment.findings)}
    strongest = by_evidence(assessment.findings or (assessment.abnormality,))[:1]
    drawn = asked or [finding.label for finding in findings_with_heat(assessment) or strongest]
    maps = {entry.label: entry.values for entry in assessment.saliency}
    for label in drawn:
        finding = by_label[label]
        overlay = draw(frame, assessment, explainer.equipment, is_stated=False, only=finding)
        file = folder / f"{_UNSAFE.sub('_', label)}.png"
        _save(overlay.pixels, file)
        state = "" if finding.presence is Presence.PRESENT else f", {finding.presence.value}"
        nothing = "" if float(maps[label].max()) > 0 else "; nothing in the image speaks for it"
        lines.append(f"{label} {finding.probability:.2f}{state}{nothing}: {escape(str(file))}")
    return lines


def _save(pixels: Picture, file: Path) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be written: {error.strerror}") from error


def _asked(findings: Sequence[str], bundle: Bundle) -> list[str]:
    names = [label.name for label in bundle.manifest.labels]
    if _ALL in findings:
        return names
    unknown = [name for name in findings if name not in names]
    if unknown:
        raise ConfigurationError(f"the bundle has no finding {unknown[0]!r}; it has {', '.join(names)}")
    return list(dict.fromkeys(findings))


def _names(images: Sequence[Path]) -> dict[Path, str]:
    """Return a folder name for each image: its own, numbered where another has the same."""
    names: dict[Path, str] = {}
    for path in dict.fromkeys(images):
        base = path.stem or path.name
        taken = set(names.values())
        number = 2
        name = base
        while name in taken:
            name, number = f"{base}-{number}", number + 1
        names[path] = name
    return names
