"""The tools, in the order a model sees them."""

from typing import Any

from sidecar.edge.tools import generate_image, generations, models, stored_images
from sidecar.edge.tools.tool import Tool

TOOLS: tuple[Tool[Any], ...] = (
    generate_image.TOOL,
    generations.GET_GENERATION,
    generations.CANCEL_GENERATION,
    stored_images.LIST_GENERATED_IMAGES,
    stored_images.GET_IMAGE_METADATA,
    stored_images.DELETE_IMAGE,
    models.LIST_MODELS,
)
