"""What the node has promised: blobs, and the states of instances, jobs and deliveries; the only SQL."""
