"""The contract between training and serving: what a model bundle holds and how an image becomes its input."""
