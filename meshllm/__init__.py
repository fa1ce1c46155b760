"""mesh-llm: spare machines, pooled into a mesh that serves large language models behind one OpenAI-compatible API."""

__version__ = "0.1.0"
