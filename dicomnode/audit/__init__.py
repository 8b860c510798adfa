"""The audit trail: who had what, told to an audit repository. Source: PS3.15 A.5 and A.6."""
