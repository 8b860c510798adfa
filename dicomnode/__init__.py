"""cxrnode: a DICOM-native AI node for chest X-rays."""
