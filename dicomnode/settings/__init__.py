"""The configuration: sections of typed settings, read once and frozen."""
