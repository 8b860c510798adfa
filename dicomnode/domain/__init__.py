"""The node's vocabulary: frozen types on the path from association to result (standard library and numpy only)."""
