"""A bundle's labels bring codes of their own; a manifest that cannot be spoken in DICOM is refused, and says why."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dicomnode.bundle.manifest import LabelEntry, read_manifest
from dicomnode.cli.main import app
from dicomnode.domain.errors import BundleInvalid
from tests.conftest import ROOT
from tests.support.bundles import OTHER_LABELS, made_curves, make_bundle
from tests.support.processes import free_port

Change = Callable[[list[dict[str, Any]]], None]


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundle"), labels=OTHER_LABELS) / "manifest.json"


def changed(manifest: Path, folder: Path, change: Change) -> Path:
    held = json.loads(manifest.read_text())
    change(held["labels"])
    target = folder / "manifest.json"
    target.write_text(json.dumps(held))
    return target


def setting(index: int, field: str, **values: str) -> Change:
    return lambda labels: labels[index][field].update(values)


def test_other_labels_keep_their_names_and_codes(other: Path) -> None:
    labels = read_manifest(other).labels
    assert tuple((label.name, label.code, label.site) for label in labels) == OTHER_LABELS


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (setting(1, "code", value="154283006"), "labels.1.code: .*'154283006' is no code of SCT: its check digit"),
        (setting(2, "site", value="113197030"), "labels.2.site: .*'113197030' is no code of SCT"),
        (setting(1, "code", value="A15"), "labels.1.code: .*'A15' is no code of SCT: 6 to 16 digits"),
        (setting(1, "code", scheme="SNOMED"), "labels.1.code: .*write 'SCT'"),
        (setting(1, "code", meaning=""), "labels.1.code: .*meaning '' is not a text of 1 to 64"),
        (setting(4, "code", value="SILHOUETTE OF THE HEART"), "labels.4.code: .*value .* is not a text of 1 to 16"),
        (lambda labels: labels[3].update(code=None), "label Tube .endotracheal. has no code"),
        (lambda labels: labels[3].pop("code"), "labels.3.code: a value is missing"),
        (lambda labels: labels[3].update(code=labels[2]["code"], site=labels[2]["site"]), "the same code and site"),
        (lambda labels: labels[3].update(name="Rib fracture"), "labels must have different names"),
        (lambda labels: labels[3].update(name="Röhre"), "labels.3.name"),
        (lambda labels: labels[3].update(name="a\\b"), "labels.3.name"),
    ],
)
def test_a_code_that_no_report_could_hold_is_refused_by_name(
    other: Path, tmp_path: Path, change: Change, said: str
) -> None:
    with pytest.raises(BundleInvalid, match=said):
        read_manifest(changed(other, tmp_path, change))


def test_one_code_may_stand_for_two_findings_of_different_sites(other: Path, tmp_path: Path) -> None:
    def share(labels: list[dict[str, Any]]) -> None:
        labels[3]["code"] = labels[2]["code"]

    assert len(read_manifest(changed(other, tmp_path, share)).labels) == len(OTHER_LABELS)


def test_the_documented_label_is_one_and_the_documented_message_is_given(other: Path, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "bundles.md").read_text()
    label, curves = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    (message,) = re.findall(r"```\n(labels\..*?)\n```", page)
    assert LabelEntry.model_validate_json(label).name == "Rib_fracture"
    with_curves = LabelEntry.model_validate(json.loads(label) | {"curves": json.loads(curves)})
    assert with_curves.curves is not None
    with pytest.raises(BundleInvalid) as raised:
        read_manifest(changed(other, tmp_path, setting(1, "code", value="154283006")))
    assert str(raised.value).endswith(message)


@pytest.fixture(scope="module")
def curved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundle"), curves=True) / "manifest.json"


def test_a_bundle_from_before_there_were_curves_is_read_and_has_none(other: Path, tmp_path: Path) -> None:
    def forget(labels: list[dict[str, Any]]) -> None:
        for label in labels:
            for field in ("scores", "curves"):
                del label[field]
            for point in label["operating_points"].values():
                del point["sensitivity_interval"], point["specificity_interval"]

    labels = read_manifest(changed(other, tmp_path, forget)).labels
    assert [label.curves for label in labels] == [None] * len(OTHER_LABELS)
    assert labels[0].operating_points["youden"].sensitivity_interval is None


def test_a_bundle_of_today_holds_its_curves(curved: Path) -> None:
    labels = read_manifest(curved).labels
    assert labels[0].curves == made_curves()
    assert labels[-1].curves is None


def test_check_says_that_a_bundle_holds_no_curves(other: Path, curved: Path, tmp_path: Path) -> None:
    for manifest, said in ((other, True), (curved, False)):
        options = ["check", "--bundle", str(manifest.parent), "--store", str(tmp_path), "--port", str(free_port())]
        told = " ".join(CliRunner().invoke(app, options).output.split())
        assert "golden vectors agree" in told
        assert ("no curves for the page" in told) is said


def test_the_area_under_straight_lines_is_that_of_the_trapezia() -> None:
    assert made_curves().roc.area == pytest.approx(0.025 + 0.13 + 0.63)


def putting(path: str, value: object) -> Change:
    """Return what puts a value at a place of the second label, such as `curves.roc.low.1`."""

    def change(labels: list[dict[str, Any]]) -> None:
        held: Any = labels[1]
        *parts, last = [int(part) if part.isdecimal() else part for part in path.split(".")]
        for part in parts:
            held = held[part]
        held[last] = value

    return change


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("curves.roc.sensitivity.1", 1.1, "labels.1.curves.roc.sensitivity.1: must be at most 1"),
        ("curves.roc.sensitivity.1", -0.1, "labels.1.curves.roc.sensitivity.1: must be at least 0"),
        ("curves.roc.sensitivity.1", 0.9, "labels.1.curves.roc: .*never fall along a curve"),
        ("curves.roc.false_positive_rate.2", 0.05, "labels.1.curves.roc: .*never fall along a curve"),
        ("curves.roc.sensitivity.0", 0.1, "labels.1.curves.roc: .*from .0, 0. to .1, 1."),
        ("curves.roc.false_positive_rate.3", 0.9, "labels.1.curves.roc: .*from .0, 0. to .1, 1."),
        ("curves.roc.sensitivity", [0.0, 0.5, 1.0], "labels.1.curves.roc: .*as many values of sensitivity"),
        ("curves.roc.sensitivity", [], "labels.1.curves.roc: .*as many values of sensitivity"),
        ("curves.roc.false_positive_rate", [0.0], "labels.1.curves.roc.false_positive_rate: .*at least 2"),
        ("curves.roc.false_positive_rate", [0.0] * 257, "labels.1.curves.roc.false_positive_rate: .*at most 256"),
        ("curves.roc.low.1", 0.51, "labels.1.curves.roc: .*between low and high"),
        ("curves.roc.high.2", 0.79, "labels.1.curves.roc: .*between low and high"),
        ("curves.roc.low", None, "labels.1.curves.roc: .*as many values of low and of high"),
        ("curves.roc.low", [], "labels.1.curves.roc: .*as many values of low and of high"),
        ("curves.roc.auc", 0.8, "labels.1.curves.roc.auc: is not known here"),
        ("curves.reliability.3.observed", 0.01, "labels.1.curves.reliability.3: .*between low and high"),
        ("curves.reliability.3.predicted", 1.2, "labels.1.curves.reliability.3.predicted: must be at most"),
        ("curves.reliability.3.predicted", 0.5, "labels.1.curves: .*predicted never falls"),
        ("curves.reliability.3.images", 99, "labels.1.curves: .*all images, each once"),
        ("curves.reliability.3.images", 0, "labels.1.curves.reliability.3.images: must be at least 1"),
        ("curves.reliability", [], "labels.1.curves.reliability: .*at least 1"),
        ("curves.patients", 1001, "labels.1.curves: .*no more patients than images"),
        ("curves.derived_on", "", "labels.1.curves.derived_on: "),
        ("positives", 1001, "labels.1: .*fewer images than there are positives"),
        ("auc", 0.75, "labels.1: .*area under the curve is 0.785, but auc 0.750"),
        ("operating_points.youden.sensitivity_interval", [0.81, 0.9], "youden: .*sensitivity lies in its interval"),
        ("operating_points.youden.specificity_interval", [0.5, 0.69], "youden: .*specificity lies in its interval"),
    ],
)
def test_a_curve_that_cannot_be_one_is_refused_by_name(
    curved: Path, tmp_path: Path, path: str, value: object, said: str
) -> None:
    with pytest.raises(BundleInvalid, match=said):
        read_manifest(changed(curved, tmp_path, putting(path, value)))


def test_an_image_is_unusual_before_it_is_rejected(curved: Path, tmp_path: Path) -> None:
    assert read_manifest(curved).gate.unusual_threshold is None
    held = json.loads(curved.read_text())
    held["gate"]["unusual_threshold"] = held["gate"]["typicality_threshold"] + 0.5
    (tmp_path / "manifest.json").write_text(json.dumps(held))
    with pytest.raises(BundleInvalid, match=r"gate: gate\.unusual_threshold is at most"):
        read_manifest(tmp_path / "manifest.json")


def test_a_curve_may_come_without_a_band(curved: Path, tmp_path: Path) -> None:
    def forget(labels: list[dict[str, Any]]) -> None:
        del labels[1]["curves"]["roc"]["low"], labels[1]["curves"]["roc"]["high"]

    curves = read_manifest(changed(curved, tmp_path, forget)).labels[1].curves
    assert curves is not None
    assert curves.roc.low is None


@pytest.mark.parametrize(
    ("prevalence", "positives", "images", "expected"),
    [(None, 25, 1000, 0.025), (0.1, 25, 1000, 0.1), (None, 0, 1000, None), (None, 25, 0, None), (0.0, 25, 1000, None)],
)
def test_the_base_rate_is_the_stated_prevalence_else_the_share_of_positives(
    other: Path, prevalence: float | None, positives: int, images: int, expected: float | None
) -> None:
    manifest = read_manifest(other)
    label = manifest.labels[1].model_copy(update={"prevalence": prevalence, "positives": positives})
    counted = manifest.provenance.model_copy(update={"images": images})
    assert manifest.model_copy(update={"provenance": counted}).base_rate(label) == expected
