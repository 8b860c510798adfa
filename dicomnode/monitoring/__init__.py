"""How the node and its results fare: health, metrics, drift and quality. It reads the store and changes nothing."""
