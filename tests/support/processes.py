"""Real programs as test peers: the node itself, and Orthanc as the PACS."""

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

START_S, STOP_S = 60.0, 60.0
_ORTHANC_PLUGINS = Path("/usr/share/orthanc/plugins")


def require(program: str) -> str:
    """Return the path of a program, or skip; where CI promises all peers, fail instead."""
    found = shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/bin:/sbin:/bin")
    if found is None:
        missing_peer(f"{program} is not installed")
    return str(found)


def missing_peer(reason: str) -> None:
    if os.environ.get("CXRNODE_TEST_PEERS") == "required":
        pytest.fail(f"{reason}, and this run requires every peer")
    pytest.skip(reason)


def require_orthanc_plugin(name: str) -> None:
    """Skip where Orthanc has no plugin of this name, such as `libOrthancDicomWeb.so`."""
    if not (_ORTHANC_PLUGINS / name).exists():
        missing_peer(f"Orthanc's plugin {name} is not installed")


def orthanc_settings(
    storage: Path, *, node_port: int, dicom_port: int, http_port: int, plugins: Sequence[str]
) -> dict[str, Any]:
    """Return Orthanc's configuration; docs/integration.md shows it, and a test compares them."""
    return {
        "Name": "PACS",
        "StorageDirectory": str(storage),
        "IndexDirectory": str(storage),
        "Plugins": [str(_ORTHANC_PLUGINS / name) for name in plugins],
        "HttpPort": http_port,
        "RemoteAccessAllowed": False,
        "DicomAet": Orthanc.ae_title,
        "DicomPort": dicom_port,
        "DicomModalities": {"cxrnode": ["CXRNODE", "127.0.0.1", node_port]},
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    """Return the condition's first true value, or fail saying what did not happen."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.05)
    pytest.fail(f"{what} did not happen within {seconds:.0f} s")


def alive(pid: int) -> bool:
    """Tell whether a process runs; one that only waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class NodeProcess:
    """`cxrnode serve` as a user would run it, on its own port and store."""

    def __init__(
        self,
        folder: Path,
        *,
        port: int,
        bundle: Path | None = None,
        send_to: Sequence[str] = (),
        config: str = "",
        http: str | None = "off",
    ) -> None:
        """`http`: the page's address; None: the default one."""
        self.folder, self.port, self.store = folder, port, folder / "store"
        folder.mkdir(parents=True, exist_ok=True)
        self.config = folder / "node.toml"
        self.config.write_text(config)
        self._options = ["--config", str(self.config), "--port", str(port), "--store", str(self.store)]
        if http is not None:
            self._options += ["--http", http]
        if bundle is not None:
            self._options += ["--bundle", str(bundle)]
        for destination in send_to:
            self._options += ["--send-to", destination]
        self._log = folder / "node.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> "NodeProcess":
        before = self._log.stat().st_size if self._log.exists() else 0
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "dicomnode", "serve", *self._options], stdout=log, stderr=log, cwd=self.folder
            )
        wait_until(lambda: "node-started" in self.log()[before:] or self._ended(), START_S, "the start of the node")
        if self._ended():
            pytest.fail(f"the node ended at once:\n{self.log()[before:]}")
        return self

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """End the node as a power cut would: SIGKILL."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(STOP_S)

    def terminate(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ask the node to end, as systemd would, and return its exit status."""
        assert self._process is not None
        self._process.send_signal(number)
        return self._process.wait(STOP_S)

    def close(self) -> None:
        if self._process is not None and not self._ended():
            self.kill()

    def log(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    def events(self, name: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.log().splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == name]

    def count(self, table: str, where: str = "1") -> int:
        """Count rows as a look beside the running node sees them; none as long as there is no table."""
        try:
            with closing(sqlite3.connect(f"file:{self.store / 'store.db'}?mode=ro", uri=True)) as connection:
                return int(connection.execute(f"SELECT COUNT(*) FROM {table} WHERE {where}").fetchone()[0])
        except sqlite3.OperationalError as error:
            if "no such table" in str(error) or "unable to open" in str(error):
                return 0
            raise

    def blobs(self) -> set[str]:
        """Return the names of the files in the store."""
        return {entry.name for entry in (self.store / "blobs").rglob("*") if entry.is_file()}

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run another `cxrnode` command on this node's store."""
        return run_cxrnode(*words, "--config", str(self.config), "--store", str(self.store))

    def _ended(self) -> bool:
        return self._process is None or self._process.poll() is not None


def run_cxrnode(*words: str) -> subprocess.CompletedProcess[str]:
    # Nodes that run side by side would want the same port for their page.
    environment = {"CXRNODE_HTTP__ENABLED": "false", **os.environ, "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, "-m", "dicomnode", *words],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
        env=environment,
    )


class Orthanc:
    """A real Orthanc with its own empty storage; `plugins` by file name, `more` is added to its configuration."""

    ae_title = "ORTHANC"

    def __init__(
        self,
        folder: Path,
        *,
        node_port: int,
        dicom_port: int | None = None,
        plugins: Sequence[str] = (),
        more: Mapping[str, Any] | None = None,
    ) -> None:
        self._program = require("Orthanc")
        self.dicom_port = dicom_port or free_port()
        self._http = free_port()
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for name in plugins:
            require_orthanc_plugin(name)
        settings = orthanc_settings(
            folder / "storage",
            node_port=node_port,
            dicom_port=self.dicom_port,
            http_port=self._http,
            plugins=plugins,
        )
        (folder / "orthanc.json").write_text(json.dumps({**settings, **(more or {})}))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def peer(self) -> str:
        return f"{self.ae_title}@127.0.0.1:{self.dicom_port}"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http}"

    def start(self) -> "Orthanc":
        with (self._folder / "orthanc.log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._program, str(self._folder / "orthanc.json")], stdout=log, stderr=log
            )
        wait_until(self._answers, START_S, "the start of Orthanc")
        return self

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(STOP_S)
            self._process = None

    def upload(self, part10: bytes) -> str:
        """Put an instance into the PACS and return Orthanc's id of its study."""
        return str(json.loads(self._call("POST", "/instances", part10))["ParentStudy"])

    def send_to_node(self, study: str) -> None:
        """Have the PACS send a study to the node over DIMSE and wait for its answer."""
        self._call(
            "POST", "/modalities/cxrnode/store", json.dumps({"Resources": [study], "Synchronous": True}).encode()
        )

    def instances(self, study: str) -> list[dict[str, Any]]:
        """Return the main tags of every instance of a study, with Orthanc's `ID`."""
        return list(json.loads(self._call("GET", f"/studies/{study}/instances")))

    def by_modality(self, study: str) -> dict[str, list[str]]:
        """Return Orthanc's instance ids of a study by the modality of their series."""
        found: dict[str, list[str]] = {}
        for series in json.loads(self._call("GET", f"/studies/{study}/series")):
            found.setdefault(series["MainDicomTags"]["Modality"], []).extend(series["Instances"])
        return found

    def file(self, instance: str) -> bytes:
        return self._call("GET", f"/instances/{instance}/file")

    def all_files(self) -> dict[str, bytes]:
        """Return every instance as it is stored, by SOP Instance UID."""
        uids = {
            entry["MainDicomTags"]["SOPInstanceUID"]: entry["ID"]
            for entry in json.loads(self._call("GET", "/instances?expand"))
        }
        return {uid: self._call("GET", f"/instances/{at}/attachments/dicom/data") for uid, at in uids.items()}

    def tags(self, sop_instance_uid: str) -> dict[str, Any]:
        """Return the attributes of an instance as the PACS shows them, by keyword."""
        (at,) = json.loads(self._call("POST", "/tools/lookup", sop_instance_uid.encode()))
        return dict(json.loads(self._call("GET", f"/instances/{at['ID']}/simplified-tags")))

    def stow(self, objects: Sequence[bytes]) -> bytes:
        """Store instances by STOW-RS and return the service's answer (DICOM JSON); needs the DICOMweb plugin."""
        parts = (b"--cut\r\nContent-Type: application/dicom\r\n\r\n" + entry + b"\r\n" for entry in objects)
        body = b"".join((*parts, b"--cut--\r\n"))
        headers = {
            "Content-Type": 'multipart/related; type="application/dicom"; boundary=cut',
            "Accept": "application/dicom+json",
        }
        return self._call("POST", "/dicom-web/studies", body, headers)

    def count(self) -> int:
        return int(json.loads(self._call("GET", "/statistics"))["CountInstances"])

    def _answers(self) -> bool:
        try:
            self._call("GET", "/system")
        except (urllib.error.URLError, ConnectionError):
            return False
        return True

    def _call(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> bytes:
        request = urllib.request.Request(f"{self.url}{path}", data=body, headers=dict(headers or {}), method=method)
        with urllib.request.urlopen(request, timeout=60) as response:
            return bytes(response.read())
