"""The table of presentation contexts."""

import pytest
from pydicom import uid as uids

from dicomnode.net.contexts import (
    ACCEPTED_STORAGE,
    ACCEPTED_TRANSFER_SYNTAXES,
    COMPREHENSIVE_3D_SR,
    COMPREHENSIVE_SR,
    ENCODINGS,
    ENHANCED_SR,
    LOSSLESS,
    LOSSY,
    REPORT_PREFERENCES,
    RESULT_CLASSES,
    STORAGE_COMMITMENT,
    UNCOMPRESSED,
    accepted_contexts,
    group_by_contexts,
    listening_contexts,
    proposals_for,
)
from dicomnode.settings.delivery import PreferredEncoding, SrClass

CR, SC = str(uids.ComputedRadiographyImageStorage), str(uids.SecondaryCaptureImageStorage)
EXPLICIT, IMPLICIT = str(uids.ExplicitVRLittleEndian), str(uids.ImplicitVRLittleEndian)


@pytest.mark.parametrize("entry", [*ACCEPTED_STORAGE, *RESULT_CLASSES], ids=lambda entry: entry.name)
def test_every_class_of_the_tables_has_the_standards_name_for_its_uid(entry) -> None:
    assert entry.name == uids.UID(entry.uid).name


def test_lossless_and_lossy_transfer_syntaxes_are_told_apart() -> None:
    # JPEG 2000 and HTJ2K without "lossless only" may hold either, so they count as lossy.
    assert set(ACCEPTED_TRANSFER_SYNTAXES) == {
        "1.2.840.10008.1.2",
        "1.2.840.10008.1.2.1",
        "1.2.840.10008.1.2.4.50",
        "1.2.840.10008.1.2.4.51",
        "1.2.840.10008.1.2.4.57",
        "1.2.840.10008.1.2.4.70",
        "1.2.840.10008.1.2.4.80",
        "1.2.840.10008.1.2.4.81",
        "1.2.840.10008.1.2.4.90",
        "1.2.840.10008.1.2.4.91",
        "1.2.840.10008.1.2.4.201",
        "1.2.840.10008.1.2.4.202",
        "1.2.840.10008.1.2.4.203",
        "1.2.840.10008.1.2.5",
    }
    assert set(LOSSY) == {f"1.2.840.10008.1.2.4.{suffix}" for suffix in (50, 51, 81, 91, 203)}


def test_a_choice_prefers_uncompressed_then_lossless_then_lossy() -> None:
    assert ACCEPTED_TRANSFER_SYNTAXES == UNCOMPRESSED + LOSSLESS + LOSSY
    assert UNCOMPRESSED == (EXPLICIT, IMPLICIT)


def test_configured_classes_are_accepted_once_and_verification_uncompressed() -> None:
    ct = str(uids.CTImageStorage)
    table = accepted_contexts((ct, CR))
    classes = [entry.abstract_syntax for entry in table]
    assert len(classes) == len(set(classes)) == len(ACCEPTED_STORAGE) + 3
    assert ct in classes
    assert table[0].abstract_syntax == "1.2.840.10008.1.1"
    assert table[0].transfer_syntaxes == UNCOMPRESSED


def test_an_object_is_proposed_in_its_own_encoding_apart_from_the_others() -> None:
    own, plain = proposals_for(CR, str(uids.JPEG2000Lossless))
    assert own.transfer_syntaxes == (str(uids.JPEG2000Lossless),)
    assert plain.transfer_syntaxes == (EXPLICIT, IMPLICIT)
    own, plain = proposals_for(CR, EXPLICIT)
    assert (own.transfer_syntaxes, plain.transfer_syntaxes) == ((EXPLICIT,), (IMPLICIT,))


@pytest.mark.parametrize("preference", SrClass)
def test_a_report_is_proposed_under_every_class_that_can_carry_it(preference: SrClass) -> None:
    classes = REPORT_PREFERENCES[preference]
    assert set(classes) == {COMPREHENSIVE_3D_SR.uid, COMPREHENSIVE_SR.uid, ENHANCED_SR.uid}
    proposed = [
        (entry.abstract_syntax, entry.transfer_syntaxes)
        for entry in proposals_for(COMPREHENSIVE_3D_SR.uid, EXPLICIT, classes=classes)
    ]
    assert proposed == [(entry, (syntax,)) for entry in classes for syntax in (EXPLICIT, IMPLICIT)]


def test_a_preferred_encoding_is_proposed_apart_from_the_others() -> None:
    proposed = [entry.transfer_syntaxes for entry in proposals_for(SC, EXPLICIT, preferred=str(uids.JPEGLSLossless))]
    assert proposed == [(str(uids.JPEGLSLossless),), (EXPLICIT,), (IMPLICIT,)]


def test_every_preference_of_the_configuration_stands_in_the_tables() -> None:
    assert set(REPORT_PREFERENCES) == set(SrClass)
    assert set(ENCODINGS) == set(PreferredEncoding)


def test_the_listener_is_scu_of_storage_commitment_and_scp_of_everything_else() -> None:
    roles = {
        str(context.abstract_syntax): (context.scu_role, context.scp_role)
        for context in listening_contexts(accepted_contexts())
    }
    assert roles.pop(STORAGE_COMMITMENT.uid) == (False, True), "the roles of the requestor"
    assert set(roles.values()) == {(None, None)}


def test_objects_of_one_kind_share_their_contexts() -> None:
    ((positions, proposals),) = group_by_contexts([proposals_for(CR, EXPLICIT)] * 500 + [proposals_for(SC, EXPLICIT)])
    assert positions == list(range(501))
    assert len(proposals) == 4


def test_no_association_proposes_more_than_128_contexts_and_no_object_is_left_out() -> None:
    groups = group_by_contexts(proposals_for(f"1.2.3.{number}", EXPLICIT) for number in range(150))
    assert [position for positions, _ in groups for position in positions] == list(range(150))
    assert [len(proposals) for _, proposals in groups] == [128, 128, 44]


def test_nothing_to_send_needs_no_association() -> None:
    assert group_by_contexts([]) == []
