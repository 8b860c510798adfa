"""A node, an archive and synthetic studies on one machine: what a new user tries first."""
