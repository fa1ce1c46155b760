"""What a model needs and where its layers go."""
