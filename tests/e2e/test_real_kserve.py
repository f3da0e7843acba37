"""generate_image through the sidecar against a real KServe server with a real diffusers pipeline."""

from __future__ import annotations

import asyncio
import io
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import ERAS, Sidecar, StartSidecar

pytestmark = pytest.mark.e2e
MODELS = ("tiny-sync", "tiny-async")
SMALL = {"width": 64, "height": 64, "num_inference_steps": 2}


@pytest.fixture(scope="module")
def real_kserve() -> Iterator[str]:
    """The URL of a KServe server; `make e2e` says by KSERVE_PYTHON which Python has one installed."""
    python = os.environ.get("KSERVE_PYTHON")
    assert python, "KSERVE_PYTHON is not set: run `make e2e`"
    script = Path(__file__).parent / "runtime" / "serve.py"
    with subprocess.Popen([python, str(script)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.terminate()
            process.wait(30)


@pytest.fixture
async def painters(real_kserve: str, start_sidecar: StartSidecar, tmp_path: Path) -> AsyncIterator[Sidecar]:
    """A sidecar before both models."""
    models = tmp_path / "models.yaml"
    models.write_text(
        f"models:\n- endpoint: {real_kserve}/v1/models/tiny-sync\n"
        f"- {{endpoint: {real_kserve}/v1/models/tiny-async, profile: diffusers-seed}}\n"
        f"- {{name: odd, endpoint: {real_kserve}/v1/models/tiny-sync, extra_parameters: {{width: 64, height: 65}}}}\n"
        f"- {{name: unknown, endpoint: {real_kserve}/v1/models/nobody}}\n"
    )
    yield await start_sidecar(MODELS_FILE=str(models))


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("model", MODELS)
async def test_a_real_diffusion_model_paints_through_mcp(era: str, model: str, painters: Sidecar) -> None:
    arguments = {"prompt": "a cat", "negative_prompt": "a dog", "guidance_scale": 5, "model": model, **SMALL}
    result = await painters.generate(era, **arguments)
    assert not result.is_error, result.content
    (image,) = result.structured_content["images"]
    response, body = await painters.get(image["url"])
    assert (response.status, response.content_type, image["width"], image["height"]) == (200, "image/png", 64, 64)
    picture = Image.open(io.BytesIO(body))
    picture.load()
    assert picture.size == (64, 64)
    assert result.content[-1].type == "image"


async def test_a_seed_repeats_an_image_where_the_runtime_takes_one(painters: Sidecar) -> None:
    arguments = {"model": "tiny-async", **SMALL}
    first, again, other = [await painters.made(seed=seed, **arguments) for seed in (1, 1, 2)]
    assert (first["seed_applied"], first["sha256"]) == (True, again["sha256"])
    assert other["sha256"] != first["sha256"]


async def test_a_seed_that_a_runtime_ignores_is_not_claimed(painters: Sidecar) -> None:
    image = await painters.made(seed=1, model="tiny-sync", **SMALL)
    assert (image["seed"], image["seed_applied"]) == (1, False)


async def test_what_the_pipeline_refuses_is_told_to_the_caller(painters: Sidecar) -> None:
    result = await painters.generate(model="odd")
    assert result.is_error
    assert (
        "refused these parameters: Prediction failed: `height` and `width` have to be divisible by 8"
        in result.content[0].text
    )
    assert painters.stored() == []


async def test_a_model_that_the_server_does_not_have_fails_at_once(painters: Sidecar) -> None:
    result = await painters.generate(model="unknown")
    assert result.is_error
    assert "does not know the configured model" in result.content[0].text
    assert await painters.metric('imagegen_runtime_retries_total{model="unknown",reason="not_ready"}') == 0


async def test_the_sidecar_stays_ready_while_a_synchronous_predict_blocks_the_server(
    real_kserve: str, start_sidecar: StartSidecar
) -> None:
    sidecar = await start_sidecar(KSERVE_ENDPOINT=f"{real_kserve}/v1/models/tiny-sync")
    await sidecar.until_ready()
    slow = asyncio.create_task(sidecar.made(width=512, height=512, num_inference_steps=60))
    statuses, busy = set(), False
    while not slow.done():
        response, _ = await sidecar.get("/readyz")
        checks = (await response.json())["checks"]
        statuses.add(response.status)
        busy = busy or checks["runtime/tiny-sync"]["status"] == "busy"
        await asyncio.wait({slow}, timeout=0.2)
    await slow
    assert (statuses, busy) == ({200}, True)


async def test_many_calls_at_once_are_painted_one_after_the_other(painters: Sidecar) -> None:
    images = await asyncio.gather(*(painters.made(model=MODELS[number % 2], **SMALL) for number in range(12)))
    assert len({image["image_id"] for image in images}) == 12
    for image in images:
        response, _ = await painters.get(image["url"])
        assert response.status == 200


async def test_the_runtimes_own_metrics_pass_through(painters: Sidecar) -> None:
    await painters.made(**SMALL)
    response, body = await painters.get("/metrics/runtime")
    assert response.status == 200
    assert b"request_predict_seconds" in body
