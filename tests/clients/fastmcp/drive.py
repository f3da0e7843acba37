"""FastMCP's client: every tool listed, one image generated, listed and read as a resource.

python drive.py URL: one JSON object, {"tools": [names], "data": generate_image's result as FastMCP's own object of the
published schema, "blocks": [types], "resource": the image's digest}.
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import hashlib
import json
import sys
from typing import Any

from fastmcp import Client


def plain(value: Any) -> Any:
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value.model_dump(mode="json")


async def main(url: str) -> None:
    async with Client(url) as client:
        tools = [tool.name for tool in await client.list_tools()]
        result = await client.call_tool("generate_image", {"prompt": "a cat"})
        data = plain(result.data)
        (content,) = await client.read_resource(f"image://{data['images'][0]['image_id']}")
    print(
        json.dumps(
            {
                "tools": tools,
                "data": data,
                "blocks": [block.type for block in result.content],
                "resource": hashlib.sha256(base64.b64decode(content.blob)).hexdigest(),
            }
        )
    )


asyncio.run(main(sys.argv[1]))
