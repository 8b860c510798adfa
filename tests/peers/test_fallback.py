"""DCMTK's storescp as an archive that does not know every kind of report: each gets the best that it takes."""

from io import BytesIO
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom import uid as uids

from dicomnode.domain.answer import DEFAULT_OUTPUTS, ResultKind
from dicomnode.domain.delivery import Accepted, Refused
from dicomnode.net.scu.outgoing import Form
from dicomnode.net.scu.storage import send
from dicomnode.results.sr import fallback
from tests.peers.readers import by_dsrdump, said
from tests.peers.sources import answer, shipped_manifest
from tests.peers.test_dcmtk import SETTINGS, run, storescp
from tests.support.dimse import outgoing
from tests.support.make import build, encode
from tests.support.processes import require

pytestmark = pytest.mark.peer

_PROFILE = """
[[TransferSyntaxes]]
[Any]
TransferSyntax1 = LittleEndianExplicit
[[PresentationContexts]]
[Taken]
PresentationContext1 = VerificationSOPClass\\Any
PresentationContext2 = SecondaryCaptureImageStorage\\Any
{reports}
[[Profiles]]
[Archive]
PresentationContexts = Taken
"""
_IN_DCMTK = {
    uids.Comprehensive3DSRStorage: "Comprehensive3DSRStorage",
    uids.ComprehensiveSRStorage: "ComprehensiveSRStorage",
    uids.EnhancedSRStorage: "EnhancedSRStorage",
}
_ALL = tuple(_IN_DCMTK)


def profile(folder: Path, *reports: uids.UID) -> Path:
    lines = (f"PresentationContext{at} = {_IN_DCMTK[uid]}\\Any" for at, uid in enumerate(reports, start=3))
    file = folder / "storescp.cfg"
    file.write_text(_PROFILE.format(reports="\n".join(lines)))
    return file


@pytest.fixture(scope="module")
def results() -> list[bytes]:
    answered = answer([encode(build("cr", rows=320, columns=280))], outputs=DEFAULT_OUTPUTS)
    assert [one.kind for one in answered.results] == [ResultKind.STRUCTURED_REPORT, ResultKind.SECONDARY_CAPTURE]
    return [one.part10 for one in answered.results]


@pytest.mark.parametrize(
    ("taken", "arrives"),
    [
        (_ALL, uids.Comprehensive3DSRStorage),
        (_ALL[1:], uids.ComprehensiveSRStorage),
        (_ALL[2:], uids.EnhancedSRStorage),
        ((), None),
    ],
    ids=["all", "no 3D", "enhanced alone", "pictures alone"],
)
def test_an_archive_gets_the_best_report_it_takes_and_the_picture_always(
    taken: tuple[uids.UID, ...], arrives: uids.UID | None, results: list[bytes], tmp_path: Path
) -> None:
    with storescp(tmp_path / "in", "-xf", str(profile(tmp_path, *taken)), "Archive") as archive:
        items = [outgoing(part10) for part10 in results]
        report, picture = send(archive, items, calling_ae="CXRNODE", settings=SETTINGS, form=Form(fallback=fallback))
    files = {dcmread(file, stop_before_pixels=True).SOPClassUID: file for file in (tmp_path / "in").iterdir()}
    assert picture == Accepted()
    assert set(files) == {uids.SecondaryCaptureImageStorage, *([arrives] if arrives else [])}
    if arrives is None:
        assert report == Refused(status=None, cause="no presentation context for the SOP class", permanent=True)
        return
    assert report == Accepted()
    assert by_dsrdump(run(require("dsrdump"), "+U8", files[arrives])) == said(shipped_manifest())
    sent, original = dcmread(files[arrives]), dcmread(BytesIO(results[0]))
    assert (sent.SOPInstanceUID == original.SOPInstanceUID) == (arrives == uids.Comprehensive3DSRStorage)
    assert sent.ContentSequence == original.ContentSequence
