"""A configuration for one site: the commented reference, `conf/node.toml`, with the site's answers written into it."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dicomnode.delivery_settings import DimseDestination
from dicomnode.domain.errors import ConfigurationError

_HEADING = re.compile(r"\[(?P<section>[a-z_.]+)\]\s*(#.*)?")
_SETTING = re.compile(r"(?P<off># )?(?P<key>[a-z_]+) = (?P<value>\"[^\"]*\"|[^\s#]+)(?P<rest>.*)")
_OPENING = "# cxrnode: the node's configuration. Every value here is the default; what you leave out keeps it."
_INTRODUCTION = (
    '# cxrnode: the node\'s configuration, written by `cxrnode init`. Lines that end in "# this site" are answers;\n'
    "# every other value is the default, and what you leave out keeps it."
)
_MARK = "  # this site"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What a site says of itself. Without `pacs` results stay in the store, without `certificate` there is no TLS."""

    ae_title: str
    port: int
    pacs: DimseDestination | None
    store: Path
    certificate: Path | None
    key: Path | None = None


def reference() -> str:
    """Return the text of the commented reference, from the wheel or from the checkout."""
    package = Path(__file__).resolve().parent.parent
    inside, beside = package / "conf" / "node.toml", package.parent / "conf" / "node.toml"
    return (inside if inside.is_file() else beside).read_text(encoding="utf-8")


def configuration(answers: Answers) -> str:
    """Return the reference with the answers in it; every comment stays.

    Raises: ConfigurationError when the reference has no place for an answer, which is a fault of the installation.
    """
    values: dict[tuple[str, str], str | int] = {
        ("scp", "ae_title"): answers.ae_title,
        ("scp", "port"): answers.port,
        ("store", "path"): str(answers.store),
    }
    for key, file in (("certificate", answers.certificate), ("key", answers.key)):
        if file is not None:
            values["scp.tls", key] = str(file)
    lines = _with_values(reference().replace(_OPENING, _INTRODUCTION).splitlines(), values)
    if answers.pacs is not None:
        lines = _with_destination(lines, answers.pacs)
    return "\n".join(lines) + "\n"


def _with_values(lines: Sequence[str], values: Mapping[tuple[str, str], str | int]) -> list[str]:
    """Put each value on the line that shows its setting, commented out or not, in the section it belongs to."""
    written, section, missing = [], "", dict(values)
    for line in lines:
        heading, setting = _HEADING.fullmatch(line), _SETTING.fullmatch(line)
        section = heading["section"] if heading else section
        value = missing.pop((section, setting["key"]), None) if setting else None
        written.append(line if setting is None or value is None else _line(setting, value))
    if missing:
        named = ", ".join(f"{section}.{key}" for section, key in missing)
        raise ConfigurationError(f"the reference configuration shows no {named}: install cxrnode anew")
    return written


def _line(setting: re.Match[str], value: str | int) -> str:
    """Return a line with another value; a JSON string is a TOML string."""
    shown = json.dumps(value, ensure_ascii=False)
    if not setting["off"] and shown == setting["value"]:
        return setting[0]
    return f"{setting['key']} = {shown}{setting['rest']}{_MARK}"


def _with_destination(lines: Sequence[str], pacs: DimseDestination) -> list[str]:
    """Put the site's destination before the examples of destinations."""
    at = next(number for number, line in enumerate(lines) if line.startswith("# One table per destination."))
    table = [
        "[[delivery.destinations]]" + _MARK,
        *(f"{key} = {json.dumps(getattr(pacs, key))}" for key in ("ae_title", "host", "port")),
        "",
    ]
    return [*lines[:at], *table, *lines[at:]]
