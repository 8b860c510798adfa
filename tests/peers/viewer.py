"""OHIF on Orthanc's DICOMweb plugin, beside a running node: for a test, and by `make viewer` for a person.

The npm package `@ohif/app` carries its built viewer. It is fetched once into an ignored folder and served by Orthanc's
own ServeFolders plugin, so that viewer and DICOMweb have one origin.
"""

import argparse
import hashlib
import json
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread

from tests.conftest import ROOT
from tests.support.make import build, encode
from tests.support.processes import NodeProcess, Orthanc, free_port, missing_peer, require, wait_until

VERSION = "3.13.2"
SHA256 = "b189d3963bfc58e9394a9db8c7be75d07beb029ec211dbb126d47b62969dd3f1"
"""Of the package, so that what is served is what was looked at."""

FOLDER = ROOT / "var" / "viewer" / f"ohif-{VERSION.replace('.', '-')}"
PREFIX = "/ohif"
PLUGINS = ("libOrthancDicomWeb.so", "libServeFolders.so")
_UNUSED = ("package/dist/ort/", "package/dist/dicom-microscopy-viewer/")
_FETCH_S, _ANSWER_S = 300, 180.0
_CHEST = ("chest-pa-secondary-capture-jpeg.dcm", "chest-pa-view-in-patient-position.dcm")

_DATA_SOURCE = {
    "namespace": "@ohif/extension-default.dataSourcesModule.dicomweb",
    "sourceName": "orthanc",
    "configuration": {
        "friendlyName": "Orthanc",
        "name": "orthanc",
        "qidoRoot": "/dicom-web",
        "wadoRoot": "/dicom-web",
        "wadoUriRoot": "/wado",
        "qidoSupportsIncludeField": False,
        "supportsFuzzyMatching": False,
        "supportsWildcard": True,
        "imageRendering": "wadors",
        "thumbnailRendering": "wadors",
        "enableStudyLazyLoad": True,
        "singlepart": "bulkdata,video",
        "omitQuotationForMultipartRequest": True,
        "bulkDataURI": {"enabled": True},
    },
}
_CONFIG = {
    "routerBasename": PREFIX,
    "extensions": [],
    "modes": [],
    "showStudyList": True,
    "maxNumberOfWebWorkers": 2,
    "investigationalUseDialog": {"option": "never"},
    "customizationService": {"ohif.tours": {"$set": []}},
    "defaultDataSourceName": "orthanc",
    "dataSources": [_DATA_SOURCE],
}

# What docs/integration.md recommends, so that the report's findings have names.
_FINDINGS = (ROOT / "docs" / "ohif-findings.js").read_text(encoding="utf-8")
_NAMED = "window.config.customizationService.onBeforeSRAddMeasurement = { $set: nameFinding };"

# The plugin serves files, not routes: the page is asked for by its file's name, with the route after the hash.
_HOME = f"""\
if (location.pathname.endsWith("/index.html"))
  history.replaceState(null, "", "{PREFIX}/" + location.hash.slice(1) + location.search);"""


def viewer_files() -> Path:
    """Return the folder of the viewer, fetched and set up for Orthanc if it is not yet there."""
    if not (FOLDER / "index.html").is_file():
        FOLDER.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=FOLDER.parent) as scratch:
            _unpack(_fetch(Path(scratch)), Path(scratch))
            _adapt(Path(scratch) / "package" / "dist")
            (Path(scratch) / "package" / "dist").rename(FOLDER)
    (FOLDER / "app-config.js").write_text(f"{_FINDINGS}\nwindow.config = {json.dumps(_CONFIG)};\n{_NAMED}\n{_HOME}\n")
    return FOLDER


def _fetch(folder: Path) -> Path:
    command = [require("npm"), "pack", f"@ohif/app@{VERSION}", "--silent"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_FETCH_S, check=False)
    except subprocess.TimeoutExpired:
        missing_peer(f"npm did not fetch the viewer within {_FETCH_S} s")
    packages = list(folder.glob("*.tgz"))
    if done.returncode or not packages:
        missing_peer(f"npm cannot fetch the viewer: {done.stderr.strip()[-300:]}")
    digest = hashlib.sha256(packages[0].read_bytes()).hexdigest()
    if digest != SHA256:
        pytest.fail(f"the viewer's package is not the one expected (SHA-256 {digest})")
    return packages[0]


def _unpack(package: Path, folder: Path) -> None:
    with tarfile.open(package) as archive:
        members = [member for member in archive.getmembers() if not member.name.startswith(_UNUSED)]
        archive.extractall(folder, members=members, filter="data")


def _adapt(folder: Path) -> None:
    """Move the viewer from the root of its server to `PREFIX`, which the package is not built for."""
    replaced = 0
    for file in (*folder.glob("*.js"), *folder.glob("*.css")):
        text = file.read_text(encoding="utf-8")
        moved = text.replace('__webpack_require__.p = "/";', f'__webpack_require__.p = "{PREFIX}/";')
        moved = moved.replace("url(/", f"url({PREFIX}/") if file.suffix == ".css" else moved
        replaced += moved != text
        file.write_text(moved, encoding="utf-8")
    assert replaced, "the viewer's package is built in another way than this expects"
    page = (folder / "index.html").read_text(encoding="utf-8")
    for attribute in ('window.PUBLIC_URL="/', 'src="/', 'href="/'):
        page = page.replace(attribute, f"{attribute[:-1]}{PREFIX}/")
    (folder / "index.html").write_text(page, encoding="utf-8")
    # For a reload of the viewer's route.
    (folder / "viewer").write_text(page, encoding="utf-8")


def viewing_orthanc(folder: Path, *, node_port: int) -> Orthanc:
    """Return an Orthanc, not yet started, that serves the viewer and DICOMweb."""
    serving = {
        "AllowCache": True,
        "Extensions": {"wasm": "application/wasm", "": "text/html"},
        "Folders": {PREFIX: str(viewer_files())},
    }
    web: dict[str, Any] = {"Enable": True, "Root": "/dicom-web/", "EnableWado": True, "WadoRoot": "/wado"}
    return Orthanc(folder, node_port=node_port, plugins=PLUGINS, more={"ServeFolders": serving, "DicomWeb": web})


def home_url(orthanc: Orthanc) -> str:
    """Return the viewer's address of its study list."""
    return f"{orthanc.url}{PREFIX}/index.html"


def study_url(orthanc: Orthanc, study: str) -> str:
    """Return the viewer's address of a study, given by its Study Instance UID."""
    return f"{orthanc.url}{PREFIX}/index.html?StudyInstanceUIDs={study}#viewer"


@contextmanager
def stopped_at_the_end(*programs: Any) -> Iterator[None]:
    try:
        yield
    finally:
        for program in programs:
            (program.close if isinstance(program, NodeProcess) else program.stop)()


def images_to_show(paths: Sequence[Path]) -> list[bytes]:
    """Return the images that a person wants to see: those named, else the shared ones, else a synthetic chest."""
    shared = ROOT.parent / "shared" / "data" / "dicom"
    files = list(paths) or [shared / name for name in _CHEST if (shared / name).is_file()]
    return [file.read_bytes() for file in files] or [encode(build("dx", rows=1024, columns=896))]


def show(paths: Sequence[Path]) -> None:
    """Start PACS, viewer and node, send the images through all of them, and wait for Ctrl-C."""
    images = images_to_show(paths)
    folder, port = Path(tempfile.mkdtemp(prefix="cxrnode-viewer-")), free_port()
    orthanc = viewing_orthanc(folder / "pacs", node_port=port)
    node = NodeProcess(folder / "node", port=port, send_to=[orthanc.peer], config="[results]\nreport_rejected = true\n")
    with stopped_at_the_end(node, orthanc):
        orthanc.start()
        node.start()
        print(f"study list   {home_url(orthanc)}\nOrthanc      {orthanc.url}/app/explorer.html", flush=True)
        for image in images:
            study = orthanc.upload(image)
            orthanc.send_to_node(study)
            wait_until(lambda study=study: "SR" in orthanc.by_modality(study), _ANSWER_S, "the answer of the node")
            uid = str(dcmread(BytesIO(image), stop_before_pixels=True).StudyInstanceUID)
            print(f"a study      {study_url(orthanc, uid)}", flush=True)
        print("Ctrl-C ends it.", flush=True)
        ended = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: ended.set())
        ended.wait()
    shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="make viewer", description="A PACS with a viewer, beside a running node.")
    parser.add_argument("images", nargs="*", type=Path, help="DICOM files to show (ARGS=...); by default a chest")
    try:
        show(parser.parse_args().images)
    except (pytest.skip.Exception, pytest.fail.Exception) as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
