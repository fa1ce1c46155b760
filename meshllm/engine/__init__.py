"""llama.cpp: building, finding and running it."""
