"""DICOM data sets as peers send them: one tolerant reader, Part 10 bytes, and character sets."""
