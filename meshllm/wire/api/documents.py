"""Documents in a prompt: texts are put into it, with their titles; what an engine cannot read is refused."""

from __future__ import annotations

import base64
import binascii
from typing import Any

from meshllm.wire.api.refusal import RequestRefused, invalid, unsupported

_TEXT_TYPES = ("application/json", "application/xml", "application/yaml", "application/x-yaml", "application/toml")


def document_text(text: str, title: object = None, context: object = None) -> str:
    """A document as part of a prompt."""
    named = f' title="{title}"' if isinstance(title, str) and title else ""
    about = f"<context>{context}</context>\n" if isinstance(context, str) and context else ""
    return f"<document{named}>\n{about}{text}\n</document>"


def block_text(block: dict[str, Any], param: str) -> str:
    """Anthropic's `document` or `search_result` block as text; RequestRefused if it is none."""
    if block.get("type") == "search_result":
        return document_text(_texts(block.get("content"), f"{param}.content"), block.get("title"), block.get("source"))
    source = block.get("source")
    if not isinstance(source, dict):
        raise invalid(f"{param}.source", f"'{param}.source' must be an object.")
    kind = source.get("type")
    if kind == "text":
        text = source.get("data")
        if not isinstance(text, str):
            raise invalid(f"{param}.source.data", f"'{param}.source.data' must be a text.")
    elif kind == "content":
        text = _texts(source.get("content"), f"{param}.source.content")
    elif kind == "base64":
        text = decoded(source.get("data"), source.get("media_type"), f"{param}.source")
    else:
        raise _unreadable(f"{param}.source", f"a source of the type '{str(kind)[:40]}'")
    return document_text(text, block.get("title"), block.get("context"))


def chat_file_text(file: object, param: str) -> str:
    """OpenAI's file (`file` in chat, `input_file` in responses) as text; RequestRefused if it is none."""
    if not isinstance(file, dict):
        raise invalid(param, f"'{param}' must be an object.")
    data = file.get("file_data")
    if not isinstance(data, str):
        field = "file_url" if file.get("file_url") is not None else "file_id"
        raise _unreadable(f"{param}.{field}", f"a '{field}'")
    head, comma, rest = data.partition(",")
    media = head[5:].partition(";")[0] if comma and data.startswith("data:") else ""
    return document_text(decoded(rest if comma else data, media, f"{param}.file_data"), file.get("filename"))


def decoded(data: object, media: object, param: str) -> str:
    """The text of a base64 document; RequestRefused for one that is not text, such as a PDF."""
    kind = media.partition(";")[0].strip().lower() if isinstance(media, str) else ""
    if kind and not kind.startswith("text/") and kind not in _TEXT_TYPES:
        raise _unreadable(param, f"a document of the type '{kind[:60]}'")
    if not isinstance(data, str):
        raise invalid(param, f"'{param}' must hold the document in base64.")
    try:
        raw = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise invalid(param, f"'{param}' does not hold valid base64.") from None
    if raw.startswith(b"%PDF"):
        raise _unreadable(param, "a PDF document")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise _unreadable(param, "a document that is not UTF-8 text") from None


def _texts(content: object, param: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise invalid(param, f"'{param}' must be a text or a list of text blocks.")
    texts: list[str] = []
    for index, block in enumerate(content):
        text = block.get("text") if isinstance(block, dict) else None
        if not isinstance(text, str):
            raise _unreadable(f"{param}[{index}]", "a block that is not text")
        texts.append(text)
    return "\n".join(texts)


def _unreadable(param: str, what: str) -> RequestRefused:
    return unsupported(param, f"'{param}' is {what}: the models here read documents as text only. Send their text.")
