"""Health, metrics, drift and quality of the node and its results. It reads the store and changes nothing."""
