"""Sections of the model card that are made from stored evaluations."""

import json
from pathlib import Path

import pytest

from dicomnode.bundle.reader import CARD, MODEL, open_bundle
from dicomnode.domain.errors import ConfigurationError
from modeling.card_evaluations import (
    LABELLED,
    evaluation_sections,
    read_evaluation,
    require_same_model,
    with_sections,
)
from modeling.commands import update_card
from modeling.training_images import fingerprint_of
from tests.support.bundles import make_bundle

TEXT = "# Model card: a 1\n\nResearch use only.\n\n## Outputs\n\nFifteen.\n\n## Limits\n\n- Coarse.\n"


def unlabelled(folder: Path, title: str = "Frontals elsewhere") -> Path:
    folder.mkdir()
    called = {"Abnormal": {"youden": {"value": 0.87, "low": 0.81, "high": 0.92}, "standard": None}}
    group = {"images": 169, "patients": 105, "gate": {"typical": 169}, "called": called, "called_passed": None}
    metrics = {
        "title": title,
        "known": "Most are abnormal.",
        "bundle": {"fingerprint": [0.5, -1.25], "default_operating_point": "standard"},
        "unlabelled": {"all": group, "PA": group},
    }
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


def test_images_without_labels_have_a_row_for_each_view_and_a_column_for_each_point(tmp_path: Path) -> None:
    text = evaluation_sections([read_evaluation(unlabelled(tmp_path / "a"))])
    assert "## Images without labels: Frontals elsewhere" in text
    assert "169 images of 105 patients, without labels. Most are abnormal." in text
    assert "| view | images | patients | youden | standard |" in text
    assert "| PA | 169 | 105 | 0.870 (0.810-0.920) | - |" in text


def test_sections_stand_before_the_limits_and_are_replaced_when_written_again(tmp_path: Path) -> None:
    first = evaluation_sections([read_evaluation(unlabelled(tmp_path / "a"))])
    second = evaluation_sections([read_evaluation(unlabelled(tmp_path / "b", title="Others"))])
    once = with_sections(TEXT, first)
    assert once.index("## Outputs") < once.index("## Images without labels") < once.index("## Limits")
    twice = with_sections(once, second)
    assert "Frontals elsewhere" not in twice
    assert twice.count("## Images without labels: Others") == 1
    assert with_sections(twice, "") == TEXT


def test_a_card_without_limits_gets_its_sections_at_the_end() -> None:
    assert with_sections("# A\n\n## Data\n\nNIH.\n", f"{LABELLED}x\n\nText.").endswith("## Evaluation: x\n\nText.\n")


def test_an_evaluation_of_another_model_is_refused(tmp_path: Path) -> None:
    stored = read_evaluation(unlabelled(tmp_path / "a"))
    require_same_model([stored], [0.5002, -1.25])
    with pytest.raises(ConfigurationError, match="another model"):
        require_same_model([stored], [0.6, -1.25])


@pytest.mark.parametrize("text", ["{}", "not json", '{"bundle": {"name": "old"}, "labels": {}}'])
def test_metrics_of_another_version_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text(text)
    with pytest.raises(ConfigurationError, match="not of this version"):
        read_evaluation(tmp_path)


def test_a_folder_without_metrics_is_no_evaluation(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"is .* an evaluation"):
        read_evaluation(tmp_path)


def test_the_card_of_a_bundle_is_written_anew_and_the_bundle_stays_valid(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    before = open_bundle(bundle)
    folder = unlabelled(tmp_path / "a")
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["bundle"]["fingerprint"] = fingerprint_of(bundle)
    (folder / "metrics.json").write_text(json.dumps(metrics))
    update_card(bundle, [folder])
    after = open_bundle(bundle)
    assert "Frontals elsewhere" in (bundle / CARD).read_text()
    assert after.identity.bundle_hash != before.identity.bundle_hash
    assert after.manifest.files[MODEL] == before.manifest.files[MODEL]
    update_card(bundle, [])
    assert "Frontals elsewhere" not in (bundle / CARD).read_text()


def test_a_bundle_keeps_its_card_when_an_evaluation_is_of_another_model(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    before = (bundle / CARD).read_bytes()
    with pytest.raises(ConfigurationError, match="another model"):
        update_card(bundle, [unlabelled(tmp_path / "a")])
    assert (bundle / CARD).read_bytes() == before
