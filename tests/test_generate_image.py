"""An MCP call becomes an image at a URL."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
from typing import Any

import jsonschema
import pytest
from mcp.shared.exceptions import MCPError
from PIL import Image

from sidecar.edge.tools.generate_image import TOOL
from tests.conftest import ERAS, Sidecar, StartSidecar
from tests.fake_kserve import FakeKServe, say, succeed, succeed_when
from tests.pictures import picture


@pytest.mark.parametrize("era", ERAS)
async def test_a_call_becomes_an_image_at_a_url(era: str, sidecar: Sidecar, kserve: FakeKServe) -> None:
    data = picture(128, 96)
    kserve.script.append(succeed(data))

    result = await sidecar.generate(era, prompt="  a cat  ", seed=7, result="link")

    (image,) = result.structured_content["images"]
    response, body = await sidecar.get(image["url"])
    assert (response.status, body) == (200, data)
    assert kserve.instances == [{"prompt": "a cat"}]
    assert image | {"image_id": "", "url": "", "thumbnail_url": "", "created_at": "", "expires_at": ""} == {
        "image_id": "",
        "url": "",
        "thumbnail_url": "",
        "media_type": "image/png",
        "width": 128,
        "height": 96,
        "size_bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "model": "painter",
        "seed": 7,
        "seed_applied": False,
        "created_at": "",
        "expires_at": "",
    }
    assert image["created_at"].endswith("Z")
    assert image["expires_at"].endswith("Z")
    assert result.structured_content["status"] == "completed"
    assert [block.type for block in result.content] == ["text"]
    assert image["url"] in result.content[0].text


async def test_every_parameter_reaches_the_runtime_and_no_null_does(
    start_sidecar: StartSidecar, kserve: FakeKServe
) -> None:
    sidecar = await start_sidecar(RUNTIME_PROFILE="diffusers-seed")
    arguments = {"negative_prompt": "fog", "width": 640, "height": 320, "num_inference_steps": 9, "guidance_scale": 4.5}

    image = await sidecar.made(seed=2**32 - 1, aspect_ratio=None, **arguments)

    assert kserve.instances == [{"prompt": "a cat", "seed": 2**32 - 1, **arguments}]
    assert (image["seed"], image["seed_applied"]) == (2**32 - 1, True)


@pytest.mark.parametrize(
    ("ratio", "size"),
    [
        ("1:1", (1024, 1024)),
        ("3:2", (1256, 840)),
        ("2:3", (840, 1256)),
        ("4:3", (1184, 888)),
        ("16:9", (1368, 768)),
        ("9:16", (768, 1368)),
        ("21:9", (1568, 672)),
    ],
)
async def test_an_aspect_ratio_keeps_the_models_own_area(
    ratio: str, size: tuple[int, int], start_sidecar: StartSidecar, kserve: FakeKServe
) -> None:
    sidecar = await start_sidecar(DEFAULT_IMAGE_SIZE="1024x1024")
    image = await sidecar.made(aspect_ratio=ratio)
    assert (kserve.instances[0]["width"], kserve.instances[0]["height"]) == size == (image["width"], image["height"])


async def test_a_seed_is_always_chosen_recorded_and_returned(sidecar: Sidecar) -> None:
    first, second = await sidecar.made(), await sidecar.made()
    assert first["seed"] != second["seed"]
    assert all(0 <= image["seed"] < 2**32 for image in (first, second))


async def test_several_images_have_consecutive_seeds_that_wrap(start_sidecar: StartSidecar, kserve: FakeKServe) -> None:
    sidecar = await start_sidecar(RUNTIME_PROFILE="diffusers-seed")
    result = await sidecar.generate(num_images=3, seed=2**32 - 2, result="link")
    assert [image["seed"] for image in result.structured_content["images"]] == [2**32 - 2, 2**32 - 1, 0]
    assert [instance["seed"] for instance in kserve.instances] == [2**32 - 2, 2**32 - 1, 0]


async def test_three_of_four_images_are_completed_with_a_word_on_the_fourth(
    sidecar: Sidecar, kserve: FakeKServe
) -> None:
    kserve.script.extend([succeed(), succeed(), say(500, {"error": "the painter fell asleep"}), succeed()])
    result = await sidecar.generate(num_images=4, seed=10, result="link")
    structured = result.structured_content
    assert (result.is_error, structured["status"], [image["seed"] for image in structured["images"]]) == (
        False,
        "completed",
        [10, 11, 13],
    )
    assert "Image 3 of 4 (seed 12) is missing" in structured["message"]
    assert "the painter fell asleep" in structured["message"]


async def test_the_default_result_shows_a_small_webp(sidecar: Sidecar, kserve: FakeKServe) -> None:
    kserve.script.append(succeed(picture(1024, 512, noise=True)))
    result = await sidecar.generate()
    text, image = result.content
    assert (text.type, image.type, image.mime_type) == ("text", "image", "image/webp")
    assert len(image.data) <= 100_000
    small = Image.open(io.BytesIO(base64.b64decode(image.data)))
    assert max(small.size) <= 512
    assert small.size[0] == 2 * small.size[1]
    _, body = await sidecar.get(result.structured_content["images"][0]["thumbnail_url"])
    assert body == base64.b64decode(image.data)


async def test_all_image_blocks_of_one_result_stay_under_the_limit_together(
    sidecar: Sidecar, kserve: FakeKServe
) -> None:
    kserve.script.extend(succeed(picture(768, 768, noise=True)) for _ in range(4))
    result = await sidecar.generate(num_images=4, result="full")
    blocks = [block for block in result.content if block.type == "image"]
    assert len(blocks) == 4
    assert sum(len(block.data) for block in blocks) <= 100_000
    assert "too large for a message" in result.structured_content["message"]


async def test_full_gives_the_very_bytes_where_they_fit(sidecar: Sidecar, kserve: FakeKServe) -> None:
    data = picture()
    kserve.script.append(succeed(data))
    result = await sidecar.generate(result="full")
    assert [(block.mime_type, base64.b64decode(block.data)) for block in result.content if block.type == "image"] == [
        ("image/png", data)
    ]


async def test_the_result_mode_of_the_server_holds_unless_the_call_says_otherwise(start_sidecar: StartSidecar) -> None:
    sidecar = await start_sidecar(RESULT_MODE="link")
    assert [block.type for block in (await sidecar.generate()).content] == ["text"]
    assert [block.type for block in (await sidecar.generate(result="thumbnail")).content][-1] == "image"


async def test_a_runtime_that_ignores_the_size_is_stored_as_it_is_with_a_word(
    sidecar: Sidecar, kserve: FakeKServe
) -> None:
    kserve.script.append(succeed(picture(64, 64)))
    result = await sidecar.generate(width=512, height=256, result="link")
    image = result.structured_content["images"][0]
    assert (image["width"], image["height"]) == (64, 64)
    assert "made 64×64 pixels instead of 512×256" in result.structured_content["message"]


@pytest.mark.parametrize("era", ERAS)
async def test_progress_tells_the_queue_then_the_work_and_only_grows(
    era: str, sidecar: Sidecar, kserve: FakeKServe
) -> None:
    release = asyncio.Event()
    kserve.script.extend([succeed_when(release), succeed_when(release)])
    told: list[tuple[float, str | None]] = []
    queued, working = asyncio.Event(), asyncio.Event()

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        told.append((progress, message))
        if message and message.startswith("queued"):
            queued.set()
            release.set()
            kserve.script.append(succeed_when(working))
        if message and message.startswith("generating"):
            working.set()

    async with sidecar.client(era) as first, sidecar.client(era) as second:
        ahead = asyncio.create_task(first.call_tool("generate_image", {"prompt": "first", "result": "link"}))
        await kserve.seen(1)
        kserve.script.clear()
        result = await second.call_tool(
            "generate_image", {"prompt": "second", "result": "link"}, progress_callback=on_progress
        )
        await ahead
    assert not result.is_error
    numbers = [number for number, _ in told]
    assert numbers == sorted(set(numbers))
    assert told[0][1] == "queued, 1 ahead"
    assert any(message and message.startswith("generating, ") for _, message in told)


@pytest.mark.parametrize("era", ERAS)
async def test_the_tool_is_described_for_a_model(era: str, sidecar: Sidecar) -> None:
    async with sidecar.client(era) as client:
        tool, *_ = (await client.list_tools()).tools
        result = await client.call_tool("generate_image", {"prompt": "a cat", "result": "link"})
    assert tool.name == "generate_image"
    assert set(tool.input_schema["properties"]) == {
        "prompt", "negative_prompt", "width", "height", "aspect_ratio", "num_inference_steps", "guidance_scale", "seed",
        "num_images", "model", "result", "idempotency_key",
    }  # fmt: skip
    assert tool.input_schema["required"] == ["prompt"]
    assert tool.annotations is not None
    assert (tool.annotations.read_only_hint, tool.annotations.destructive_hint) == (False, False)
    assert tool.output_schema is not None
    jsonschema.validate(result.structured_content, tool.output_schema)


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"width": 100}, "width: 100 was given; allowed: 64 to 2048 in multiples of 8."),
        ({"height": 4096}, "height: 4096 was given; allowed: 64 to 2048 in multiples of 8."),
        ({"width": "wide"}, "width: 'wide' was given; allowed: 64 to 2048 in multiples of 8."),
        ({"width": True}, "width: True was given; allowed: 64 to 2048 in multiples of 8."),
        ({"prompt": "   "}, "prompt: an empty text was given; allowed: a text of 1 to 2000 characters."),
        (
            {"prompt": "x" * 2001},
            "prompt: a text of 2001 characters was given; allowed: a text of 1 to 2000 characters.",
        ),
        ({"prompt": ["a"]}, "prompt: ['a'] was given; allowed: a text of 1 to 2000 characters."),
        ({"prompt": None}, "prompt is required: a text of 1 to 2000 characters."),
        ({"num_inference_steps": 0}, "num_inference_steps: 0 was given; allowed: 1 to 150."),
        ({"guidance_scale": 30.5}, "guidance_scale: 30.5 was given; allowed: 0 to 30."),
        ({"seed": -2}, "seed: -2 was given; allowed: 0 to 4294967295."),
        ({"seed": 2**32}, "seed: 4294967296 was given; allowed: 0 to 4294967295."),
        ({"num_images": 5}, "num_images: 5 was given; allowed: 1 to 4."),
        ({"aspect_ratio": "5:4"}, "aspect_ratio: '5:4' was given; allowed: 1:1, 3:2, 2:3, 4:3, 3:4, 16:9, 9:16, 21:9."),
        ({"aspect_ratio": "1:1", "width": 64}, "give either aspect_ratio or width and height, not both."),
        ({"result": "all"}, "result: 'all' was given; allowed: link, thumbnail, full."),
        ({"model": "sdxl"}, "model: there is no model of this name; available: painter"),
        (
            {"steps": 5},
            "unknown argument 'steps'; use num_inference_steps. generate_image takes "
            + ", ".join(TOOL.definition.input_schema["properties"])
            + ".",
        ),
        (
            {"width": 1, "seed": "x"},
            "width: 1 was given; allowed: 64 to 2048 in multiples of 8; seed: 'x' was given; allowed: 0 to 4294967295.",
        ),
    ],
)
async def test_a_wrong_argument_is_told_with_what_is_allowed(
    era: str, arguments: dict[str, Any], told: str, sidecar: Sidecar, kserve: FakeKServe
) -> None:
    result = await sidecar.generate(era, **arguments)
    assert (result.is_error, result.content[0].text) == (True, told)
    expected: dict[str, Any] = {
        "status": "failed",
        "job_id": None,
        "images": [],
        "message": told,
        "retry_after_seconds": None,
        "ahead": None,
        "elapsed_seconds": None,
        "expected_seconds": None,
    }
    assert result.structured_content == expected
    assert (kserve.instances, sidecar.stored()) == ([], [])


@pytest.mark.parametrize("era", ERAS)
async def test_an_unknown_tool_is_a_protocol_error_that_names_the_known(era: str, sidecar: Sidecar) -> None:
    async with sidecar.client(era) as client:
        with pytest.raises(MCPError, match="Unknown tool 'paint_image'; this server has generate_image"):
            await client.call_tool("paint_image", {"prompt": "a cat"})


async def test_several_models_each_have_their_own_name(
    start_sidecar: StartSidecar, kserve: FakeKServe, tmp_path: Any
) -> None:
    endpoint = f"http://127.0.0.1:{kserve.server.port}/v1/models/painter"
    models = tmp_path / "models.yaml"
    models.write_text(
        f"models:\n- {{name: fast, endpoint: '{endpoint}', profile: diffusers-seed, "
        "extra_parameters: {scheduler: ddim}}\n"
        f"- {{name: fine, endpoint: '{endpoint}', default_size: 1024x1024}}\n"
    )
    sidecar = await start_sidecar(MODELS_FILE=str(models))
    assert (await sidecar.made(seed=1))["model"] == "fast"
    assert (await sidecar.made(model="fine", aspect_ratio="1:1"))["model"] == "fine"
    assert kserve.instances == [
        {"prompt": "a cat", "scheduler": "ddim", "seed": 1},
        {"prompt": "a cat", "width": 1024, "height": 1024},
    ]
