"""Other machines: how this node reaches them, and how they reach it."""
