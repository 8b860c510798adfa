"""From a stored object to a radiograph the model may read: eligibility by tags, and pixels."""
