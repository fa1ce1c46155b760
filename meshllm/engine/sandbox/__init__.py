"""The sandbox of processes that read bytes of strangers: what they may reach, and how the system enforces it."""
