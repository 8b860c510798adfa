"""What the node judges of an object by its tags."""

from pydicom import Dataset

from dicomnode.dicom.header import header_of
from dicomnode.domain.answer import RejectionReason
from dicomnode.imaging.eligibility import Eligible, Ineligible, judge
from dicomnode.settings.node import EligibilitySettings

SETTINGS = EligibilitySettings()


def verdict(ds: Dataset, settings: EligibilitySettings = SETTINGS, **options: int) -> Eligible | Ineligible:
    return judge(header_of(ds), settings, **options)


def reason(ds: Dataset, settings: EligibilitySettings = SETTINGS, **options: int) -> RejectionReason | None:
    judged = verdict(ds, settings, **options)
    return judged.reason if isinstance(judged, Ineligible) else None
