"""The pure core: no await, no clock, no I/O, no randomness of its own, no logging. Standard library, errors and pure modules of util."""
