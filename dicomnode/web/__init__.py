"""The web page: what the store knows, shown in a browser; it acts on the store only where `cxrnode queue` would."""
