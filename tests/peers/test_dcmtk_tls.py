"""TLS against DCMTK's programs, which bring their own reading of the profile, and the node's own commands."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from dicomnode.domain.delivery import Accepted, Destination, PeerTls
from dicomnode.net.scu.storage import echo, send
from tests.peers.test_dcmtk import SETTINGS, dcmtk, run, storescp
from tests.support.certificates import Authority
from tests.support.dimse import MemoryInbox, data_set_of, outgoing, running_scp
from tests.support.make import build, encode
from tests.support.processes import run_cxrnode, wait_until

pytestmark = pytest.mark.peer

HOST = "127.0.0.1"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def options(authority: Authority, folder: Path) -> list[str]:
    """Return what has a program of DCMTK show a certificate and verify that of its peer."""
    own = authority.issue(HOST, folder / "dcmtk.pem")
    return ["+tls", str(own), str(own), "+cf", str(authority.file)]


def required(authority: Authority, folder: Path) -> dict[str, object]:
    return {
        "certificate": authority.issue(HOST, folder / "node.pem"),
        "client_certificates": "required",
        "client_ca_file": authority.file,
    }


def fails(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    return done.stdout + done.stderr


@pytest.mark.parametrize("profile", ["+py", "+px"], ids=["non-downgrading", "BCP 195"])
def test_storescu_delivers_over_tls(authority: Authority, tmp_path: Path, profile: str) -> None:
    sent, inbox = encode(build("cr", rows=256, columns=200)), MemoryInbox()
    file = tmp_path / "sent.dcm"
    file.write_bytes(sent)
    with running_scp(inbox, tls=required(authority, tmp_path)) as (_, node):
        words = ["-aec", node.ae_title, *options(authority, tmp_path), profile, node.host, str(node.port)]
        run(dcmtk("storescu"), "-xe", *words, file)
        run(dcmtk("echoscu"), *words)
        wait_until(lambda: len(inbox.released) == 2, 10, "the release")
    assert data_set_of(inbox.received[0].part10) == data_set_of(sent)


def test_echoscu_is_turned_away_without_the_right_certificate(authority: Authority, tmp_path: Path) -> None:
    stranger = Authority(tmp_path, "stranger")
    with running_scp(MemoryInbox(), tls=required(authority, tmp_path)) as (scp, node):
        echoscu = [dcmtk("echoscu"), "-aec", node.ae_title]
        where = [node.host, str(node.port)]
        fails([*echoscu, *where])
        fails([*echoscu, "+tla", "+cf", str(authority.file), *where])
        fails([*echoscu, *options(stranger, tmp_path), "-ic", *where])
        assert scp.refused == {("connection-refused", "tls"): 3}
        run(*echoscu, *options(authority, tmp_path), *where)


def test_storescp_is_delivered_to_over_tls(authority: Authority, tmp_path: Path) -> None:
    sent = encode(build("cr", rows=256, columns=200))
    own = authority.issue(HOST, tmp_path / "cxrnode.pem")
    tls = PeerTls(ca_file=authority.file, client_certificate=own)
    with storescp(tmp_path / "in", "+xe", *options(authority, tmp_path), tls=tls) as destination:
        assert send(destination, [outgoing(sent)], calling_ae="CXRNODE", settings=SETTINGS) == [Accepted()]
        nobody = Destination(
            name="storescp",
            ae_title=destination.ae_title,
            host=HOST,
            port=destination.port,
            tls=PeerTls(ca_file=authority.file),
        )
        assert not echo(nobody, calling_ae="CXRNODE", settings=SETTINGS).succeeded
    (path,) = (tmp_path / "in").iterdir()
    assert data_set_of(path.read_bytes()) == data_set_of(sent)


def test_the_commands_speak_tls(authority: Authority, tmp_path: Path) -> None:
    own = authority.issue(HOST, tmp_path / "own.pem")
    file = tmp_path / "sent.dcm"
    file.write_bytes(encode(build("cr", rows=64, columns=64)))
    config = tmp_path / "node.toml"
    inbox = MemoryInbox()
    with running_scp(inbox, tls=required(authority, tmp_path)) as (_, node):
        config.write_text(
            f'[[delivery.destinations]]\nname = "secure"\nae_title = "{node.ae_title}"\nhost = "{HOST}"\n'
            f'port = {node.port}\ntls = true\nca_file = "{authority.file}"\nclient_certificate = "{own}"\n'
        )
        by_options = [f"{node.ae_title}@{HOST}:{node.port}", "--tls", "--ca-file", str(authority.file)]
        refused = run_cxrnode("echo", *by_options)
        assert refused.returncode == 1
        assert "certificate required" in refused.stderr
        assert run_cxrnode("echo", *by_options, "--client-certificate", str(own)).returncode == 0
        sent = run_cxrnode("send", "secure", str(file), "--config", str(config))
        assert (sent.returncode, sent.stdout) == (0, "1 of 1 files stored by secure\n")
    assert len(inbox.received) == 1


def test_check_tries_certificates_and_destinations(authority: Authority, tmp_path: Path) -> None:
    own = authority.issue(HOST, tmp_path / "own.pem")
    config = tmp_path / "node.toml"
    with running_scp(MemoryInbox(), tls=required(authority, tmp_path)) as (_, node):
        config.write_text(
            f'[scp.tls]\ncertificate = "{own}"\nport = 2762\n'
            f'[[delivery.destinations]]\nname = "secure"\nae_title = "{node.ae_title}"\nhost = "{HOST}"\n'
            f'port = {node.port}\ntls = true\nca_file = "{authority.file}"\nclient_certificate = "{own}"\n'
        )
        said = run_cxrnode("check", "--config", str(config), "--store", str(tmp_path / "store")).stdout
    assert "ok    destination secure: answers C-ECHO" in said
    # The certificates of these tests are valid for a day.
    assert f"wrong tls: the certificate {own} is valid until" in said
