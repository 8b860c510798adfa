"""`cxrnode init`: five questions, and a configuration made of the answers.

The configuration is the commented reference, `conf/node.toml`, with the answers written into it.
"""

import json
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from pydantic import ValidationError

from dicomnode.cli.terminal import err, escape, out
from dicomnode.domain.errors import ConfigurationError
from dicomnode.domain.validation import sentence
from dicomnode.net.dimse.tls import listener_context
from dicomnode.net.scu import storage as scu
from dicomnode.settings.delivery import DeliverySettings, DimseDestination
from dicomnode.settings.node import ScpSettings, StoreSettings, TlsSettings, parse_destination

_HEADING = re.compile(r"\[(?P<section>[a-z_.]+)\]\s*(#.*)?")
_SETTING = re.compile(r"(?P<off># )?(?P<key>[a-z_]+) = (?P<value>\"[^\"]*\"|[^\s#]+)(?P<rest>.*)")
_OPENING = "# cxrnode: the node's configuration. Every value here is the default; a setting that is left out keeps it."
_INTRODUCTION = (
    '# cxrnode: the node\'s configuration, written by `cxrnode init`. Lines that end in "# this site" are answers;\n'
    "# every other value is the default; a setting that is left out keeps it."
)
_MARK = "  # this site"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """The answers of a site. Without `pacs`, results stay in the store; without `certificate`, there is no TLS."""

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
    """Write each value on the line of its setting, which may be commented out, in its section."""
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
    at = next(number for number, line in enumerate(lines) if line.startswith("# One table for each destination."))
    table = [
        "[[delivery.destinations]]" + _MARK,
        *(f"{key} = {json.dumps(getattr(pacs, key))}" for key in ("ae_title", "host", "port")),
        "",
    ]
    return [*lines[:at], *table, *lines[at:]]


T = TypeVar("T")

_DEFAULTS = ScpSettings()
_NOTHING = "none"


def init(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The configuration to write.")] = Path("node.toml"),
    ae_title: Annotated[str | None, typer.Option("--ae-title", help="AE title of the node.")] = None,
    port: Annotated[str | None, typer.Option("--port", "-p", help="Port of the Storage SCP.")] = None,
    pacs: Annotated[
        str | None, typer.Option("--pacs", metavar="AET@HOST:PORT", help='Where results go; or "none".')
    ] = None,
    store: Annotated[str | None, typer.Option("--store", metavar="DIR", help="Folder of the durable store.")] = None,
    certificate: Annotated[
        str | None, typer.Option("--certificate", metavar="FILE", help='The node\'s certificate for TLS; or "none".')
    ] = None,
    key: Annotated[
        Path | None, typer.Option("--key", metavar="FILE", help="Its key, unless the same file holds it.")
    ] = None,
    echo: Annotated[bool, typer.Option("--echo/--no-echo", help="Try a C-ECHO to the PACS.")] = True,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Ask nothing; what no option says keeps its default.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
) -> None:
    """Ask five questions (AE title, port, PACS, store, TLS) and write a commented configuration."""
    if file.exists() and not force:
        raise ConfigurationError(f"{file} is there already: name another file, or overwrite it with --force")
    asks = not yes
    title = _answer("AE title of the node", ae_title, _DEFAULTS.ae_title, _ae_title, asks)
    number = _answer("Port that it listens on", port, str(_DEFAULTS.port), _port, asks)
    destination = _answer("PACS that gets the results (AET@HOST:PORT, or none)", pacs, _NOTHING, _pacs, asks)
    folder = _answer("Folder of the store", store, str(StoreSettings().path), _store, asks)
    question = "Certificate for TLS (a PEM file, or none)"
    tls = _answer(question, certificate, _NOTHING, lambda text: _certificate(text, key), asks)
    answers = Answers(
        ae_title=title, port=number, pacs=destination, store=folder, certificate=tls, key=key if tls else None
    )
    _write(file, configuration(answers))
    if destination is not None and echo:
        _try(destination, title)
    _tell_next(file)


def _answer(question: str, given: str | None, default: str, checked: Callable[[str], T], asks: bool) -> T:
    """Return the value of an option, or ask until an answer is right; with --yes the default is the answer."""
    if given is not None or not asks:
        return checked(default if given is None else given)
    while True:
        try:
            return checked(str(typer.prompt(question, default=default)).strip())
        except ConfigurationError as error:
            err.print(f"  {escape(str(error))}")


def _ae_title(text: str) -> str:
    return _scp(ae_title=text).ae_title


def _port(text: str) -> int:
    return _scp(port=text).port


def _scp(**fields: str) -> ScpSettings:
    try:
        return ScpSettings.model_validate(fields)
    except ValidationError as error:
        wrong = "; ".join(sentence(entry["type"], entry.get("ctx", {})) for entry in error.errors())
        named = ", ".join(fields).replace("_", " ")
        raise ConfigurationError(f"{named}: {wrong}") from error


def _pacs(text: str) -> DimseDestination | None:
    return None if text.lower() in ("", _NOTHING) else parse_destination(text)


def _store(text: str) -> Path:
    """Check a folder without making it: the file may be for another machine."""
    if not text or not text.isprintable():
        raise ConfigurationError("a folder is wanted here, such as /var/lib/cxrnode/store")
    path = Path(text)
    if path.exists() and not path.is_dir():
        raise ConfigurationError(f"{path} is a file; the store is a folder of its own")
    return path


def _certificate(text: str, key: Path | None) -> Path | None:
    """Check that certificate and key can be read and belong together."""
    if text.lower() in ("", _NOTHING):
        if key is not None:
            raise ConfigurationError("--key is the key of a certificate: name that with --certificate")
        return None
    listener_context(TlsSettings(certificate=Path(text), key=key))
    return Path(text)


def _write(file: Path, text: str) -> None:
    """Write the configuration, which has no secrets, so that the account of the service can read it under any umask.

    Raises: ConfigurationError.
    """
    try:
        made = [folder for folder in file.absolute().parents if not folder.exists()]
        file.parent.mkdir(parents=True, exist_ok=True)
        for folder in made:
            folder.chmod(0o755)
        file.write_text(text, encoding="utf-8")
        file.chmod(0o644)
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be written: {error.strerror}; name another file") from error
    out.print(f"{escape(str(file))} is written; every setting is in it, with what it means")


def _try(destination: DimseDestination, calling_ae: str) -> None:
    """Print whether the PACS answers; the configuration is written in either case."""
    result = scu.echo(destination.destination(), calling_ae=calling_ae, settings=DeliverySettings())
    if result.succeeded:
        out.print(f"{escape(destination.label)} answers C-ECHO in {result.round_trip_ms:.0f} ms")
        return
    out.print(
        f"{escape(destination.label)} does not answer yet: {escape(result.cause)}. "
        f"Does it know {escape(calling_ae)} and this machine's address? Does a firewall stand between?"
    )


def _tell_next(file: Path) -> None:
    named = shlex.quote(str(file))
    out.print(f"Next: cxrnode check --config {escape(named)}, then cxrnode serve --config {escape(named)}")
