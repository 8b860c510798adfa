"""What export needs is tried before the first step: a choice that only training knows fails at once."""

from pathlib import Path
from typing import Literal

import keras
import pytest

from dicomnode.domain.errors import ConfigurationError
from modeling import commands, export_check
from modeling.config import Sources, TrainingConfig, _Loss, _Optimiser, _Section, read_config
from modeling.nih import patient_folds, read_radiographs
from modeling.recipe import recipe_in_words
from modeling.run import Run

pytestmark = [pytest.mark.training, pytest.mark.filterwarnings("ignore")]

SMOKE = Path(__file__).parents[2] / "conf" / "train" / "smoke.toml"


class NewLoss(_Loss):
    """A loss as a researcher adds it, without a word for the model card."""

    kind: Literal["new-loss"]


class NewOptimiser(_Optimiser):
    kind: Literal["new-optimiser"]


class NewSchedule(_Section):
    kind: Literal["new-schedule"]


def with_loss(config: TrainingConfig) -> TrainingConfig:
    # As it is once the class stands in `LossSection`.
    return config.model_copy(update={"loss": NewLoss(kind="new-loss")})


@pytest.fixture(scope="module")
def run(drawn_archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    config = read_config(SMOKE)
    radiographs = read_radiographs(drawn_archive, None, config.input)
    folds = patient_folds(radiographs, folds=2, seed=1)
    folder = tmp_path_factory.mktemp("run")
    return Run(
        config=config, radiographs=radiographs, folds=folds, sources=Sources(images=drawn_archive), folder=folder
    )


def test_a_recipe_that_can_be_exported_passes_and_leaves_nothing_behind(run: Run) -> None:
    export_check.check_export(run)
    assert list(run.folder.iterdir()) == []


def test_a_loss_that_the_card_cannot_describe_is_named_with_the_file_to_change(run: Run) -> None:
    changed = Run(
        config=with_loss(run.config),
        radiographs=run.radiographs,
        folds=run.folds,
        sources=run.sources,
        folder=run.folder,
    )
    with pytest.raises(ConfigurationError, match=r"loss\.kind: modeling/recipe\.py does not describe 'new-loss'"):
        export_check.check_export(changed)


@pytest.mark.parametrize(
    ("section", "settings"),
    [
        ("optimiser", NewOptimiser(kind="new-optimiser")),
        ("schedule", NewSchedule(kind="new-schedule")),
    ],
)
def test_another_choice_that_the_card_cannot_describe_is_named(section: str, settings: object) -> None:
    config = read_config(SMOKE).model_copy(update={section: settings})
    with pytest.raises(ConfigurationError, match=rf"{section}\.kind: .*'new-{section}'"):
        recipe_in_words(config, warm_start=False)


def test_training_stops_before_its_first_step_when_export_would_fail(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[object] = []
    monkeypatch.setattr(keras.Model, "fit", lambda *arguments, **options: steps.append(arguments))
    monkeypatch.setattr(export_check, "_measured_parity", lambda run, network, gate: 0.0)
    out = tmp_path / "run"
    sources = Sources(images=release / "images", labels=release / "Data_Entry_2017.csv")
    config = read_config(SMOKE)
    # So few images do not have every finding in every fold.
    one_output = config.model_copy(update={"model": config.model.model_copy(update={"outputs": "abnormality"})})
    with pytest.raises(ConfigurationError, match="does not describe 'new-loss'"):
        commands.train(with_loss(one_output), sources, out)
    assert steps == []
    assert list(out.glob("fold-*")) == []
