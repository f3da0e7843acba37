"""An image on its way from a runtime to the disk: hashed, looked at and written as it comes."""

from __future__ import annotations

import hashlib

from sidecar.domain import Picture
from sidecar.errors import RuntimeAnsweredNonsense, UndecodablePicture
from sidecar.imaging.inspect import PictureInspector
from sidecar.ports import StagedFile

_SPARSE_BYTES_PER_PIXEL = 1 / 24
"""An all-black JPEG of 256×256 pixels takes up to 1/27, a PNG or WebP far less; most pictures take 1/10 or more."""
_MAX_SPARSE_BYTES = 256 * 1024


class ArrivingImage:
    """Takes bytes at once (`write`) and hands them on to the staged file when told to (`flush`)."""

    def __init__(self, staged: StagedFile) -> None:
        self._staged = staged
        self._handed_on = False
        self._stale = False
        self._begin()

    def _begin(self) -> None:
        self.size_bytes = 0
        self._pending: list[bytes] = []
        self._first: list[bytes] = []
        self._sha256 = hashlib.sha256()
        self._inspector = PictureInspector()
        self._problem: UndecodablePicture | None = None

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()

    def write(self, data: bytes) -> None:
        self.size_bytes += len(data)
        self._pending.append(data)
        if self.size_bytes <= _MAX_SPARSE_BYTES:
            self._first.append(data)
        else:
            self._first.clear()
        self._sha256.update(data)
        if self._problem is None:
            try:
                self._inspector.feed(data)
            except UndecodablePicture as problem:  # told at the end: this may yet turn out not to be the image
                self._problem = problem

    def restart(self) -> None:
        """What came so far was not the image."""
        self._begin()
        self._stale = self._handed_on

    async def flush(self) -> None:
        """Raises StorageFailure."""
        if self._stale:
            await self._staged.restart()
            self._stale = False
        pending, self._pending = self._pending, []
        for data in pending:
            await self._staged.write(data)
            self._handed_on = True

    def picture(self, max_bytes: int) -> Picture:
        """What it is, once all has come. Raises RuntimeAnsweredNonsense."""
        if self.size_bytes > max_bytes:
            raise RuntimeAnsweredNonsense(
                f"The model's runtime answered an image of {self.size_bytes:,} bytes; allowed: {max_bytes:,} "
                "(MAX_IMAGE_BYTES)."
            )
        try:
            if self._problem is not None:
                raise self._problem
            return self._inspector.finish()
        except UndecodablePicture as problem:
            raise RuntimeAnsweredNonsense(
                f"The model's runtime answered something that is no picture: {problem.message}"
            ) from problem

    def sparse(self, picture: Picture) -> bytes | None:
        """The whole file, where it has so few bytes for its pixels that the picture may be one colour."""
        limit = min(_MAX_SPARSE_BYTES, picture.width * picture.height * _SPARSE_BYTES_PER_PIXEL)
        return b"".join(self._first) if self.size_bytes <= limit else None
