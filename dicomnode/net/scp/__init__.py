"""The receiving side: listener, admission, and the Storage and Verification SCP."""
