"""QUIC: endpoint, connections, streams, flow control, dialling."""
