"""Formats between nodes: hello, messages, records, leases, invites, files."""
