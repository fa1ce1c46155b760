"""The Hugging Face hub: lookup, metadata, byte streams."""
