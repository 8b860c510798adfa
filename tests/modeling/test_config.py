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
