"""Model files on this disk."""
