"""Demand: which models callers ask for, counted by each node for itself and added up over the mesh."""
