"""This computer: processor, memory, accelerators, disk, ports."""
