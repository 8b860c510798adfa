"""How a frame is righted, judged by a window of it, and marked: the pixel gate around a reader of known behaviour."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import pytest

from dicomnode.bundle.manifest import GateSpec
from dicomnode.domain.finding import SaliencyMap
from dicomnode.domain.frame import FloatArray, Frame, righting_of
from dicomnode.domain.instance import InstanceRef
from dicomnode.inference.framing import exposed_field, windows_of
from dicomnode.inference.gate import Atypical, JudgedFrame, Turned, Typical, read_upright
from dicomnode.inference.predictor import Reading
from tests.support.bundles import ORIENTATIONS
from tests.support.make import chest

REF = InstanceRef(study="1.2.3", series="1.2.3.4", sop_class="1.2.840.10008.5.1.4.1.1.1", sop_instance="1.2.3.4.5")
CHEST = chest(320, 280)
SPEC = GateSpec(typicality_threshold=1.0, unusual_threshold=0.8, orientations=ORIENTATIONS, certain=0.99)


@dataclass
class KnowsTheChest:
    """Reads an image as upright or turned by comparing it with the synthetic chest; a mirrored one is upright too."""

    typicality: float | None = None
    read_images: list[FloatArray] = field(default_factory=list)

    def read(self, frame: Frame) -> Reading:
        return self.read_batch([frame.pixels])[0]

    def read_batch(self, radiographs: Sequence[FloatArray]) -> tuple[Reading, ...]:
        return tuple(self._read(pixels) for pixels in radiographs)

    def _read(self, pixels: FloatArray) -> Reading:
        self.read_images.append(pixels)
        small, expected = (cv2.resize(one, (64, 64), interpolation=cv2.INTER_AREA) for one in (pixels, CHEST))
        symmetric = expected + np.fliplr(expected)
        turned = [np.corrcoef(np.rot90(small, -turns).ravel(), symmetric.ravel())[0, 1] for turns in range(4)]
        scores = np.array([*turned, *(-one for one in turned)])
        orientation = np.where(np.arange(8) == scores.argmax(), 0.999, 0.001 / 7)
        distance = 4 * (1 - float(scores.max())) if self.typicality is None else self.typicality
        values = np.ones((8, 8), dtype=np.float32)
        return Reading(
            scores=(),
            saliency=(SaliencyMap(label="Mass", values=values),),
            typicality=distance,
            orientation=orientation,
        )


def judged(pixels: FloatArray, orientation: tuple[str, str] | None = None, **known: float) -> JudgedFrame:
    frame = Frame(source=REF, pixels=np.ascontiguousarray(pixels), spacing_mm=(0.2, 0.1))
    return read_upright(KnowsTheChest(**known), frame, SPEC, righting_of(orientation) if orientation else None)


@pytest.mark.parametrize("orientation", [("L", "F"), ("R", "F"), ("L", "H"), ("R", "H"), ("F", "L"), ("H", "R")])
def test_a_patient_orientation_that_the_pixels_bear_out_undoes_flips_and_turns(orientation):
    """The stored matrix is made from the upright one by undoing the righting."""
    righting = righting_of(orientation)
    assert righting is not None
    stored = np.rot90(CHEST, -righting.quarter_turns)
    stored = np.fliplr(stored) if righting.mirrored else stored
    found = judged(stored, orientation)

    assert np.array_equal(found.frame.pixels, CHEST)
    assert isinstance(found.verdict, Typical)
    assert found.frame.left_right_verified
    assert (found.frame.mirrored_from_source, found.frame.turned_from_source) == (
        righting.mirrored,
        righting.quarter_turns,
    )
    assert found.frame.spacing_mm == ((0.1, 0.2) if righting.quarter_turns % 2 else (0.2, 0.1))


def test_a_turn_that_only_the_pixels_tell_leaves_left_and_right_unverified():
    """An image stored upside down by a vertical flip comes out as a mirror image."""
    found = judged(CHEST[::-1])

    assert np.array_equal(found.frame.pixels, CHEST[:, ::-1])
    assert not found.frame.left_right_verified


@pytest.mark.parametrize("orientation", [("L", "F"), ("F", "L")])
def test_a_patient_orientation_that_the_pixels_contradict_verifies_nothing(orientation):
    found = judged(np.rot90(CHEST, 2) if orientation == ("L", "F") else CHEST, orientation)

    assert np.array_equal(found.frame.pixels, CHEST)
    assert not found.frame.left_right_verified


def test_an_upright_image_is_left_as_it_is():
    for orientation in (None, ("L", "F")):
        found = judged(CHEST, orientation)
        assert found.frame.pixels is not None
        assert found.frame.left_right_verified
        assert (found.frame.mirrored_from_source, found.frame.turned_from_source) == (False, 0)


def test_an_inverted_image_that_its_orientation_turns_is_righted_in_both():
    found = judged(1 - CHEST[::-1], ("L", "H"))

    assert np.abs(found.frame.pixels - CHEST).max() < 1e-6
    assert found.frame.inverted_from_source
    assert found.frame.left_right_verified


@pytest.mark.parametrize(("typicality", "unusual"), [(0.5, False), (0.81, True), (1.0, True)])
def test_an_image_far_from_the_training_data_is_unusual_before_it_is_rejected(typicality, unusual):
    found = judged(CHEST, typicality=typicality)

    assert isinstance(found.verdict, Typical)
    assert found.is_unusual is unusual


def test_a_bundle_without_that_limit_marks_nothing_unusual():
    frame = Frame(source=REF, pixels=CHEST)
    found = read_upright(KnowsTheChest(typicality=1.0), frame, without_limit())

    assert isinstance(found.verdict, Typical)
    assert not found.is_unusual


def without_limit() -> GateSpec:
    return SPEC.model_copy(update={"unusual_threshold": None})


def framed(value: float, margin: int = 160) -> FloatArray:
    return np.asarray(np.pad(0.1 + 0.8 * CHEST, margin, constant_values=value), dtype=np.float32)


def tilted(degrees: float) -> FloatArray:
    matrix = cv2.getRotationMatrix2D((300, 320), degrees, 1.0)
    return np.asarray(cv2.warpAffine(framed(0.0), matrix, (600, 640)), dtype=np.float32)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_chest_in_a_blank_frame_is_judged_by_what_was_exposed(value):
    found = judged(framed(value))

    assert isinstance(found.verdict, Typical)
    assert found.is_unusual
    assert found.frame.pixels.shape == framed(value).shape


def test_a_tilted_chest_in_a_black_frame_is_judged_upright():
    found = judged(tilted(20))
    field_ = exposed_field(tilted(20))

    assert isinstance(found.verdict, Typical)
    assert field_ is not None
    assert field_.degrees == pytest.approx(-20, abs=2)
    assert sorted(field_.size) == pytest.approx([280, 320], abs=12)


def test_a_chest_in_a_wide_field_is_found_in_it():
    """Beside the chest lie arms, below it the abdomen: texture, and nothing blank."""
    random = np.random.default_rng(2)
    wide = 0.4 + 0.2 * cv2.resize(random.random((16, 16), dtype=np.float32), (500, 560))
    wide[:320, 110:390] = CHEST

    assert isinstance(judged(wide).verdict, Typical)


def test_something_else_is_rejected_whatever_part_of_it_is_seen():
    noise = cv2.resize(np.random.default_rng(3).random((24, 20), dtype=np.float32), (400, 480))

    assert isinstance(judged(noise).verdict, Atypical | Turned)


def test_maps_of_a_window_lie_on_the_whole_frame():
    pixels = framed(0.0)
    found = judged(pixels)
    values = found.reading.saliency[0].values
    rows, columns = values.shape
    inside = np.zeros(values.shape, dtype=bool)
    inside[rows // 4 + 1 : -rows // 4 - 1, columns // 4 + 1 : -columns // 4 - 1] = True

    assert values.sum() == pytest.approx(64, rel=0.1)
    assert values[inside].sum() > 0.5 * values.sum()
    assert values[0].sum() == values[:, 0].sum() == 0


def test_a_tilted_window_maps_onto_the_place_it_was_taken_from():
    window = exposed_field(tilted(20))
    assert window is not None
    values = np.zeros((16, 16), dtype=np.float32)
    values[4, 12] = 1.0  # above and to the right of the middle
    placed = window.onto_frame(SaliencyMap(label="Mass", values=values), (640, 600)).values
    row, column = np.unravel_index(int(placed.argmax()), placed.shape)
    marked = np.zeros((640, 600), dtype=np.float32)
    marked[int((row + 0.5) * 640 / placed.shape[0]), int((column + 0.5) * 600 / placed.shape[1])] = 1.0
    back = window.of(cv2.GaussianBlur(marked, (0, 0), 4))
    found = np.unravel_index(int(back.argmax()), back.shape)

    assert found[0] / back.shape[0] == pytest.approx(4.5 / 16, abs=0.06)
    assert found[1] / back.shape[1] == pytest.approx(12.5 / 16, abs=0.06)


def test_windows_lie_in_the_frame():
    for window in windows_of(CHEST):
        part = window.of(CHEST)
        assert min(part.shape) >= 0.5 * min(CHEST.shape)


@pytest.mark.parametrize("pixels", [np.zeros((64, 64), np.float32), np.full((64, 48), 0.5, np.float32)])
def test_a_blank_frame_has_no_field_of_its_own(pixels):
    assert exposed_field(pixels) is None


def test_the_limit_of_what_is_unusual_lies_below_that_of_rejection():
    with pytest.raises(ValueError, match=r"gate\.unusual_threshold"):
        GateSpec(typicality_threshold=1.0, unusual_threshold=1.1, orientations=ORIENTATIONS, certain=0.99)


def test_no_lateral_and_nothing_else_passes_by_a_window(shared_data: Path):
    import csv
    import io
    import zipfile

    from dicomnode.bundle.reader import open_bundle
    from dicomnode.inference.predictor import Predictor
    from dicomnode.settings.node import default_bundle

    bundle = open_bundle(default_bundle())
    predictor = Predictor(bundle, threads=1)
    with zipfile.ZipFile(shared_data / "gate" / "gate-images.zip") as archive:
        rows = [
            row
            for row in csv.DictReader(io.StringIO(archive.read("manifest.csv").decode()))
            if row["kind"] == "lateral"
        ]
        images = [cv2.imdecode(np.frombuffer(archive.read(row["image"]), np.uint8), 0) for row in rows[:3]]
    for image in images:
        frame = Frame(source=REF, pixels=image.astype(np.float32) / 255)
        assert not isinstance(read_upright(predictor, frame, bundle.manifest.gate).verdict, Typical)
