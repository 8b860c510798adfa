"""From a complete study to its answer: the pipeline, the worker that runs it, and the work done ahead."""
