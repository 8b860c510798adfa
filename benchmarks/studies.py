"""Studies for the whole node, and the least cost of their images: the bare decoder and one forward pass."""

from io import BytesIO
from pathlib import Path

import numpy as np
from pydicom import Dataset, dcmread

from benchmarks.bench import seconds
from dicomnode.bundle.reader import open_bundle
from dicomnode.dicom.header import read_radiograph
from dicomnode.domain.frame import Frame
from dicomnode.imaging.codecs.process import CodecProcess
from dicomnode.imaging.pixels import render
from dicomnode.inference.predictor import Predictor
from dicomnode.settings.node import InferenceSettings, PixelSettings


def image_of(part10: bytes) -> Dataset:
    return dcmread(BytesIO(part10))


class Bare:
    """The decoder and ONNX Runtime with nothing around them: no grey scale, no gate, no process for codecs."""

    def __init__(self, bundle: Path) -> None:
        opened = open_bundle(bundle)
        self._predictor = Predictor(opened, threads=InferenceSettings().threads)
        self._predictor.replay_golden()
        side = opened.manifest.input.side
        self._tensor = np.random.default_rng(0).random((1, side, side, 1), dtype=np.float32)

    def seconds(self, part10: bytes) -> float:
        """Return how long decoding one image and one forward pass take."""

        def work() -> None:
            _ = image_of(part10).pixel_array
            self._predictor._run(self._tensor)  # noqa: SLF001 the runtime alone is what is asked for

        return seconds(work)

    def frame(self, part10: bytes) -> Frame:
        """Return the image as the node sees it."""
        codecs = CodecProcess()
        try:
            return render(read_radiograph(part10), PixelSettings(), codecs)
        finally:
            codecs.stop()
