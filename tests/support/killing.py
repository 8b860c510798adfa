"""A node that hurries from step to step, for tests that kill it between two of them."""

import re

from dicomnode.domain.delivery import Accepted, Destination
from dicomnode.net.scu.storage import send
from dicomnode.settings.delivery import DeliverySettings
from tests.support.dimse import outgoing
from tests.support.processes import NodeProcess

STEP_WITHIN_S = 150.0
HASTY = """
[scp]
bind = "127.0.0.1"
[assembly]
quiet_s = 0.3
[delivery]
batch = 1
[delivery.retry]
first_delay_s = 0.2
max_delay_s = 0.3
[work]
retry_delay_s = 0.1
"""
COMMITTED = "state = 'committed'"


def committing(ae_title: str, port: int) -> str:
    """Return the settings of an archive that is asked whether it keeps what it took."""
    return f"""
[[delivery.destinations]]
name = "archive"
ae_title = "{ae_title}"
host = "127.0.0.1"
port = {port}
commitment = true
commitment_timeout_s = 3.0
commitment_linger_s = 0
"""


def is_acknowledged(node: NodeProcess, part10: bytes) -> bool:
    """Send an image from within this process, which starts nothing, and tell whether the node promised to keep it."""
    to = Destination(name="node", ae_title="CXRNODE", host="127.0.0.1", port=node.port)
    return send(to, [outgoing(part10)], calling_ae="MODALITY", settings=DeliverySettings()) == [Accepted()]


def owes_nothing(node: NodeProcess) -> bool:
    """Tell whether `cxrnode queue list` counts nothing that is unfinished."""
    return re.search(r"\b0 analyses and 0 deliveries unfinished", node.command("queue", "list").stdout) is not None
