"""DICOM's upper layer: bounds on connections, PDUs, TLS, and the path of large objects."""
