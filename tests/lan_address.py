"""An IPv4 address of this machine that is not loopback: a caller that uses it counts as another machine."""

from __future__ import annotations

import pytest

from meshllm.daemon.public_urls import far
from meshllm.net.addresses import read_interfaces


def lan_address() -> str:
    """The address; the test is skipped if this machine has only loopback."""
    found = next((host for host in far(read_interfaces()) if ":" not in host), None)
    if found is None:
        pytest.skip("this machine has no address but loopback")
    return found
