"""The official MCP SDK as a client of our server: what it saw, as JSON in the last line.

Usage: mcp_run.py MODE http URL TOKEN | mcp_run.py MODE stdio COMMAND ...
"""

import asyncio
import json
import sys
from typing import Any

import httpx2
from mcp import MCPError
from mcp.client.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamable_http_client

OLD = "legacy"
PATIENCE = 20.0


def transport(how: str, arguments: list[str]) -> Any:
    if how == "stdio":
        return stdio_client(StdioServerParameters(command=arguments[0], args=arguments[1:]))
    url, token = arguments
    client = httpx2.AsyncClient(headers={"x-mesh-llm-token": token}, timeout=PATIENCE)
    return streamable_http_client(url, http_client=client)


async def updated(client: Client, is_old: bool, told: asyncio.Queue[str]) -> str:
    """The resource that an update came for after a post."""
    async with asyncio.timeout(PATIENCE):
        if is_old:
            await client.subscribe_resource("board://feed")
            await asyncio.sleep(0.3)  # a subscription of this era has no acknowledgement that the watch has begun
            await client.call_tool("blackboard_post", {"text": "news"})
            return await told.get()
        async with client.listen(resource_subscriptions=["board://feed"]) as stream:
            await asyncio.sleep(0.3)
            await client.call_tool("blackboard_post", {"text": "news"})
            async for event in stream:
                return str(event.uri)
    return ""


async def main(mode: str, how: str, arguments: list[str]) -> dict[str, Any]:
    told: asyncio.Queue[str] = asyncio.Queue()

    async def hear(message: Any) -> None:
        inner = getattr(message, "root", message)
        if getattr(inner, "method", "") == "notifications/resources/updated":
            told.put_nowait(str(inner.params.uri))

    found: dict[str, Any] = {}
    async with Client(transport(how, arguments), mode=mode, message_handler=hear) as client:
        found["version"] = client.protocol_version
        found["tools"] = [tool.name for tool in (await client.list_tools()).tools]
        posted = await client.call_tool("blackboard_post", {"text": "FINDING: it works", "kind": "finding"})
        found["post"] = [bool(posted.is_error), posted.structured_content]
        found["feed"] = (await client.call_tool("blackboard_feed", {})).content[0].text
        found["search"] = (await client.call_tool("blackboard_search", {"query": "works"})).content[0].text
        claimed = await client.call_tool("blackboard_claim", {"op": "acquire", "key": "issue-1"})
        found["claim"] = claimed.structured_content
        wrong = await client.call_tool("blackboard_post", {"text": "x", "kind": "order"})
        found["wrong"] = [bool(wrong.is_error), wrong.content[0].text]
        found["resources"] = [str(each.uri) for each in (await client.list_resources()).resources]
        templates = (await client.list_resource_templates()).resource_templates
        found["templates"] = [each.uri_template for each in templates]
        found["read"] = (await client.read_resource("board://claims")).contents[0].text
        try:
            await client.read_resource("board://nothing")
        except MCPError as error:
            found["missing"] = error.code
        found["prompts"] = [each.name for each in (await client.list_prompts()).prompts]
        found["prompt"] = (await client.get_prompt("catch-up", {"hours": "1"})).messages[0].content.text
        try:
            waiting = {"wait_seconds": 40, "from": "none"}
            await client.call_tool("blackboard_feed", waiting, read_timeout_seconds=0.5)
        except MCPError as error:
            found["timeout"] = error.code
        is_old = mode == OLD
        if is_old:
            await client.send_ping()
            await client.set_logging_level("warning")
        found["updated"] = "" if is_old and how == "http" else await updated(client, is_old, told)
    return found


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3:]))))
