"""The API on port 9337: one request to one target."""
