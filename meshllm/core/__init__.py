"""The pure core: no await, clock, I/O, randomness of its own or logging. Imports: standard library, errors, util."""
