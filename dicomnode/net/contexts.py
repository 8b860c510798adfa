"""The table of presentation contexts: what the node accepts as SCP, and what it proposes as SCU.

The conformance statement is made from the tables of this module; nothing else decides what is negotiated.
Source: PS3.8 7.1.1.13 and 9.3.2.2; PS3.4 B.5.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pydicom import uid
from pynetdicom.presentation import PresentationContext, build_context

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

RESULT_CLASSES: tuple[SopClass, ...] = (COMPREHENSIVE_3D_SR, COMPREHENSIVE_SR, ENHANCED_SR, SECONDARY_CAPTURE)
"""What the node sends of its own."""

FALLBACK_CLASSES: dict[str, tuple[str, ...]] = {
    COMPREHENSIVE_3D_SR.uid: (COMPREHENSIVE_SR.uid, ENHANCED_SR.uid),
    COMPREHENSIVE_SR.uid: (ENHANCED_SR.uid,),
}
"""SOP classes that can carry the same report where the first is not accepted, best first."""


def accepted_contexts(also_accept: Sequence[str] = ()) -> tuple[Proposal, ...]:
    """Return every context the SCP accepts; `also_accept` are configured storage SOP classes."""
    storage = dict.fromkeys([*(entry.uid for entry in ACCEPTED_STORAGE), *also_accept])
    verification = Proposal(abstract_syntax=VERIFICATION.uid, transfer_syntaxes=UNCOMPRESSED)
    return (
        verification,
        *(Proposal(abstract_syntax=entry, transfer_syntaxes=ACCEPTED_TRANSFER_SYNTAXES) for entry in storage),
    )


def verification_proposal() -> tuple[Proposal, ...]:
    """Return what a C-ECHO proposes."""
    return (Proposal(abstract_syntax=VERIFICATION.uid, transfer_syntaxes=UNCOMPRESSED[::-1]),)


def proposals_for(sop_class: str, transfer_syntax: str) -> tuple[Proposal, ...]:
    """Return the contexts that one object needs: its own encoding, an uncompressed one, and its fallback classes.

    The object's own transfer syntax stands in a context of its own, so that a peer which can take the bytes as they are
    cannot choose otherwise.
    """
    rest = tuple(entry for entry in UNCOMPRESSED if entry != transfer_syntax)
    own = Proposal(abstract_syntax=sop_class, transfer_syntaxes=(transfer_syntax,))
    plain = Proposal(abstract_syntax=sop_class, transfer_syntaxes=rest)
    fallbacks = (
        Proposal(abstract_syntax=entry, transfer_syntaxes=UNCOMPRESSED) for entry in FALLBACK_CLASSES.get(sop_class, ())
    )
    return (own, plain, *fallbacks)


def group_by_contexts(objects: Iterable[tuple[str, str]]) -> list[tuple[list[int], tuple[Proposal, ...]]]:
    """Divide objects, given as (SOP class, transfer syntax), among as few associations as the order allows.

    Returns the positions of the objects of each association with its contexts, at most 128.
    """
    groups: list[tuple[list[int], dict[Proposal, None]]] = [([], {})]
    for position, (sop_class, transfer_syntax) in enumerate(objects):
        needed = proposals_for(sop_class, transfer_syntax)
        if len({**groups[-1][1], **dict.fromkeys(needed)}) > MAXIMUM_CONTEXTS:
            groups.append(([], {}))
        groups[-1][0].append(position)
        groups[-1][1].update(dict.fromkeys(needed))
    return [(positions, tuple(contexts)) for positions, contexts in groups if positions]


def presentation_contexts(proposals: Iterable[Proposal]) -> list[PresentationContext]:
    """Return the proposals as pynetdicom's presentation contexts."""
    return [build_context(entry.abstract_syntax, list(entry.transfer_syntaxes)) for entry in proposals]
