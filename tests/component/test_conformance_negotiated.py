"""What a running node really accepts, refuses and answers is what the committed conformance statement says.

The statement is read as its readers have it, as text; the node is asked by pynetdicom alone.
"""

import re
import shutil
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.uid import UID_dictionary
from pynetdicom import AE, build_role
from pynetdicom.presentation import PresentationContext, build_context

from dicomnode.dicom.part10 import read_file_head
from dicomnode.domain.delivery import Destination
from dicomnode.domain.errors import StoreUnavailable
from tests.conftest import ROOT
from tests.support.dimse import MemoryInbox, renamed, requested, running_scp, send_raw
from tests.support.make import build, encode
from tests.support.processes import NodeProcess, free_port
from tests.support.requesting import exchange, store
from tests.support.wire import ACCEPTED, answered, associate_request, connected, push

SECTION_7_1, SECTION_7_2 = "### 7.1 ", "### 7.2 "
UNKNOWN = "1.2.826.0.1.3680043.9.9999.1"
AT_ONCE = 40
SYNTAXES = [uid for uid, entry in UID_dictionary.items() if entry[1] == "Transfer Syntax"] + [UNKNOWN]
CLASSES = [uid for uid, entry in UID_dictionary.items() if entry[1] == "SOP Class"] + [UNKNOWN]


def section(heading: str) -> str:
    text = (ROOT / "CONFORMANCE.md").read_text(encoding="utf-8")
    return re.split(r"\n##+ ", text.split(f"\n{heading}")[1])[0]


def cells(heading: str) -> list[list[str]]:
    """Return the rows of a section's tables without their headings."""
    lines = [line.strip("| ").split(" | ") for line in section(heading).splitlines() if line.startswith("| ")]
    return [line for line in lines if not set(line[0]) <= {"-"}][1:]


def stated_contexts() -> dict[str, tuple[list[str], str]]:
    """Return abstract syntax → transfer syntaxes by preference, and the node's role."""
    return {row[1].strip("`"): (re.findall(r"`([0-9.]+)`", row[2]), row[3]) for row in cells(SECTION_7_2)}


def stated_property(name: str) -> str:
    (value,) = (row[1] for row in cells(SECTION_7_1) if row[0] == name)
    return value.split(" (")[0].strip("`")


def stated_statuses() -> set[str]:
    return {row[0].strip("`") for row in cells("### 5.2 ")}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Destination]:
    """Run a node as it is delivered, but for its address and the time it waits."""
    port = free_port()
    process = NodeProcess(
        tmp_path_factory.mktemp("node"), port=port, config='[scp]\nbind = "127.0.0.1"\n[assembly]\nquiet_s = 300.0\n'
    )
    process.start()
    yield Destination(name="node", ae_title="CXRNODE", host="127.0.0.1", port=port)
    process.close()


def negotiated(node: Destination, contexts: list[PresentationContext]) -> dict[tuple[str, tuple[str, ...]], str | None]:
    """Return, for each proposed context, the transfer syntax that was accepted, if any."""
    found: dict[tuple[str, tuple[str, ...]], str | None] = {}
    # With every transfer syntax there is, more contexts would make a request longer than the node reads.
    for start in range(0, len(contexts), AT_ONCE):
        # One that is accepted for certain, so that the association stands even where all others are refused.
        batch = [*contexts[start : start + AT_ONCE], build_context("1.2.840.10008.1.1")]
        with requested(node, *batch) as association:
            accepted = {
                context.context_id: str(context.transfer_syntax[0]) for context in association.accepted_contexts
            }
            for number, context in enumerate(batch[:-1]):
                key = (str(context.abstract_syntax), tuple(str(entry) for entry in context.transfer_syntax))
                found[key] = accepted.get(2 * number + 1)
    return found


def test_each_transfer_syntax_of_each_stated_class_is_accepted_and_no_other(node: Destination) -> None:
    stated = {uid: syntaxes for uid, (syntaxes, role) in stated_contexts().items() if role == "SCP"}
    assert len(stated) > 8
    proposals = [build_context(uid, [syntax]) for uid in stated for syntax in SYNTAXES]
    found = negotiated(node, proposals)
    assert len(found) == len(stated) * len(SYNTAXES)
    accepted = {(uid, syntaxes[0]) for (uid, syntaxes), chosen in found.items() if chosen is not None}
    assert accepted == {(uid, syntax) for uid, syntaxes in stated.items() for syntax in syntaxes}


def test_no_other_sop_class_there_is_is_accepted_in_any_transfer_syntax(node: Destination) -> None:
    others = [uid for uid in CLASSES if uid not in stated_contexts()]
    found = negotiated(node, [build_context(uid, SYNTAXES) for uid in others])
    assert len(found) == len(others) > 200
    assert {uid for (uid, _), chosen in found.items() if chosen is not None} == set()


def test_of_several_transfer_syntaxes_the_first_stated_is_chosen(node: Destination) -> None:
    stated = {uid: syntaxes for uid, (syntaxes, role) in stated_contexts().items() if role == "SCP"}
    proposals = [build_context(uid, syntaxes[::-1][:count]) for uid, syntaxes in stated.items() for count in (2, 99)]
    for (uid, proposed), chosen in negotiated(node, proposals).items():
        assert chosen == next(syntax for syntax in stated[uid] if syntax in proposed)


def test_the_roles_are_those_stated(node: Destination) -> None:
    stated = stated_contexts()
    contexts = [build_context(uid, syntaxes[:1]) for uid, (syntaxes, _) in stated.items()]
    roles = [build_role(uid, scu_role=True, scp_role=True) for uid in stated]
    association = AE(ae_title="SENDER").associate(
        node.host, node.port, contexts=contexts, ae_title=node.ae_title, ext_neg=roles
    )
    wire = association.dul.socket.socket
    try:
        assert association.is_established
        found = {str(entry.abstract_syntax): (entry.as_scu, entry.as_scp) for entry in association.accepted_contexts}
    finally:
        association.release()
        wire.close()
    assert found == {uid: (role == "SCP", role != "SCP") for uid, (_, role) in stated.items()}


def test_the_node_names_itself_and_its_pdu_length_as_stated(node: Destination) -> None:
    with requested(node, build_context("1.2.840.10008.1.1")) as association:
        acceptor = association.acceptor
        assert str(acceptor.implementation_class_uid) == stated_property("Implementation class UID")
        assert acceptor.implementation_version_name == stated_property("Implementation version name")
        assert acceptor.maximum_length == int(stated_property("Maximum PDU length received"))
        assert acceptor.asynchronous_operations == (1, 1)
        assert acceptor.user_identity is None
        assert association.send_c_echo().Status == 0x0000


def established(node: Destination, peers: Sequence[int]) -> list[bool]:
    """Open an association for each of these peers, all at once, and tell which were accepted."""
    opened = []
    try:
        for peer in peers:
            association = AE(ae_title=f"SENDER-{peer}").associate(
                node.host,
                node.port,
                contexts=[build_context("1.2.840.10008.1.1")],
                ae_title=node.ae_title,
                bind_address=(f"127.0.0.{2 + peer}", 0),
            )
            opened.append((association, association.dul.socket.socket))
        assert all(entry.is_established or entry.is_rejected for entry, _ in opened)
        return [entry.is_established for entry, _ in opened]
    finally:
        for association, wire in opened:
            if association.is_established:
                association.release()
            if wire is not None:
                wire.close()


def test_the_number_of_associations_is_the_stated_one(node: Destination) -> None:
    limit, of_one = (int(stated_property(name)) for name in ("Simultaneous associations", "Associations of one peer"))
    peers = [number // of_one for number in range(limit + 1)]
    assert established(node, peers) == [True] * limit + [False]


def test_the_number_of_associations_of_one_peer_is_the_stated_one(node: Destination) -> None:
    limit = int(stated_property("Associations of one peer"))
    assert established(node, [50] * (limit + 1)) == [True] * limit + [False]


def test_another_ae_title_is_rejected_as_stated(node: Destination) -> None:
    association = AE(ae_title="SENDER").associate(
        node.host, node.port, contexts=[build_context("1.2.840.10008.1.1")], ae_title="ANOTHER"
    )
    assert association.is_rejected


def test_every_stated_status_can_be_provoked_and_is_the_one_answered(node: Destination, tmp_path: Path) -> None:
    image = encode(build("cr", rows=64, columns=64))
    sop_class = str(dcmread(BytesIO(image)).SOPClassUID)
    provoked = {
        send_raw(node, image).Status,
        send_raw(node, renamed(image, "other"), sop_instance="1.2.3").Status,
        send_raw(node, renamed(image, "broken"), data_set=b"\xff" * 64).Status,
        status_when_disk_is_short(tmp_path, image),
    }
    for failure in (StoreUnavailable("the store"), RuntimeError("a fault")):
        with running_scp(MemoryInbox(failure=failure)) as (_, destination):
            provoked.add(send_raw(destination, image, sop_class=sop_class).Status)
    assert {f"{status:04X}" for status in provoked} == stated_statuses()


def test_every_stated_refusal_of_a_command_can_be_provoked(node: Destination) -> None:
    image = encode(build("cr", rows=64, columns=64))
    data = image[read_file_head(image).offset :]
    long_uid = b"1." * 40 + b"12"
    commands = [
        store(image, x0700=b"\3\0"),
        store(image, x1000=long_uid),
        store(image, x0002=long_uid),
        store(image, without=(0x0110,)),
        store(image, x0100=b"\x20\0"),
    ]
    with connected(node.port) as wire:
        push(wire, associate_request())
        assert answered(wire)[0] == ACCEPTED
        provoked = {exchange(wire, sent, data).Status for sent in commands}
    assert {f"{status:04X}" for status in provoked} == {row[0].strip("`") for row in cells("#### 5.2.1 ")}


def status_when_disk_is_short(folder: Path, image: bytes) -> int:
    """Return what a node answers that is to leave more disk free than there is."""
    port = free_port()
    bound = shutil.disk_usage(folder).total * 2
    config = f'[scp]\nbind = "127.0.0.1"\n[store]\nminimum_free_bytes = {bound}\n'
    process = NodeProcess(folder / "short", port=port, config=config)
    try:
        process.start()
        node = Destination(name="node", ae_title="CXRNODE", host="127.0.0.1", port=port)
        return int(send_raw(node, image).Status)
    finally:
        process.close()
