"""cxrnode: a DICOM-native AI node for chest X-rays."""

__version__ = "0.1.0"
