"""`cxrnode data summary`: reads a data set, counts what it holds, and writes the counts and figures."""

import csv
import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from dicomnode.domain.errors import ConfigurationError
from modeling.files import GreyImage, open_source, read_pixels, resized
from modeling.preparation.dataset import DATASET, MANIFEST, open_prepared
from modeling.preparation.records import FINDINGS, Record, decode_pixels, read_records, record_files
from modeling.preparation.tables import NO_FINDING, read_list, read_table

GROUPS: tuple[str, ...] = (NO_FINDING, *FINDINGS)
NOT_KNOWN = "not known"
_DECADE = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class DescribedImage:
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
    """How many images and patients have a finding; `ap_share` of its images with a known view are AP."""

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
    """Images and patients that two lists, or a list and a part, share; only patients of images in the data are known.

    `within`: every image of one is in the other, as a fold's are in the list it was drawn from.
    """

    first: str
    second: str
    images: int
    patients: int
    within: bool

    @property
    def leaks(self) -> bool:
        """Tell whether a model trained on one would be tested on the same images or patients in the other."""
        return bool(self.images or self.patients) and not self.within


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A list given beside the data: how many images it names, and how many of them are not in the data."""

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


def summarise(data: str, images: Sequence[DescribedImage], lists: Mapping[str, Sequence[str]]) -> Summary:
    """Count everything. `lists`: image names by the name of a list; `data`: the name of the data set, for titles."""
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
        parts={name: _part(members) for name, members in parts.items()},
        lists=_listed(images, lists),
        overlaps=_overlaps(images, parts, lists),
    )


def _finding_count(images: Sequence[DescribedImage], group: str) -> FindingCount:
    members = [image for image in images if group in image.groups]
    viewed = [image.view for image in members if image.view in {"AP", "PA"}]
    return FindingCount(
        images=len(members),
        patients=len({image.patient for image in members if image.patient is not None}),
        ap_share=round(viewed.count("AP") / len(viewed), 4) if viewed else None,
    )


def _cooccurrence(images: Sequence[DescribedImage]) -> tuple[tuple[int, ...], ...]:
    present = np.array([[name in image.groups for name in FINDINGS] for image in images], dtype=np.int64)
    counts = present.reshape(-1, len(FINDINGS)).T @ present.reshape(-1, len(FINDINGS))
    return tuple(tuple(int(count) for count in row) for row in counts)


def _ages(images: Sequence[DescribedImage]) -> Ages:
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


def _parts(images: Sequence[DescribedImage]) -> dict[str, list[DescribedImage]]:
    parts: dict[str, list[DescribedImage]] = defaultdict(list)
    for image in images:
        if image.part is not None:
            parts[image.part].append(image)
    return dict(sorted(parts.items()))


def _part(images: Sequence[DescribedImage]) -> Part:
    counts = Counter(group for image in images for group in image.groups)
    return Part(
        images=len(images),
        patients=len({image.patient for image in images if image.patient is not None}),
        findings={group: counts[group] for group in GROUPS},
        binary_positives=sum(image.label == 1 for image in images),
        views=_sorted(Counter(image.view or NOT_KNOWN for image in images)),
        sexes=_sorted(Counter(image.sex or NOT_KNOWN for image in images)),
    )


def _listed(images: Sequence[DescribedImage], lists: Mapping[str, Sequence[str]]) -> dict[str, Listed]:
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
    images: Sequence[DescribedImage], parts: Mapping[str, Sequence[DescribedImage]], lists: Mapping[str, Sequence[str]]
) -> tuple[Overlap, ...]:
    patient_of = {image.name: image.patient for image in images}
    sets = {name: {image.name for image in members} for name, members in parts.items()}
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


Pictures = Callable[[Sequence[str]], dict[str, GreyImage]]
"""Takes image names, and returns the pixels of those images that are available."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """Images of a data set. `kind`: what was read; `pictures` reads the pixels of images in `with_pixels`."""

    kind: str
    images: tuple[DescribedImage, ...]
    with_pixels: frozenset[str]
    pictures: Pictures


def describe(data: Path, images: Path | None) -> Described:
    """Read a prepared folder, a folder of record files, or a label table; `images` is where a table's images are.

    Raises: ConfigurationError.
    """
    if data.is_dir():
        if images is not None:
            raise ConfigurationError("--images goes with a label table; records hold their images")
        return _prepared(data) if (data / DATASET).is_file() else _records(data)
    entries = read_table(data).entries
    described = tuple(
        DescribedImage(
            name=entry.name,
            findings=entry.findings,
            label=int(bool(entry.findings)),
            patient=entry.patient,
            view=entry.view,
            sex=entry.sex,
            age=entry.age,
        )
        for entry in entries
    )
    return _with_pictures(described, images)


def _prepared(folder: Path) -> Described:
    """Read the manifest, not the records, which are many times as large."""
    opened = open_prepared(folder)
    with (opened.path / MANIFEST).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    stated = sum(shard.count for shard in opened.info.shards)
    if len(rows) != stated:
        raise ConfigurationError(f"{folder / MANIFEST} has {len(rows)} rows, but the files hold {stated} records")
    images = tuple(
        DescribedImage(
            name=row["image"],
            findings=() if row["labels"] == NO_FINDING else tuple(row["labels"].split("|")),
            label=int(row["label"]),
            patient=row["patient"],
            view=row["view"] or None,
            sex=row["sex"] or None,
            age=int(row["age"]) if row["age"] else None,
            part=f"fold {row['fold']}" if row["fold"] else row["split"],
        )
        for row in rows
    )
    shard_of = {row["image"]: folder / row["shard"] for row in rows}

    def pictures(names: Sequence[str]) -> dict[str, GreyImage]:
        return _from_records(sorted({shard_of[name] for name in names}), set(names))

    return Described(kind="prepared", images=images, with_pixels=frozenset(shard_of), pictures=pictures)


def _records(folder: Path) -> Described:
    files = record_files(folder)
    images = tuple(_image_of(record) for path in files for record in read_records(path))
    names = frozenset(image.name for image in images)
    return Described(
        kind="records", images=images, with_pixels=names, pictures=lambda names: _from_records(files, set(names))
    )


def _image_of(record: Record) -> DescribedImage:
    findings = None
    if record.labels is not None and record.mask is not None and all(record.mask):
        findings = tuple(name for name, present in zip(FINDINGS, record.labels, strict=True) if present)
    return DescribedImage(
        name=record.name,
        findings=findings,
        label=record.label,
        patient=record.patient,
        view=record.view,
        sex=record.sex,
        age=record.age,
        part=None if record.fold is None else f"fold {record.fold}",
    )


def _from_records(files: Iterable[Path], wanted: set[str]) -> dict[str, GreyImage]:
    found: dict[str, GreyImage] = {}
    for path in files:
        if wanted <= set(found):
            break
        found |= {record.name: decode_pixels(record.image) for record in read_records(path) if record.name in wanted}
    return found


def _with_pictures(described: tuple[DescribedImage, ...], images: Path | None) -> Described:
    files: dict[str, str] = {}
    if images is not None:
        with open_source(images) as source:
            files = {PurePosixPath(file).stem: file for file in source.sizes()}
    file_of = {image.name: files[stem] for image in described if (stem := PurePosixPath(image.name).stem) in files}

    def pictures(names: Sequence[str]) -> dict[str, GreyImage]:
        if images is None:
            return {}
        with open_source(images) as source:
            read = {name: read_pixels(source, file_of[name]) for name in names}
        return {name: pixels for name, pixels in read.items() if not isinstance(pixels, str)}

    return Described(kind="label table", images=described, with_pixels=frozenset(file_of), pictures=pictures)


_BLUE, _ORANGE, _GREY = "#3b6ea8", "#d9822b", "#8a8f98"
_COLOURS = (_BLUE, _ORANGE, _GREY)
_CLEAN, _WITHIN, _LEAK = "#e3f1e3", "#ececec", "#f2a09a"
_SAMPLE_SIDE = 128


def findings_figure(summary: Summary) -> Figure:
    """Return the number of images with each finding, the most common first, with the share of AP views."""
    ordered = sorted(GROUPS, key=lambda group: summary.findings[group].images)
    counts = [summary.findings[group].images for group in ordered]
    figure = Figure(figsize=(9, 6.5), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh([_title(group) for group in ordered], counts, color=_BLUE)
    texts = []
    for group, count in zip(ordered, counts, strict=True):
        ap_share = summary.findings[group].ap_share
        texts.append(f"{count:,}" + ("" if ap_share is None else f"  ({ap_share:.0%} AP)"))
    axes.bar_label(bars, texts, padding=4, fontsize=9)
    axes.set_xscale("symlog", linthresh=10)
    axes.set_xlim(0, max(*counts, 10) * 8)
    axes.set_xlabel("images (logarithmic)")
    axes.set_title(f"Findings in {summary.images:,} images of {summary.patients:,} patients")
    _plain(axes)
    return figure


def cooccurrence_figure(summary: Summary) -> Figure:
    """Return how often a finding (row) comes with another (column), as a share of the row's images."""
    counts = np.array(summary.cooccurrence, dtype=np.float64)
    totals = np.maximum(counts.diagonal(), 1.0)
    shares = counts / totals[:, None]
    np.fill_diagonal(shares, np.nan)
    strongest = max(0.01, float(np.nan_to_num(shares).max()))
    figure = Figure(figsize=(10, 8.5), layout="constrained")
    axes = figure.subplots()
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=strongest)
    titles = [_title(name) for name in FINDINGS]
    axes.set_xticks(range(len(titles)), titles, rotation=45, ha="right")
    axes.set_yticks(range(len(titles)), [f"{t} ({int(n):,})" for t, n in zip(titles, counts.diagonal(), strict=True)])
    for row, column in np.argwhere(counts > 0):
        if row != column:
            dark = shares[row, column] > strongest * 0.6
            colour = "white" if dark else "black"
            axes.text(column, row, _percent(shares[row, column]), ha="center", va="center", fontsize=7, color=colour)
    figure.colorbar(picture, label="share of the row's images", shrink=0.7)
    axes.set_title("Of the images with the row's finding, how many also carry the column's")
    return figure


def people_figure(summary: Summary) -> Figure:
    """Return ages by sex, sexes and views."""
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    ages, sexes, views = figure.subplots(1, 3, width_ratios=(3, 1, 1))
    decades = list(summary.ages.by_decade)
    bottom = np.zeros(len(decades))
    for sex, colour in zip(summary.sexes, _COLOURS, strict=False):
        counts = np.array([summary.ages.by_decade[decade].get(sex, 0) for decade in decades])
        ages.bar([f"{decade}–{decade + 9}" for decade in decades], counts, bottom=bottom, color=colour, label=sex)
        bottom += counts
    ages.set_title("Age in years" + ("" if summary.ages.median is None else f", median {summary.ages.median:g}"))
    ages.set_ylabel("images")
    if decades:
        ages.legend(frameon=False)
    else:
        ages.text(0.5, 0.5, "not known", ha="center", transform=ages.transAxes)
    for axes, counts_of, title in ((sexes, summary.sexes, "Sex"), (views, summary.views, "View")):
        bars = axes.bar(list(counts_of), list(counts_of.values()), color=_COLOURS[: len(counts_of)])
        axes.bar_label(bars, [f"{count:,}" for count in counts_of.values()], fontsize=9)
        axes.set_title(title)
    for axes in (ages, sexes, views):
        _plain(axes)
    return figure


def parts_figure(summary: Summary) -> Figure:
    """Return the share of each finding in each fold and in the test; stratified folds have nearly equal shares."""
    names = list(summary.parts)
    figure = Figure(figsize=(3.5 + 1.1 * len(names), 7), layout="constrained")
    axes = figure.subplots()
    counts = np.array([[summary.parts[name].findings[group] for name in names] for group in GROUPS], dtype=np.float64)
    images = np.array([max(1, summary.parts[name].images) for name in names])
    shares = counts / images
    relative = shares / np.maximum(counts.sum(axis=1, keepdims=True) / images.sum(), 1e-9)
    picture = axes.imshow(relative, cmap="RdBu_r", vmin=0.5, vmax=1.5, aspect="auto")
    for row, column in np.ndindex(counts.shape):
        text = f"{int(counts[row, column]):,}\n{shares[row, column]:.2%}"
        axes.text(column, row, text, ha="center", va="center", fontsize=7)
    labels = [f"{n}\n{summary.parts[n].images:,} images\n{summary.parts[n].patients:,} patients" for n in names]
    axes.set_xticks(range(len(names)), labels, fontsize=8)
    axes.set_yticks(range(len(GROUPS)), [_title(group) for group in GROUPS])
    figure.colorbar(picture, label="share, relative to all parts together", shrink=0.7)
    axes.set_title("Findings in each part")
    return figure


def overlaps_figure(summary: Summary) -> Figure:
    """Return how many images and patients each two parts or lists share; red: a leak, grey: one contains the other."""
    names = list(dict.fromkeys(name for overlap in summary.overlaps for name in (overlap.first, overlap.second)))
    figure = Figure(figsize=(3 + 1.1 * len(names), 1.6 + 0.9 * len(names)), layout="constrained")
    axes = figure.subplots()
    for overlap in summary.overlaps:
        row, column = names.index(overlap.second) - 1, names.index(overlap.first)
        colour = _LEAK if overlap.leaks else _WITHIN if overlap.within else _CLEAN
        axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=colour, edgecolor="white", linewidth=2))
        text = f"{overlap.images:,} images\n{overlap.patients:,} patients"
        axes.text(column, row, f"within:\n{text}" if overlap.within else text, ha="center", va="center", fontsize=8)
    axes.set_xlim(-0.5, len(names) - 1.5)
    axes.set_ylim(len(names) - 1.5, -0.5)
    axes.set_xticks(range(len(names) - 1), names[:-1], rotation=45, ha="right")
    axes.set_yticks(range(len(names) - 1), names[1:])
    axes.spines[:].set_visible(False)
    leaks = sum(overlap.leaks for overlap in summary.overlaps)
    verdict = "none leaks into another" if not leaks else f"{leaks} of {len(summary.overlaps)} pairs leak"
    axes.set_title(f"Shared images and patients: {verdict}", fontsize=10)
    return figure


def samples_figure(title: str, samples: Mapping[str, Sequence[tuple[str, GreyImage]]], columns: int) -> Figure:
    """Return a sheet with a row for each group: its images, each with its name. Images are squeezed into squares."""
    figure = Figure(figsize=(1.3 * columns + 1.6, 1.42 * len(samples) + 0.6), layout="constrained")
    grid = figure.subplots(len(samples), columns, squeeze=False)
    for axes_row, (group, row) in zip(grid, samples.items(), strict=True):
        axes_row[0].set_ylabel(_title(group).replace(" ", "\n"), rotation=0, ha="right", va="center", fontsize=8)
        for axes, picture in zip(axes_row, [*row, *[None] * (columns - len(row))], strict=True):
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
            if picture is not None:
                axes.imshow(resized(picture[1], _SAMPLE_SIDE), cmap="gray", vmin=0, vmax=255)
                axes.set_title(picture[0], fontsize=5.5, pad=2)
    figure.suptitle(title, fontsize=10)
    return figure


def _title(group: str) -> str:
    return group.replace("_", " ")


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.01 else "<1%"


def _plain(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)


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
    """Return figures of the known attributes: records of the first system have no findings, a table has no folds."""
    wanted: dict[str, tuple[bool, Callable[[Summary], Figure]]] = {
        "findings": (any(count.images for count in summary.findings.values()), findings_figure),
        "cooccurrence": (any(any(row) for row in summary.cooccurrence), cooccurrence_figure),
        "people": (bool(summary.patients), people_figure),
        "parts": (bool(summary.parts), parts_figure),
        "overlaps": (bool(summary.overlaps), overlaps_figure),
    }
    figures = {name: draw(summary) for name, (known, draw) in wanted.items() if known}
    visible = [image for image in described.images if image.name in described.with_pixels]
    samples = _samples(visible, described.pictures, seed)
    if samples:
        figures["samples"] = samples_figure(f"Samples of {summary.data}", samples, SAMPLES_A_ROW)
    return figures


def _samples(images: Sequence[DescribedImage], pictures: Pictures, seed: int) -> dict[str, list[tuple[str, GreyImage]]]:
    """Return pixels of a few images of each group, drawn by a hash of the seed and the name."""
    drawn = sorted(images, key=lambda image: hashlib.sha256(f"{seed}\0{image.name}".encode()).digest())
    chosen: dict[str, list[str]] = {}
    for image in drawn:
        for group in image.groups or (f"label {image.label}",):
            names = chosen.setdefault(group, [])
            if len(names) < SAMPLES_A_ROW:
                names.append(image.name)
    pixels = pictures(sorted({name for names in chosen.values() for name in names}))
    order = [*GROUPS, *sorted(set(chosen) - set(GROUPS))]
    rows = {group: [(name, pixels[name]) for name in chosen.get(group, ()) if name in pixels] for group in order}
    return {group: row for group, row in rows.items() if row}
