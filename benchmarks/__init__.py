"""Benchmarks of the node against peers that do the same work in the same run, and against the machine itself."""
