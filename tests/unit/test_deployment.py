"""What stands in deploy/ and the Dockerfile, held against repository and node, as far as goes without an engine."""

import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest
import typer
import yaml

from dicomnode import __version__
from dicomnode.cli.init import reference
from dicomnode.cli.main import app
from dicomnode.settings.http import HttpSettings
from dicomnode.settings.node import Settings, parse_destination, read_settings
from dicomnode.web import probe
from tests.conftest import ROOT
from tests.support.processes import require

DOCKERFILE = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
INSTRUCTIONS = [line.split(maxsplit=1) for line in DOCKERFILE.splitlines() if line and not line.startswith("#")]
UNIT = ROOT / "deploy" / "cxrnode.service"
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())
MANIFESTS: dict[str, Any] = {
    entry["kind"]: entry for entry in yaml.safe_load_all((ROOT / "deploy" / "kubernetes.yaml").read_text())
}
POD = MANIFESTS["Deployment"]["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]
PROBES = ("startupProbe", "livenessProbe", "readinessProbe")


def instructions(name: str) -> list[str]:
    return [rest for instruction, rest in INSTRUCTIONS if instruction == name]


def parses(words: list[str]) -> None:
    """Read a command line as `cxrnode` would, without running it."""
    command: click.Command = typer.main.get_group(app)
    name, found, rest = command.resolve_command(click.Context(command), words)  # type: ignore[attr-defined]
    assert found is not None, name
    found.make_context(name, rest)


def test_everything_the_image_copies_is_there_and_not_ignored() -> None:
    ignored = (ROOT / ".dockerignore").read_text().split()
    for rest in instructions("COPY"):
        *sources, _ = [word for word in rest.split() if not word.startswith("--")]
        if "--from=build" in rest:
            continue
        for source in sources:
            assert (ROOT / source).exists(), source
            assert source not in ignored, source


def test_everything_the_wheel_is_made_of_is_copied_into_the_build() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    wanted = {*wheel["packages"], *wheel["force-include"], project["project"]["readme"], "LICENSE", "constraints.txt"}
    copied = [word for rest in instructions("COPY") for word in rest.split()[:-1]]
    for path in wanted:
        assert any(path == word or path.startswith(f"{word}/") for word in copied), path


def test_the_image_holds_no_training_framework() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = " ".join(project["dependencies"])
    for framework in ("tensorflow", "keras", "jax", "torch", "tf2onnx"):
        assert framework not in needed
        assert framework not in DOCKERFILE
    (install,) = (rest for rest in instructions("RUN") if "pip install" in rest)
    assert re.search(r"--constraint constraints\.txt \.$", install.strip())


def test_the_image_runs_as_nobody_special_and_stops_as_the_node_wants() -> None:
    assert instructions("USER") == ["cxrnode"]
    assert instructions("STOPSIGNAL") == ["SIGTERM"]
    assert json.loads(instructions("ENTRYPOINT")[0]) == ["cxrnode"]
    parses(json.loads(instructions("CMD")[0]))
    (ports,) = instructions("EXPOSE")
    assert int(ports) == Settings().scp.port
    assert "CXRNODE_STORE__PATH=/var/lib/cxrnode/store" in " ".join(instructions("ENV"))
    assert instructions("VOLUME") == ["/var/lib/cxrnode"]


@pytest.mark.parametrize(
    "command",
    [
        json.loads(instructions("HEALTHCHECK")[0].split("CMD ", 1)[1]),
        *(CONTAINER[name]["exec"]["command"] for name in PROBES),
    ],
)
def test_every_probe_asks_a_page_that_is_there(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert command[:3] == ["python", "-m", probe.__name__]
    assert command[3:] in (["/healthz"], ["/readyz"])
    asked: list[str] = []
    monkeypatch.setattr(probe, "_connection", lambda *where: asked.append(str(where)) or Unreachable())
    assert probe.main(command[3:]) == 1
    assert asked == [str(("http", "127.0.0.1", HttpSettings().port))]


class Unreachable:
    def request(self, *_: str) -> None:
        raise ConnectionRefusedError("refused")

    def close(self) -> None: ...


@pytest.mark.parametrize("words", [[], ["/healthz", "/readyz"], ["ftp://127.0.0.1/"], ["nonsense"]])
def test_a_probe_that_is_asked_for_nothing_says_how(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert probe.main(words) == 2
    assert "usage" in capsys.readouterr().err


def test_the_compose_file_and_orthanc_know_each_other() -> None:
    node, orthanc = COMPOSE["services"]["cxrnode"], COMPOSE["services"]["orthanc"]
    parses(node["command"])
    settings = json.loads((ROOT / "deploy" / "orthanc.json").read_text())
    destination = parse_destination(node["command"][-1])
    assert (destination.ae_title, destination.host, destination.port) == (
        settings["DicomAet"],
        "orthanc",
        settings["DicomPort"],
    )
    assert settings["DicomModalities"]["cxrnode"] == [Settings().scp.ae_title, "cxrnode", Settings().scp.port]
    assert (ROOT / "deploy" / node["build"]["context"] / "Dockerfile").resolve() == ROOT / "Dockerfile"
    for service in (node, orthanc):
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        named = [volume.split(":")[0] for volume in service["volumes"] if not volume.startswith(".")]
        assert set(named) <= set(COMPOSE["volumes"])
    assert orthanc["command"] == ["/etc/orthanc/orthanc.json"]
    assert "./orthanc.json:/etc/orthanc/orthanc.json:ro" in orthanc["volumes"]
    assert f"orthanc:{settings['StorageDirectory']}" in orthanc["volumes"]
    assert ":" in orthanc["image"]


def test_one_replica_owns_the_store_and_the_old_one_goes_first() -> None:
    spec = MANIFESTS["Deployment"]["spec"]
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})
    assert spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"]
    assert MANIFESTS["Service"]["spec"]["selector"] == spec["selector"]["matchLabels"]
    assert MANIFESTS["PersistentVolumeClaim"]["spec"]["accessModes"] == ["ReadWriteOnce"]
    claims = [
        volume["persistentVolumeClaim"]["claimName"] for volume in POD["volumes"] if "persistentVolumeClaim" in volume
    ]
    assert claims == [MANIFESTS["PersistentVolumeClaim"]["metadata"]["name"]]
    assert POD["terminationGracePeriodSeconds"] >= 60


def test_the_pod_has_no_privilege_and_writes_to_its_volumes_only() -> None:
    security = CONTAINER["securityContext"]
    assert security["readOnlyRootFilesystem"] is True
    assert security["allowPrivilegeEscalation"] is False
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert POD["securityContext"]["runAsNonRoot"] is True
    assert f"--uid {POD['securityContext']['runAsUser']}" in DOCKERFILE
    assert POD["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert POD["automountServiceAccountToken"] is False
    assert {mount["name"] for mount in CONTAINER["volumeMounts"]} == {volume["name"] for volume in POD["volumes"]}
    assert all(name in CONTAINER for name in PROBES)
    assert CONTAINER["image"] == f"cxrnode:{__version__}"


def test_the_pod_is_configured_by_a_file_that_the_node_reads(tmp_path: Path) -> None:
    parses(CONTAINER["args"])
    file = tmp_path / "node.toml"
    file.write_text(MANIFESTS["ConfigMap"]["data"]["node.toml"])
    settings = read_settings(file, {})
    (port,) = CONTAINER["ports"]
    assert port["containerPort"] == settings.scp.port
    (outside,) = MANIFESTS["Service"]["spec"]["ports"]
    assert outside["targetPort"] == port["name"]
    mounts = {mount["name"]: mount["mountPath"] for mount in CONTAINER["volumeMounts"]}
    assert str(settings.store.path).startswith(f"{mounts['store']}/")
    assert f"{mounts['configuration']}/node.toml" in CONTAINER["args"]


def test_the_unit_says_what_the_node_understands() -> None:
    unit = UNIT.read_text()
    (command,) = re.findall(r"^ExecStart=(.+)$", unit, flags=re.MULTILINE)
    program, *words = shlex.split(command)
    assert Path(program).name == "cxrnode"
    parses(words)
    written = re.findall(r"cxrnode (init .+)$", unit, flags=re.MULTILINE)
    assert len(written) == 1
    parses(shlex.split(written[0]))
    assert "RestartPreventExitStatus=2" in unit


@pytest.fixture(scope="module")
def systemd_analyze() -> str:
    return require("systemd-analyze")


def test_systemd_finds_nothing_wrong_with_the_unit(systemd_analyze: str, tmp_path: Path) -> None:
    installed = tmp_path / "cxrnode.service"
    there = UNIT.read_text().replace("/opt/cxrnode/bin/cxrnode", sys.executable)
    installed.write_text(there)
    done = subprocess.run([systemd_analyze, "verify", str(installed)], capture_output=True, text=True, check=False)
    about_this_unit = [line for line in done.stderr.splitlines() if "cxrnode" in line]
    assert about_this_unit == []
    installed.write_text(there.replace("ProtectSystem=strict", "ProtectSystem=perhaps"))
    done = subprocess.run([systemd_analyze, "verify", str(installed)], capture_output=True, text=True, check=False)
    assert "cxrnode.service:" in done.stderr


def test_systemd_counts_little_exposure(systemd_analyze: str) -> None:
    command = [systemd_analyze, "security", "--offline=true", "--threshold=15", "--no-pager", str(UNIT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_reference_configuration_is_found() -> None:
    assert reference() == (ROOT / "conf" / "node.toml").read_text()
