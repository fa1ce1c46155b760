"""The model catalogue, and names as users write them."""
