"""Results by history, by source, for a target population, and on members' own training images."""

import csv
from pathlib import Path

import numpy as np
import pytest

from dicomnode.domain.errors import ConfigurationError
from dicomnode.domain.terminology import ABNORMALITY
from modeling.evaluation.intervals import Resampler
from modeling.evaluation.measures import auc
from modeling.evaluation.populations import (
    EVER_ILL,
    NEVER_ILL,
    Target,
    TrainedFolds,
    by_history,
    matched,
    overfitting,
    patients_ever_ill,
    raked,
    read_target,
    without_confounded,
)
from modeling.evaluation.predictions import FILE, Predictions, read_predictions, write_predictions
from modeling.metrics import auc as plain_auc
from modeling.preparation.tables import Entry

IMAGES, MEMBERS = 600, 3


def predictions(**changed: object) -> Predictions:
    """Return predictions of 200 patients with three images each; patients 0 to 99 are ill on their first image."""
    random = np.random.default_rng(3)
    patients = np.repeat(np.arange(IMAGES // 3), 3)
    abnormal = (patients < 100) & (np.arange(IMAGES) % 3 == 0)
    mass = abnormal & (patients % 2 == 0)
    truth = np.stack([abnormal, mass], axis=1)
    # Negatives of ill patients look a little ill.
    evidence = 2.0 * abnormal + 1.0 * (patients < 100) + random.normal(size=IMAGES)
    probability = np.stack([1 / (1 + np.exp(-evidence)), 1 / (1 + np.exp(-2.0 * mass - random.normal(size=IMAGES)))], 1)
    values: dict[str, object] = {
        "labels": (ABNORMALITY, "Mass"),
        "images": np.array([f"{number:08d}_000.png" for number in range(IMAGES)]),
        "patients": patients.astype(str),
        "views": np.where(np.arange(IMAGES) % 2, "PA", "AP"),
        "sexes": np.full(IMAGES, ""),
        "ages": np.full(IMAGES, -1),
        "gate": np.full(IMAGES, "typical"),
        "sources": np.where(patients % 4, "clinic", "ward"),
        "truth": truth,
        "probability": probability,
        "members": np.repeat(probability[:, np.newaxis], MEMBERS, axis=1),
    }
    return Predictions(**(values | changed))  # type: ignore[arg-type]


def resampler(found: Predictions) -> Resampler:
    return Resampler(found.patients, rounds=100, seed=0)


def test_a_patient_is_ever_ill_when_any_row_names_a_finding() -> None:
    rows = [
        Entry(name="a", findings=(), patient="1"),
        Entry(name="b", findings=("Mass",), patient="1"),
        Entry(name="c", findings=(), patient="2"),
    ]
    assert patients_ever_ill(rows) == {"1"}


def test_negatives_of_ever_ill_and_never_ill_patients_are_compared_apart() -> None:
    found = predictions()
    ill = frozenset(str(patient) for patient in range(100))
    result = by_history(found, ill, {"low": 0.3, "high": 0.9}, resampler(found))
    assert result is not None
    assert (result.positives, result.negatives) == (100, {EVER_ILL: 200, NEVER_ILL: 300})
    assert result.patients == {EVER_ILL: 100, NEVER_ILL: 100}
    truth, probability = found.truth[:, 0], found.probability[:, 0]
    for group, rows in ((EVER_ILL, found.patients.astype(int) < 100), (NEVER_ILL, found.patients.astype(int) >= 100)):
        chosen = truth | rows
        estimate = result.auc[group]
        assert estimate is not None
        assert estimate.value == pytest.approx(plain_auc(truth[chosen], probability[chosen]))
        negatives = rows & ~truth
        specificity = result.specificity["high"][group]
        assert specificity is not None
        assert specificity.value == pytest.approx((probability[negatives] < 0.9).mean())
    hard, easy = result.auc[EVER_ILL], result.auc[NEVER_ILL]
    assert hard is not None
    assert easy is not None
    assert hard.value < easy.value


def test_a_finding_that_one_source_lacks_is_left_out_of_the_mean() -> None:
    found = predictions()
    aucs = {
        label: resampler(found).values(auc(found.truth[:, at], found.probability[:, at]))
        for at, label in enumerate(found.labels)
    }
    result = without_confounded(found, aucs)
    assert result is not None
    assert result.confounded == ()
    assert result.labels == ("Mass",)
    truth = found.truth.copy()
    truth[found.sources == "ward", 1] = False
    lacking = without_confounded(predictions(truth=truth), aucs)
    assert lacking is not None
    assert (lacking.confounded, lacking.labels, lacking.auc) == (("Mass",), (), None)


def test_sources_that_are_unknown_or_one_give_no_such_mean() -> None:
    assert without_confounded(predictions(sources=np.full(IMAGES, "")), {}) is None
    assert without_confounded(predictions(sources=np.full(IMAGES, "clinic")), {}) is None


def test_raked_weights_give_every_margin_the_target_shares() -> None:
    random = np.random.default_rng(0)
    categories = {"view": random.choice(["AP", "PA"], 500), "ill": random.choice(["yes", "no"], 500, p=[0.6, 0.4])}
    target = Target(margins={"view": {"AP": 0.2, "PA": 0.8}, "ill": {"yes": 0.1, "no": 0.9}})
    weights = raked(categories, target)
    assert weights.mean() == pytest.approx(1.0)
    for margin, shares in target.margins.items():
        for category, share in shares.items():
            assert weights[categories[margin] == category].sum() / 500 == pytest.approx(share, abs=1e-5)


def test_a_target_with_images_of_a_kind_that_was_not_evaluated_is_refused() -> None:
    categories = {"view": np.full(10, "AP")}
    with pytest.raises(ConfigurationError, match=r"50.0% of view 'PA'"):
        raked(categories, Target(margins={"view": {"AP": 0.5, "PA": 0.5}}))


def test_a_matched_population_changes_the_predictive_value_as_its_prevalence_says(tmp_path: Path) -> None:
    path = tmp_path / "target.toml"
    path.write_text(f'[view]\nAP = 0.5\nPA = 0.5\n[prevalence]\n"{ABNORMALITY}" = 0.02\n')
    found = predictions()
    thresholds = {ABNORMALITY: 0.8, "Mass": 0.5}
    result = matched(found, read_target(path), thresholds, resampler(found))
    truth, flagged = found.truth[:, 0], found.probability[:, 0] >= 0.8
    ppv = result.rates[ABNORMALITY]["ppv"]
    assert ppv is not None
    assert ppv.value < (truth & flagged).sum() / flagged.sum() / 2
    assert result.effective_images < IMAGES
    assert result.target["prevalence.Abnormal" if ABNORMALITY == "Abnormal" else f"prevalence.{ABNORMALITY}"] == {
        "present": 0.02,
        "absent": 0.98,
    }


def test_a_label_table_is_a_target_by_its_counts(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    rows = ["image,labels,view,patient", "a.png,Mass,AP,1", "b.png,No Finding,PA,1", "c.png,No Finding,PA,2"]
    path.write_text("\n".join([*rows, "d.png,No Finding,PA,3"]))
    margins = read_target(path).margins
    assert margins["view"] == {"AP": 0.25, "PA": 0.75}
    assert margins["images_per_patient"] == {"1": 0.5, "2-4": 0.5}
    assert margins[f"prevalence.{ABNORMALITY}"] == {"present": 0.25, "absent": 0.75}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[view]\nAP = 0.5\n", "sum to 0.5"),
        ("[view]\nAP = 2\n", r"view\.AP"),
        ("[sex]\nM = 1.0\n", "sex"),
        ('[images_per_patient]\n"3" = 1.0\n', "images_per_patient"),
        ("", "names no share"),
        ("[view", "not TOML"),
    ],
)
def test_a_target_that_is_none_is_refused_by_the_key_that_is_wrong(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "target.toml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=message):
        read_target(path)


def test_members_are_better_on_images_that_they_trained_on() -> None:
    random = np.random.default_rng(1)
    fold = np.arange(IMAGES) // 3 % MEMBERS
    truth = random.random((IMAGES, 2)) < 0.4
    members = random.normal(size=(IMAGES, MEMBERS, 2))
    for member in range(MEMBERS):
        members[:, member] += truth * np.where(fold != member, 3.0, 1.0)[:, np.newaxis]
    found = predictions(truth=truth, members=members)
    trained = TrainedFolds(fold_of={f"{number:08d}_000": int(fold[number]) for number in range(IMAGES)})
    result = overfitting(found, trained, resampler(found))
    assert result is not None
    assert result.images == IMAGES
    for label in found.labels:
        gap, inside, outside = result.gap[label], result.in_sample[label], result.out_of_fold[label]
        assert gap is not None
        assert inside is not None
        assert outside is not None
        assert gap.value == pytest.approx(inside.value - outside.value)
        assert gap.low > 0.1


def test_a_run_of_other_images_has_no_gap_and_one_of_other_folds_is_refused() -> None:
    found = predictions()
    assert overfitting(found, TrainedFolds(fold_of={"other": 0}), resampler(found)) is None
    with pytest.raises(ConfigurationError, match="2 folds, but the bundle has 3 members"):
        overfitting(found, TrainedFolds(fold_of={"00000000_000": 1}), resampler(found))


def test_a_table_written_before_it_had_sources_is_still_read(tmp_path: Path) -> None:
    found = predictions()
    write_predictions(tmp_path / FILE, found)
    assert read_predictions(tmp_path).sources.tolist() == found.sources.tolist()
    with (tmp_path / FILE).open(newline="") as file:
        rows = list(csv.reader(file))
    at = rows[0].index("source")
    with (tmp_path / FILE).open("w", newline="") as file:
        csv.writer(file).writerows([*row[:at], *row[at + 1 :]] for row in rows)
    older = read_predictions(tmp_path)
    assert set(older.sources.tolist()) == {""}
    assert older.images.tolist() == found.images.tolist()
