"""The peer: what one writes in an afternoon with FastMCP and httpx for the same job, and not badly.

It decodes the whole answer, writes the file and returns a link. It neither checks nor syncs, keeps no record and has no
queue.
"""

from __future__ import annotations

import base64
import os
import secrets
from pathlib import Path

import httpx
from fastmcp import FastMCP
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse

STORE = Path(os.environ["STORAGE_PATH"])
ENDPOINT = os.environ["KSERVE_ENDPOINT"]
PORT = int(os.environ["LISTEN_PORT"])

server = FastMCP("images")
client = httpx.AsyncClient(timeout=300)


@server.tool
async def generate_image(prompt: str, seed: int = 0, result: str = "link") -> dict[str, str | int]:
    """Generate an image from a prompt."""
    answer = await client.post(f"{ENDPOINT}:predict", json={"instances": [{"prompt": prompt}]})
    answer.raise_for_status()
    data = base64.b64decode(answer.json()["predictions"][0]["image"]["b64"])
    name = f"{secrets.token_urlsafe(16)}.png"
    (STORE / name).write_bytes(data)
    return {"url": f"http://127.0.0.1:{PORT}/images/{name}", "size_bytes": len(data)}


@server.custom_route("/images/{name}", methods=["GET"])
async def image(request: Request) -> FileResponse:
    return FileResponse(STORE / Path(request.path_params["name"]).name, media_type="image/png")


@server.custom_route("/readyz", methods=["GET"])
async def ready(_request: Request) -> JSONResponse:
    return JSONResponse({"status": "ok"})


if __name__ == "__main__":
    STORE.mkdir(parents=True, exist_ok=True)
    server.run(
        transport="http", host="127.0.0.1", port=PORT, show_banner=False, log_level="warning", stateless_http=True
    )
