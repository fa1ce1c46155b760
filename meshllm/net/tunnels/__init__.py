"""Tunnels: byte streams to a peer over a lane or a QUIC stream."""
