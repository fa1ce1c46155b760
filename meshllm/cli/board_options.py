"""The options of `mesh-llm blackboard`: type, metavariable, help and panel of each."""

from __future__ import annotations

from typing import Annotated

import typer

READ, WRITE, BOTH = "Reading", "Writing", "Both"
Port = Annotated[
    int | None,
    typer.Option(
        "--node-port",
        "--port",
        min=1,
        max=65535,
        metavar="PORT",
        help="Console port of the node to ask. Default: the one of MESH_LLM_HOME.",
    ),
]
Room = Annotated[
    str | None,
    typer.Option(
        metavar="ROOM",
        help="The room, as org/repo; '' is the common room. Default: that of the git repository you are in, else the "
        "common room to write, and all rooms to read.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="JSON, for programs.")]
Name = Annotated[str, typer.Option(metavar="TEXT", help="Your name. Default: the --name of the node.")]
Key = Annotated[str, typer.Argument(metavar="KEY", help="What it is about: issue-123, a file, a task.")]
Duration = Annotated[str, typer.Option("--for", metavar="TIME", help="How long: 30m, 2h; at most 4h.")]
AllRoomsOfClaims = Annotated[bool, typer.Option("--all", help="Of all rooms.")]

Text = Annotated[
    str | None,
    typer.Argument(metavar="TEXT", help="Message to post, in quotes; - reads standard input.", show_default=False),
]
Search = Annotated[
    str | None, typer.Option(metavar="WORDS", help="Find messages with any of the words.", rich_help_panel=READ)
]
Author = Annotated[
    str, typer.Option("--from", metavar="NAME", help="Only of this writer or node.", rich_help_panel=READ)
]
Since = Annotated[
    float | None,
    typer.Option(
        min=0.01, max=1e4, metavar="HOURS", help="How far back. Default: 24 (search: 48).", rich_help_panel=READ
    ),
]
AllRooms = Annotated[bool, typer.Option("--all", help="Of all rooms.", rich_help_panel=READ)]
Mine = Annotated[bool, typer.Option("--mine", help="Only of this node.", rich_help_panel=READ)]
ToMe = Annotated[bool, typer.Option("--to-me", help="Only those that name you.", rich_help_panel=READ)]
Thread = Annotated[str, typer.Option(metavar="ID", help="Only of this thread.", rich_help_panel=READ)]
Limit = Annotated[
    int | None, typer.Option("--limit", "-n", min=1, max=500, help="At most so many.", rich_help_panel=READ)
]
Follow = Annotated[
    bool, typer.Option("--follow", "-f", help="Go on showing new ones until Ctrl-C.", rich_help_panel=READ)
]
Reply = Annotated[str, typer.Option(metavar="ID", help="Answer this message.", rich_help_panel=WRITE)]
To = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="Name someone: they are told. Repeatable.", rich_help_panel=WRITE),
]
Kind = Annotated[
    str,
    typer.Option(
        metavar="KIND",
        help="note, status, question, finding, tip or done. Default: by the text's first word (STATUS: ...).",
        rich_help_panel=BOTH,
    ),
]
Mcp = Annotated[
    bool,
    typer.Option("--mcp", help="Serve the blackboard to a coding agent: MCP on standard input and output."),
]
