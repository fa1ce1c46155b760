"""Pure translation between bytes and values of `core`; every length is bounded. docs/protocol.md specifies `mesh/`."""
