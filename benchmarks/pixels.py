"""From Part 10 bytes to the model's tensor, against the codec alone on the bare frame, in this process.

Ours parses the object, has its frame decoded in the process of the codecs, finds the grey scale and reduces the image.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from pydicom import uid as uids

from benchmarks.bench import Bench, milliseconds
from benchmarks.images import SIDE, Images
from benchmarks.table import Goal, Row
from dicomnode.bundle.preprocess import preprocess
from dicomnode.bundle.reader import open_bundle
from dicomnode.dicom.header import read_radiograph
from dicomnode.dicom.reader import read
from dicomnode.imaging.codecs import child as codec_child
from dicomnode.imaging.codecs.process import CodecProcess, StoredArray
from dicomnode.imaging.decoding import decode, read_layout
from dicomnode.imaging.pixels import render
from dicomnode.settings.node import PixelSettings, default_bundle
from tests.support import make

if TYPE_CHECKING:
    from dicomnode.imaging.codecs.child import Encoded, Request

SYNTAXES = {
    "uncompressed": uids.ExplicitVRLittleEndian,
    "RLE": uids.RLELossless,
    "JPEG, 8 bits": uids.JPEGBaseline8Bit,
    "JPEG, 12 bits": uids.JPEGExtended12Bit,
    "JPEG lossless": uids.JPEGLosslessSV1,
    "JPEG-LS lossless": uids.JPEGLSLossless,
    "JPEG 2000 lossless": uids.JPEG2000Lossless,
    "JPEG 2000": uids.JPEG2000,
}
MOST = Goal(at_most=1.2)


def measure(bench: Bench) -> Iterator[Row]:
    values = read(Images.uncompressed().part10).pixel_array
    spec, settings = open_bundle(default_bundle()).manifest.input, PixelSettings()
    codecs = CodecProcess()
    for name, syntax in SYNTAXES.items():
        # Twelve bits, but where the syntax holds eight.
        of_eight = syntax == uids.JPEGBaseline8Bit
        pixels = (values >> 4).astype("uint8") if of_eight else values
        part10 = make.encode(make.build("cr", pixels=pixels, bits=8 if of_eight else 12), str(syntax))

        def ours(part10: bytes = part10) -> None:
            preprocess(render(read_radiograph(part10), settings, codecs).pixels, spec)

        contenders = {"ours": milliseconds(ours)}
        if (bare := _bare(part10, settings.maximum_pixels)) is not None:
            contenders["bare"] = milliseconds(bare)
        found = bench.interleaved(contenders, "ms")
        yield Row(
            what=f"{name}, {SIDE} × {SIDE}",
            ours=found["ours"],
            peer="" if bare is None else "the codec alone",
            theirs=found.get("bare"),
            goal=None if bare is None else MOST,
            absent="nothing to decode" if bare is None else "",
        )
    codecs.stop()


class _Caught(CodecProcess):
    """Notes what the codecs are asked for."""

    asked: "tuple[Encoded, bytes] | None" = None

    def decode(self, encoded: "Encoded", frame: bytes) -> StoredArray:
        self.asked = encoded, frame
        return super().decode(encoded, frame)


def _bare(part10: bytes, maximum_pixels: int) -> Callable[[], object] | None:
    """Return what decodes the frame here as the process of the codecs does, or None where nothing is compressed."""
    radiograph, caught = read_radiograph(part10), _Caught()
    decode(radiograph, read_layout(radiograph.header, maximum_pixels), caught)
    caught.stop()
    if caught.asked is None:
        return None
    encoded, frame = caught.asked
    request: Request = {**encoded, "frame_bytes": len(frame), "shared_bytes": 0, "limit_bytes": 0, "limit_s": 0.0}
    return lambda: codec_child._decode(encoded["decoders"][0], request, frame)  # noqa: SLF001 the very same call
