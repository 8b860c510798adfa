"""The bytes of received images and of results, as files named by their digest."""
