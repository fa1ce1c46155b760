"""GGUF files: naming, finding, fetching and reading them."""
