"""Training: from NIH ChestX-ray14 images to the bundle that the node serves.

Imports nothing of the node but the bundle contract and the domain, so that both sides share one preprocessing.
"""
