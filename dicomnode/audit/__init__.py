"""The audit trail: messages to an audit repository on who sent, received or saw what. Source: PS3.15 A.5, A.6."""
