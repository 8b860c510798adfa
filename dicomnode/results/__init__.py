"""The objects the node sends back: Structured Report and Secondary Capture; the only user of highdicom."""
