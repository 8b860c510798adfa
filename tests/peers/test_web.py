"""The page in a real browser, headless Chromium: nothing complains, it is legible, and it fits a phone."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.support.archives import Archive
from tests.support.bundles import make_bundle
from tests.support.make import CANARY_ID, build, encode
from tests.support.processes import NodeProcess, free_port, missing_peer, require, run_cxrnode, wait_until

pytestmark = [pytest.mark.peer, pytest.mark.timeout(600)]

SCREENSHOTS = ROOT / "var" / "web" / "screenshots"
STUDY = "1.2.826.0.1.7"
PATHS = ("", "studies", f"studies/{STUDY}", "problems", "model", "model?output=Pneumothorax", "login")
_PATIENCE_MS = 120_000
CONFIG = """
[scp]
bind = "127.0.0.1"
[assembly]
quiet_s = 0.3
[http]
local_patients = true
[delivery.retry]
give_up_after_s = 0.001
"""

# WCAG 2.1, 1.4.3: contrast of text with what lies under it, 4.5 to 1, or 3 to 1 where it is large.
CONTRAST = """() => {
  const parse = (text) => (text.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const bad = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || !element.checkVisibility() || element.closest("svg, option, .hidden, .skip")) continue;
    const style = getComputedStyle(element);
    const [a, b] = [light(parse(style.color)), light(ground(element))].sort((x, y) => y - x);
    const size = parseFloat(style.fontSize), needed = size >= 24 || (size >= 18.6 && style.fontWeight >= 700) ? 3 : 4.5;
    const ratio = (a + 0.05) / (b + 0.05);
    const told = `${element.tagName}.${element.className} ${ratio.toFixed(2)}: `;
    if (ratio < needed) bad.push(told + element.textContent.trim().slice(0, 40));
  }
  return bad;
}"""

NAMELESS = """() => [...document.querySelectorAll("a, button, input:not([type=hidden]), select, summary, img, svg")]
  .filter((one) => one.checkVisibility() && one.getAttribute("aria-hidden") !== "true")
  .filter((one) => one.getAttribute("alt") !== "")
  .filter((one) => !(one.textContent.trim() || one.getAttribute("aria-label") || one.getAttribute("alt")
    || (one.labels && one.labels.length)))
  .map((one) => one.outerHTML.slice(0, 120))"""


@dataclass
class Shown:
    """A browser beside a node that holds an answered study, a rejected one and dead letters."""

    browser: Any
    home: str
    node: NodeProcess
    complaints: list[str] = field(default_factory=list)

    def page(self, *, width: int = 1360, height: int = 900, scheme: str = "light", scripts: bool = True) -> Any:
        context = self.browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, java_script_enabled=scripts
        )
        page = context.new_page()
        page.set_default_timeout(_PATIENCE_MS)
        page.on("console", lambda message: self.complaints.append(f"{page.url}: {message.text}"))
        page.on("pageerror", lambda error: self.complaints.append(f"{page.url}: {error}"))
        page.on("requestfailed", self._failed)
        page.on("response", self._answered)
        return page

    def _failed(self, request: Any) -> None:
        if "ERR_ABORTED" not in str(request.failure):  # a picture that was not there yet when the page was left
            self.complaints.append(f"{request.url}: {request.failure}")

    def _answered(self, response: Any) -> None:
        if response.status > 399:
            self.complaints.append(f"{response.url}: {response.status}")


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    try:
        from playwright import sync_api
    except ImportError:
        missing_peer("playwright is not installed")
    chromium = require("chromium")
    folder = tmp_path_factory.mktemp("web")
    with Archive() as archive:
        node = NodeProcess(
            folder / "node",
            port=free_port(),
            bundle=make_bundle(folder / "bundle", curves=True),
            send_to=(archive.peer, f"NOWHERE@127.0.0.1:{free_port()}"),
            config=CONFIG,
            http="127.0.0.1:0",
        ).start()
        try:
            fill(node, folder / "images")
            with sync_api.sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
                yield Shown(browser=browser, home=node.events("node-started")[0]["page"], node=node)
                browser.close()
        finally:
            node.close()


def fill(node: NodeProcess, folder: Path) -> None:
    folder.mkdir()
    (folder / "chest.dcm").write_bytes(encode(build("dx", rows=512, columns=448, study_uid=STUDY)))
    (folder / "hand.dcm").write_bytes(encode(build("cr", seed=2, body_part="HAND")))
    sent = run_cxrnode("send", f"CXRNODE@127.0.0.1:{node.port}", str(folder))
    assert sent.returncode == 0, sent.stdout + sent.stderr
    wait_until(lambda: len(node.events("study-answered")) == 2, 120, "two answers")
    wait_until(lambda: "dead letters among them: 0 and 2" in node.command("queue", "list").stdout, 120, "dead letters")


def looks(shown: Shown, path: str, name: str, **how: Any) -> Any:
    page = shown.page(**how)
    page.goto(shown.home + path)
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    kind = path.partition("/")[0].partition("?")[0] or "overview"
    name = f"{kind}{'-one' if '/' in path or '?' in path else ''}-{name}"
    page.screenshot(path=str(SCREENSHOTS / f"{name}.png"))
    return page


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_is_legible_and_nothing_complains(shown: Shown, scheme: str) -> None:
    for path in PATHS:
        page = looks(shown, path, scheme, scheme=scheme)
        assert page.evaluate(CONTRAST) == [], path
        assert page.evaluate(NAMELESS) == [], path
        assert page.locator("h1").count() == 1
        assert page.locator("main").count() == 1
        page.context.close()
    assert shown.complaints == []


def test_no_page_is_wider_than_a_phone(shown: Shown) -> None:
    for path in PATHS:
        page = looks(shown, path, "phone", width=390, height=844)
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), path
        page.context.close()
    assert shown.complaints == []


def test_the_heatmap_follows_choice_and_slider(shown: Shown) -> None:
    page = looks(shown, f"studies/{STUDY}", "heatmap")
    heat = page.locator("#heat")
    loaded = "one => one.complete && one.naturalWidth > 0"
    wait_until(lambda: heat.evaluate(loaded), 120, "the heatmap")
    before = heat.get_attribute("src")
    page.select_option("#finding", index=2)
    wait_until(lambda: heat.get_attribute("src") != before and heat.evaluate(loaded), 120, "the other heatmap")
    page.locator("#opacity").focus()
    page.keyboard.press("Home")
    assert heat.evaluate("one => getComputedStyle(one).opacity") == "0"
    page.keyboard.press("End")
    assert heat.evaluate("one => getComputedStyle(one).opacity") == "1"
    assert shown.complaints == []


def test_without_scripts_a_finding_is_chosen_and_a_patient_shown(shown: Shown) -> None:
    page = looks(shown, f"studies/{STUDY}", "without-scripts", scripts=False)
    page.locator("#finding").select_option(index=2)
    with page.expect_navigation():
        page.get_by_role("button", name="Show", exact=True).click()
    assert "finding=" in page.url
    assert CANARY_ID not in page.content()
    with page.expect_navigation():
        page.get_by_role("button", name="Show patients").click()
    assert CANARY_ID in page.content()
    assert CANARY_ID not in page.url
    assert shown.complaints == []


def test_without_scripts_an_outputs_curves_are_chosen_and_read_as_tables(shown: Shown) -> None:
    page = looks(shown, "model", "without-scripts", scripts=False)
    page.locator("#output").select_option("Edema")
    with page.expect_navigation():
        page.get_by_role("button", name="Show", exact=True).click()
    assert "output=Edema" in page.url
    for name in ("ROC of Edema", "Reliability of Edema"):
        drawing = page.get_by_role("img", name=name).bounding_box()
        assert drawing["width"] > 300
        assert drawing["height"] > 250
    table = page.get_by_role("region", name="Reliability of Edema")
    assert not table.is_visible()
    page.get_by_text("Reliability as a table").click()
    assert table.get_by_role("row").count() == 11
    with page.expect_navigation():
        page.get_by_role("link", name="Pneumothorax").click()
    page.get_by_text("The bundle holds no curves of Pneumothorax").wait_for()
    assert shown.complaints == []


def test_the_keyboard_reaches_content_search_and_result(shown: Shown) -> None:
    page = looks(shown, "studies", "keyboard")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "number"
    page.keyboard.type(CANARY_ID)
    page.keyboard.press("Enter")
    page.wait_for_url("**/studies?search=*")
    assert CANARY_ID not in page.url
    page.get_by_role("link", name=STUDY).click()
    page.get_by_role("heading", name="Study").first.wait_for()
    assert shown.complaints == []


def test_the_list_names_patients_and_fits_a_phone(shown: Shown) -> None:
    for width, name in ((1360, "patients"), (390, "patients-phone")):
        page = looks(shown, "studies", "masked", width=width)
        assert CANARY_ID not in page.content()
        with page.expect_navigation():
            page.get_by_role("button", name="Show patients").click()
        page.screenshot(path=str(SCREENSHOTS / f"studies-{name}.png"))
        assert page.get_by_text(f"ID {CANARY_ID}").count() == 2
        assert CANARY_ID not in page.url
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        assert page.evaluate(CONTRAST) == []
        page.context.close()
    assert shown.complaints == []


def test_a_finished_study_is_analysed_again_after_a_question(shown: Shown) -> None:
    page = looks(shown, f"studies/{STUDY}", "again")
    page.once("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Analyse again").click()
    page.locator("[role=status]").wait_for()
    page.screenshot(path=str(SCREENSHOTS / "studies-one-asked.png"))
    assert "that will be version 2" in page.locator("[role=status]").inner_text()
    made_before = "were made before, and go only where they have not been"
    wait_until(lambda: made_before in shown.node.command("why", STUDY).stdout, 120, "the second answer")
    page.goto(f"{shown.home}letters")
    page.locator("input[data-all=study]").check()
    page.screenshot(path=str(SCREENSHOTS / "letters-chosen.png"))
    page.once("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Analyse the chosen again").click()
    page.locator("[role=status]").wait_for()
    assert "1 studies will be analysed again" in page.locator("[role=status]").inner_text()
    assert shown.complaints == []


def test_dead_letters_are_tried_again_after_a_question(shown: Shown) -> None:
    page = looks(shown, "problems", "problems")
    asked: list[str] = []

    def answer(accept: bool) -> Callable[[Any], None]:
        def answering(dialog: Any) -> None:
            asked.append(dialog.message)
            (dialog.accept if accept else dialog.dismiss)()

        return answering

    page.once("dialog", answer(False))
    page.get_by_role("button", name="Try all").click()
    assert page.locator("[role=status]").count() == 0
    page.once("dialog", answer(True))
    page.get_by_role("button", name="Try all").click()
    page.locator("[role=status]").wait_for()
    assert "will be tried again" in page.locator("[role=status]").inner_text()
    assert len(asked) == 2
    assert shown.complaints == []
