"""The floor: an aiohttp handler that asks the runtime, decodes, hashes, and writes and syncs the picture and a record.

Nothing of MCP, no look at the answer or the picture, no queue, no metrics. What costs less cannot be had with aiohttp.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pybase64
from aiohttp import web

STORE = Path(os.environ["STORAGE_PATH"])
ENDPOINT = os.environ["KSERVE_ENDPOINT"]
SESSION = web.AppKey("session", aiohttp.ClientSession)
RECORD = bytes(600)


async def generate(request: web.Request) -> web.Response:
    """A picture's address, from whatever call."""
    await request.read()
    headers = {"Content-Type": "application/json", "Connection": "close"}
    body = b'{"instances": [{"prompt": "a cat"}]}'
    async with request.app[SESSION].post(f"{ENDPOINT}:predict", data=body, headers=headers) as response:
        answer = await response.read()
    start = answer.index(b'"b64": "') + len(b'"b64": "')
    name = await asyncio.to_thread(store, answer[start : answer.index(b'"', start)])
    return web.Response(text=f'{{"url":"http://127.0.0.1/images/{name}"}}', content_type="application/json")


def store(encoded: bytes) -> str:
    data = pybase64.b64decode(encoded, validate=True)
    name = hashlib.sha256(data).hexdigest()[:16] + secrets.token_hex(8)
    for path, content in ((STORE / name, data), (STORE / f"{name}.json", RECORD)):
        with path.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    return name


async def session(app: web.Application) -> AsyncIterator[None]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), read_bufsize=256 * 1024) as opened:
        app[SESSION] = opened
        yield


async def ready(_request: web.Request) -> web.Response:
    return web.Response()


def main() -> None:
    STORE.mkdir(parents=True)
    app = web.Application()
    app.cleanup_ctx.append(session)
    app.router.add_post("/mcp", generate)
    app.router.add_get("/readyz", ready)
    web.run_app(app, host="127.0.0.1", port=int(os.environ["LISTEN_PORT"]), print=None, access_log=None)


if __name__ == "__main__":
    main()
