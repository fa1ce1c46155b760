"""The first entry of a run in the log: what runs where, with which options."""

from __future__ import annotations

import logging
import os
import sys

from meshllm import __version__
from meshllm.daemon.settings import Settings

log = logging.getLogger(__name__)


def log_start(settings: Settings) -> None:
    """Log version, system and configuration. Invites and keys are left out."""
    options = {
        "models": ",".join(settings.models),
        "backends": ",".join(backend.url for backend in settings.backends),
        "client": settings.client,
        "invites": len(settings.invites),
        "listen_all": settings.listen_all,
        "require_key": settings.require_key,
        "allowed_hosts": ",".join(settings.allowed_hosts),
        "only_from": ",".join(settings.only_from),
        "aliases": ",".join(f"{name}={model}" for name, model in settings.aliases),
        "declared_tools": ",".join(f"{name}={calls}" for name, calls in settings.declared_tools),
        "bind_port": settings.bind_port,
        "context": settings.context,
        "max_memory": settings.max_memory,
        "devices": ",".join(settings.devices),
        "split": settings.split,
        "chat_template": settings.chat_template,
        "draft": settings.draft,
        "share": settings.share,
        "upload_limit": settings.upload_limit,
        "threads": settings.threads,
        "no_sandbox": not settings.sandbox,
        "lease_cache": settings.lease_cache,
        "worker": "" if settings.worker is None else str(settings.worker),
    }
    system = os.uname()
    fields = {
        "version": __version__,
        "pid": os.getpid(),
        "python": ".".join(map(str, sys.version_info[:3])),
        "system": f"{system.sysname} {system.release} {system.machine}",
        "home": str(settings.home),
        **{name: value for name, value in options.items() if value not in (None, "", False, 0)},
    }
    log.info("mesh-llm started", extra={"fields": fields})
