"""DIMSE: receiving studies and sending results; the only user of pynetdicom."""
