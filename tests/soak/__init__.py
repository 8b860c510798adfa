"""A long run of a real node with faults on all sides; `make soak` runs it, and a short one is among the crash tests."""
