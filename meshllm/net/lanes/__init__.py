"""Lanes: direct TLS/TCP connections beside a link."""
