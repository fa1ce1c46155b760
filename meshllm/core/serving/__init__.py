"""What this node serves, and the next step for each model."""
