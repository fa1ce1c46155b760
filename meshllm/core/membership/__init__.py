"""Other nodes: the member table, failure detection, anti-entropy, joining, clients."""
