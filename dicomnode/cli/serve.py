"""`cxrnode serve`: run the node until SIGTERM or Ctrl-C."""

from typing import Annotated

import typer

from dicomnode.cli.process import keep_to_oneself, return_images_at_once, return_what_is_free
from dicomnode.cli.terminal import BundleOption, ConfigOption, StoreOption, asked_to_stop, settings_from
from dicomnode.node import Node
from dicomnode.telemetry import log_uncaught, start_logging


def serve(
    config: ConfigOption = None,
    port: Annotated[int | None, typer.Option("--port", "-p", help="Port of the Storage SCP [11112].")] = None,
    ae_title: Annotated[str | None, typer.Option("--ae-title", help="AE title of the node [CXRNODE].")] = None,
    store: StoreOption = None,
    send_to: Annotated[
        list[str] | None,
        typer.Option("--send-to", metavar="AET@HOST:PORT", help="Where results go (repeatable)."),
    ] = None,
    bundle: BundleOption = None,
    http: Annotated[
        str | None, typer.Option("--http", metavar="HOST:PORT|off", help="The web page [127.0.0.1:8080].")
    ] = None,
    log_format: Annotated[
        str | None, typer.Option("--log-format", metavar="auto|json|text", help="Format of the log on standard error.")
    ] = None,
) -> None:
    """Receive studies, analyse them, and send the results, until SIGTERM or Ctrl-C.

    The node then finishes open associations and the study in work, and exits with 0.

    Examples: cxrnode serve --config node.toml · cxrnode serve --send-to PACS@pacs.example.org:104
    """
    settings = settings_from(
        config,
        store=store,
        bundle=bundle,
        port=port,
        ae_title=ae_title,
        send_to=send_to,
        log_format=log_format,
        http=http,
    )
    keep_to_oneself()
    return_images_at_once()
    start_logging(settings.log)
    log_uncaught()
    ended = asked_to_stop()
    node = Node.build(settings)
    return_what_is_free()
    try:
        node.start()
        ended.wait()
    finally:
        node.stop()
