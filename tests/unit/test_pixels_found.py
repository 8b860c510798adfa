"""Pixel data as devices were found to write it: wrapped, padded, with unused bits set, in colours, with wrong tags."""

import gzip
import struct
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom import uid as uids
from pydicom.encaps import generate_frames
from pydicom.pixels.processing import convert_color_space

from dicomnode.dicom import reader
from dicomnode.domain.errors import UndecodablePixels, UnreadableObject, UnsupportedPixels
from dicomnode.imaging.decoding import DECODERS
from dicomnode.imaging.representation import MOST_STEPS, BitField, SampleEncoding, settle, steps
from tests.conftest import ROOT
from tests.support.make import build, chest, encode, lut, stored, with_frame
from tests.support.rendered import FULL, frame

ROWS, COLUMNS = 300, 280
CHEST = chest(ROWS, COLUMNS)
VALUES = stored(CHEST, bits=12)
LOSSLESS = [uids.JPEGLosslessSV1, uids.JPEGLSLossless, uids.JPEG2000Lossless, uids.RLELossless]


def made(**options: Any) -> Dataset:
    return build("cr", **{"pixels": VALUES, "window": FULL, **options})


def compressed(ds: Dataset, syntax: uids.UID, **options: Any) -> Dataset:
    return reader.read(encode(ds, syntax, **options))


def frame_of(ds: Dataset) -> bytes:
    return next(generate_frames(ds.PixelData, number_of_frames=1))


def shows_the_chest(ds: Dataset) -> bool:
    return np.corrcoef(frame(ds).pixels.ravel(), CHEST.ravel())[0, 1] > 0.99


# Sign and depth


@pytest.mark.parametrize("syntax", [uids.ExplicitVRLittleEndian, *LOSSLESS], ids=lambda one: one.name)
@pytest.mark.parametrize("stored_bits", [9, 10, 11])
def test_bits_stored_smaller_than_the_data_does_not_wrap_the_image(syntax, stored_bits):
    ds = compressed(made(), syntax)
    ds.BitsStored, ds.HighBit = stored_bits, stored_bits - 1

    assert np.abs(frame(ds).pixels - CHEST).max() < 2e-3


@pytest.mark.parametrize("syntax", [uids.ExplicitVRLittleEndian, *LOSSLESS], ids=lambda one: one.name)
@pytest.mark.parametrize("signed", [False, True])
def test_pixels_tagged_with_the_other_sign_do_not_wrap(syntax, signed):
    values = stored(CHEST, bits=12, signed=signed)
    ds = compressed(build("cr", pixels=values, signed=signed, window=(0 if signed else 2048, 4096)), syntax)
    ds.PixelRepresentation = 0 if signed else 1

    assert np.abs(frame(ds).pixels - CHEST).max() < 2e-3


def test_a_codestream_marked_signed_is_believed_against_the_tag():
    ds = compressed(made(), uids.JPEG2000Lossless)
    stream = bytearray(frame_of(ds))
    assert stream[42] == 11  # twelve bits, unsigned
    stream[42] |= 0x80

    assert shows_the_chest(with_frame(ds, bytes(stream), uids.JPEG2000Lossless))


def test_jpeg_with_pixel_representation_1_does_not_wrap():
    ds = compressed(build("cr", pixels=stored(CHEST, bits=8), bits=8), uids.JPEGBaseline8Bit)
    ds.PixelRepresentation = 1

    assert shows_the_chest(ds)


def test_an_image_that_no_reading_makes_smooth_is_refused():
    with pytest.raises(UndecodablePixels, match="wrap around"):
        frame(made(pixels=(VALUES * np.uint16(4)) & np.uint16(0xFFF)))


def test_values_wrapped_at_fewer_bits_than_are_stored_are_refused():
    """The scale is as long as the values need, not as the tags say."""
    wrapped = stored(CHEST, bits=12) & np.uint16(0x1FF)
    with pytest.raises(UndecodablePixels, match="wrap around"):
        frame(made(pixels=wrapped, bits=16))


@pytest.mark.parametrize("side", [64, 128, 256, 1024])
def test_steps_of_real_images_are_allowed_and_those_of_wrapped_ones_are_not(side):
    values = stored(chest(side, side), bits=8)
    tagged, encoding = (
        BitField(low=0, bits=8, signed=False),
        SampleEncoding(precision=8, signed=False, lossless=False),
    )

    assert settle(values, tagged, encoding)[1] == tagged
    with pytest.raises(UndecodablePixels):
        settle(values * np.uint8(4), tagged, encoding)


def test_nih_images_have_fewer_steps_than_are_allowed(shared_data):
    import zipfile

    with zipfile.ZipFile(shared_data / "nih" / "nih-train_val-256.zip") as archive:
        names = [name for name in archive.namelist() if name.endswith(".jpg")][:200]
        images = [np.asarray(Image.open(BytesIO(archive.read(name))).convert("L")) for name in names]

    assert max(steps(image, 128) for image in images) < MOST_STEPS
    assert np.mean([steps(image ^ 128, 128) > MOST_STEPS for image in images]) > 0.99


# Bits above Bits Stored


def overlaid() -> np.ndarray:
    """Return the values with an overlay plane in bit 15 that holds a burnt-in word."""
    import cv2

    plane = cv2.putText(np.zeros((ROWS, COLUMNS), np.uint8), "NAME", (20, 150), 0, 3, 1, 6)
    return VALUES | (plane.astype(np.uint16) << 15)


@pytest.mark.parametrize("syntax", [uids.ExplicitVRLittleEndian, *LOSSLESS], ids=lambda one: one.name)
def test_an_overlay_in_unused_bits_is_no_part_of_the_image(syntax):
    ds = compressed(made(pixels=overlaid(), bits=16), syntax)
    ds.BitsStored, ds.HighBit = 12, 11

    assert np.abs(frame(ds).pixels - CHEST).max() < 2e-3


def test_values_of_a_lossy_frame_that_overshoot_do_not_wrap():
    """Codecs round beyond the stored bits where the grey scale ends."""
    values = np.clip(np.round((CHEST * 1.6 - 0.3) * 4095), 0, 4095).astype(np.uint16)
    ds = compressed(build("cr", pixels=values, bits=16, window=FULL), uids.JPEG2000, j2k_cr=[60])
    ds.BitsStored, ds.HighBit = 12, 11
    difference = np.abs(frame(ds).pixels - values / 4095)

    assert difference.max() < 0.4
    assert dcmread(BytesIO(encode_again(ds))).pixel_array.max() > 4095


def encode_again(ds: Dataset) -> bytes:
    buffer = BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


# Encapsulation and codestreams


@pytest.mark.parametrize("table", [b"\x08\0\0\0", b"\0\0\0\0\x10\0\0\0", b"\xff\xff\xff\x7f", b"abc\0"])
def test_a_wrong_offset_table_does_no_harm_to_a_single_frame(table):
    ds = compressed(made(), uids.JPEG2000Lossless)
    content = frame_of(ds)
    item = struct.Struct("<HHL")
    parts = (content[:1000], content[1000:]) if len(table) == 8 else (content,)
    ds.PixelData = b"".join(item.pack(0xFFFE, 0xE000, len(part)) + part for part in (table, *parts))

    assert np.abs(frame(ds).pixels - CHEST).max() < 2e-3


@pytest.mark.parametrize("items", [0, 1])
def test_a_missing_offset_table_does_no_harm(items):
    ds = compressed(made(), uids.JPEG2000Lossless)
    content = frame_of(ds)
    ds.PixelData = struct.pack("<HHL", 0xFFFE, 0xE000, len(content)) + content if items else content

    assert np.abs(frame(ds).pixels - CHEST).max() < 2e-3


@pytest.mark.parametrize("padding", [100, 5000])
@pytest.mark.parametrize("syntax", LOSSLESS[:3], ids=lambda one: one.name)
@pytest.mark.parametrize("byte", [b"\0", b"\xff"])
def test_padding_behind_the_end_marker_does_no_harm(syntax, padding, byte):
    ds = compressed(made(), syntax)
    ds = with_frame(ds, frame_of(ds).rstrip(b"\0") + byte * padding, syntax)

    assert np.abs(frame(ds).pixels - CHEST).max() < 2e-3


@pytest.mark.parametrize(
    "inserted",
    [b"\xff\x64\x00\x0b\x00\x01PADDING", b"\0" * 6, b"\0\xff\x64\x00\x04\x00\x01\0"],
    ids=["Canon's comment", "zeros", "both"],
)
def test_what_stands_between_the_last_tile_part_and_the_end_marker_is_left_out(inserted):
    ds = compressed(made(), uids.JPEG2000Lossless)
    content = frame_of(ds).rstrip(b"\0")
    ds = with_frame(ds, content[:-2] + inserted + content[-2:], uids.JPEG2000Lossless)

    assert np.abs(frame(ds).pixels - CHEST).max() < 2e-3


def test_a_tile_part_whose_length_is_wrong_is_not_cut():
    """Half a lung must not be read: where the stated length leads elsewhere, the end marker counts."""
    ds = compressed(made(), uids.JPEG2000Lossless)
    content = bytearray(frame_of(ds))
    at = content.index(b"\xff\x90")
    content[at + 6 : at + 10] = (int.from_bytes(content[at + 6 : at + 10]) // 2).to_bytes(4)
    ds = with_frame(ds, bytes(content), uids.JPEG2000Lossless)

    with pytest.raises(UndecodablePixels, match="no decoder could read"):
        frame(ds)


def test_a_zero_before_the_end_of_a_jpeg_ls_frame_is_read_by_the_second_decoder():
    ds = compressed(made(), uids.JPEGLSLossless)
    content = frame_of(ds).rstrip(b"\0")
    ds = with_frame(ds, content[:-2] + b"\0" + content[-2:], uids.JPEGLSLossless)

    assert np.abs(frame(ds).pixels - CHEST).max() < 2e-3
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(DECODERS, uids.JPEGLSLossless, ("pyjpegls",))
        with pytest.raises(UndecodablePixels):
            frame(ds)


@pytest.mark.parametrize("syntax", [uids.JPEG2000Lossless, uids.JPEG2000, uids.JPEGLSNearLossless])
@pytest.mark.parametrize("signed", [False, True])
def test_the_second_decoder_agrees_with_the_first(syntax, signed):
    ds = compressed(build("cr", pixels=stored(CHEST, bits=12, signed=signed), signed=signed, window=FULL), syntax)
    first = frame(ds).pixels
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(DECODERS, syntax, DECODERS[syntax][1:])
        second = frame(ds).pixels

    assert np.abs(first - second).max() < 1e-6


# Colours


def in_colours(photometric: str) -> np.ndarray:
    grey = stored(CHEST, bits=8)
    rgb = np.stack([grey] * 3, axis=-1)
    return rgb if photometric == "RGB" else convert_color_space(rgb, "RGB", "YBR_FULL")


@pytest.mark.parametrize("syntax", [uids.ExplicitVRLittleEndian, *LOSSLESS[1:]], ids=lambda one: one.name)
@pytest.mark.parametrize(("actual", "tagged"), [("RGB", "YBR_FULL"), ("YBR_FULL", "RGB"), ("RGB", "YBR_RCT")])
def test_grey_stored_as_colour_is_read_whatever_the_tag_calls_it(syntax, actual, tagged):
    ds = compressed(build("sc", pixels=in_colours(actual), bits=8, photometric=actual, spacing_mm=None), syntax)
    ds.PhotometricInterpretation = tagged

    assert np.abs(frame(ds).pixels - stored(CHEST, bits=8) / 255).max() < 0.02


@pytest.mark.parametrize("tagged", ["RGB", "YBR_FULL", "YBR_FULL_422"])
@pytest.mark.parametrize("mode", ["RGB", "YCbCr"])
def test_a_jpeg_says_itself_what_its_colours_are(tagged, mode):
    coloured = np.stack([stored(CHEST * weight, bits=8) for weight in (1.0, 0.7, 0.3)], axis=-1)
    buffer = BytesIO()
    Image.fromarray(coloured).save(buffer, "JPEG", quality=95, subsampling=0, keep_rgb=mode == "RGB")
    ds = build("sc", pixels=coloured, bits=8, photometric="RGB", spacing_mm=None)
    ds = reader.read(encode_again(with_frame(ds, buffer.getvalue(), uids.JPEGBaseline8Bit)))
    ds.PhotometricInterpretation = tagged

    assert np.abs(frame(ds).pixels * 255 - coloured @ (0.299, 0.587, 0.114)).mean() < 1.5


@pytest.mark.parametrize("planar", [0, 1])
def test_grey_as_colour_is_read_whatever_the_tag_says_of_its_planes(planar):
    pixels = in_colours("RGB")
    ds = build("sc", pixels=pixels, bits=8, photometric="RGB", spacing_mm=None)
    ds.PixelData = pixels.tobytes() if planar else np.ascontiguousarray(np.moveaxis(pixels, -1, 0)).tobytes()
    ds.PlanarConfiguration = planar

    assert np.abs(frame(ds).pixels - stored(CHEST, bits=8) / 255).max() < 1e-6


# Grey scale


@pytest.mark.parametrize(("claimed", "needed"), [(16, 12), (16, 10), (14, 12), (16, 16)])
def test_a_voi_lut_that_claims_more_bits_than_it_fills_is_shown_in_full(claimed, needed):
    top = (1 << needed) - 1
    root = [round((value / 4095) ** 0.5 * top) for value in range(4096)]
    rendered = frame(made(voi_lut=lut(root, bits=claimed), window=None))

    assert rendered.rendering == "voi-lut-sequence"
    assert np.abs(rendered.pixels - np.sqrt(CHEST)).max() < 0.02


# Tags that are absent, and words


@pytest.mark.parametrize("absent", ["PixelRepresentation", "BitsStored", "HighBit", "SamplesPerPixel"])
@pytest.mark.parametrize("syntax", [uids.ExplicitVRLittleEndian, uids.JPEG2000Lossless], ids=lambda one: one.name)
def test_a_pixel_module_that_lacks_what_can_be_known_is_read(absent, syntax):
    ds = compressed(made(), syntax)
    del ds[absent]

    assert np.abs(frame(ds).pixels - CHEST).max() < 2e-3


@pytest.mark.parametrize("bits", [8, 12])
def test_big_endian_pixels_are_read(bits):
    ds = build("cr", pixels=stored(CHEST, bits=bits), bits=bits, window=(1 << (bits - 1), 1 << bits))
    little = frame(ds).pixels
    if bits > 8:
        ds.PixelData = np.frombuffer(ds.PixelData, "<u2").astype(">u2").tobytes()
    ds.file_meta.TransferSyntaxUID = uids.ExplicitVRBigEndian

    assert np.array_equal(frame(ds).pixels, little)


@pytest.mark.parametrize(
    ("tags", "kind"),
    [
        ({"PhotometricInterpretation": "ARGB"}, UnsupportedPixels),
        ({"BitsAllocated": 32}, UnsupportedPixels),
        ({"SamplesPerPixel": 4}, UnsupportedPixels),
        ({"Rows": 60_000, "Columns": 60_000}, UnsupportedPixels),
        ({"Rows": ROWS + 1}, UndecodablePixels),
        ({"PixelData": b"\0\0"}, UndecodablePixels),
        ({"PixelData": None}, UndecodablePixels),
        ({"BitsStored": 17}, UndecodablePixels),
    ],
)
def test_what_is_sound_but_not_read_is_told_apart_from_what_is_damaged(tags, kind):
    with pytest.raises(UndecodablePixels) as raised:
        frame(made(tags=tags))

    assert type(raised.value) is kind
    assert "Error" not in str(raised.value)


@pytest.mark.parametrize(
    "data", [b"\0" * 40, b"\xfe\xff\x00\xe0\xff\xff\xff\x7f", b"\xfe\xff\xdd\xe0\0\0\0\0", b"text"]
)
def test_encapsulation_that_makes_no_sense_is_refused_in_plain_words(data):
    ds = compressed(made(), uids.JPEG2000Lossless)
    ds.PixelData = data

    with pytest.raises(UndecodablePixels) as raised:
        frame(ds)
    assert "Error" not in str(raised.value)


@pytest.mark.parametrize(
    ("part10", "words"),
    [
        (b"", "does not begin with a preamble"),
        (encode(made(rows=16, columns=16, pixels=None))[128:], "does not begin with a preamble"),
        (bytes(128) + b"DICM" + b"\xff" * 40, "does not state its transfer syntax"),
    ],
    ids=["empty", "no preamble", "noise"],
)
def test_what_is_no_dicom_file_is_told_without_names_of_exceptions(part10, words):
    with pytest.raises(UnreadableObject, match=words) as raised:
        reader.read(part10)

    assert "Error" not in str(raised.value)


CASES = ROOT.parent / "shared" / "cases" / "pixels"
TURNED_OVER = {"vflip_LH"}
OTHER_SENSE = {"j2k_mct_ybrfull"}


@pytest.mark.skipif(not CASES.is_dir(), reason="the shared cases are not beside this checkout")
@pytest.mark.parametrize(
    "path", sorted(CASES.glob("*.dcm.gz")) if CASES.is_dir() else [], ids=lambda one: one.name.partition(".")[0]
)
def test_the_found_objects_show_one_radiograph(path: Path) -> None:
    """All of them were made of the same real radiograph."""
    expected = frame(reader.read(gzip.decompress((CASES / "no_pr.dcm.gz").read_bytes()))).pixels
    if path.name.partition(".")[0] in TURNED_OVER:
        expected = expected[::-1]
    found = frame(reader.read(gzip.decompress(path.read_bytes()))).pixels

    correlation = np.corrcoef(found.ravel(), expected.ravel())[0, 1]
    assert (-correlation if path.name.partition(".")[0] in OTHER_SENSE else correlation) > 0.97
