"""What all commands share: the consoles, common options, and the settings made of options."""

import os
import pwd
import signal
import sys
import threading
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from dicomnode.settings.node import Settings, parse_destination, parse_http, read_settings

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

DEFAULT_CONFIG = Path("conf/node.toml")

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", metavar="FILE", help="Configuration file (TOML); by default conf/node.toml."),
]
StoreOption = Annotated[Path | None, typer.Option("--store", metavar="DIR", help="Folder of the durable store.")]
BundleOption = Annotated[
    Path | None, typer.Option("--bundle", metavar="DIR", help="Model bundle; the shipped reference by default.")
]
PeerArgument = Annotated[
    str, typer.Argument(metavar="PEER", help="AET@HOST:PORT, or the name of a destination of the configuration.")
]


def settings_from(
    config: Path | None,
    *,
    store: Path | None = None,
    bundle: Path | None = None,
    port: int | None = None,
    ae_title: str | None = None,
    send_to: list[str] | None = None,
    log_format: str | None = None,
    http: str | None = None,
) -> Settings:
    """Read the configuration with these options over it.

    Raises: ConfigurationError.
    """
    options: dict[str, Any] = {}
    given = (
        ("store", "path", store),
        ("inference", "bundle", bundle),
        ("scp", "port", port),
        ("scp", "ae_title", ae_title),
        ("log", "format", log_format),
    )
    for section, key, value in given:
        if value is not None:
            options.setdefault(section, {})[key] = value
    if send_to:
        options["delivery"] = {"destinations": [parse_destination(text).model_dump() for text in send_to]}
    if http is not None:
        options["http"] = parse_http(http)
    if config is None and DEFAULT_CONFIG.is_file():
        config = DEFAULT_CONFIG
    return read_settings(config, options)


def asked_to_stop() -> threading.Event:
    """Return an event that SIGTERM and Ctrl-C set from now on, instead of ending the process."""
    asked = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: asked.set())
    return asked


def account() -> str:
    """Return the name of the account that runs the command, or its number if it has no name, as in containers."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def stop_with(message: str, code: int) -> NoReturn:
    """Print an error and end the command with this exit code."""
    first, *more = message.split("\n")
    err.print(f"[bold red]error:[/] {escape(first)}")
    for line in more:
        err.print(escape(line))
    sys.exit(code)


def escape(text: str) -> str:
    """Return text for rich to print unchanged; control characters, which a peer may have sent, become U+FFFD."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text).replace("[", r"\[")
