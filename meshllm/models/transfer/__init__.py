"""Downloads: sources, partial files, resume, verification."""
