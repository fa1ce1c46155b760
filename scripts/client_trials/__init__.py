"""`scripts/clients`: real clients against a real mesh."""
