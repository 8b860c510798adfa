"""The summary as pictures."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from modeling.preparation.records import FINDINGS, GreyImage, resized
from modeling.preparation.summary import GROUPS, Summary

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
    """Return the share of each finding in each fold and in the test; even rows are what stratification is for."""
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
    """Return how many images and patients each two parts or lists share: red leaks, grey lies within the other."""
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
    """Return a sheet with a row for each group: its images, each with its name. Squares, whatever their shape was."""
    figure = Figure(figsize=(1.3 * columns + 1.6, 1.42 * len(samples) + 0.6), layout="constrained")
    grid = figure.subplots(len(samples), columns, squeeze=False)
    for axes_row, (group, held) in zip(grid, samples.items(), strict=True):
        axes_row[0].set_ylabel(_title(group).replace(" ", "\n"), rotation=0, ha="right", va="center", fontsize=8)
        for axes, picture in zip(axes_row, [*held, *[None] * (columns - len(held))], strict=True):
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
