"""Stored pixel values of one frame, decoded by known libraries in a fixed order, within limits checked before.

What a decoder would allocate is bounded first by what the tags and the frame's own header say; frames whose two sizes
disagree are refused. Codecs, which some damaged frames make abort, run in a process of their own (`codecs`).
"""

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from pydicom import Dataset
from pydicom import uid as uids
from pydicom.pixels.processing import apply_color_lut
from pydicom.tag import Tag

from dicomnode.dicom.greyscale import GreyscaleTags, PaletteTags
from dicomnode.dicom.header import PixelTags, Radiograph, RadiographHeader
from dicomnode.dicom.hostile import HOSTILE_DATA_RAISES, quiet
from dicomnode.domain.errors import UndecodablePixels, UnsupportedPixels
from dicomnode.imaging.codecs.codestream import RGB, YBR, FrameHeader, read_codestream
from dicomnode.imaging.codecs.encapsulation import single_frame
from dicomnode.imaging.codecs.process import CodecProcess, StoredArray
from dicomnode.imaging.colour import is_grey, luminance
from dicomnode.imaging.representation import BitField, SampleEncoding, is_smooth, settle

if TYPE_CHECKING:
    from dicomnode.imaging.codecs.child import Encoded

log = logging.getLogger(__name__)

_GDCM = "gdcm"
DECODERS: dict[str, tuple[str, ...]] = {
    uids.ImplicitVRLittleEndian: (),
    uids.ExplicitVRLittleEndian: (),
    uids.ExplicitVRBigEndian: (),
    # pylibjpeg's faster RLE decoder panics on damaged segments, with what is no Exception.
    uids.RLELossless: ("pydicom",),
    uids.JPEGBaseline8Bit: ("pillow", _GDCM),
    uids.JPEGExtended12Bit: (_GDCM, "pillow"),
    uids.JPEGLossless: (_GDCM,),
    uids.JPEGLosslessSV1: (_GDCM,),
    uids.JPEGLSLossless: ("pyjpegls", _GDCM),
    uids.JPEGLSNearLossless: ("pyjpegls", _GDCM),
    uids.JPEG2000Lossless: ("pylibjpeg", _GDCM),
    uids.JPEG2000: ("pylibjpeg", _GDCM),
    uids.HTJ2KLossless: ("pylibjpeg",),
    uids.HTJ2KLosslessRPCL: ("pylibjpeg",),
    uids.HTJ2K: ("pylibjpeg",),
}
"""Transfer syntaxes this node decodes, with the decoders in the order they are tried (none: uncompressed).

For JPEG, `gdcm` and `pillow` are called by `child` itself; the others are pydicom's plugins. All are libraries the
project requires.
"""

_LOSSLESS = frozenset(
    {
        uids.ImplicitVRLittleEndian,
        uids.ExplicitVRLittleEndian,
        uids.ExplicitVRBigEndian,
        uids.RLELossless,
        uids.JPEGLossless,
        uids.JPEGLosslessSV1,
        uids.JPEGLSLossless,
        uids.JPEG2000Lossless,
        uids.HTJ2KLossless,
        uids.HTJ2KLosslessRPCL,
    }
)
_PALETTE = "PALETTE COLOR"
_SUBSAMPLED = "YBR_FULL_422"
_PHOTOMETRIC = {
    1: frozenset({"MONOCHROME1", "MONOCHROME2", _PALETTE}),
    3: frozenset({"RGB", "YBR_FULL", _SUBSAMPLED, "YBR_ICT", "YBR_RCT"}),
}


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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Decoded:
    """Stored values, (rows, columns), and the layout as the pixels bear it out: bits stored and sign may differ.

    `stored`: integers, or for colour the luminance in the scale of the samples.
    """

    stored: StoredArray
    layout: PixelLayout


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Samples:
    """Samples as they were encoded, (rows, columns[, 3]); `colours`: "RGB" or "YBR", as the frame or the tags say."""

    values: StoredArray
    encoding: SampleEncoding
    colours: str


def read_layout(header: RadiographHeader, maximum_pixels: int) -> PixelLayout:
    """Read and check the layout before anything is decoded or allocated.

    Samples per Pixel, Bits Stored and High Bit that are absent are taken for the usual ones, an absent Pixel
    Representation for unsigned.
    Raises: UndecodablePixels; UnsupportedPixels for what is sound but nothing this node reads.
    """
    tags = header.pixels
    rows, columns, frames = tags.rows or 0, tags.columns or 0, tags.number_of_frames or 1
    samples, allocated = _or(tags.samples_per_pixel, 1), _or(tags.bits_allocated, 0)
    stored = _or(tags.bits_stored, allocated)
    high = _or(tags.high_bit, stored - 1)
    photometric = tags.photometric_interpretation
    _require(rows > 0 and columns > 0, "Rows or Columns is missing")
    _support(frames == 1, f"the object holds {frames} frames, and one is expected")
    _support(rows * columns <= maximum_pixels, f"{rows} x {columns} pixels are more than the limit of {maximum_pixels}")
    _support(samples in _PHOTOMETRIC, "Samples per Pixel is neither 1 nor 3")
    _support(photometric in _PHOTOMETRIC[samples], "the Photometric Interpretation is not one this node renders")
    _support(allocated in (8, 16), "Bits Allocated is neither 8 nor 16")
    _require(1 <= stored <= allocated, "Bits Stored is not between 1 and Bits Allocated")
    _support(header.transfer_syntax in DECODERS, "the transfer syntax is not one this node decodes")
    return PixelLayout(
        transfer_syntax=uids.UID(header.transfer_syntax),
        rows=rows,
        columns=columns,
        samples=samples,
        bits_allocated=allocated,
        bits_stored=stored,
        high_bit=high if stored - 1 <= high < allocated else stored - 1,
        signed=tags.pixel_representation == 1,
        photometric=photometric,
    )


def decode(radiograph: Radiograph, layout: PixelLayout, codecs: CodecProcess) -> Decoded:
    """Return the stored values of the one frame.

    Raises: UndecodablePixels, DecoderUnavailable.
    """
    header, data = radiograph.header, radiograph.pixel_data
    _require(len(data) > 0, "the object has no Pixel Data")
    with quiet():
        try:
            native = not layout.transfer_syntax.is_compressed
            samples = _native(header.pixels, data, layout) if native else _compressed(data, layout, codecs)
            if layout.samples == 3:
                return Decoded(stored=luminance(samples.values, samples.colours), layout=replace(layout, signed=False))
            return _one_component(header.greyscale, samples, layout)
        except HOSTILE_DATA_RAISES as error:
            log.warning("pixels-not-decoded", extra={"error": type(error).__name__})
            raise UndecodablePixels("the pixel data cannot be decoded") from None


def _one_component(tags: GreyscaleTags, samples: _Samples, layout: PixelLayout) -> Decoded:
    tagged = BitField(low=layout.high_bit + 1 - layout.bits_stored, bits=layout.bits_stored, signed=layout.signed)
    if layout.photometric == _PALETTE:
        # Numbers of colours are next to each other as the palette has them, and no grey scale.
        return Decoded(stored=_palette_luminance(tags, tagged.of(samples.values), layout), layout=layout)
    stored, reading = settle(samples.values, tagged, samples.encoding)
    return Decoded(stored=stored, layout=replace(layout, bits_stored=reading.bits, signed=reading.signed))


def _native(tags: PixelTags, data: bytes, layout: PixelLayout) -> _Samples:
    """Return uncompressed samples. Source: PS3.5 8.1.1 and 8.2; PS3.3 C.7.6.3.1.3."""
    big_endian = layout.transfer_syntax == uids.ExplicitVRBigEndian
    if big_endian and layout.bits_allocated == 8 and tags.data_in_words:
        data = np.frombuffer(data[: len(data) // 2 * 2], dtype=">u2").astype("<u2").tobytes()
    dtype = np.dtype(f"{'>' if big_endian else '<'}u{layout.bits_allocated // 8}")
    found = np.frombuffer(data[: len(data) // dtype.itemsize * dtype.itemsize], dtype=dtype)
    pixels = layout.rows * layout.columns
    subsampled = layout.photometric == _SUBSAMPLED and found.size < 3 * pixels and layout.columns % 2 == 0
    wanted = 2 * pixels if subsampled else layout.samples * pixels
    if found.size < wanted:
        raise UndecodablePixels(f"Pixel Data holds {found.size} samples, and Rows and Columns ask for {wanted}")
    samples = np.asarray(found[:wanted], dtype=dtype.newbyteorder("<"))
    encoding = SampleEncoding(precision=layout.bits_allocated, signed=None, lossless=True)
    return _Samples(values=_arranged(tags, samples, layout), encoding=encoding, colours=_tagged_colours(layout))


def _arranged(tags: PixelTags, samples: StoredArray, layout: PixelLayout) -> StoredArray:
    """Return samples as (rows, columns[, 3])."""
    shape = (layout.rows, layout.columns)
    if layout.samples == 1:
        return samples.reshape(shape)
    if samples.size == 2 * layout.rows * layout.columns:  # two of brightness, then one of each colour difference
        brightness = samples.reshape(-1, 4)
        pairs = np.repeat(brightness[:, 2:], 2, axis=0)
        return np.concatenate([brightness[:, :2].reshape(-1, 1), pairs], axis=1).reshape(*shape, 3)
    by_pixel, by_plane = samples.reshape(*shape, 3), np.moveaxis(samples.reshape(3, *shape), 0, -1)
    stated, other = (by_plane, by_pixel) if tags.planar_configuration == 1 else (by_pixel, by_plane)
    # Devices leave the Planar Configuration behind that the pixels had before a conversion.
    return other if not is_grey(stated) and is_grey(other) and is_smooth(other[..., 0]) else stated


def _compressed(data: bytes, layout: PixelLayout, codecs: CodecProcess) -> _Samples:
    frame = single_frame(data)
    native = layout.rows * layout.columns * layout.samples * layout.bits_allocated // 8
    _require(len(frame) <= 2 * native + 65_536, "the compressed frame is larger than twice its pixels")
    codestream = read_codestream(frame, layout.transfer_syntax)
    header = codestream.header
    if header is not None:
        _check_header(header, layout)
    precision = layout.bits_allocated if header is None else header.precision
    encoded: Encoded = {
        "transfer_syntax": str(layout.transfer_syntax),
        "decoders": list(DECODERS[layout.transfer_syntax]),
        "rows": layout.rows,
        "columns": layout.columns,
        "samples": layout.samples,
        "precision": precision,
        "signed": header is not None and header.signed is True,
        "rgb": header is not None and header.colours == RGB,
    }
    return _Samples(
        values=codecs.decode(encoded, codestream.frame),
        encoding=SampleEncoding(
            precision=precision,
            signed=None if header is None else header.signed,
            lossless=layout.transfer_syntax in _LOSSLESS,
        ),
        colours=(None if header is None else header.colours) or _tagged_colours(layout),
    )


def _check_header(header: FrameHeader, layout: PixelLayout) -> None:
    """Compare the compressed frame with the tags, so that no decoder allocates more than the tags admit."""
    stated, found = (layout.rows, layout.columns, layout.samples), (header.rows, header.columns, header.samples)
    _require(stated == found, "the compressed frame has another size than the tags say")
    _support(2 <= header.precision <= 16, "the compressed frame has less than 2 or more than 16 bits per sample")


def _tagged_colours(layout: PixelLayout) -> str:
    return RGB if layout.photometric == "RGB" else YBR


def _palette_luminance(tags: GreyscaleTags, stored: StoredArray, layout: PixelLayout) -> StoredArray:
    """Return the luminance of palette colours in the scale of the stored bits.

    Raises: UndecodablePixels when the object has no palette.
    """
    if tags.palette is None:
        raise UndecodablePixels("the object has no palette")
    colours = apply_color_lut(stored, _palette_module(tags.palette))
    top = float(np.iinfo(colours.dtype).max)
    return np.asarray(luminance(colours[..., :3], RGB) / top * layout.stored_range[1], dtype=np.float32)


def _palette_module(palette: PaletteTags) -> Dataset:
    """Return the palette as the attributes that pydicom takes it from. Source: PS3.3 C.7.9."""
    ds = Dataset()
    prefix = "Segmented" if palette.segmented else ""
    colours = zip(("Red", "Green", "Blue"), palette.descriptors, palette.entries, strict=True)
    for colour, descriptor, entries in colours:
        ds.add_new(Tag(f"{colour}PaletteColorLookupTableDescriptor"), "US", list(descriptor))
        ds.add_new(Tag(f"{prefix}{colour}PaletteColorLookupTableData"), "OW", entries)
    return ds


def _require(condition: bool, otherwise: str) -> None:  # noqa: FBT001 reads as a sentence at its only kind of call
    if not condition:
        raise UndecodablePixels(otherwise)


def _support(condition: bool, otherwise: str) -> None:  # noqa: FBT001 as _require
    if not condition:
        raise UnsupportedPixels(otherwise)


def _or(value: int | None, absent: int) -> int:
    return absent if value is None else value
