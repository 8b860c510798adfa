"""From a frame to findings: the only user of the inference runtime."""
