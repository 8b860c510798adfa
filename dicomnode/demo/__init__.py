"""The node, an archive and studies that belong to nobody, on one machine: what a newcomer tries first."""
