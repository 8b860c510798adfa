"""A real viewer, OHIF in headless Chromium, shows the node's results. Screenshots stay in var/viewer/screenshots."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pydicom import Dataset, dcmread

from dicomnode.domain.answer import DEFAULT_OUTPUTS
from tests.peers.sources import answer
from tests.peers.viewer import FOLDER, home_url, study_url, viewing_orthanc
from tests.support.make import build, encode
from tests.support.processes import free_port, missing_peer, require, wait_until

pytestmark = [pytest.mark.peer, pytest.mark.timeout(600)]

SCREENSHOTS = FOLDER.parent / "screenshots"
_PATIENCE_MS = 120_000
_SETTLE_MS = 3_000


@dataclass(frozen=True)
class Shown:
    """A study in the viewer: the page, what its console complained of, the objects, and where screenshots go."""

    page: Any
    home: str
    link: str
    heatmap: Dataset
    report: Dataset
    screenshots: Path
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def screenshot(self, name: str) -> None:
        self.screenshots.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=str(self.screenshots / f"{name}.png"))


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    try:
        from playwright import sync_api
    except ImportError:
        missing_peer("playwright is not installed")
    chromium = require("chromium")
    folder = tmp_path_factory.mktemp("viewer")
    source = build("dx", rows=640, columns=560, patient_name="Viewer^Test")
    made = [result for result in answer([encode(source)]).results if result.kind in DEFAULT_OUTPUTS]
    results = {result.kind.value: dcmread(BytesIO(result.part10)) for result in made}
    orthanc = viewing_orthanc(folder / "orthanc", node_port=free_port()).start()
    try:
        for part10 in (encode(source), *(result.part10 for result in made)):
            orthanc.upload(part10)
        with sync_api.sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=chromium,
                args=["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"],
            )
            page = browser.new_page(viewport={"width": 1600, "height": 1000})
            page.set_default_timeout(_PATIENCE_MS)
            study = Shown(
                page=page,
                home=home_url(orthanc),
                link=study_url(orthanc, str(source.StudyInstanceUID)),
                heatmap=results["sc"],
                report=results["sr"],
                screenshots=SCREENSHOTS,
            )
            _listen(page, study)
            yield study
            browser.close()
    finally:
        orthanc.stop()


def _listen(page: Any, study: Shown) -> None:
    kinds = {"error": study.errors, "warning": study.warnings}
    page.on("console", lambda message: kinds.get(message.type, []).append(message.text))
    page.on("pageerror", lambda error: study.errors.append(str(error)))
    page.on("requestfailed", lambda request: study.errors.append(f"{request.url}: {request.failure}"))


def opened(shown: Shown) -> Any:
    """Open the study, unless it is, and wait for the list of its series."""
    if "/viewer?" not in shown.page.url:
        shown.page.goto(shown.link)
        shown.page.get_by_text("AI report").first.wait_for()
    return shown.page


def test_the_study_list_shows_the_study_with_all_its_modalities(shown: Shown) -> None:
    shown.page.goto(shown.home)
    row = shown.page.locator("tr, [data-cy]").filter(has_text=re.compile("Viewer, Test")).first
    row.wait_for()
    text = row.inner_text()
    shown.screenshot("study-list")
    assert set(re.findall(r"\b(DX|OT|SR)\b", text)) == {"DX", "OT", "SR"}
    assert shown.errors == []


def test_the_study_lists_image_heatmap_and_report(shown: Shown) -> None:
    page = opened(shown)
    text = page.inner_text("body")
    shown.screenshot("series")
    assert {
        "AI heatmap - Research use only - not for diagnosis",
        "AI report - Research use only - not for diagnosis",
    } <= {line.strip() for line in text.splitlines()}
    assert re.search(r"^DX$", text, flags=re.MULTILINE)
    assert shown.errors == []


def test_the_heatmap_is_shown_as_it_was_drawn(shown: Shown) -> None:
    page = opened(shown)
    page.get_by_text("AI heatmap").first.dblclick()
    expected = shown.heatmap.pixel_array.astype(np.float32)

    def difference() -> float:
        page.wait_for_timeout(_SETTLE_MS / 3)
        return _difference(page.locator("canvas").first.screenshot(), expected)

    page.wait_for_timeout(_SETTLE_MS)
    wait_until(lambda: difference() < 15, 120, "the display of the heatmap")
    shown.screenshot("heatmap")
    black = np.zeros_like(expected)
    assert _difference(page.locator("canvas").first.screenshot(), black) > 40
    assert shown.errors == []


def test_the_report_opens_as_measurements_each_named_on_a_line_of_its_own(shown: Shown) -> None:
    page = opened(shown)
    page.get_by_text("AI report").first.dblclick()
    # Once it is read, the viewport shows the image of the measurements in place of the heatmap.
    page.locator("svg.svg-layer text").filter(has_text="Abnormal").first.wait_for()
    page.wait_for_timeout(_SETTLE_MS)
    shown.screenshot("report")
    assert page.get_by_text("Something went wrong").count() == 0
    labels = {label.text_content(): label.bounding_box() for label in page.locator("svg.svg-layer text").all()}
    assert set(labels) - {""} == lines_of(shown.report)
    tops = sorted(box["y"] for text, box in labels.items() if text)
    assert min(below - above for above, below in pairwise(tops)) > 15
    assert shown.errors == []


def lines_of(report: Dataset) -> set[str]:
    """Return a line for abnormality, and for each finding that is not absent."""
    found = set()
    for group in child(report, "126010").ContentSequence:
        name, presence = child(group, "112039").TextValue, child(group, "705057003").ConceptCodeSequence[0].CodeMeaning
        if name == "Abnormal" or presence != "Absent":
            value = child(group, "122157").MeasuredValueSequence[0].NumericValue
            found.add(f"{name.replace('_', ' ')}: {value}, {presence.lower()}")
    return found


def child(item: Dataset, code: str) -> Dataset:
    return next(entry for entry in item.ContentSequence if entry.ConceptNameCodeSequence[0].CodeValue == code)


def _difference(png: bytes, picture: np.ndarray) -> float:
    """Return the mean difference (0 to 255) between a screenshot and a picture fitted into it, as viewers fit."""
    seen = cv2.cvtColor(cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    height, width = seen.shape[:2]
    rows, columns = picture.shape[:2]
    scale = min(height / rows, width / columns)
    size = (round(columns * scale), round(rows * scale))
    top, left = (height - size[1]) // 2, (width - size[0]) // 2
    fitted = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    crop = seen[top : top + size[1], left : left + size[0]].astype(np.float32)
    return float(np.abs(crop - fitted).mean())
