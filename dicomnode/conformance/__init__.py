"""The DICOM Conformance Statement, made from the tables that the code itself works by, so that it cannot drift."""
