"""A real KServe ModelServer on a free port of loopback with the tiny pipeline behind it, twice.

`tiny-sync` splats the instance into the pipeline inside a synchronous predict, which blocks the server as most
diffusers runtimes do; `tiny-async` takes a seed and works on a thread. The first line on standard output is the
server's URL.
"""

from __future__ import annotations

import asyncio
import base64
import io
import socket
import tempfile
from pathlib import Path
from typing import Any

import torch
import uvicorn
from kserve import Model, ModelServer
from kserve.errors import InvalidInput
from tiny_pipeline import tiny_pipeline


class SyncModel(Model):
    def __init__(self, name: str, pipeline: Any) -> None:
        super().__init__(name)
        self.pipeline = pipeline
        self.ready = True

    def predict(self, payload: dict[str, Any], headers: dict[str, str] | None = None) -> dict[str, Any]:
        return self.answer(dict(payload["instances"][0]))

    def answer(self, parameters: dict[str, Any]) -> dict[str, Any]:
        try:
            image = self.pipeline(**parameters).images[0]
        except Exception as error:
            raise InvalidInput(f"Prediction failed: {error}") from error
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        encoded = {"format": "PNG", "b64": base64.b64encode(buffer.getvalue()).decode()}
        return {"predictions": [{"model_name": self.name, "prompt": parameters["prompt"], "image": encoded}]}


class AsyncModel(SyncModel):
    async def predict(self, payload: dict[str, Any], headers: dict[str, str] | None = None) -> dict[str, Any]:
        parameters = dict(payload["instances"][0])
        if "seed" in parameters:
            parameters["generator"] = torch.Generator().manual_seed(parameters.pop("seed"))
        return await asyncio.to_thread(self.answer, parameters)


listener = socket.create_server(("127.0.0.1", 0))


class OnLoopback(uvicorn.Config):
    """KServe listens on every address; a test must not."""

    def __init__(self, app: Any, **options: Any) -> None:
        super().__init__(app, **{**options, "fd": listener.fileno()})


uvicorn.Config = OnLoopback  # type: ignore[misc]

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        pipeline = tiny_pipeline(Path(directory))
        print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        ModelServer(enable_grpc=False).start([SyncModel("tiny-sync", pipeline), AsyncModel("tiny-async", pipeline)])
