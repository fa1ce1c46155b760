"""The options that start a node: type, metavariable, help and panel of each."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

SERVE, MESH, NETWORK, OUTPUT = "What to serve", "The mesh", "Where to listen", "Output"
BLACKBOARD = "The blackboard"


class ShareFiles(Enum):
    """The values of `--share`; `models.p2p.share_policy.Share` says what they mean."""

    KNOWN = "known"
    ALL = "all"
    NONE = "none"


Model = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="Model to serve: a name from 'mesh-llm download', org/repo or org/repo:QUANT on Hugging Face, or the path "
        "of a GGUF file. Repeatable: the first model runs on this node; each other one, too, if it fits beside it and "
        "no other node serves it within 10 s.",
        rich_help_panel=SERVE,
    ),
]
ServeAll = Annotated[
    bool,
    typer.Option(
        "--serve-all",
        help="Serve all models of --model on this node, without asking other nodes first.",
        rich_help_panel=SERVE,
    ),
]
IdleUnload = Annotated[
    float | None,
    typer.Option(
        min=0.05,
        max=1e6,
        metavar="MINUTES",
        help="Free the memory of a model that has been idle for so long; the next request loads it again. "
        "Default: never.",
        rich_help_panel=SERVE,
    ),
]
OnDemand = Annotated[
    bool | None,
    typer.Option(
        "--on-demand/--no-on-demand",
        show_default=False,
        help="List the models on this disk in the mesh, and load one when a request comes. The least recently used one "
        "makes room. Default: if this node joins a mesh without --model.",
        rich_help_panel=SERVE,
    ),
]
FetchOnDemand = Annotated[
    bool | None,
    typer.Option(
        "--fetch-on-demand/--no-fetch-on-demand",
        show_default=False,
        help="Download a model of the catalogue or of your machines when the mesh asks for it, no node could load it "
        "and this one can. Implies --on-demand. Default: no.",
        rich_help_panel=SERVE,
    ),
]
MaxDownload = Annotated[
    float | None,
    typer.Option(
        min=0.01,
        max=1e6,
        metavar="GB",
        help="With --fetch-on-demand: most disk space for such models, all together; 2 GiB of the disk stay free. "
        "Default: 20.",
        rich_help_panel=SERVE,
    ),
]
Alias = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=MODEL",
        help="Another name for a model, for programs that ask for a name of their own (gpt-4o=Qwen3-8B). Repeatable.",
        rich_help_panel=SERVE,
    ),
]
Tools = Annotated[
    list[str] | None,
    typer.Option(
        "--tools",
        metavar="MODEL=yes|no",
        help="Say that a model calls tools, or does not. Default: this node asks each of its own models for one call "
        "while it is idle. Agents prefer models that call tools. Repeatable.",
        rich_help_panel=SERVE,
    ),
]
BackendUrl = Annotated[
    list[str] | None,
    typer.Option(
        "--backend",
        metavar="URL[,key=VARIABLE]",
        help="Add the models of a running OpenAI-compatible server. VARIABLE names the environment variable with its "
        "API key. Repeatable.",
        rich_help_panel=SERVE,
    ),
]
CtxSize = Annotated[
    int | None,
    typer.Option(
        min=256,
        max=16 << 20,
        metavar="TOKENS",
        help="Context size of each request. Default: what the model and the memory allow, at most 32768.",
        rich_help_panel=SERVE,
    ),
]
ChatTemplate = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Jinja file that replaces the chat template of the first --model.",
        rich_help_panel=SERVE,
    ),
]
Draft = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Draft model for speculative decoding (same tokenizer as the first --model). Downloaded if missing. "
        "Default: a suitable local model.",
        rich_help_panel=SERVE,
    ),
]
NoDraft = Annotated[bool, typer.Option("--no-draft", help="Do not use a draft model.", rich_help_panel=SERVE)]
NoSpeculation = Annotated[
    bool,
    typer.Option(
        "--no-speculation",
        help="Disable speculative decoding, including n-gram matching.",
        rich_help_panel=SERVE,
    ),
]
MaxVram = Annotated[
    float | None,
    typer.Option(
        min=0.1,
        max=1 << 20,
        metavar="GB",
        help="Maximum GPU memory to use (system RAM if there is no GPU). Context and slots are reduced before a split.",
        rich_help_panel=SERVE,
    ),
]
Device = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="Use only this GPU ('mesh-llm doctor' lists them), or 'none' for the CPU. Repeatable, or separated by "
        "commas.",
        rich_help_panel=SERVE,
    ),
]
Split = Annotated[
    bool,
    typer.Option(
        "--split",
        help="Split the layers of the first --model over several nodes even if it fits on this one.",
        rich_help_panel=SERVE,
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=1024,
        metavar="N",
        help="CPU threads of each engine process. Default: the engine's choice.",
        rich_help_panel=SERVE,
    ),
]
NoSandbox = Annotated[
    bool,
    typer.Option(
        "--no-sandbox",
        help="Run engine processes without a sandbox, also those that compute layers for other nodes. Default: in one "
        "('mesh-llm doctor' says whether this system has it); without one, leases of other nodes are refused.",
        rich_help_panel=SERVE,
    ),
]
SavePrompts = Annotated[
    bool,
    typer.Option(
        "--save-prompts/--no-save-prompts",
        help="Keep computed prompts in files of this node's home when an engine stops, so that conversations go on "
        "after a restart without computing them again.",
        rich_help_panel=SERVE,
    ),
]
Worker = Annotated[
    bool | None,
    typer.Option(
        "--worker/--no-worker",
        help="Whether this node computes layers for models that other nodes split. Default: a node that joined does, "
        "one that began its mesh without a model does not.",
        rich_help_panel=SERVE,
        show_default=False,
    ),
]
LeaseCache = Annotated[
    float | None,
    typer.Option(
        min=0,
        metavar="GB",
        help="Disk space for files of models that this node computes layers of for others. Default: half of what is "
        "free, at most 256 GiB; 0: keep none, hosts send the weights.",
        rich_help_panel=SERVE,
    ),
]
Join = Annotated[
    list[str] | None,
    typer.Option(
        metavar="INVITE|@FILE|-",
        help="Join a mesh: an invite from one of its nodes, a file that contains it, or - for standard input. File and "
        "standard input keep the invite out of the shell history and the process list. Repeatable.",
        rich_help_panel=MESH,
    ),
]
Client = Annotated[bool, typer.Option("--client", help="Only use the mesh's API; serve nothing.", rich_help_panel=MESH)]
NodeName = Annotated[
    str,
    typer.Option(
        "--node-name", metavar="TEXT", help="Name of this node. Default: the host name.", rich_help_panel=MESH
    ),
]
WriterName = Annotated[
    str,
    typer.Option(
        "--name",
        metavar="TEXT",
        help="Your name on the blackboard. Default: your user name.",
        rich_help_panel=BLACKBOARD,
    ),
]
Blackboard = Annotated[
    bool,
    typer.Option(
        "--blackboard/--no-blackboard",
        show_default=False,
        help="Keep the mesh's blackboard on this node: 'mesh-llm blackboard' reads and writes it. Default: yes, as "
        "the mesh is private.",
        rich_help_panel=BLACKBOARD,
    ),
]
BlackboardMemory = Annotated[
    bool,
    typer.Option(
        "--blackboard-memory",
        help="Keep the blackboard in memory only, nothing of it on the disk.",
        rich_help_panel=BLACKBOARD,
    ),
]
MaxClients = Annotated[
    int, typer.Option(min=0, max=4096, metavar="N", help="Maximum number of connected clients.", rich_help_panel=MESH)
]
OnlyFrom = Annotated[
    list[str] | None,
    typer.Option(
        metavar="ID",
        help="Send requests only to this node (its id, or the first 16 digits or more; names are self-chosen) and "
        "to this one. Repeatable. The host of a model reads its prompts.",
        rich_help_panel=MESH,
    ),
]
Share = Annotated[
    ShareFiles,
    typer.Option(
        help="Model files that other nodes may download from this node: those that the catalogue knows or the mesh "
        "runs, all on the disk, or none.",
        rich_help_panel=MESH,
    ),
]
UploadLimit = Annotated[
    float | None,
    typer.Option(
        min=0.1,
        metavar="MB/S",
        help="Maximum upload rate of model files. Default: no limit while no model here answers, 8 MB/s while one "
        "does.",
        rich_help_panel=MESH,
    ),
]
BindPort = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=65535,
        metavar="PORT",
        help="UDP (and TCP) port for other nodes. Default: the one used last time, or any free one.",
        rich_help_panel=NETWORK,
    ),
]
ApiPort = Annotated[
    int,
    typer.Option(
        "--port", min=0, max=65535, metavar="PORT", help="Port of the API (0: any free one).", rich_help_panel=NETWORK
    ),
]
ConsolePort = Annotated[
    int,
    typer.Option(
        "--console",
        min=0,
        max=65535,
        metavar="PORT",
        help="Port of the console (0: any free one).",
        rich_help_panel=NETWORK,
    ),
]
OllamaPort = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=65535,
        metavar="PORT",
        help="Also answer Ollama's and OpenAI's API on this port: programs for Ollama look at 11434. Default: only on "
        "--port.",
        rich_help_panel=NETWORK,
    ),
]
ListenAll = Annotated[
    bool,
    typer.Option(
        "--listen-all",
        help="Accept other machines, with a key: the API, and the console read-only. Default: this machine only.",
        rich_help_panel=NETWORK,
    ),
]
AllowOrigin = Annotated[
    list[str] | None,
    typer.Option(
        metavar="ORIGIN",
        help="Let web pages of this origin (https://host) call the API. Repeatable.",
        rich_help_panel=NETWORK,
    ),
]
AllowHost = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="Host name by which other machines, or a reverse proxy, may call this node, with a key. Repeatable.",
        rich_help_panel=NETWORK,
    ),
]
RequireKey = Annotated[
    bool,
    typer.Option(
        "--require-key",
        help="Ask all callers of the API for the key, programs of this machine too (proxies that add no header).",
        rich_help_panel=NETWORK,
    ),
]
Json = Annotated[
    bool,
    typer.Option(
        "--json", help="Write JSON lines to standard output and to the log file, for services.", rich_help_panel=OUTPUT
    ),
]
UntilDetached = Annotated[
    bool,
    typer.Option(
        "--until-detached",
        hidden=True,  # how the launchers of agents start a node
        help="End once standard input is closed and no launcher of an agent is attached.",
    ),
]
Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose",
        "-v",
        help="Show what the log file has: every request with its route, times and result, and debug messages.",
        rich_help_panel=OUTPUT,
    ),
]
