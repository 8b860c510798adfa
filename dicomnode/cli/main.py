"""The `cxrnode` command: its subcommands, and what an error becomes for the person who typed it."""

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
    help="A DICOM-native AI node for chest X-rays. Research use only.",
)
_NODE = (demo, init, serve, status, check, analyze, echo, send, why, conformance)
for command in (*_NODE, train, export, card, evaluate, compare, explain):
    app.command()(command)
app.command("support-bundle")(support_bundle)
app.add_typer(queue, name="queue")
app.add_typer(store, name="store")
app.add_typer(monitoring, name="monitoring")
# The former name of the command; it goes with the release after 0.1.
app.add_typer(monitoring, name="watch", hidden=True)
app.add_typer(data, name="data")


@app.command()
def version() -> None:
    """Print the version."""
    out.print(f"cxrnode {__version__}")


def run() -> None:
    """Run the command line; exit with 2 when the configuration or an argument is wrong, 1 on any other failure."""
    # A misspelt DICOM keyword is invisible to a type checker, so let it be an error.
    pydicom.config.INVALID_KEYWORD_BEHAVIOR = "RAISE"
    try:
        app()
    except ConfigurationError as error:
        stop_with(str(error), 2)
    except CxrNodeError as error:
        stop_with(str(error), 1)
