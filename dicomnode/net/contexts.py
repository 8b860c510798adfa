"""The table of presentation contexts: what the node accepts as SCP, and what it proposes as SCU.

The conformance statement is made from the tables of this module; nothing else decides what is negotiated.
Source: PS3.8 7.1.1.13 and 9.3.2.2; PS3.4 B.5.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pydicom import uid
from pynetdicom.presentation import PresentationContext, build_context

from dicomnode.settings.delivery import PreferredEncoding, SrClass

MAXIMUM_CONTEXTS = 128
"""Presentation context identifiers are the odd numbers from 1 to 255. Source: PS3.8 9.3.2.2."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SopClass:
    """A SOP class of the tables, with the name that the standard gives it."""

    name: str
    uid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """One presentation context: an abstract syntax and its transfer syntaxes, in order of preference."""

    abstract_syntax: str
    transfer_syntaxes: tuple[str, ...]


VERIFICATION = SopClass(name="Verification", uid="1.2.840.10008.1.1")

ACCEPTED_STORAGE: tuple[SopClass, ...] = (
    SopClass(name="Computed Radiography Image Storage", uid=str(uid.ComputedRadiographyImageStorage)),
    SopClass(
        name="Digital X-Ray Image Storage - For Presentation", uid=str(uid.DigitalXRayImageStorageForPresentation)
    ),
    SopClass(name="Digital X-Ray Image Storage - For Processing", uid=str(uid.DigitalXRayImageStorageForProcessing)),
    SopClass(name="Secondary Capture Image Storage", uid=str(uid.SecondaryCaptureImageStorage)),
    SopClass(
        name="Multi-frame Single Bit Secondary Capture Image Storage",
        uid=str(uid.MultiFrameSingleBitSecondaryCaptureImageStorage),
    ),
    SopClass(
        name="Multi-frame Grayscale Byte Secondary Capture Image Storage",
        uid=str(uid.MultiFrameGrayscaleByteSecondaryCaptureImageStorage),
    ),
    SopClass(
        name="Multi-frame Grayscale Word Secondary Capture Image Storage",
        uid=str(uid.MultiFrameGrayscaleWordSecondaryCaptureImageStorage),
    ),
    SopClass(
        name="Multi-frame True Color Secondary Capture Image Storage",
        uid=str(uid.MultiFrameTrueColorSecondaryCaptureImageStorage),
    ),
)
"""What the Storage SCP always accepts; `ScpSettings.also_accept` adds to it."""

UNCOMPRESSED: tuple[str, ...] = (str(uid.ExplicitVRLittleEndian), str(uid.ImplicitVRLittleEndian))
"""Explicit VR first: it keeps the value representations of private elements."""

LOSSLESS: tuple[str, ...] = (
    str(uid.JPEG2000Lossless),
    str(uid.HTJ2KLossless),
    str(uid.HTJ2KLosslessRPCL),
    str(uid.JPEGLSLossless),
    str(uid.JPEGLosslessSV1),
    str(uid.JPEGLossless),
    str(uid.RLELossless),
)

LOSSY: tuple[str, ...] = (
    str(uid.JPEGBaseline8Bit),
    str(uid.JPEGExtended12Bit),
    str(uid.JPEGLSNearLossless),
    str(uid.JPEG2000),
    str(uid.HTJ2K),
)

# The acceptor's order decides when a requestor lists several in one context (it can then convert among them): never
# make a peer compress with loss what it holds otherwise. Deflated is refused because inflating is unbounded; big endian
# is retired.
ACCEPTED_TRANSFER_SYNTAXES: tuple[str, ...] = UNCOMPRESSED + LOSSLESS + LOSSY

COMPREHENSIVE_3D_SR = SopClass(name="Comprehensive 3D SR Storage", uid=str(uid.Comprehensive3DSRStorage))
COMPREHENSIVE_SR = SopClass(name="Comprehensive SR Storage", uid=str(uid.ComprehensiveSRStorage))
ENHANCED_SR = SopClass(name="Enhanced SR Storage", uid=str(uid.EnhancedSRStorage))
SECONDARY_CAPTURE = SopClass(name="Secondary Capture Image Storage", uid=str(uid.SecondaryCaptureImageStorage))

GRAYSCALE_SOFTCOPY_PRESENTATION_STATE = SopClass(
    name="Grayscale Softcopy Presentation State Storage", uid=str(uid.GrayscaleSoftcopyPresentationStateStorage)
)
PARAMETRIC_MAP = SopClass(name="Parametric Map Storage", uid=str(uid.ParametricMapStorage))
ENCAPSULATED_PDF = SopClass(name="Encapsulated PDF Storage", uid=str(uid.EncapsulatedPDFStorage))

RESULT_CLASSES: tuple[SopClass, ...] = (
    COMPREHENSIVE_3D_SR,
    COMPREHENSIVE_SR,
    ENHANCED_SR,
    SECONDARY_CAPTURE,
    GRAYSCALE_SOFTCOPY_PRESENTATION_STATE,
    PARAMETRIC_MAP,
    ENCAPSULATED_PDF,
)
"""What the node sends of its own: in Explicit VR Little Endian, or in another encoding that the destination prefers."""

REPORT_PREFERENCES: dict[SrClass, tuple[str, ...]] = {
    SrClass.COMPREHENSIVE_3D: (COMPREHENSIVE_3D_SR.uid, COMPREHENSIVE_SR.uid, ENHANCED_SR.uid),
    SrClass.COMPREHENSIVE: (COMPREHENSIVE_SR.uid, ENHANCED_SR.uid, COMPREHENSIVE_3D_SR.uid),
    SrClass.ENHANCED: (ENHANCED_SR.uid, COMPREHENSIVE_SR.uid, COMPREHENSIVE_3D_SR.uid),
}
"""SOP classes that can carry the same report, best first, by what a destination prefers."""

FALLBACK_CLASSES: dict[str, tuple[str, ...]] = {
    COMPREHENSIVE_3D_SR.uid: REPORT_PREFERENCES[SrClass.COMPREHENSIVE_3D][1:],
}
"""Under which SOP classes a result goes where its own is not accepted, unless its destination prefers otherwise."""

COMPRESSED_RESULTS: frozenset[str] = frozenset({SECONDARY_CAPTURE.uid})
"""Results that may go compressed, without loss, where a destination prefers that."""

ENCODINGS: dict[PreferredEncoding, str] = {
    PreferredEncoding.EXPLICIT: str(uid.ExplicitVRLittleEndian),
    PreferredEncoding.IMPLICIT: str(uid.ImplicitVRLittleEndian),
    PreferredEncoding.RLE: str(uid.RLELossless),
    PreferredEncoding.JPEG_LS: str(uid.JPEGLSLossless),
    PreferredEncoding.JPEG_2000: str(uid.JPEG2000Lossless),
}

STORAGE_COMMITMENT = SopClass(name="Storage Commitment Push Model SOP Class", uid="1.2.840.10008.1.20.1")
STORAGE_COMMITMENT_INSTANCE = "1.2.840.10008.1.20.1.1"
"""The well-known SOP instance that requests and reports speak of. Source: PS3.4 J.3.5."""

SCU_ROLE_CLASSES: frozenset[str] = frozenset({STORAGE_COMMITMENT.uid})
"""SOP classes of which the node is SCU also over associations that a peer requests: that peer reports as their SCP."""


def accepted_contexts(also_accept: Sequence[str] = ()) -> tuple[Proposal, ...]:
    """Return every context the listener accepts; `also_accept` are configured storage SOP classes.

    In those of `SCU_ROLE_CLASSES` the node is SCU, by role selection.
    """
    storage = dict.fromkeys([*(entry.uid for entry in ACCEPTED_STORAGE), *also_accept])
    verification = Proposal(abstract_syntax=VERIFICATION.uid, transfer_syntaxes=UNCOMPRESSED)
    return (
        verification,
        *(Proposal(abstract_syntax=entry, transfer_syntaxes=ACCEPTED_TRANSFER_SYNTAXES) for entry in storage),
        Proposal(abstract_syntax=STORAGE_COMMITMENT.uid, transfer_syntaxes=UNCOMPRESSED),
    )


def commitment_proposal() -> tuple[Proposal, ...]:
    """Return what a request for Storage Commitment proposes."""
    return (Proposal(abstract_syntax=STORAGE_COMMITMENT.uid, transfer_syntaxes=UNCOMPRESSED),)


def verification_proposal() -> tuple[Proposal, ...]:
    """Return what a C-ECHO proposes."""
    return (Proposal(abstract_syntax=VERIFICATION.uid, transfer_syntaxes=UNCOMPRESSED[::-1]),)


def proposals_for(
    sop_class: str, transfer_syntax: str, *, classes: Sequence[str] = (), preferred: str | None = None
) -> tuple[Proposal, ...]:
    """Return the contexts that one object needs: its own encoding, another that is preferred, and an uncompressed one.

    Each is asked for in a context of its own, so that a peer which can take the best cannot choose otherwise. `classes`
    are those under which the object may go, if others than its own.
    """
    alone = tuple(dict.fromkeys(entry for entry in (preferred, transfer_syntax) if entry is not None))
    rest = tuple(entry for entry in UNCOMPRESSED if entry not in alone)
    choices = [(syntax,) for syntax in alone] + ([rest] if rest else [])
    return tuple(
        Proposal(abstract_syntax=entry, transfer_syntaxes=syntaxes)
        for entry in classes or (sop_class,)
        for syntaxes in choices
    )


def group_by_contexts(needs: Iterable[tuple[Proposal, ...]]) -> list[tuple[list[int], tuple[Proposal, ...]]]:
    """Divide objects, given as the contexts that each needs, among as few associations as the order allows.

    Returns the positions of the objects of each association with its contexts, at most 128.
    """
    groups: list[tuple[list[int], dict[Proposal, None]]] = [([], {})]
    for position, needed in enumerate(needs):
        if len({**groups[-1][1], **dict.fromkeys(needed)}) > MAXIMUM_CONTEXTS:
            groups.append(([], {}))
        groups[-1][0].append(position)
        groups[-1][1].update(dict.fromkeys(needed))
    return [(positions, tuple(contexts)) for positions, contexts in groups if positions]


def presentation_contexts(proposals: Iterable[Proposal]) -> list[PresentationContext]:
    """Return the proposals as pynetdicom's presentation contexts."""
    return [build_context(entry.abstract_syntax, list(entry.transfer_syntaxes)) for entry in proposals]


def listening_contexts(proposals: Iterable[Proposal]) -> list[PresentationContext]:
    """Return what the listener accepts as pynetdicom's presentation contexts, with the roles in which it does.

    For the classes of `SCU_ROLE_CLASSES` a requestor may be SCP. Source: PS3.7 D.3.3.4.
    """
    contexts = presentation_contexts(proposals)
    for context in contexts:
        if str(context.abstract_syntax) in SCU_ROLE_CLASSES:
            context.scu_role, context.scp_role = False, True
    return contexts
