"""An image as callers name it: by its id, its file name, its link on this server, or its resource."""

from __future__ import annotations

from sidecar.domain import IMAGE_EXTENSIONS, ImageId

_ENDINGS = (*(f".{extension}" for extension in IMAGE_EXTENSIONS.values()), "/thumbnail")


def image_id_of(text: str, base_url: str) -> ImageId:
    """The id in `ID`, `ID.png`, `image://ID` or `{base_url}/images/ID.png`. Raises ImageNotFound for all else."""
    named = text.strip().split("?", 1)[0].split("#", 1)[0]
    for beginning in (f"{base_url}/images/", "/images/", "image://"):
        named = named.removeprefix(beginning)
    for ending in _ENDINGS:
        named = named.removesuffix(ending)
    return ImageId.parse(named)
