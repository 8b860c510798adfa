"""Every error the node raises on purpose, sorted by what its caller does about it.

    CxrNodeError
    ├── ConfigurationError          the operator must change something; commands exit with 2
    │   ├── AddressUnavailable      another program has the address, or this machine has not
    │   ├── BundleInvalid           the model bundle is damaged or of another schema
    │   └── StoreDamaged            the store's database is damaged or missing
    ├── Transient                   try again later
    │   ├── DiskFull                below the configured free space
    │   ├── StoreUnavailable        the database or file system refused, for now
    │   ├── DecoderUnavailable      the process of the codecs cannot be started
    │   └── PeerUnavailable         no connection, no answer, out of resources
    └── Permanent                   trying again cannot help
        ├── UidMismatch             command set and data set disagree
        ├── UnreadableObject        the bytes are not a DICOM object this node can parse
        ├── UndecodablePixels       pixel data absent, damaged, or over the decoder's limits
        │   └── UnsupportedPixels   pixel data sound, but of an encoding this node does not read
        ├── BlobDamaged             stored bytes no longer match their SHA-256
        ├── UnknownStudy            the store holds nothing of that study
        └── PeerRefused             the destination said no, for good

Messages may reach logs and the ledger: they never carry patient data or strings taken from a data set.
"""


class CxrNodeError(Exception):
    """Base of every error the node raises on purpose."""


class ConfigurationError(CxrNodeError):
    """The operator must change something before the command can work."""


class AddressUnavailable(ConfigurationError):
    """The address to listen at is another program's, or is none of this machine's."""


class BundleInvalid(ConfigurationError):
    """The model bundle is incomplete, damaged, or of a schema this version does not read."""


class StoreDamaged(ConfigurationError):
    """The database of the store is damaged or missing."""


class Transient(CxrNodeError):
    """The same call may succeed later."""


class DiskFull(Transient):
    """Free space is below what the operator asked to keep."""


class StoreUnavailable(Transient):
    """The database or the file system refused the operation for now."""


class DecoderUnavailable(Transient):
    """The process that decodes compressed images cannot be started."""


class PeerUnavailable(Transient):
    """The peer could not be reached, did not answer, or is out of resources."""


class Permanent(CxrNodeError):
    """The same call cannot succeed, however often it is repeated."""


class UidMismatch(Permanent):
    """The UIDs of the C-STORE command and of the data set disagree."""


class UnreadableObject(Permanent):
    """The bytes are not a DICOM object that this node can parse."""


class UndecodablePixels(Permanent):
    """Pixel data is absent, damaged, or over the decoder's limits."""


class UnsupportedPixels(UndecodablePixels):
    """Pixel data is encoded in a way that this node does not read, which does not make it damaged."""


class BlobDamaged(Permanent):
    """Stored bytes no longer match the SHA-256 recorded on reception."""


class UnknownStudy(Permanent):
    """The store holds nothing of the study asked for."""


class PeerRefused(Permanent):
    """The destination refused the object for a reason that repetition cannot change."""
