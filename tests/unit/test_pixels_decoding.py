import io
import logging
import subprocess

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom import uid as uids
from pydicom.encaps import encapsulate
from pydicom.pixels.processing import convert_color_space

from dicomnode.dicom import reader
from dicomnode.dicom.header import header_of
from dicomnode.domain.errors import UndecodablePixels, UnreadableObject
from dicomnode.imaging.codecs.codestream import read_codestream
from dicomnode.imaging.decoding import DECODERS
from dicomnode.imaging.eligibility import judge
from dicomnode.settings.node import EligibilitySettings, LogSettings, PixelSettings
from dicomnode.telemetry import start_logging
from tests.support.decoding import stored_values
from tests.support.make import CANARIES, build, chest, encode, htj2k, stored, with_frame
from tests.support.rendered import frame

SETTINGS = PixelSettings()
ROWS, COLUMNS = 96, 80
LOSSLESS = [
    uids.ImplicitVRLittleEndian,
    uids.ExplicitVRLittleEndian,
    uids.RLELossless,
    uids.JPEGLossless,
    uids.JPEGLosslessSV1,
    uids.JPEGLSLossless,
    uids.JPEG2000Lossless,
]
LUMA = (0.299, 0.587, 0.114)
LOSSY = [uids.JPEGBaseline8Bit, uids.JPEGExtended12Bit, uids.JPEGLSNearLossless, uids.JPEG2000]


def name(syntax: object) -> str:
    return uids.UID(str(syntax)).name if isinstance(syntax, uids.UID) else str(syntax)


def decoded(part10: bytes) -> np.ndarray:
    ds = reader.read(part10)
    return stored_values(ds)


@pytest.mark.parametrize("syntax", LOSSLESS, ids=name)
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_lossless_syntaxes_give_the_very_pixels(syntax, bits):
    ds = build("cr", rows=ROWS, columns=COLUMNS, bits=bits)

    assert np.array_equal(decoded(encode(ds, syntax)), stored(chest(ROWS, COLUMNS), bits=bits))


@pytest.mark.parametrize("syntax", LOSSLESS, ids=name)
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_signed_pixels_keep_their_sign(syntax, bits):
    ds = build("cr", rows=ROWS, columns=COLUMNS, bits=bits, signed=True)
    expected = stored(chest(ROWS, COLUMNS), bits=bits, signed=True)

    assert expected.min() < 0 < expected.max()
    assert np.array_equal(decoded(encode(ds, syntax)), expected)


@pytest.mark.parametrize(("syntax", "tolerance"), [(uids.JPEGLSNearLossless, 2), (uids.JPEG2000, 120)], ids=name)
def test_signed_pixels_keep_their_sign_where_they_are_lossy(syntax, tolerance):
    ds = build("cr", rows=ROWS, columns=COLUMNS, signed=True)
    expected = stored(chest(ROWS, COLUMNS), signed=True).astype(int)

    assert expected.min() < -tolerance
    assert np.abs(decoded(encode(ds, syntax)) - expected).max() <= tolerance


@pytest.mark.parametrize("syntax", LOSSY, ids=name)
def test_lossy_syntaxes_give_nearly_the_same_picture(syntax):
    bits = 8 if syntax == uids.JPEGBaseline8Bit else 12
    ds = build("cr", rows=ROWS, columns=COLUMNS, bits=bits)
    lossy = reader.read(encode(ds, syntax))
    pictures = [frame(one).pixels.ravel() for one in (ds, lossy)]

    # dcmcjpeg stretches the values before it encodes, so the pictures agree but for a straight line.
    assert np.corrcoef(*pictures)[0, 1] > 0.998


@pytest.mark.parametrize(("lossless", "tolerance"), [(True, 2), (False, 200)])
def test_htj2k_is_decoded(lossless, tolerance):
    _, values, part10 = htj2k(lossless=lossless)

    assert np.abs(decoded(part10).astype(int) - values).max() <= tolerance


def coloured() -> np.ndarray:
    """Return a chest in yellows, as RGB: each colour has a value of its own, and none is the luminance."""
    return np.stack([stored(chest(ROWS, COLUMNS) * weight, bits=8) for weight in (1.0, 0.8, 0.3)], axis=-1)


@pytest.mark.parametrize("syntax", [*LOSSLESS, *LOSSY], ids=name)
@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL"])
def test_colour_captures_are_decoded_to_luminance(syntax, photometric):
    """Lossless ones but for what conversion to YBR and back rounds."""
    pixels = coloured() if photometric == "RGB" else convert_color_space(coloured(), "RGB", "YBR_FULL")
    ds = build("sc", pixels=pixels, bits=8, photometric=photometric, spacing_mm=None)
    exact = 0.001 if photometric == "RGB" else 0.3

    tolerance = 1.5 if syntax in LOSSY else exact
    assert np.abs(decoded(encode(ds, syntax)) - coloured().astype(float) @ LUMA).mean() < tolerance


@pytest.mark.parametrize("syntax", [*LOSSLESS[2:], *LOSSY], ids=name)
def test_compressed_colours_lie_as_their_frame_says_whatever_the_tags_say(syntax):
    """Devices leave the Planar Configuration behind that the pixels had before they were compressed."""
    ds = build("sc", pixels=coloured(), bits=8, photometric="RGB", spacing_mm=None)
    part10 = encode(ds, syntax)
    claimed = []
    for planar in (0, 1):
        read = reader.read(part10)
        read.PlanarConfiguration = planar
        claimed.append(stored_values(read))

    assert np.array_equal(*claimed)
    assert np.abs(claimed[0] - coloured().astype(float) @ LUMA).mean() < 1.5


def test_gdcm_reads_a_coloured_baseline_frame_as_pillow_does():
    """It is the second decoder of that transfer syntax, and is asked where the first one refuses."""
    ds = build("sc", pixels=coloured(), bits=8, photometric="RGB", spacing_mm=None)
    ds = reader.read(encode(ds, uids.JPEGBaseline8Bit))
    first = stored_values(ds)
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(DECODERS, uids.JPEGBaseline8Bit, ("gdcm",))
        second = stored_values(ds)

    assert np.abs(first - second).mean() < 1


def test_every_decoder_in_the_table_is_installed():
    from pydicom.pixels.decoders.base import get_decoder

    for syntax, names in DECODERS.items():
        assert set(names) - {"gdcm"} <= set(get_decoder(syntax).available_plugins)


def test_jpeg_extended_agrees_with_another_decoder(tmp_path):
    source, target = tmp_path / "a.dcm", tmp_path / "b.dcm"
    source.write_bytes(encode(build("cr", rows=ROWS, columns=COLUMNS), uids.JPEGExtended12Bit))
    subprocess.run(["dcmdjpeg", str(source), str(target)], check=True, timeout=60)

    assert np.abs(decoded(source.read_bytes()).astype(int) - dcmread(target).pixel_array).max() <= 1


@pytest.mark.parametrize("syntax", [*LOSSLESS[3:], *LOSSY], ids=name)
def test_a_frame_says_its_size_before_it_is_decoded(syntax):
    ds = reader.read(encode(build("cr", rows=ROWS, columns=COLUMNS, bits=8), syntax))
    frame = next(decoding_frames(ds))
    header = read_codestream(frame, uids.UID(syntax)).header

    assert (header.rows, header.columns, header.samples, header.precision) == (ROWS, COLUMNS, 1, 8)


def decoding_frames(ds):
    from pydicom.encaps import generate_frames

    return generate_frames(ds.PixelData, number_of_frames=1)


@pytest.mark.parametrize("syntax", [*LOSSLESS[3:], *LOSSY], ids=name)
def test_a_bomb_behind_modest_tags_is_refused(syntax):
    """The frame is of another size than the tags say."""
    ds = reader.read(encode(build("cr", rows=ROWS, columns=COLUMNS, bits=8), syntax))
    ds.Rows, ds.Columns = 40, 40

    with pytest.raises(UndecodablePixels, match="another size"):
        stored_values(ds)


def test_a_frame_larger_than_its_pixels_is_refused():
    ds = build("cr", rows=ROWS, columns=COLUMNS)
    ds = with_frame(ds, b"\0" * 200_000, uids.RLELossless)

    with pytest.raises(UndecodablePixels, match="larger than twice"):
        stored_values(ds)


@pytest.mark.parametrize("syntax", [*LOSSLESS[3:], *LOSSY], ids=name)
def test_a_frame_cut_short_is_refused_although_decoders_would_fill_it_in(syntax):
    ds = reader.read(encode(build("cr", rows=ROWS, columns=COLUMNS, bits=8), syntax))
    frame = next(decoding_frames(ds))
    ds.PixelData = encapsulate([frame[: len(frame) // 2]])

    with pytest.raises(UndecodablePixels, match="end marker"):
        stored_values(ds)


@pytest.mark.parametrize(
    "frame", [b"", b"\xff", b"\xff\xd8\xff", b"\xff\xd8\xff\xe0\x00\x00", b"\0" * 64, b"\xff" * 64]
)
@pytest.mark.parametrize("syntax", [uids.JPEGBaseline8Bit, uids.JPEGLSLossless, uids.JPEG2000], ids=name)
def test_a_frame_without_a_header_is_refused(frame, syntax):
    with pytest.raises(UndecodablePixels, match="header"):
        read_codestream(frame, syntax)


SMALL = {
    syntax: encode(build("cr", rows=48, columns=40, bits=8, window=(128, 256)), syntax)
    for syntax in (uids.ExplicitVRLittleEndian, uids.RLELossless, uids.JPEGLSLossless, uids.JPEG2000)
}


@pytest.mark.parametrize("syntax", SMALL, ids=name)
@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_nothing_but_the_nodes_own_errors_leaves_damaged_objects(syntax, data):
    part10 = bytearray(SMALL[syntax])
    changes = data.draw(st.lists(st.tuples(st.integers(132, len(part10) - 1), st.integers(0, 255)), max_size=8))
    for position, value in changes:
        part10[position] = value
    cut = data.draw(st.one_of(st.none(), st.integers(0, len(part10))))

    try:
        ds = reader.read(bytes(part10[:cut]))
        header = header_of(ds)
    except UnreadableObject:
        return
    judge(header, EligibilitySettings(minimum_age_years=1))
    try:
        pixels = frame(ds).pixels
    except UndecodablePixels:
        return
    assert np.isfinite(pixels).all()
    assert 0 <= pixels.min() <= pixels.max() <= 1


def test_nothing_of_the_patient_is_said_about_odd_objects():
    stream = io.StringIO()
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    start_logging(LogSettings(level="DEBUG"), stream)
    try:
        tags = {"PatientAge": "CANARYAGE", "StudyDate": "CANARYDATE", "WindowCenter": ["1", "2"], "BitsStored": 99}
        ds = build("cr", rows=48, columns=40, patient_name="CANARY" * 50, tags=tags)
        read = reader.read(encode(ds).replace(b"061Y", b"CAN\xff"))
        judge(header_of(read), EligibilitySettings(minimum_age_years=1))
        with pytest.raises(UndecodablePixels) as raised:
            frame(read)
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)

    assert not [word for word in CANARIES if word in stream.getvalue() + str(raised.value)]
