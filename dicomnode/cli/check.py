"""`cxrnode check`: everything that must be right before the node can serve, one line each. It changes nothing."""

import errno
import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from dicomnode.bundle.reader import open_bundle
from dicomnode.certificates import certificate_expires
from dicomnode.cli.terminal import BundleOption, ConfigOption, StoreOption, escape, out, settings_from
from dicomnode.domain.errors import ConfigurationError, CxrNodeError
from dicomnode.formatting import format_size
from dicomnode.inference.operating import choose_operating_point
from dicomnode.inference.predictor import Predictor
from dicomnode.monitoring.health import exposed_to_others
from dicomnode.monitoring.page_address import read_page_address
from dicomnode.monitoring.status import running_node
from dicomnode.net.dimse.tls import listener_context
from dicomnode.net.scp.server import listen_failure
from dicomnode.net.scu.destinations import check_destination
from dicomnode.node import utc_now
from dicomnode.settings.delivery import DestinationSettings, DimseDestination
from dicomnode.settings.node import Settings, TlsSettings, default_bundle
from dicomnode.web.access import Access
from dicomnode.web.server import try_out

_EXPIRES_SOON_DAYS = 14


def check(
    config: ConfigOption = None,
    port: Annotated[int | None, typer.Option("--port", "-p", help="Port of the Storage SCP.")] = None,
    store: StoreOption = None,
    send_to: Annotated[
        list[str] | None, typer.Option("--send-to", metavar="AET@HOST:PORT", help="Where results go.")
    ] = None,
    bundle: BundleOption = None,
) -> None:
    """Check configuration, model, store, disk, ports, certificates and destinations, beside a running node too.

    Exit code 0: all is well. 1: something is wrong, in a line that begins with "wrong".
    """
    try:
        settings = settings_from(config, store=store, bundle=bundle, port=port, send_to=send_to)
    except ConfigurationError as error:
        _print_line("configuration", str(error), good=False)
        sys.exit(1)
    _print_line("configuration", "read", good=True)
    verdicts = [_run(name, step) for name, step in _steps(settings)]
    sys.exit(0 if all(verdicts) else 1)


def _steps(settings: Settings) -> Iterator[tuple[str, Callable[[], str]]]:
    node = running_node(settings.store.path)
    yield "bundle", lambda: _check_bundle(settings)
    if node:
        yield "node", lambda: f"runs on this store already ({node})"
    yield "store", lambda: _check_store(settings.store.path)
    yield "disk", lambda: _check_disk(settings.store.path, settings.store.minimum_free_bytes)
    for number, _ in settings.scp.ports():
        yield "port", partial(_check_port, settings.scp.bind, number, node)
    if settings.scp.tls.certificate is not None:
        yield "tls", lambda: _check_tls(settings.scp.tls)
    if settings.http.enabled:
        yield "page", lambda: _check_page(settings, node)
    if not settings.delivery.destinations:
        yield "destinations", lambda: "none: results stay in the store"
    for entry in settings.delivery.destinations:
        yield f"destination {entry.label}", partial(_check_destination, entry, settings)


def _run(name: str, step: Callable[[], str]) -> bool:
    try:
        detail = step()
    except CxrNodeError as error:
        _print_line(name, str(error), good=False)
        return False
    _print_line(name, detail, good=True)
    return True


def _print_line(name: str, detail: str, *, good: bool) -> None:
    mark = "[green]ok   [/]" if good else "[bold red]wrong[/]"
    first, *more = detail.splitlines() or [""]
    out.print(f"{mark} {escape(name)}: {escape(first)}")
    for line in more:
        out.print(f"      {escape(line)}")


def _check_bundle(settings: Settings) -> str:
    bundle = open_bundle(settings.inference.bundle or default_bundle())
    point = choose_operating_point(bundle.manifest, settings.inference.operating_point)
    difference = Predictor(
        bundle, threads=settings.inference.threads, providers=settings.inference.providers
    ).replay_golden()
    return (
        f"{bundle.identity.name} {bundle.identity.version}, {bundle.identity.bundle_hash[:12]}, hashes agree, "
        f"golden vectors agree to {difference:.1g}, operating point {point}"
        + ("" if bundle.manifest.has_curves else ", no curves for the page")
    )


def _check_store(path: Path) -> str:
    """Check that the store can be written, or made, without making it: `check` may run as somebody else."""
    existing = _existing(path)
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigurationError(
            f"{path} cannot be written; choose another folder (store.path, --store), or let this user write there"
        )
    if existing != path:
        return f"{path.absolute()} is not there yet; the node makes it at its first start"
    if exposure := exposed_to_others(path):
        raise ConfigurationError(exposure)
    return f"{path.resolve()} can be written"


def _existing(path: Path) -> Path:
    """Return the folder, or the nearest one above it that exists."""
    return next((folder for folder in (path, *path.absolute().parents) if folder.exists()), Path("/"))


def _check_disk(path: Path, minimum_free_bytes: int) -> str:
    free, least = shutil.disk_usage(_existing(path)).free, format_size(minimum_free_bytes)
    if free < minimum_free_bytes:
        raise ConfigurationError(
            f"{format_size(free)} free; images are refused below {least} (store.minimum_free_bytes): make room"
        )
    return f"{format_size(free)} free; images are refused below {least}"


def _check_port(bind: str, port: int, node: str = "") -> str:
    family = socket.AF_INET6 if ":" in bind else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((bind, port))
    except OSError as error:
        if node and error.errno == errno.EADDRINUSE:
            return f"{bind}:{port} is in use, by the node that runs on this store"
        raise ConfigurationError(listen_failure(bind, port, error)) from error
    return f"{bind}:{port} is free"


def _check_tls(settings: TlsSettings) -> str:
    listener_context(settings)
    expires = certificate_expires(settings.certificate or Path())
    left = expires - utc_now()
    if left.days < _EXPIRES_SOON_DAYS:
        raise ConfigurationError(f"the certificate {settings.certificate} is valid until {expires:%Y-%m-%d} only")
    return f"the certificate is valid until {expires:%Y-%m-%d}, client certificates: {settings.client_certificates}"


def _check_page(settings: Settings, node: str) -> str:
    http = settings.http
    Access(http)
    who = "tokens or a proxy say who asks" if http.is_restricted else "for this machine alone"
    address = read_page_address(settings.store.path) if node else None
    if address is not None and address.why_not:
        raise ConfigurationError(f"the node that runs has no page: {address.why_not}")
    if address is not None and address.port is not None:
        return f"the node that runs serves it on port {address.port}, {who}"
    return f"{try_out(http)} can be served, {who}"


def _check_destination(entry: DestinationSettings, settings: Settings) -> str:
    result = check_destination(entry, settings.delivery, settings.scp.ae_title)
    if not result.succeeded:
        raise ConfigurationError(result.cause)
    asked = "C-ECHO" if isinstance(entry, DimseDestination) else "HTTP"
    return f"answers {asked} in {result.round_trip_ms:.0f} ms"
