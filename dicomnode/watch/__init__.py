"""How the node and its results fare: health, metrics, drift. Reads the store, and changes nothing."""
