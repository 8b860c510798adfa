"""`cxrnode why`: what happened to a study, from reception to delivery, in sentences."""

from typing import Annotated

import typer

from dicomnode.cli.queue import checked_uid, open_beside_node
from dicomnode.cli.terminal import ConfigOption, StoreOption, escape, out
from dicomnode.domain.evidence import describe
from dicomnode.formatting import format_time
from dicomnode.store.ledger import conclusion, sentence


def why(
    study: Annotated[str, typer.Argument(metavar="STUDY_UID", help="Study Instance UID.")],
    config: ConfigOption = None,
    store: StoreOption = None,
) -> None:
    """Print what happened to a study, from reception to delivery.

    Example: cxrnode why 1.2.840.113619.2.1.1 --config node.toml
    """
    with open_beside_node(config, store) as opened:
        events = opened.ledger.explain(checked_uid(study))
        summary = opened.studies.summary_of(study)
        jobs, deliveries = opened.ledger.jobs_of(study), opened.ledger.deliveries_of(study)
    for event in events:
        out.print(f"{format_time(event.at)}  {escape(sentence(event))}")
    for sop_instance, evidence in summary.evidence():
        out.print(escape(f"Image {sop_instance} says {describe(evidence)}."))
    out.print()
    out.print(escape(conclusion(jobs, deliveries)))
