"""What the node's speed is held against: peers doing the same work in the same run, and the machine itself."""
