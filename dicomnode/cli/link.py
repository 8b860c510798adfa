"""`cxrnode echo` and `cxrnode send`: what an administrator needs to try a link."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dicomnode.cli.terminal import ConfigOption, PeerArgument, err, escape, out, settings_from
from dicomnode.domain.delivery import Accepted, Destination, Refused, StoreOutcome
from dicomnode.domain.errors import ConfigurationError
from dicomnode.net.scu import storage as scu
from dicomnode.net.scu.files import SentFile, send_files
from dicomnode.settings.delivery import DimseDestination
from dicomnode.settings.node import Settings, parse_destination

CallingOption = Annotated[
    str | None, typer.Option("--ae-title", help="AE title to call with; the node's own by default.")
]


TlsOption = Annotated[bool, typer.Option("--tls", help="Encrypt, and verify the peer's certificate.")]
CaOption = Annotated[
    Path | None, typer.Option("--ca-file", metavar="FILE", help="Who vouches for it; the system's authorities.")
]
CertificateOption = Annotated[
    Path | None, typer.Option("--client-certificate", metavar="FILE", help="The certificate to show.")
]
KeyOption = Annotated[
    Path | None, typer.Option("--client-key", metavar="FILE", help="Its key, unless the same file holds it.")
]


def echo(
    peer: PeerArgument,
    ae_title: CallingOption = None,
    tls: TlsOption = False,
    ca_file: CaOption = None,
    client_certificate: CertificateOption = None,
    client_key: KeyOption = None,
    config: ConfigOption = None,
) -> None:
    """Send a C-ECHO and say what came back; exit 0 when it succeeded, 1 when not."""
    settings = settings_from(config, ae_title=ae_title)
    destination = _destination(peer, settings, tls, ca_file, client_certificate, client_key)
    result = scu.echo(destination, calling_ae=settings.scp.ae_title, settings=settings.delivery)
    if not result.succeeded:
        err.print(f"[bold red]{escape(destination.name)} does not answer:[/] {escape(result.cause)}")
        sys.exit(1)
    out.print(f"{escape(destination.name)} answers in {result.round_trip_ms:.0f} ms")


def send(
    peer: PeerArgument,
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="DICOM files and folders.")],
    ae_title: CallingOption = None,
    tls: TlsOption = False,
    ca_file: CaOption = None,
    client_certificate: CertificateOption = None,
    client_key: KeyOption = None,
    config: ConfigOption = None,
) -> None:
    """Send DICOM files, each in its own transfer syntax; exit 0 when the peer has stored every DICOM file."""
    settings = settings_from(config, ae_title=ae_title)
    destination = _destination(peer, settings, tls, ca_file, client_certificate, client_key)
    for path in paths:
        if not path.exists():
            raise ConfigurationError(f"there is no file or folder {path}")
    columns = (TextColumn("sending"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True) as progress:
        task = progress.add_task("sending", total=None)
        report = send_files(
            destination,
            paths,
            calling_ae=settings.scp.ae_title,
            settings=settings.delivery,
            progress=lambda _, done, total: progress.update(task, completed=done, total=total),
        )
    delivered = [entry for entry in report if entry.delivered]
    for entry in report:
        if not entry.delivered:
            out.print(f"{escape(str(entry.path))}: {escape(_why_not(entry))}")
    out.print(f"{len(delivered)} of {len(report)} files stored by {escape(destination.name)}")
    failed = any(entry.outcome is not None and not entry.delivered for entry in report)
    sys.exit(1 if failed or not delivered else 0)


def _destination(
    peer: str,
    settings: Settings,
    tls: bool,
    ca_file: Path | None,
    client_certificate: Path | None,
    client_key: Path | None,
) -> Destination:
    """Return the configured destination of that name, or the peer that the options describe."""
    options = {"ca_file": ca_file, "client_certificate": client_certificate, "client_key": client_key}
    named = next((entry for entry in settings.delivery.destinations if entry.label == peer), None)
    if isinstance(named, DimseDestination) and not tls and not any(options.values()):
        return named.destination()
    return parse_destination(peer, tls=tls, **options).destination()


def _why_not(entry: SentFile) -> str:
    if entry.outcome is None:
        return f"skipped, {entry.skipped}"
    return f"not stored, {_cause(entry.outcome)}"


def _cause(outcome: StoreOutcome) -> str:
    if isinstance(outcome, Accepted):
        return ""
    comment = outcome.comment if isinstance(outcome, Refused) else ""
    return f"{outcome.cause} ({comment})" if comment else outcome.cause
