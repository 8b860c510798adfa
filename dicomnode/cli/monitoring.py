"""`cxrnode monitoring`: rates and distributions of findings over time, and results as a table, for quality control."""

import os
import socket
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from dicomnode.bundle.reader import open_bundle
from dicomnode.cli.queue import open_beside_node
from dicomnode.cli.terminal import BundleOption, ConfigOption, StoreOption, account, err, escape, out, settings_from
from dicomnode.domain.audit import AuditKind, Disclosure
from dicomnode.domain.errors import ConfigurationError
from dicomnode.inference.operating import choose_operating_point
from dicomnode.monitoring.export import Patient, write_table
from dicomnode.monitoring.quality import QualityReport, quality_report
from dicomnode.monitoring.views import format_percent, format_rate
from dicomnode.node import utc_now
from dicomnode.settings.node import Settings, default_bundle
from dicomnode.store import Store
from dicomnode.web import identity

monitoring = typer.Typer(
    no_args_is_help=True, help="Rates and distributions of findings, rejections by sender, results as a table."
)


@monitoring.command()
def show(config: ConfigOption = None, store: StoreOption = None, bundle: BundleOption = None) -> None:
    """Compare the last four weeks with this site's first ones and with the bundle's reference."""
    settings = settings_from(config, store=store, bundle=bundle)
    served = open_bundle(settings.inference.bundle or default_bundle())
    point = choose_operating_point(served.manifest, settings.inference.operating_point)
    with open_beside_node(config, store) as opened:
        report = quality_report(opened.watching, served.manifest, served.identity.bundle_hash, point, utc_now())
    _print(report)


@monitoring.command()
def export(
    to: Annotated[Path, typer.Option("--out", "-o", metavar="FILE.csv", help="The table to write; must not exist.")],
    config: ConfigOption = None,
    store: StoreOption = None,
    days: Annotated[float, typer.Option("--days", min=0.01, help="Answers of the last so many days.")] = 90,
    every_version: Annotated[
        bool, typer.Option("--every-version", help="Former answers of a study too, not the newest alone.")
    ] = False,
    with_patients: Annotated[
        bool, typer.Option("--with-patients", help="Say who the patients are, where an object is still kept.")
    ] = False,
) -> None:
    """Write every result as CSV, one row an image: UIDs and numbers; patients only if that is asked for."""
    settings, until = settings_from(config, store=store), utc_now()
    since = max(datetime.min.replace(tzinfo=UTC) + timedelta(days=1), until - timedelta(days=min(days, 36_500)))
    with open_beside_node(config, store) as opened:
        patient_of = _patients(opened, settings) if with_patients else None
        try:
            descriptor = os.open(to, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            raise ConfigurationError(f"{to} cannot be written: {error.strerror}") from error
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
            rows = write_table(
                lambda: opened.watching.results(since, until), file, every_version=every_version, patient_of=patient_of
            )
    out.print(f"{escape(str(to))}: {rows} images of {since:%Y-%m-%d} to {until:%Y-%m-%d}")
    if with_patients:
        err.print("[bold]It names patients:[/] keep it where they may be named, and delete it when it has served.")


def _patients(store: Store, settings: Settings) -> Callable[[str], Patient]:
    """Return who a study is of, from an object of it that is still kept; with an audit trail, not before it is told."""
    disclosed_to, here = f"{account()} (cxrnode monitoring export)", socket.gethostname()

    def patient_of(study: str) -> Patient:
        found = identity.patient_of(store.audit.blobs_of(study), store.blobs.read)
        if found is None:
            return "", "", ""
        if settings.audit.to != "off":
            about = Disclosure(study=study, visitor=disclosed_to, address=here)
            store.audit.note(AuditKind.SHOWN, about, utc_now())
        return found.patient_id, found.name, found.accession_number

    return patient_of


def _print(report: QualityReport) -> None:
    out.print(f"Operating point {escape(report.operating_point)}; the last weeks: from {report.since} on")
    if report.baseline is None:
        out.print("There are no weeks before these to compare with yet.")
    else:
        out.print(f"This site's first weeks: {report.baseline[0]} to {report.baseline[1]}")
    table = Table("finding", "lately", "before", "bundle", "PSI", "scores against before", box=None, pad_edge=False)
    for entry in report.findings:
        psi = "–" if entry.shift.psi is None else f"{entry.shift.psi:.2f}"
        rates = (format_rate(entry.recent), format_rate(entry.baseline), format_percent(entry.reference.value))
        table.add_row(escape(entry.label.replace("_", " ")), *rates, psi, entry.change.value)
    out.print(table)
    if report.callers:
        table = Table("sender", "images", "rejected", "before", "verdict", "reasons", box=None, pad_edge=False)
        for sender in report.callers:
            reasons = ", ".join(f"{reason} {count}" for reason, count in sender.reasons)
            rates = (str(sender.recent.images), format_rate(sender.recent), format_rate(sender.before))
            table.add_row(escape(sender.calling_ae), *rates, sender.against_before.change.value, reasons)
        out.print(table)
    out.print("A difference is no fault by itself: other patients, another machine and a worse model look alike here.")
