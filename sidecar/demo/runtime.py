"""A runtime for demonstrations: the KServe v1 protocol on loopback, painted pictures in place of a model's.

Run as `python -m sidecar.demo.runtime`; it listens on a free port and prints its model's URL as its first line.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import pybase64
from aiohttp import web

from sidecar.demo.painter import DISCLAIMER, paint
from sidecar.observe.log_writer import STANDARD_ERROR, LogWriter

MODEL = "demo-painter-not-a-diffusion-model"
_SECONDS_PER_STEP = 0.1
_DEFAULT_STEPS = 25


_LOG = web.AppKey("log", LogWriter)


def create_runtime() -> web.Application:
    app = web.Application()
    app[_LOG] = LogWriter(STANDARD_ERROR)
    app[_LOG].put(f"{MODEL}: {DISCLAIMER}")
    app.router.add_get(f"/v1/models/{MODEL}", _ready)
    app.router.add_post(f"/v1/models/{MODEL}:predict", _predict)
    app.router.add_get("/metrics", _metrics)
    return app


async def _ready(_request: web.Request) -> web.Response:
    return web.json_response({"name": MODEL, "ready": True})


async def _metrics(_request: web.Request) -> web.Response:
    name = "demo_painter_info"
    lines = (f"# HELP {name} {DISCLAIMER}", f"# TYPE {name} gauge", f'{name}{{model="{MODEL}"}} 1', "")
    return web.Response(text="\n".join(lines))


async def _predict(request: web.Request) -> web.Response:
    try:
        instance = (await request.json())["instances"][0]
        prompt, seed = str(instance["prompt"]), int(instance.get("seed", 0))
        width, height = int(instance.get("width", 512)), int(instance.get("height", 512))
        steps = int(instance.get("num_inference_steps", _DEFAULT_STEPS))
    except (ValueError, KeyError, TypeError, IndexError) as error:
        return web.json_response({"error": f"Prediction failed: {error!r}"}, status=400)
    request.app[_LOG].put(f"painting {width}×{height}, seed {seed} ({DISCLAIMER})")
    await asyncio.sleep(steps * _SECONDS_PER_STEP)
    png = await asyncio.to_thread(paint, prompt, seed, width, height)
    image = {"format": "PNG", "b64": pybase64.b64encode(png).decode()}
    prediction: dict[str, Any] = {"model_name": MODEL, "prompt": prompt, "image": image}
    return web.json_response({"predictions": [prediction]})


async def _run() -> None:
    runner = web.AppRunner(create_runtime(), access_log=None, shutdown_timeout=1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port = runner.addresses[0][1]
        print(f"http://127.0.0.1:{port}/v1/models/{MODEL}", flush=True)
        await asyncio.to_thread(sys.stdin.read)  # until the parent process ends
    finally:
        await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(_run())
