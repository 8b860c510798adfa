"""What a hostile peer does to a node, each attack as a function of where the node listens.

`python -m tests.support.attacks` runs every one of them against a real node process, sends a study in the meantime,
and prints what was injected, what came of it, and the node's memory before and at its peak.
"""

import argparse
import contextlib
import random
import re
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydicom.uid import CTImageStorage

from dicomnode.domain.delivery import Accepted, Destination
from dicomnode.net.scu.storage import send
from dicomnode.settings.node import DeliverySettings
from tests.support.archives import Archive
from tests.support.bundles import make_bundle
from tests.support.dimse import outgoing
from tests.support.make import build, encode
from tests.support.processes import NodeProcess, free_port, wait_until
from tests.support.wire import (
    ABORT,
    COMMITMENT,
    P_DATA,
    REPORT,
    REQUEST,
    STORE,
    answer,
    associate_request,
    associated,
    command,
    connected,
    fragment,
    item,
    p_data,
    push,
)

MIB = 1 << 20
OBJECT_BYTES, PENDING_BYTES = 64 * MIB, 128 * MIB
# Short times, so that an attack that lives on waiting is over within a test.
CONFIG = f"""
[scp]
bind = "127.0.0.1"
acse_timeout_s = 3
network_timeout_s = 4
maximum_object_bytes = {OBJECT_BYTES}
maximum_pending_bytes = {PENDING_BYTES}
[assembly]
quiet_s = 0.3
"""
PATIENT = DeliverySettings(connect_timeout_s=30, response_timeout_s=60)


@dataclass(frozen=True)
class Attack:
    """An attack, what of the node's refusals shows that it took place, and how long it may go on."""

    run: Callable[[int], int]
    refused: str | None
    says: str


@contextlib.contextmanager
def all_closed() -> Iterator[list[socket.socket]]:
    wires: list[socket.socket] = []
    try:
        yield wires
    finally:
        for wire in wires:
            wire.close()


def nothing(port: int) -> int:
    """Show what the good studies cost alone."""
    return 0


def bombs_before_an_association(port: int) -> int:
    for _ in range(50):
        with connected(port) as wire:
            wire.sendall(struct.pack(">BBL", REQUEST, 0, 0xFFFFFFFF))
            push(wire, bytes(MIB), 20)
    return 50


def bombs_within_an_association(port: int) -> int:
    done = 0
    for _ in range(20):
        wire = associated(port)
        if wire is not None:
            with wire:
                push(wire, struct.pack(">BBL", P_DATA, 0, 0xFFFFFFF0) + bytes(MIB), 20)
            done += 1
    return done


def requests_of_many_items(port: int) -> int:
    for _ in range(50):
        with connected(port) as wire:
            push(wire, associate_request(more=item(0x10, b"") * 30_000))
            answer(wire)
    return 50


def pdus_of_many_fragments(port: int) -> int:
    done = 0
    for _ in range(20):
        wire = associated(port)
        if wire is not None:
            with wire:
                push(wire, p_data(fragment(b"", command=False, last=False) * 40_000), 10)
            done += 1
    return done


def requests_that_drip(port: int) -> int:
    request = associate_request()
    with all_closed() as wires:
        wires.extend(connected(port) for _ in range(16))
        for byte in request[:40]:
            for wire in wires:
                push(wire, bytes([byte]))
            time.sleep(0.1)
    return 16


def thousands_of_connections(port: int) -> int:
    with all_closed() as wires:
        for number in range(3000):
            try:
                wires.append(connected(port, 2 + number % 50))
            except OSError:
                continue
            while len(wires) > 500:
                wires.pop(0).close()
    return 3000


def associations_that_say_nothing(port: int) -> int:
    """Half-open, as far as the node can tell: the peer is gone without a word."""
    with all_closed() as wires:
        found = (associated(port, 2 + number // 7, calling=f"HOSTILE-{number}") for number in range(14))
        wires.extend(wire for wire in found if wire is not None)
        time.sleep(6)
        return len(wires)


def objects_without_end(port: int) -> int:
    """Fourteen associations hold as much of an object each as they may, at once."""
    begin = p_data(fragment(STORE, command=True, last=True))
    part = p_data(fragment(bytes(250_000), command=False, last=False))
    sent: list[int] = []

    def hold(number: int) -> None:
        wire = associated(port, 2 + number // 7, calling=f"HOSTILE-{number}")
        if wire is not None:
            with wire:
                push(wire, begin)
                # Just below what one object may have: nobody is cut off for that.
                sent.append(push(wire, part, OBJECT_BYTES // 250_000 - 1))
                time.sleep(2)

    threads = [threading.Thread(target=hold, args=(number,)) for number in range(14)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(sent)


def objects_that_drip(port: int) -> int:
    """One byte in each PDU, several a second: no single timeout is ever reached."""
    with all_closed() as wires:
        wires.extend(wire for wire in (associated(port) for _ in range(7)) if wire is not None)
        for wire in wires:
            push(wire, p_data(fragment(STORE, command=True, last=True)))
        for _ in range(50):
            for wire in wires:
                push(wire, p_data(fragment(b"\0", command=False, last=False)))
            time.sleep(0.2)
        return len(wires)


def objects_broken_off(port: int) -> int:
    done = 0
    for number in range(100):
        wire = associated(port)
        if wire is not None:
            with wire:
                push(wire, p_data(fragment(STORE, command=True, last=True)))
                push(wire, p_data(fragment(bytes(100_000), command=False, last=False)))
                if number % 2:
                    push(wire, struct.pack(">BBLL", ABORT, 0, 4, 0))
            done += 1
    return done


def floods_of_reports(port: int) -> int:
    """The library gives each report a thread of its own."""
    report = p_data(fragment(REPORT, command=True, last=True)) + p_data(fragment(bytes(8), command=False, last=True))
    done = 0
    wire = associated(port, abstract=COMMITMENT, role=True)
    if wire is not None:
        with wire:
            done = push(wire, report, 2000)
    return done


def commands_without_end(port: int) -> int:
    done = 0
    for _ in range(5):
        wire = associated(port)
        if wire is not None:
            with wire:
                push(wire, p_data(fragment(bytes(60_000), command=True, last=False)), 500)
            done += 1
    return done


def rejected_peers_that_stay(port: int) -> int:
    with all_closed() as wires:
        for _ in range(16):
            wires.append(connected(port))
            push(wires[-1], associate_request(called="WRONG"))
        time.sleep(1)
    return 16


def more_associations_than_a_peer_may_have(port: int) -> int:
    with all_closed() as wires:
        for _ in range(16):
            wires.append(connected(port))
            push(wires[-1], associate_request())
            answer(wires[-1])
        time.sleep(1)
    return 16


def random_pdus(port: int) -> int:
    source = random.Random(5)
    for _ in range(300):
        body = source.randbytes(source.randrange(400))
        wire = connected(port) if source.random() < 0.5 else associated(port)
        if wire is not None:
            with wire:
                push(wire, struct.pack(">BBL", source.randrange(10), 0, len(body)) + body)
    return 300


def unknown_abstract_syntaxes(port: int) -> int:
    for number in range(50):
        wire = associated(port, abstract=CTImageStorage if number % 2 else "1.2.3.4.5")
        if wire is not None:
            with wire:
                push(wire, p_data(fragment(command(CTImageStorage, 1), command=True, last=True)))
                push(wire, p_data(fragment(b"x", command=False, last=True)))
    return 50


ATTACKS: dict[str, Attack] = {
    "nothing": Attack(nothing, None, "nothing: the good studies alone"),
    "bombs-before-an-association": Attack(
        bombs_before_an_association, "request-length", "a request that announces 4 GiB, 20 MiB of it sent"
    ),
    "bombs-within-an-association": Attack(
        bombs_within_an_association, "length", "a P-DATA that announces 4 GiB, 20 MiB of it sent"
    ),
    "requests-of-many-items": Attack(requests_of_many_items, "request-parts", "a request of 30,000 empty items"),
    "pdus-of-many-fragments": Attack(pdus_of_many_fragments, "parts", "ten P-DATA of 40,000 empty fragments"),
    "requests-that-drip": Attack(requests_that_drip, "request-timeout", "a request at ten bytes a second"),
    "thousands-of-connections": Attack(thousands_of_connections, "connections", "a connection, 500 open at a time"),
    "associations-that-say-nothing": Attack(associations_that_say_nothing, None, "an association, then silence"),
    "objects-without-end": Attack(objects_without_end, "memory", "64 MiB of an object that does not end, all at once"),
    "objects-that-drip": Attack(objects_that_drip, "too-slow", "an object at five bytes a second"),
    "objects-broken-off": Attack(objects_broken_off, None, "an object aborted, or its connection closed, within"),
    "floods-of-reports": Attack(floods_of_reports, None, "an N-EVENT-REPORT, unasked for, without a pause"),
    "commands-without-end": Attack(commands_without_end, "object-size", "30 MB of a command set"),
    "rejected-peers-that-stay": Attack(rejected_peers_that_stay, "called-ae", "a wrong called AE title, then silence"),
    "more-associations-than-a-peer-may-have": Attack(
        more_associations_than_a_peer_may_have, "associations-per-address", "an association of one address"
    ),
    "random-pdus": Attack(random_pdus, None, "a PDU of random type and content, on a connection or an association"),
    "unknown-abstract-syntaxes": Attack(unknown_abstract_syntaxes, None, "an object of a SOP class not negotiated"),
}


class Attacked:
    """A node process with an archive behind it, and a good peer that sends it studies."""

    def __init__(self, folder: Path, bundle: Path, archive: Archive, config: str = CONFIG) -> None:
        self._archive = archive
        self.node = NodeProcess(folder, port=free_port(), bundle=bundle, send_to=(archive.peer,), config=config)
        self.node.start()
        self._studies = 0

    def attack(self, attack: Attack, studies: int = 2) -> "Outcome":
        """Run an attack, and send studies in the meantime; return when all of them have been answered."""
        before, times, answered = self.memory("VmRSS"), [0], []
        self.forget_peak()
        thread = threading.Thread(target=lambda: times.append(attack.run(self.node.port)))
        thread.start()
        try:
            time.sleep(0.3)
            answered = [self.answers() for _ in range(studies)]
        finally:
            thread.join()
        answered.append(self.answers())
        return Outcome(times[-1], max(answered), before, self.memory("VmHWM"), self.memory("VmRSS"))

    def answers(self) -> float:
        """Send a study, wait for both results in the archive, and return how long that took."""
        self._studies += 1
        began, expected = time.monotonic(), len(self._archive.sent) + 2
        sent = outgoing(encode(build("dx", seed=1000 + self._studies)))
        peer = Destination(name="node", ae_title="CXRNODE", host="127.0.0.1", port=self.node.port)
        assert send(peer, [sent], calling_ae="GOOD", settings=PATIENT) == [Accepted()]
        wait_until(lambda: len(self._archive.sent) == expected, 60, "the answer to the good peer's study")
        return time.monotonic() - began

    def memory(self, what: str) -> int:
        text = Path(f"/proc/{self.node.pid}/status").read_text()
        return int(re.search(rf"{what}:\s+(\d+) kB", text)[1]) * 1024  # type: ignore[index]

    def forget_peak(self) -> None:
        with contextlib.suppress(PermissionError):
            Path(f"/proc/{self.node.pid}/clear_refs").write_text("5")

    def threads(self) -> int:
        return len(list(Path(f"/proc/{self.node.pid}/task").iterdir()))

    def files(self) -> int:
        return len(list(Path(f"/proc/{self.node.pid}/fd").iterdir()))

    def refused(self) -> set[str]:
        names = ("connection-refused", "association-rejected", "pdu-refused")
        return {line["reason"] for name in names for line in self.node.events(name)}


@dataclass(frozen=True)
class Outcome:
    """How often it was done, the longest that a good study took, and the node's memory, in bytes."""

    times: int
    slowest_s: float
    before: int
    peak: int
    after: int


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the attacks named, or all, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *ATTACKS], metavar="ATTACK")
    names = parser.parse_args(arguments).names or list(ATTACKS)
    print("| attack | injected | times | refused as | slowest good study | RSS before | peak | after |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder, Archive() as archive:
        attacked = Attacked(Path(folder) / "node", make_bundle(Path(folder) / "bundle"), archive)
        with contextlib.closing(attacked.node):
            _print_table(attacked, names)


def _print_table(attacked: Attacked, names: Sequence[str]) -> None:
    attacked.answers()
    for name in names:
        done = attacked.attack(ATTACKS[name])
        memory = " | ".join(f"{value / MIB:.0f} MiB" for value in (done.before, done.peak, done.after))
        refused = ATTACKS[name].refused or "-"
        print(
            f"| {name} | {ATTACKS[name].says} | {done.times} | {refused} | {done.slowest_s:.1f} s | {memory} |",
            flush=True,
        )
    print(f"\nrefused: {sorted(attacked.refused())}; threads {attacked.threads()}, files {attacked.files()}")


if __name__ == "__main__":
    main()
