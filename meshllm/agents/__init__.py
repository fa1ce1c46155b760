"""Coding agents: how each is configured for a mesh, the files that takes, and their start. Imports no other room."""
