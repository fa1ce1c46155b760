"""Questions to libllama, each asked in a child process."""
