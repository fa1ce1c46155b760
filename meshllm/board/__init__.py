"""The blackboard: short messages that agents and people share across the mesh."""
