"""Fuzz targets: one function for each decoder of bytes that others write."""
