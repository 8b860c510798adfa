import numpy as np
import pytest
from pydicom import uid as uids
from pydicom.pixels.processing import apply_modality_lut, apply_windowing
from pydicom.tag import Tag

from dicomnode.dicom import reader
from dicomnode.domain.errors import UndecodablePixels
from dicomnode.imaging.greyscale import is_fit
from dicomnode.settings.node import PixelSettings
from tests.support.make import chest, encode, lut, ref_of, stored
from tests.support.rendered import COLUMNS, FULL, ROWS, difference, frame, made


def test_a_frame_is_read_only_float32_between_0_and_1():
    ds = made(window=FULL)
    rendered = frame(ds)

    assert rendered.pixels.dtype == np.float32
    assert rendered.pixels.shape == (ROWS, COLUMNS)
    assert not rendered.pixels.flags.writeable
    assert 0 <= rendered.pixels.min() < rendered.pixels.max() <= 1
    assert (rendered.source, rendered.turned_from_source, rendered.inverted_from_source) == (ref_of(ds), 0, False)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 15, 16])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_every_depth_sign_and_sense_gives_the_same_picture(bits, signed, photometric):
    middle = 0 if signed else 1 << (bits - 1)
    rendered = frame(made(bits=bits, signed=signed, photometric=photometric, window=(middle, 1 << bits)))

    assert rendered.rendering == "window-linear"
    assert np.abs(rendered.pixels - chest(ROWS, COLUMNS)).max() < 2 / (1 << bits) + 1e-3


@pytest.mark.parametrize(
    ("function", "name"), [(None, "linear"), ("LINEAR_EXACT", "linear-exact"), ("SIGMOID", "sigmoid")]
)
@pytest.mark.parametrize("window", [(2600, 5800), (2700.5, 6101.25)])
def test_windows_agree_with_pydicoms(function, name, window):
    ds = made(window=window, window_function=function, rescale=(1.5, -300))
    rendered = frame(ds)
    values = apply_modality_lut(ds.pixel_array, ds)
    # pydicom's output spans the modality values of the stored range: bring it to [0, 1].
    low, high = -300.0, 4095 * 1.5 - 300
    expected = (apply_windowing(values, ds) - low) / (high - low)

    assert rendered.rendering == f"window-{name}"
    assert np.abs(rendered.pixels - expected).max() < 1e-4


def test_the_first_of_several_windows_counts():
    assert difference(frame(made(window=[FULL, (1000, 10)])), frame(made(window=FULL))) == 0


@pytest.mark.parametrize(
    "window",
    [(40, 400), (2048, 10), (0, 1), (60000, 100), (-5000, 100), (2048, 400000), (2048, 0), (2048, -5), (400, 300)],
)
def test_a_window_that_hides_the_image_is_replaced_by_percentiles(window):
    rendered = frame(made(window=window))

    assert rendered.rendering == "percentile"
    assert np.percentile(rendered.pixels, 99) - np.percentile(rendered.pixels, 1) > 0.7


def test_percentiles_are_the_configured_ones():
    rendered = frame(made(), PixelSettings(low_percentile=10, high_percentile=90))

    assert np.mean(rendered.pixels <= 0) == pytest.approx(0.1, abs=0.02)
    assert np.mean(rendered.pixels >= 1) == pytest.approx(0.1, abs=0.02)


def test_eight_bits_without_a_window_are_a_rendering_already():
    rendered = frame(made("sc", bits=8))

    assert rendered.rendering == "as-stored"
    assert np.abs(rendered.pixels - stored(chest(ROWS, COLUMNS), bits=8) / 255).max() < 1e-6


@pytest.mark.parametrize(
    ("brightness", "fit"),
    [
        (np.linspace(0, 1, 1000), True),
        (np.linspace(0.4, 0.66, 1000), True),
        (np.linspace(0.4, 0.6, 1000), False),
        (np.concatenate((np.zeros(60), np.linspace(0.1, 0.9, 940))), False),
        (np.concatenate((np.ones(60), np.linspace(0.1, 0.9, 940))), False),
        (np.zeros(0), False),
    ],
)
def test_a_rendering_is_judged_by_what_it_clips_and_how_far_it_spreads(brightness, fit):
    assert is_fit(brightness.astype(np.float32)) is fit


def test_a_modality_lut_sequence_is_looked_up():
    square = [round((value / 4095) ** 2 * 65535) for value in range(4096)]
    rendered = frame(made(modality_lut=lut(square), window=(32768, 65536)))

    assert np.abs(rendered.pixels - chest(ROWS, COLUMNS) ** 2).max() < 2e-3


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_a_voi_lut_sequence_comes_before_a_window(bits):
    top = (1 << bits) - 1
    root = [round((value / 4095) ** 0.5 * top) for value in range(4096)]
    rendered = frame(made(voi_lut=lut(root, bits=bits), window=FULL))

    assert rendered.rendering == "voi-lut-sequence"
    assert np.abs(rendered.pixels - np.sqrt(chest(ROWS, COLUMNS))).max() < 0.02


def test_a_voi_lut_starts_at_its_first_mapped_value_also_below_zero():
    ramp = lut(range(0, 4096 * 16, 16), first=-1000)
    rendered = frame(made(voi_lut=ramp, rescale=(1, -1000)))

    assert np.abs(rendered.pixels - chest(ROWS, COLUMNS)).max() < 2e-3


def test_a_lut_of_bytes_is_read():
    table = lut([0, 0], bits=8)
    table.add_new(Tag("LUTDescriptor"), "US", [256, 0, 8])
    table.add_new(Tag("LUTData"), "OW", bytes(range(256)))
    rendered = frame(made(bits=8, voi_lut=table))

    assert rendered.rendering == "voi-lut-sequence"
    assert np.abs(rendered.pixels - chest(ROWS, COLUMNS)).max() < 4e-3


def test_a_voi_lut_that_hides_the_image_gives_way_to_the_window():
    assert frame(made(voi_lut=lut([0] * 4000 + [65535] * 96), window=FULL)).rendering == "window-linear"


@pytest.mark.parametrize("descriptor", [[4096, 0], [4096, 0, 0], [4096, 0, 40]])
def test_a_damaged_lut_is_no_lut(descriptor):
    table = lut(range(4096))
    table.add_new(Tag("LUTDescriptor"), "US", descriptor)

    assert frame(made(voi_lut=table, window=FULL)).rendering == "window-linear"


@pytest.mark.parametrize("rescale", [(0, 0), (1e-30, 5), (1e30, 0)])
def test_a_rescale_that_cannot_be_meant_is_none(rescale):
    assert difference(frame(made(rescale=rescale, window=FULL)), frame(made(window=FULL))) == 0


def test_a_negative_slope_turns_the_grey_scale():
    turned = frame(made(rescale=(-1, 4095), window=FULL))

    assert np.abs(turned.pixels - (1 - chest(ROWS, COLUMNS))).max() < 2e-3


@pytest.mark.parametrize(
    ("photometric", "shape", "inverted"),
    [
        ("MONOCHROME2", "IDENTITY", False),
        ("MONOCHROME2", "INVERSE", True),
        ("MONOCHROME1", "INVERSE", True),
        ("MONOCHROME1", None, True),
        ("MONOCHROME2", None, False),
    ],
)
def test_monochrome1_and_shape_inverse_mean_one_inversion(photometric, shape, inverted):
    pixels = stored(chest(ROWS, COLUMNS), bits=12)
    ds = made("dx", pixels=pixels, photometric=photometric, window=FULL, tags={"PresentationLUTShape": shape})
    expected = 1 - chest(ROWS, COLUMNS) if inverted else chest(ROWS, COLUMNS)

    assert np.abs(frame(ds).pixels - expected).max() < 2e-3


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_for_processing_the_sign_of_the_intensity_says_what_is_bright(photometric):
    # Higher values where more X-rays arrive, whatever the photometric interpretation says.
    exposure = stored(1 - chest(ROWS, COLUMNS), bits=12)
    tags = {"PixelIntensityRelationshipSign": 1, "PixelIntensityRelationship": "LOG"}
    rendered = frame(made("dx-for-processing", pixels=exposure, photometric=photometric, tags=tags))

    assert rendered.rendering == "percentile"
    assert np.corrcoef(rendered.pixels.ravel(), chest(ROWS, COLUMNS).ravel())[0, 1] > 0.999


def test_a_window_that_the_node_chose_is_told_in_modality_values():
    rendered = frame(made(bits=12, rescale=(2.0, -100.0)))
    values = 2.0 * made(bits=12).pixel_array.astype(float) - 100.0

    assert rendered.rendering == "percentile"
    low, high = rendered.window
    assert np.abs(np.clip((values - low) / (high - low), 0, 1) - rendered.pixels).max() < 1e-3
    assert frame(made(window=FULL)).window is None


def test_values_linear_in_exposure_are_taken_to_the_logarithm():
    exposure = np.round(40_000 * np.exp(-5 * chest(ROWS, COLUMNS))).astype(np.uint16)
    tags = {"PixelIntensityRelationshipSign": 1, "PixelIntensityRelationship": "LIN"}
    ds = made("dx-for-processing", pixels=exposure, bits=16, window=(20000, 40000), tags=tags)
    rendered = frame(ds)

    assert rendered.rendering == "log-percentile"
    assert rendered.window is None
    assert np.corrcoef(rendered.pixels.ravel(), chest(ROWS, COLUMNS).ravel())[0, 1] > 0.99


@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL"])
@pytest.mark.parametrize("planar", [0, 1])
def test_colour_captures_become_their_luminance(photometric, planar):
    grey = stored(chest(ROWS, COLUMNS), bits=8)
    neutral = np.full_like(grey, 128)
    colour = np.stack([grey] * 3 if photometric == "RGB" else [grey, neutral, neutral], axis=-1)
    ds = made("sc", pixels=colour, bits=8, photometric=photometric)
    if planar:
        ds.PlanarConfiguration = 1
        ds.PixelData = np.ascontiguousarray(np.moveaxis(colour, -1, 0)).tobytes()
    rendered = frame(ds)

    assert rendered.rendering == "as-stored"
    assert np.abs(rendered.pixels - grey / 255).max() < 0.01


def test_luminance_weighs_the_colours():
    colour = np.zeros((ROWS, COLUMNS, 3), np.uint8)
    colour[:, :50, 0], colour[:, 50:100, 1], colour[:, 100:150, 2], colour[:, 150:] = 255, 255, 255, 255
    ds = made("sc", pixels=colour, bits=8, photometric="RGB", window=None)
    row = frame(ds).pixels[0, ::50]

    assert np.abs(row - (0.299, 0.587, 0.114, 1.0)).max() < 1e-4


def test_palette_colours_become_their_luminance():
    grey = stored(chest(ROWS, COLUMNS), bits=8)
    ds = made("sc", pixels=grey, bits=8, photometric="PALETTE COLOR")
    for colour in ("Red", "Green", "Blue"):
        ds.add_new(Tag(f"{colour}PaletteColorLookupTableDescriptor"), "US", [256, 0, 16])
        table = (np.arange(256, dtype="<u2") * 257).tobytes()
        ds.add_new(Tag(f"{colour}PaletteColorLookupTableData"), "OW", table)

    assert np.abs(frame(ds).pixels - grey / 255).max() < 0.01


def test_stored_bits_that_end_above_bit_0_are_aligned():
    pixels = stored(chest(ROWS, COLUMNS), bits=12)
    ds = made(pixels=pixels << 4, bits=12, window=FULL, tags={"HighBit": 15})

    assert difference(frame(ds), frame(made(window=FULL))) == 0


def test_bits_above_the_stored_ones_do_not_count():
    pixels = stored(chest(ROWS, COLUMNS), bits=12) | np.uint16(0xA000)

    assert difference(frame(made(pixels=pixels, window=FULL)), frame(made(window=FULL))) == 0


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({"ImagerPixelSpacing": ["0.14", "0.15"]}, (0.14, 0.15)),
        ({"ImagerPixelSpacing": ["0.14", "0.14"], "PixelSpacing": ["0.13", "0.12"]}, (0.13, 0.12)),
        ({"ImagerPixelSpacing": ["0.14", "0.14"], "PixelSpacing": ["0.0002", "0.0002"]}, (0.14, 0.14)),
        ({"ImagerPixelSpacing": None}, None),
        ({"ImagerPixelSpacing": ["0", "0"]}, None),
    ],
)
def test_spacing_is_the_calibrated_one_or_that_at_the_detector(tags, expected):
    assert frame(made(window=FULL, tags=tags)).spacing_mm == expected


def test_a_blank_image_is_a_uniform_frame():
    rendered = frame(made(pixels=np.full((ROWS, COLUMNS), 100, np.uint16)))

    assert rendered.pixels.min() == rendered.pixels.max()


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({"Rows": 60000, "Columns": 60000}, "more than the limit"),
        ({"NumberOfFrames": 100000}, "frames"),
        ({"Rows": None}, "Rows or Columns"),
        ({"Columns": 0}, "Rows or Columns"),
        ({"SamplesPerPixel": 4}, "Samples per Pixel"),
        ({"BitsAllocated": 32}, "Bits Allocated"),
        ({"BitsAllocated": 1}, "Bits Allocated"),
        ({"BitsStored": 17}, "Bits Stored"),
        ({"PhotometricInterpretation": "ARGB"}, "Photometric"),
        ({"PixelData": None}, "no Pixel Data"),
        ({"Rows": ROWS + 1}, "Pixel Data holds 48000 samples, and Rows and Columns ask for 48200"),
    ],
)
def test_what_the_tags_cannot_mean_is_refused_before_decoding(tags, words):
    ds = made(tags=tags)

    with pytest.raises(UndecodablePixels, match=words):
        frame(ds)


@pytest.mark.parametrize("syntax", [uids.MPEG2MPML, "1.2.3"])
def test_other_transfer_syntaxes_are_refused(syntax):
    ds = made()
    ds.file_meta.TransferSyntaxUID = syntax

    with pytest.raises(UndecodablePixels, match="transfer syntax"):
        frame(ds)


def test_an_object_without_file_meta_information_is_refused():
    ds = made()
    del ds.file_meta

    with pytest.raises(UndecodablePixels, match="transfer syntax"):
        frame(ds)


def test_the_real_radiographs_are_rendered(shared_data):
    found = {}
    for path in sorted((shared_data / "dicom").glob("chest*.dcm")):
        ds = reader.read(path)
        rendered = frame(ds)
        found[path.stem] = (rendered.rendering, rendered.pixels.shape)
        rows, columns = rendered.pixels.shape
        band = rendered.pixels[int(0.25 * rows) : int(0.4 * rows)]
        lung, mediastinum = (
            np.median(band[:, int(left * columns) : int(right * columns)])
            for left, right in ((0.2, 0.35), (0.45, 0.55))
        )
        assert lung + 0.1 < mediastinum

    assert found == {
        "chest-pa-monochrome1-j2k": ("window-linear", (1955, 1841)),
        "chest-pa-secondary-capture-jpeg": ("as-stored", (1024, 1024)),
        "chest-pa-view-in-patient-position": ("as-stored", (1024, 1024)),
    }


def test_the_builders_radiograph_survives_a_file(tmp_path):
    ds = made(window=FULL)
    (tmp_path / "a.dcm").write_bytes(encode(ds))

    assert difference(frame(reader.read(tmp_path / "a.dcm")), frame(ds)) == 0
