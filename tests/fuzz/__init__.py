"""Coverage-guided fuzzing of what reads a peer's bytes: `make fuzz`; its corpus is replayed by the unit tests."""

NAMES = ("frame", "study", "association", "file-head", "pdu")
"""The targets; what they are needs everything that is instrumented, and is imported late."""
