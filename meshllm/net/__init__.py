"""Connections to other nodes: QUIC links, lanes, tunnels, the hello, identities and addresses."""
