"""HTTP/1.1 server, parser, upstream client and access control."""
