"""The pinned source of llama.cpp, our patches, and the build in the cache."""
