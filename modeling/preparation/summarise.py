"""Write the summary of a data set: `summary.json`, and pictures of it."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from matplotlib.figure import Figure

from dicomnode.domain.errors import ConfigurationError
from modeling.preparation import plots
from modeling.preparation.described import Described, Pictures, describe
from modeling.preparation.records import GreyImage
from modeling.preparation.summary import GROUPS, Image, Summary, summarise
from modeling.preparation.tables import read_list

SUMMARY = "summary.json"
SAMPLES_A_ROW = 8
_DPI = 130


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenSummary:
    """The counts, and the files they were written to."""

    summary: Summary
    files: tuple[Path, ...]


def write_summary(
    data: Path, out: Path, *, images: Path | None = None, lists: Mapping[str, Path] | None = None, seed: int = 0
) -> WrittenSummary:
    """Count what `data` holds (see `describe`), compare `lists`, and write all of it to `out`.

    Raises: ConfigurationError.
    """
    described = describe(data, images)
    if not described.images:
        raise ConfigurationError(f"{data} holds no images")
    read = {name: read_list(path) for name, path in (lists or {}).items()}
    summary = summarise(f"{data.resolve().name} ({described.kind})", described.images, read)
    taken = set(summary.parts) & set(read)
    if taken:
        raise ConfigurationError(f"a list cannot be called {min(taken)!r}: a part of the data is")
    figures = _figures(summary, described, seed)
    try:
        out.mkdir(parents=True, exist_ok=True)
        files = [out / SUMMARY, *(out / f"{name}.png" for name in figures)]
        (out / SUMMARY).write_text(json.dumps(asdict(summary), indent=2) + "\n")
        for name, figure in figures.items():
            figure.savefig(out / f"{name}.png", dpi=_DPI)
    except OSError as error:
        raise ConfigurationError(f"{out} cannot be written: {error.strerror}") from error
    return WrittenSummary(summary=summary, files=tuple(files))


def _figures(summary: Summary, described: Described, seed: int) -> dict[str, Figure]:
    """Return the pictures of what is known; a first-system record tells of no finding, a table of no fold."""
    wanted: dict[str, tuple[bool, Callable[[Summary], Figure]]] = {
        "findings": (any(count.images for count in summary.findings.values()), plots.findings_figure),
        "cooccurrence": (any(any(row) for row in summary.cooccurrence), plots.cooccurrence_figure),
        "people": (bool(summary.patients), plots.people_figure),
        "parts": (bool(summary.parts), plots.parts_figure),
        "overlaps": (bool(summary.overlaps), plots.overlaps_figure),
    }
    figures = {name: draw(summary) for name, (known, draw) in wanted.items() if known}
    seen = [image for image in described.images if image.name in described.seen]
    samples = _samples(seen, described.pictures, seed)
    if samples:
        figures["samples"] = plots.samples_figure(f"Samples of {summary.data}", samples, SAMPLES_A_ROW)
    return figures


def _samples(images: Sequence[Image], pictures: Pictures, seed: int) -> dict[str, list[tuple[str, GreyImage]]]:
    """Return pixels of a few images of each group, drawn by a hash of the seed and the name."""
    drawn = sorted(images, key=lambda image: hashlib.sha256(f"{seed}\0{image.name}".encode()).digest())
    chosen: dict[str, list[str]] = {}
    for image in drawn:
        for group in image.groups or (f"label {image.label}",):
            names = chosen.setdefault(group, [])
            if len(names) < SAMPLES_A_ROW:
                names.append(image.name)
    held = pictures(sorted({name for names in chosen.values() for name in names}))
    order = [*GROUPS, *sorted(set(chosen) - set(GROUPS))]
    rows = {group: [(name, held[name]) for name in chosen.get(group, ()) if name in held] for group in order}
    return {group: row for group, row in rows.items() if row}
