"""`cxrnode conformance`: write the DICOM Conformance Statement."""

from pathlib import Path
from typing import Annotated

import typer

from dicomnode.cli.terminal import out
from dicomnode.conformance.statement import conformance_statement
from dicomnode.domain.errors import ConfigurationError


def conformance(
    output: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="The file to write, else standard output.")
    ] = None,
) -> None:
    """Write the DICOM Conformance Statement of this version, made from the tables in the node's code."""
    statement = conformance_statement()
    if output is None:
        out.print(statement, end="", markup=False, emoji=False)
        return
    try:
        output.write_text(statement, encoding="utf-8", newline="\n")
    except OSError as error:
        raise ConfigurationError(f"{output} cannot be written: {error.strerror}") from error
    out.print(f"conformance statement written to {output}", markup=False)
