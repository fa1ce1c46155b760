"""Pure translation between bytes and core types; every length is bounded. Standard library only."""
