"""Which target answers a request."""
