"""A bundle's labels bring codes of their own; a manifest that cannot be spoken in DICOM is refused, and says why."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dicomnode.bundle.manifest import LabelEntry, read_manifest
from dicomnode.domain.errors import BundleInvalid
from tests.bundles import OTHER_LABELS, make_bundle

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
        (lambda labels: labels[3].pop("code"), "labels.3.code: Field required"),
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
    page = (Path(__file__).resolve().parents[2] / "docs" / "bundles.md").read_text()
    (label,) = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    (message,) = re.findall(r"```\n(labels\..*?)\n```", page)
    assert LabelEntry.model_validate_json(label).name == "Rib_fracture"
    with pytest.raises(BundleInvalid) as raised:
        read_manifest(changed(other, tmp_path, setting(1, "code", value="154283006")))
    assert str(raised.value).endswith(message)
