"""Audit messages reach a real receiver over TLS and UDP, and a running node tells all that it should to a file."""

import contextlib
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from dicomnode.audit.syslog import TlsSink, UdpSink
from dicomnode.domain.errors import ConfigurationError, PeerUnavailable
from dicomnode.settings.node import AuditSettings
from tests.support.archives import Archive
from tests.support.bundles import make_bundle
from tests.support.certificates import Authority
from tests.support.make import CANARIES, CANARY_ID, build, encode
from tests.support.processes import NodeProcess, free_port, run_cxrnode, wait_until

WITHIN_S = 60.0
CONFIG = """
[scp]
bind = "127.0.0.1"
[assembly]
quiet_s = 0.3
[audit]
to = "file"
file = "{file}"
"""


class Receiver:
    """A syslog receiver over TLS that wants a client's certificate; it reads frames as RFC 5425 has them."""

    def __init__(self, folder: Path, authority: Authority, clients: Authority) -> None:
        self.messages: list[bytes] = []
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(authority.issue("127.0.0.1", folder / "receiver.pem"))
        self._context.verify_mode = ssl.CERT_REQUIRED
        self._context.load_verify_locations(clients.file)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.resets = 0

    def serve(self, times: int) -> threading.Thread:
        thread = threading.Thread(target=self._serve, args=(times,), daemon=True)
        thread.start()
        return thread

    def close(self) -> None:
        self._listener.close()

    def _serve(self, times: int) -> None:
        for _ in range(times):
            plain, _ = self._listener.accept()
            with contextlib.suppress(OSError), plain, self._context.wrap_socket(plain, server_side=True) as secure:
                if self.resets:
                    self.resets -= 1
                    secure.recv(10)
                    secure.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
                    continue
                self._read(secure)

    def _read(self, secure: ssl.SSLSocket) -> None:
        data = b""
        while chunk := secure.recv(7):
            data += chunk
        secure.unwrap()
        while data:
            length, _, data = data.partition(b" ")
            self.messages.append(data[: int(length)])
            data = data[int(length) :]


@pytest.fixture
def authorities(tmp_path: Path) -> tuple[Authority, Authority]:
    return Authority(tmp_path, "servers"), Authority(tmp_path, "clients")


@pytest.fixture
def receiver(tmp_path: Path, authorities: tuple[Authority, Authority]) -> Iterator[Receiver]:
    listening = Receiver(tmp_path, *authorities)
    yield listening
    listening.close()


Settings = Callable[..., AuditSettings]


@pytest.fixture
def settings(tmp_path: Path, authorities: tuple[Authority, Authority], receiver: Receiver) -> Settings:
    servers, clients = authorities
    own = clients.issue("127.0.0.1", tmp_path / "node.pem")

    def make(**changes: object) -> AuditSettings:
        given = {"to": "tls", "host": "127.0.0.1", "port": receiver.port, "ca_file": servers.file}
        return AuditSettings.model_validate({**given, "client_certificate": own, **changes})

    return make


REFUSALS = 20
LINES: Sequence[bytes] = [b"<85>1 first \xef\xbb\xbf<AuditMessage/>", b"<85>1 12 second\n" + b"x" * 100_000]


def test_a_receiver_over_tls_gets_every_message_as_it_is(receiver: Receiver, settings: Settings) -> None:
    serving = receiver.serve(1)
    TlsSink(settings()).send(LINES)
    serving.join(WITHIN_S)
    assert receiver.messages == list(LINES)


def test_what_the_receiver_breaks_off_counts_as_not_told(receiver: Receiver, settings: Settings) -> None:
    receiver.resets = 1
    receiver.serve(2)
    sink = TlsSink(settings())
    with pytest.raises(PeerUnavailable):
        sink.send(LINES)
    sink.send(LINES)
    wait_until(lambda: receiver.messages == list(LINES), WITHIN_S, "the messages")


def test_a_receiver_of_another_authority_is_told_nothing(
    receiver: Receiver, settings: Settings, authorities: tuple[Authority, Authority]
) -> None:
    receiver.serve(1)
    with pytest.raises(PeerUnavailable, match="not trusted"):
        TlsSink(settings(ca_file=authorities[1].file)).send(LINES)
    assert receiver.messages == []


def test_a_receiver_whose_certificate_is_for_another_host_is_told_nothing(
    receiver: Receiver, settings: Settings
) -> None:
    receiver.serve(1)
    with pytest.raises(PeerUnavailable, match="not trusted: Hostname mismatch"):
        TlsSink(settings(host="localhost")).send(LINES)
    assert receiver.messages == []


@pytest.mark.parametrize("lines", [LINES, [b"short"]], ids=["long", "short"])
def test_a_node_without_the_certificate_that_is_wanted_does_not_take_its_messages_for_told(
    lines: Sequence[bytes], receiver: Receiver, settings: Settings
) -> None:
    receiver.serve(REFUSALS)
    for _ in range(REFUSALS):  # at what moment the refusal comes is chance
        with pytest.raises(PeerUnavailable):
            TlsSink(settings(client_certificate=None)).send(lines)
    assert receiver.messages == []


def test_nobody_listening_and_a_missing_certificate_are_told_apart(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(PeerUnavailable):
        TlsSink(settings(port=free_port())).send(LINES)
    with pytest.raises(ConfigurationError):
        TlsSink(settings(client_certificate=tmp_path / "missing.pem")).send(LINES)


def test_over_udp_a_message_is_a_datagram() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiving:
        receiving.bind(("127.0.0.1", 0))
        receiving.settimeout(WITHIN_S)
        UdpSink(AuditSettings(to="udp", host="127.0.0.1", port=receiving.getsockname()[1])).send([b"one", b"two"])
        assert [receiving.recv(100), receiving.recv(100)] == [b"one", b"two"]


def test_a_node_tells_of_its_life_over_a_crash_and_names_the_patient_nowhere_else(tmp_path: Path) -> None:
    file = tmp_path / "audit" / "audit.log"
    with Archive() as archive:
        bundle = make_bundle(tmp_path / "bundle")
        node = NodeProcess(
            tmp_path / "node", port=free_port(), bundle=bundle, send_to=(archive.peer,), config=CONFIG.format(file=file)
        )
        try:
            node.start()
            source = build("dx")
            (tmp_path / "chest.dcm").write_bytes(encode(source))
            to = f"127.0.0.1:{node.port}"
            run_cxrnode("echo", f"OTHER@{to}")
            assert run_cxrnode("send", f"CXRNODE@{to}", str(tmp_path / "chest.dcm")).returncode == 0
            wait_until(lambda: len(archive.sent) == 2, WITHIN_S, "the delivery")
            wait_until(lambda: b"association-rejected" in told(file), WITHIN_S, "the alert")
            node.kill()
            node.start()
            assert node.terminate() == 0
        finally:
            node.close()
    lines = file.read_bytes().splitlines()
    events = [event_of(line) for line in lines]
    assert set(events) == {"110120", "110113", "110104 in", "110104 out", "110121"}
    assert (events.count("110120"), events.count("110121"), events.count("110104 in")) == (2, 1, 1)
    assert len(lines) == len(set(lines))
    transferred = [line for line in file.read_text().splitlines() if "110104" in line]
    assert all(f'ParticipantObjectID="{CANARY_ID}"' in line for line in transferred)
    assert all(f'ParticipantObjectID="{source.StudyInstanceUID}"' in line for line in transferred)
    assert not [canary for canary in CANARIES if canary in node.log()]
    assert not [canary for canary in CANARIES if canary.encode() in (node.store / "store.db").read_bytes()]


def told(file: Path) -> bytes:
    return file.read_bytes() if file.exists() else b""


def event_of(line: bytes) -> str:
    """Return the code of what a message tells, and its direction when it is a transfer."""
    message = ET.fromstring(line[line.index(b"<AuditMessage") :])
    assert re.match(rb'<85>1 \S+Z \S+ cxrnode - DICOM\+RFC3881 \[meta sequenceId="[0-9]+"\]', line)
    found = message.find("EventIdentification/EventTypeCode")
    event = found if found is not None else message.find("EventIdentification/EventID")
    assert event is not None
    code = str(event.get("csd-code"))
    if code == "110126":
        return "110113"
    if code != "110104":
        return code
    sender = message.find("ActiveParticipant")
    assert sender is not None
    # `cxrnode send` calls itself as the node does; only the node knows its machine's name.
    return f"{code} {'in' if sender.get('NetworkAccessPointID') == '127.0.0.1' else 'out'}"
