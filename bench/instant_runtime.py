"""A KServe v1 runtime that answers at once with one prepared picture, so that only its callers' work is measured.

`python bench/instant_runtime.py BYTES` prints its model's URL and answers until standard input ends. The picture is a
real PNG of about that size.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import sys

from aiohttp import web
from PIL import Image

MODEL = "instant"


def png_of(size: int) -> bytes:
    """A noisy, and so hardly compressible, PNG of about `size` bytes."""
    side = max(8, round((size / 3.05) ** 0.5) // 8 * 8)
    image = Image.merge("RGB", [Image.effect_noise((side, side), 200) for _ in range(3)])
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def answer_with(png: bytes) -> bytes:
    image = {"format": "PNG", "b64": base64.b64encode(png).decode()}
    return json.dumps({"predictions": [{"model_name": MODEL, "prompt": "a cat", "image": image}]}).encode()


async def main(size: int) -> None:
    body = answer_with(await asyncio.to_thread(png_of, size))

    async def predict(request: web.Request) -> web.Response:
        await request.read()
        return web.Response(body=body, content_type="application/json")

    async def ready(_request: web.Request) -> web.Response:
        return web.json_response({"name": MODEL, "ready": True})

    app = web.Application()
    app.router.add_post(f"/v1/models/{MODEL}:predict", predict)
    app.router.add_get(f"/v1/models/{MODEL}", ready)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(f"http://127.0.0.1:{runner.addresses[0][1]}/v1/models/{MODEL}", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
