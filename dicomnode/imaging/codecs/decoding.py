"""Stored pixel values of one frame, decoded by known libraries in a fixed order, within limits checked before.

What a decoder would allocate is bounded first by what the tags and the frame's own header say; frames whose two sizes
disagree are refused. Codecs, which some damaged frames make abort, run in a process of their own (`codecs`).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from pydicom import Dataset
from pydicom import uid as uids
from pydicom.encaps import get_frame
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut

from dicomnode.dicom.attributes import HOSTILE_DATA_RAISES, integer, quiet, text
from dicomnode.domain.errors import UndecodablePixels
from dicomnode.imaging.codecs.codestream import FrameHeader, read_header
from dicomnode.imaging.codecs.process import CODECS, CodecProcess, StoredArray

if TYPE_CHECKING:
    from dicomnode.imaging.codecs.child import Encoded

_GDCM = "gdcm"
DECODERS: dict[str, tuple[str, ...]] = {
    uids.ImplicitVRLittleEndian: (),
    uids.ExplicitVRLittleEndian: (),
    # pylibjpeg's faster RLE decoder panics on damaged segments, with what is no Exception.
    uids.RLELossless: ("pydicom",),
    uids.JPEGBaseline8Bit: ("pillow", _GDCM),
    uids.JPEGExtended12Bit: (_GDCM, "pillow"),
    uids.JPEGLossless: (_GDCM,),
    uids.JPEGLosslessSV1: (_GDCM,),
    uids.JPEGLSLossless: ("pyjpegls",),
    uids.JPEGLSNearLossless: ("pyjpegls",),
    uids.JPEG2000Lossless: ("pylibjpeg",),
    uids.JPEG2000: ("pylibjpeg",),
    uids.HTJ2KLossless: ("pylibjpeg",),
    uids.HTJ2KLosslessRPCL: ("pylibjpeg",),
    uids.HTJ2K: ("pylibjpeg",),
}
"""Transfer syntaxes this node decodes, with the decoders in the order they are tried (none: uncompressed).

`gdcm` is called by `codec_child` itself; the others are pydicom's plugins. All are libraries the project requires.
"""

_PHOTOMETRIC = {
    1: frozenset({"MONOCHROME1", "MONOCHROME2", "PALETTE COLOR"}),
    3: frozenset({"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"}),
}
_END_OF_IMAGE = b"\xff\xd9"
_TRAILER = 64
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelLayout:
    """How the tags describe the pixel data of a single frame. Source: PS3.3 C.7.6.3."""

    transfer_syntax: uids.UID
    rows: int
    columns: int
    samples: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    photometric: str

    @property
    def stored_range(self) -> tuple[int, int]:
        """Return the least and greatest value that the stored bits can hold."""
        half = 1 << (self.bits_stored - 1)
        return (-half, half - 1) if self.signed else (0, 2 * half - 1)


def read_layout(ds: Dataset, maximum_pixels: int) -> PixelLayout:
    """Read and check the layout before anything is decoded or allocated.

    Raises: UndecodablePixels.
    """
    numbers = {
        keyword: integer(ds, keyword)
        for keyword in ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "BitsStored", "HighBit")
    }
    rows, columns, samples, allocated, stored, high = (value or 0 for value in numbers.values())
    photometric = text(ds, "PhotometricInterpretation").upper()
    frames = integer(ds, "NumberOfFrames") or 1
    _require(rows > 0 and columns > 0, "Rows or Columns is missing")
    _require(frames == 1, f"the object holds {frames} frames, and one is expected")
    _require(rows * columns <= maximum_pixels, f"{rows} x {columns} pixels are more than the limit of {maximum_pixels}")
    _require(samples in _PHOTOMETRIC, "Samples per Pixel is neither 1 nor 3")
    _require(photometric in _PHOTOMETRIC[samples], "the Photometric Interpretation is not one this node renders")
    _require(allocated in (8, 16), "Bits Allocated is neither 8 nor 16")
    _require(1 <= stored <= allocated, "Bits Stored is not between 1 and Bits Allocated")
    return PixelLayout(
        transfer_syntax=_transfer_syntax(ds),
        rows=rows,
        columns=columns,
        samples=samples,
        bits_allocated=allocated,
        bits_stored=stored,
        high_bit=high if stored - 1 <= high < allocated else stored - 1,
        signed=integer(ds, "PixelRepresentation") == 1,
        photometric=photometric,
    )


def decode(ds: Dataset, layout: PixelLayout, codecs: CodecProcess = CODECS) -> StoredArray:
    """Return the stored values, (rows, columns): integers, or for colour the luminance in the scale of the samples.

    Raises: UndecodablePixels, DecoderUnavailable.
    """
    with quiet():
        try:
            stored = _decode(ds, layout, codecs)
            if layout.samples == 3:
                return np.asarray(stored.astype(np.float32) @ _LUMA, dtype=np.float32)
            if layout.photometric == "PALETTE COLOR":
                return _palette_luminance(ds, stored, layout)
        except HOSTILE_DATA_RAISES as error:
            raise UndecodablePixels(f"the pixel data cannot be decoded ({type(error).__name__})") from None
    return stored


def _decode(ds: Dataset, layout: PixelLayout, codecs: CodecProcess) -> StoredArray:
    data = ds.get("PixelData")
    _require(isinstance(data, bytes | bytearray) and len(data) > 0, "the object has no Pixel Data")
    if layout.transfer_syntax.is_compressed:
        return _decode_compressed(bytes(data), layout, codecs)
    shifted = layout.high_bit != layout.bits_stored - 1
    decoder = get_decoder(layout.transfer_syntax)
    stored, _ = decoder.as_array(ds, index=0, correct_unused_bits=not shifted)  # type: ignore[arg-type]
    return _align(stored, layout) if shifted else stored


def _decode_compressed(data: bytes, layout: PixelLayout, codecs: CodecProcess) -> StoredArray:
    frame = get_frame(data, 0, number_of_frames=1)
    header = _check_frame(frame, layout)
    encoded: Encoded = {
        "transfer_syntax": str(layout.transfer_syntax),
        "decoders": list(DECODERS[layout.transfer_syntax]),
        "rows": layout.rows,
        "columns": layout.columns,
        "samples": layout.samples,
        "bits_allocated": layout.bits_allocated,
        "bits_stored": layout.bits_stored,
        "signed": layout.signed,
        "photometric": layout.photometric,
        "precision": None if header is None else header.precision,
    }
    return codecs.decode(encoded, frame)


def _check_frame(frame: bytes, layout: PixelLayout) -> FrameHeader | None:
    """Compare the compressed frame with the tags, so that no decoder allocates more than the tags admit."""
    native = layout.rows * layout.columns * layout.samples * layout.bits_allocated // 8
    _require(len(frame) <= 2 * native + 65_536, "the compressed frame is larger than twice its pixels")
    header = read_header(frame, layout.transfer_syntax)
    if header is not None:
        # Decoders fill in what a frame cut short lacks, and half a lung must not be read.
        _require(_END_OF_IMAGE in frame[-_TRAILER:], "the compressed frame has no end marker")
        stated, found = (layout.rows, layout.columns, layout.samples), (header.rows, header.columns, header.samples)
        _require(stated == found, "the compressed frame has another size than the tags say")
        _require(2 <= header.precision <= 16, "the compressed frame has less than 2 or more than 16 bits per sample")
    return header


def _align(stored: StoredArray, layout: PixelLayout) -> StoredArray:
    """Bring stored bits that end above bit 0 down, keeping the sign. Source: PS3.5 8.1.1."""
    up = layout.bits_allocated - 1 - layout.high_bit
    return np.right_shift(np.left_shift(stored, up), layout.bits_allocated - layout.bits_stored)


def _palette_luminance(ds: Dataset, stored: StoredArray, layout: PixelLayout) -> StoredArray:
    """Return the luminance of palette colours in the scale of the stored bits."""
    colours = apply_color_lut(stored, ds)
    top = float(np.iinfo(colours.dtype).max)
    return np.asarray(colours[..., :3].astype(np.float32) @ _LUMA / top * layout.stored_range[1], dtype=np.float32)


def _transfer_syntax(ds: Dataset) -> uids.UID:
    meta = getattr(ds, "file_meta", None)
    stated = text(meta, "TransferSyntaxUID") if meta is not None else ""
    _require(stated in DECODERS, "the transfer syntax is not one this node decodes")
    return uids.UID(stated)


def _require(condition: bool, otherwise: str) -> None:  # noqa: FBT001 reads as a sentence at its only kind of call
    if not condition:
        raise UndecodablePixels(otherwise)
