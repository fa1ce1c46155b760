"""The entry point of `mesh-llm`: hides invites in the arguments before anything that takes time is imported."""

from __future__ import annotations

import sys

from meshllm.cli import hide_secrets


def main() -> None:
    """Run the command."""
    hide_secrets.hide_invites()
    from meshllm.cli import board_mcp

    if board_mcp.started_quickly(sys.argv[1:]):
        return
    from meshllm.cli import entry  # takes longer than all that is above, Python's own start included

    entry.main()


if __name__ == "__main__":
    main()
