"""The networks that a configuration may name, each ending in a class activation map per output."""
