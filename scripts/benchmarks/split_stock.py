"""The stock engine in place of a daemon's engine: the same command line, with its own workers over plain TCP."""

from __future__ import annotations

from .native import BenchError
from .split_daemons import Node
from .split_nodes import Host, Scene


def stock_of(scene: Scene, host: Node) -> Host:
    """A llama-server of `scene` that serves what `host`'s own serves, placed alike. Raises BenchError.

    What the patches add stands in the environment of ours, so that every word of its command line is known to stock.
    """
    engines = host.engines("llama-server")
    if len(engines) != 1:
        raise BenchError(f"{host.name} runs {len(engines)} engines, not one")
    words = engines[0].cmdline()
    workers = [scene.worker().endpoint for _ in words[words.index("--rpc") + 1].split(",")]
    return scene.host_like(words[1:], workers)
