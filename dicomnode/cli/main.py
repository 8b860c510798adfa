"""The `cxrnode` command: its subcommands, and how an error is printed."""

from typing import Annotated

import pydicom.config
import typer

from dicomnode import __version__
from dicomnode.cli.analyze import analyze
from dicomnode.cli.check import check
from dicomnode.cli.conformance import conformance
from dicomnode.cli.data import data
from dicomnode.cli.demo import demo
from dicomnode.cli.evaluate import compare, evaluate
from dicomnode.cli.explain import explain
from dicomnode.cli.init import init
from dicomnode.cli.link import echo, send
from dicomnode.cli.monitoring import monitoring
from dicomnode.cli.queue import queue
from dicomnode.cli.serve import serve
from dicomnode.cli.status import status
from dicomnode.cli.store import store
from dicomnode.cli.support import support_bundle
from dicomnode.cli.terminal import out, stop_with
from dicomnode.cli.train import card, export, train
from dicomnode.cli.why import why
from dicomnode.domain.errors import ConfigurationError, CxrNodeError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="A DICOM-native AI node for chest X-rays. Research use only.",
    epilog="Examples: cxrnode demo · cxrnode init node.toml · cxrnode serve -c node.toml · cxrnode COMMAND -h",
)
_COMMANDS = {
    "Run": (demo, init, check, serve, analyze),
    "Look": (status, why, conformance),
    "Repair": (echo, send),
    "Model": (train, export, card, evaluate, compare, explain),
}
for panel, commands in _COMMANDS.items():
    for command in commands:
        app.command(rich_help_panel=panel)(command)
app.add_typer(monitoring, name="monitoring", rich_help_panel="Look")
app.add_typer(queue, name="queue", rich_help_panel="Repair")
app.add_typer(store, name="store", rich_help_panel="Repair")
app.command("support-bundle", rich_help_panel="Repair")(support_bundle)
app.add_typer(data, name="data", rich_help_panel="Data")
# The former name of the command; it goes with the release after 0.1.
app.add_typer(monitoring, name="watch", hidden=True)


def _print_version(wanted: bool) -> None:
    if wanted:
        out.print(f"cxrnode {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Take what stands before a command."""


@app.command(hidden=True)
def version() -> None:
    """Print the version; `cxrnode --version` does the same."""
    _print_version(True)


def run() -> None:
    """Run the command line; exit with 2 when the configuration or an argument is wrong, 1 on any other failure."""
    # A type checker does not see a misspelt DICOM keyword, so it is an error at run time.
    pydicom.config.INVALID_KEYWORD_BEHAVIOR = "RAISE"
    try:
        app()
    except ConfigurationError as error:
        stop_with(str(error), 2)
    except CxrNodeError as error:
        stop_with(str(error), 1)
