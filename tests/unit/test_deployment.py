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
from dicomnode.web.access import Access
from tests.conftest import ROOT
from tests.support.processes import require

DOCKERFILE = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
INSTRUCTIONS = [line.split(maxsplit=1) for line in DOCKERFILE.splitlines() if line and not line.startswith("#")]
UNIT = ROOT / "deploy" / "cxrnode.service"
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())
DOCUMENTS: list[dict[str, Any]] = list(yaml.safe_load_all((ROOT / "deploy" / "kubernetes.yaml").read_text()))
MANIFESTS: dict[str, Any] = {entry["kind"]: entry for entry in reversed(DOCUMENTS)}
PAGE_SERVICE = next(entry for entry in DOCUMENTS if entry["metadata"]["name"] == "cxrnode-page")
MONITOR: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "servicemonitor.yaml").read_text())
LOCKS = {name: (ROOT / name).read_text() for name in ("requirements.lock", "requirements-build.lock")}
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
    wanted = {*wheel["packages"], *wheel["force-include"], project["project"]["readme"], "LICENSE", *LOCKS}
    copied = [word for rest in instructions("COPY") for word in rest.split()[:-1]]
    for path in wanted:
        assert any(path == word or path.startswith(f"{word}/") for word in copied), path


def test_the_image_holds_no_training_framework() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = " ".join(project["dependencies"])
    for framework in ("tensorflow", "keras", "jax", "torch", "tf2onnx"):
        assert framework not in needed
        assert framework not in DOCKERFILE
        assert framework not in LOCKS["requirements.lock"]


def test_everything_that_the_image_installs_has_a_hash() -> None:
    installs = re.findall(r"pip (?:install|wheel) ([^&\n]+)", "\n".join(instructions("RUN")))
    assert len(installs) == 4
    for words in installs:
        assert "--require-hashes" in words or ("--no-deps" in words and words.split()[-1] in (".", "dist/*.whl")), words
    built = next(words for words in installs if words.split()[-1] == ".")
    assert "--no-build-isolation" in built, "what builds the wheel would be fetched without a hash"
    for name, text in LOCKS.items():
        entries = re.split(r"\n(?=[a-z0-9])", text.strip())
        assert len(entries) > 5, name
        assert all("--hash=sha256:" in entry for entry in entries), name


def test_the_locks_hold_the_tested_versions_of_everything_that_serving_needs() -> None:
    tested = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE))
    tested = {name.lower().replace("_", "-"): version for name, version in tested.items()}
    for text in LOCKS.values():
        for name, version in re.findall(r"^([\w.-]+)==(\S+)", text, flags=re.MULTILINE):
            assert tested.get(name, version) == version, name
    locked = set(re.findall(r"^([\w.-]+)==", LOCKS["requirements.lock"], flags=re.MULTILINE))
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert {re.split(r"[<>=\[ ]", entry)[0].lower() for entry in needed} <= locked


def test_the_image_runs_as_nobody_special_and_stops_as_the_node_wants() -> None:
    assert instructions("USER") == ["cxrnode"]
    assert instructions("STOPSIGNAL") == ["SIGTERM"]
    assert json.loads(instructions("ENTRYPOINT")[0]) == ["cxrnode"]
    parses(json.loads(instructions("CMD")[0]))
    (ports,) = instructions("EXPOSE")
    assert [int(port) for port in ports.split()] == [Settings().scp.port, HttpSettings().port]
    assert "CXRNODE_STORE__PATH=/var/lib/cxrnode/store" in " ".join(instructions("ENV"))
    assert instructions("VOLUME") == ["/var/lib/cxrnode"]


def test_the_health_check_asks_a_page_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    command = json.loads(instructions("HEALTHCHECK")[0].split("CMD ", 1)[1])
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


def test_every_way_to_deploy_names_the_same_image() -> None:
    name = f"cxrnode:{__version__}"
    assert CONTAINER["image"] == COMPOSE["services"]["cxrnode"]["image"] == name
    guides = [ROOT / "Dockerfile", ROOT / "deploy" / "kubernetes.yaml", *(ROOT / "docs").glob("*.md")]
    built = [tag for file in guides for tag in re.findall(r"docker build .*-t (\S+)", file.read_text())]
    assert len(built) >= 4
    assert set(built) == {name}


def test_the_page_of_the_composed_node_is_reached_with_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    node = COMPOSE["services"]["cxrnode"]
    for variable, value in node["environment"].items():
        monkeypatch.setenv(variable, "0123456789abcdef" if value.startswith("${") else value)
    settings = read_settings(None, {})
    Access(settings.http)
    assert not settings.http.is_local
    assert f"127.0.0.1:{settings.http.port}:{settings.http.port}" in node["ports"]
    assert "export CXRNODE_PAGE_TOKEN=" in (ROOT / "deploy" / "compose.yaml").read_text()
    assert "export CXRNODE_PAGE_TOKEN=" in (ROOT / "docs" / "quick-start.md").read_text()


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


def test_the_pod_is_configured_by_a_file_that_the_node_reads(tmp_path: Path) -> None:
    parses(CONTAINER["args"])
    file = tmp_path / "node.toml"
    file.write_text(MANIFESTS["ConfigMap"]["data"]["node.toml"])
    settings = read_settings(file, {})
    ports = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}
    assert ports == {"dicom": settings.scp.port, "page": settings.http.port}
    (outside,) = MANIFESTS["Service"]["spec"]["ports"]
    assert outside["targetPort"] == "dicom"
    mounts = {mount["name"]: mount["mountPath"] for mount in CONTAINER["volumeMounts"]}
    assert str(settings.store.path).startswith(f"{mounts['store']}/")
    assert f"{mounts['configuration']}/node.toml" in CONTAINER["args"]


def test_the_pages_files_are_in_the_secret_that_is_mounted(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text(MANIFESTS["ConfigMap"]["data"]["node.toml"])
    http = read_settings(file, {}).http
    head = (ROOT / "deploy" / "kubernetes.yaml").read_text().split("apiVersion", 1)[0]
    keys = set(re.findall(r"--from-(?:file|literal)=([\w.]+)", head))
    named = [http.certificate, http.key, *(token.file for token in http.tokens)]
    assert {path.name for path in named if path is not None} == keys
    (mount,) = [mount for mount in CONTAINER["volumeMounts"] if mount["name"] == "page"]
    assert {str(path.parent) for path in named if path is not None} == {mount["mountPath"]}
    secret = next(volume["secret"] for volume in POD["volumes"] if volume["name"] == "page")
    assert secret["secretName"] == "cxrnode-page"
    http.require_safe()


@pytest.mark.parametrize("name", PROBES)
def test_every_probe_asks_the_page_over_tls_at_an_address_for_everybody(name: str) -> None:
    asked = CONTAINER[name]["httpGet"]
    assert asked["path"] in ("/healthz", "/readyz")
    assert (asked["port"], asked["scheme"]) == ("page", "HTTPS")


def test_metrics_and_page_are_reached_within_the_cluster_by_whom_the_policy_admits() -> None:
    labels = MANIFESTS["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert PAGE_SERVICE["spec"]["type"] == "ClusterIP"
    assert PAGE_SERVICE["spec"]["selector"] == labels
    (endpoint,) = MONITOR["spec"]["endpoints"]
    assert MONITOR["spec"]["selector"]["matchLabels"].items() <= PAGE_SERVICE["metadata"]["labels"].items()
    assert endpoint["port"] in {port["name"] for port in PAGE_SERVICE["spec"]["ports"]}
    assert (endpoint["path"], endpoint["scheme"]) == ("/metrics", "https")
    assert endpoint["authorization"]["credentials"] == {"name": "cxrnode-page", "key": "prometheus"}
    assert MONITOR["spec"]["jobLabel"] in PAGE_SERVICE["metadata"]["labels"]
    policy = MANIFESTS["NetworkPolicy"]["spec"]
    assert policy["podSelector"]["matchLabels"] == labels
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert [port["port"] for entry in policy["ingress"] for port in entry["ports"]] == ["dicom", "page"]
    assert all(entry["from"] for entry in policy["ingress"]), "nobody is admitted without a word on whom"


def test_the_unit_and_the_guide_install_alike() -> None:
    unit, guide = UNIT.read_text(), (ROOT / "docs" / "operating.md").read_text()
    lines = [line.removeprefix("#   ") for line in unit.splitlines() if line.startswith("#   ")]
    assert len(lines) == 7
    assert "\n".join(lines) in guide


def test_the_service_can_write_the_audit_file_that_the_guide_names() -> None:
    unit = UNIT.read_text()
    assert "ProtectSystem=strict" in unit
    assert "LogsDirectory=cxrnode" in unit
    (named,) = set(re.findall(r'file = "(/var/log/[^"]+)"', (ROOT / "docs" / "security.md").read_text()))
    assert Path(named).parent == Path("/var/log/cxrnode")


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
