"""Make the pictures of this folder: a node answers a few studies, and Chromium takes its page.

    python docs/images/make.py NIH.zip

The radiographs are NIH ChestX-ray14's (NIH Clinical Center; Wang et al., CVPR 2017), which may be used freely with that
reference; the patients are made up. Needs chromium and the development packages; run it at the root of a checkout.
"""

import argparse
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image
from playwright import sync_api
from pydicom import dcmread

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from tests.support.archives import Archive
from tests.support.make import build, encode
from tests.support.processes import NodeProcess, free_port, require, run_cxrnode, wait_until

HERE = Path(__file__).resolve().parent
IMAGES = ("00000435_000", "00000075_000", "00000129_000")
"""The first is the one that is shown."""
SHEET = ("00000075_000", "00008343_001", "00029746_000", "00006985_002", "00028606_000", "00002215_002")
"""Of the contact sheet: findings above threshold, one of them, two, abnormality alone, nothing, nothing."""
STUDY = "1.2.826.0.1.3680043.8.498.1"
ENLARGED = 4
TILE, GAP = 660, 12
CONFIG = """
[scp]
bind = "127.0.0.1"
[assembly]
quiet_s = 0.3
[http]
local_patients = true
"""


def dicom(archive: zipfile.ZipFile, name: str, number: int) -> bytes:
    """Return one of NIH's images as a DX object of a patient that does not exist."""
    grey = cv2.imdecode(np.frombuffer(archive.read(f"images/{name}.jpg"), np.uint8), cv2.IMREAD_GRAYSCALE)
    large = cv2.resize(grey.astype(np.float32) / 255, None, fx=ENLARGED, fy=ENLARGED, interpolation=cv2.INTER_CUBIC)
    pixels = np.round(large.clip(0, 1) * 4095).astype(np.uint16)
    tags = {"PatientID": f"DEMO-{number}", "AccessionNumber": f"A-{2040 + number}", "StudyDescription": "Chest PA"}
    study = f"{STUDY}.{number}"
    return encode(build("dx", pixels=pixels, patient_name="Example^Maria", study_uid=study, seed=number, tags=tags))


@contextmanager
def answered(folder: Path, source: Path) -> Iterator[str]:
    """Give the address of a node's page that has answered the studies and delivered them."""
    (folder / "images").mkdir()
    with zipfile.ZipFile(source) as archive:
        for number, name in enumerate(IMAGES, start=1):
            (folder / "images" / f"{number}.dcm").write_bytes(dicom(archive, name, number))
    with Archive() as pacs:
        node = NodeProcess(
            folder / "node", port=free_port(), send_to=(pacs.peer,), config=CONFIG, http="127.0.0.1:0"
        ).start()
        try:
            run_cxrnode("send", f"CXRNODE@127.0.0.1:{node.port}", str(folder / "images"))
            wait_until(lambda: len(pacs.sent) == 2 * len(IMAGES), 300, "the delivery")
            yield node.events("node-started")[0]["page"]
        finally:
            node.close()


def take(browser: Any, address: str) -> None:
    """Take the pictures."""
    page = browser.new_page(viewport={"width": 1200, "height": 830}, color_scheme="light")
    page.goto(f"{address}studies/{STUDY}.1?opacity=40")
    page.get_by_role("button", name="Show patients").click()
    page.wait_for_load_state("networkidle")
    page.screenshot(path=str(HERE / "page.png"))
    page.locator(".layers").screenshot(path=str(HERE / "heatmap.png"))
    page.goto(f"{address}model?output=Effusion")
    page.locator(".figures").screenshot(path=str(HERE / "curves.png"))
    smaller(HERE / "curves.png", 960)
    smaller(HERE / "page.png", 960)
    smaller(HERE / "heatmap.png", 440)


def contact_sheet(folder: Path, source: Path) -> None:
    """Make the sheet of Secondary Captures, two a row, as `cxrnode analyze` writes them."""
    (folder / "sheet").mkdir()
    with zipfile.ZipFile(source) as archive:
        for number, name in enumerate(SHEET, start=1):
            (folder / "sheet" / f"{number}.dcm").write_bytes(dicom(archive, name, number))
    run_cxrnode("analyze", str(folder / "sheet"), "--out", str(folder / "answers"))
    captures = [Image.fromarray(dcmread(file).pixel_array) for file in sorted(folder.glob("answers/*/heatmap.dcm"))]
    width, height = (round(side * TILE / captures[0].width) for side in captures[0].size)
    sheet = Image.new("RGB", (2 * width + GAP, len(captures) // 2 * (height + GAP) - GAP))
    for at, capture in enumerate(captures):
        corner = (at % 2 * (width + GAP), at // 2 * (height + GAP))
        sheet.paste(capture.resize((width, height), Image.Resampling.LANCZOS), corner)
    sheet.save(HERE / "captures.png")
    smaller(HERE / "captures.png", sheet.width + sheet.height)


def smaller(file: Path, side: int) -> None:
    """Write a picture with at most 256 colours, spread by dithering, so that it is quick to load."""
    with Image.open(file) as picture:
        small = picture.convert("RGB")
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    palette = small.quantize(256, method=Image.Quantize.MAXCOVERAGE)
    small.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG).save(file, optimize=True)


def main() -> None:
    """Make the pictures."""
    parser = argparse.ArgumentParser(description="Make page.png, heatmap.png, curves.png and captures.png.")
    parser.add_argument("images", type=Path, help="archive of NIH's images")
    source = parser.parse_args().images
    with (
        tempfile.TemporaryDirectory() as folder,
        answered(Path(folder), source) as address,
        sync_api.sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=require("chromium"), args=["--no-sandbox"])
        take(browser, address)
        browser.close()
        contact_sheet(Path(folder), source)


if __name__ == "__main__":
    main()
