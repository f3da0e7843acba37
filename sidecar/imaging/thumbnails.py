"""Thumbnails by Pillow, in a small pool of threads off the event loop, made only when somebody wants one."""

from __future__ import annotations

import asyncio
import io
import warnings
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sidecar.errors import ImageNotFound, UndecodablePicture, bounded
from sidecar.imaging.inspect import MAX_PIXELS

if TYPE_CHECKING:
    from PIL.Image import Image

_THREADS = 2  # Pillow releases the interpreter while it works; more would compete with the runtime for its cores
_QUALITIES = (82, 55, 25)  # from the best to the worst a picture halves
_METHOD = 1  # for noise smaller and faster than 2, for soft pictures a sixth larger


class PillowThumbnailer:
    """The `Thumbnailer` port. Pillow is imported with the first thumbnail: link-only servers never pay for it."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="thumbnails")

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[PillowThumbnailer]:
        try:
            yield self
        finally:
            self._pool.shutdown(wait=False, cancel_futures=True)

    async def thumbnail(self, source: Path | bytes, *, pixels: int, max_bytes: int) -> bytes:
        return await asyncio.get_running_loop().run_in_executor(self._pool, _thumbnail, source, pixels, max_bytes)


def _thumbnail(source: Path | bytes, pixels: int, max_bytes: int) -> bytes:
    from PIL import Image

    try:
        file = io.BytesIO(source) if isinstance(source, bytes) else source
        with warnings.catch_warnings(), Image.open(file, formats=("PNG", "JPEG", "WEBP")) as image:
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            if image.width * image.height > MAX_PIXELS:
                raise UndecodablePicture(f"it claims {image.width}×{image.height} pixels")
            image.load()  # the whole picture, not only what a small copy needs: this is the proof that it decodes
            small = image.convert("RGBA" if "A" in image.getbands() or "transparency" in image.info else "RGB")
    except FileNotFoundError as error:
        raise ImageNotFound from error
    except (
        Exception
    ) as error:  # Pillow raises whatever a decoder meets: OSError, SyntaxError, ValueError, struct.error …
        if isinstance(error, UndecodablePicture):
            raise
        raise UndecodablePicture(bounded(str(error), 120)) from error
    return _fit(small, pixels, max_bytes)


def _fit(image: Image, pixels: int, max_bytes: int) -> bytes:
    """Shrink to `pixels`, then lower the quality, then the size, until it takes at most `max_bytes`."""
    from PIL import Image as ImageModule

    side = min(pixels, max(image.size))
    while True:
        image.thumbnail((side, side), ImageModule.Resampling.LANCZOS)
        for quality in _QUALITIES:
            buffer = io.BytesIO()
            image.save(buffer, "WEBP", quality=quality, method=_METHOD)
            if buffer.tell() <= max_bytes:
                return buffer.getvalue()
            if buffer.tell() > 2 * max_bytes:
                break  # no quality would do
        side = side * 2 // 3
