"""The HTTP APIs: requests, errors, event streams and their repair."""
