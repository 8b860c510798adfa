"""What fuzzing begins with: small honest objects and PDUs of every kind, made anew each time."""

from collections.abc import Iterator

from pydicom import uid as uids
from pydicom.sequence import Sequence

from dicomnode.dicom.part10 import read_file_head
from tests.fuzz.targets import INSTANCE, SERIES, STUDY
from tests.support.make import build, encode, lut
from tests.support.modules import code
from tests.support.wire import ABORT, REPORT, STORE, associate_request, fragment, item, p_data

SIDE = 40
SYNTAXES = (
    uids.ExplicitVRLittleEndian,
    uids.ImplicitVRLittleEndian,
    uids.ExplicitVRBigEndian,
    uids.RLELossless,
    uids.JPEGLSLossless,
    uids.JPEG2000Lossless,
    uids.JPEG2000,
)
UIDS = {"study_uid": STUDY, "series_uid": SERIES, "sop_uid": INSTANCE}


def seeds(target: str) -> Iterator[bytes]:
    """Yield the seeds of a target."""
    match target:
        case "frame" | "study" | "file-head":
            yield from files()
        case "association":
            yield from (bytes([number % 2 * 255]) + _data_set(file) for number, file in enumerate(files()))
        case "pdu":
            yield from pdus()


def files() -> Iterator[bytes]:
    """Yield Part 10 bytes in every transfer syntax that is encoded here, and with everything the renderer reads."""
    for syntax in SYNTAXES:
        yield encode(build("dx", rows=SIDE, columns=SIDE, **UIDS), syntax)
    yield encode(build("cr", rows=SIDE, columns=SIDE, bits=8, photometric="MONOCHROME1", window=(100, 50), **UIDS))
    yield encode(build("cr", rows=SIDE, columns=SIDE, signed=True, rescale=(2.0, -1000.0), padding=(-5, 5), **UIDS))
    yield encode(build("sc", rows=SIDE, columns=SIDE, bits=8, voi_lut=lut([0, 100, 255], bits=8), **UIDS))
    yield encode(build("dx-for-processing", rows=SIDE, columns=SIDE, modality_lut=lut(range(64)), **UIDS))
    view = code("272479007", "SCT", "postero-anterior")
    more = {
        "ShutterShape": ["RECTANGULAR", "CIRCULAR", "POLYGONAL"],
        "ShutterLeftVerticalEdge": 2,
        "ShutterRightVerticalEdge": 20,
        "ShutterUpperHorizontalEdge": 2,
        "ShutterLowerHorizontalEdge": 20,
        "CenterOfCircularShutter": [12, 12],
        "RadiusOfCircularShutter": 9,
        "VerticesOfThePolygonalShutter": [1, 1, 1, 20, 20, 20],
        "ViewCodeSequence": Sequence([view]),
        "PixelIntensityRelationship": "LOG",
        "PixelIntensityRelationshipSign": 1,
        "TimezoneOffsetFromUTC": "+0100",
        "SpecificCharacterSet": ["", "ISO 2022 IR 87"],
    }
    yield encode(build("dx", rows=SIDE, columns=SIDE, tags=more, **UIDS))


def pdus() -> Iterator[bytes]:
    """Yield PDUs of every type."""
    extended = item(0x56, b"\x00\x03" + b"1.2" + b"\x01\x02") + item(0x58, b"\x01\x00\x00\x03abc\x00\x03def")
    yield associate_request()
    yield associate_request(role=True)
    yield associate_request(more=item(0x50, extended))
    yield b"\x02" + associate_request(more=item(0x21, b"\x01\x00\x00\x00" + item(0x40, b"1.2.840.10008.1.2")))[1:]
    yield p_data(fragment(STORE, command=True, last=True), fragment(b"data", command=False, last=True))
    yield p_data(fragment(REPORT, command=True, last=True))
    for kind in (3, 5, 6, ABORT):
        yield bytes([kind, 0, 0, 0, 0, 4, 0, 0, 1, 1])


def _data_set(part10: bytes) -> bytes:
    return part10[read_file_head(part10).offset :]
