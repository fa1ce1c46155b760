"""An address of this machine by which it is not loopback: who calls it there comes, for the daemon, from elsewhere."""

from __future__ import annotations

import pytest

from meshllm.daemon.public_urls import far
from meshllm.net.addresses import read_interfaces


def own_address() -> str:
    """An IPv4 address; the test is skipped aloud where this machine has none."""
    found = next((host for host in far(read_interfaces()) if ":" not in host), None)
    if found is None:
        pytest.skip("this machine has no address but loopback")
    return found
