from pathlib import Path

import pytest

from dicomnode.domain.errors import ConfigurationError
from modeling.config import read_config

FOLDER = Path(__file__).parents[2] / "conf" / "train"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.toml")), ids=lambda path: path.stem)
def test_every_shipped_configuration_is_valid_and_says_what_it_costs(path: Path) -> None:
    read_config(path)
    header = path.read_text(encoding="utf-8").partition("[bundle]")[0]
    for stated in ("Command:", "Hardware:", "Duration:", "Score:"):
        assert stated in header


def test_an_unknown_key_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    text = (FOLDER / "smoke.toml").read_text(encoding="utf-8")
    path.write_text(text.replace("dropout = 0.2", "dropout = 0.2\nflip = true"), encoding="utf-8")
    with pytest.raises(ConfigurationError, match=r"model\.flip"):
        read_config(path)


def test_a_missing_file_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_config(tmp_path / "absent.toml")


def test_settings_are_changed_by_section_and_key_with_their_types() -> None:
    changes = ["train.epochs=7", "train.precision=bfloat16", "augment.flip=0.5", "schedule.rate = 2e-4"]
    config = read_config(FOLDER / "smoke.toml", [*changes, 'bundle.version="0.3"', "tracking.mlflow=true"])
    assert (config.train.epochs, config.train.precision, config.augment.flip) == (7, "bfloat16", 0.5)
    assert (config.schedule.rate, config.bundle.version, config.tracking.mlflow) == (2e-4, "0.3", True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("train.epochs=many", r"train\.epochs: .*integer"),
        ("train.epochs=0", r"train\.epochs: .*greater than or equal to 1"),
        ("train.epoch=3", r"train\.epoch: .*not permitted"),
        ("training.epochs=3", r"training: .*not permitted"),
        ("train.precision=float8", r"train\.precision"),
        ("epochs=3", r"section\.key=value"),
        ("train.epochs", r"section\.key=value"),
        ("train.a.b=1", r"section\.key=value"),
    ],
)
def test_a_change_that_does_not_fit_names_its_key(change: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        read_config(FOLDER / "smoke.toml", [change])
