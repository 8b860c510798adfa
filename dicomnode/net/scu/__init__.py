"""The sending side: C-STORE, STOW-RS, Storage Commitment, and the loops that deliver."""
