"""Single requests to a bucket, in the dialect of its store (s3_capabilities.py). Errors are the client's own.

What a store answers is believed only if it looks like S3.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from weakref import WeakValueDictionary

from botocore.exceptions import ClientError

from sidecar.storages.s3_body import pieces_of
from sidecar.storages.s3_capabilities import Capabilities
from sidecar.storages.s3_errors import ABSENT, OUT_OF_RANGE, Damaged, NotS3
from sidecar.storages.s3_refusals import code_of

_UNKNOWN = frozenset({"NotImplemented", "MethodNotAllowed"})
"""A store does not know the operation, or a header of it. A status alone would be any gateway's."""
_UNKNOWN_BATCH = _UNKNOWN | {"InvalidArgument", "InvalidRequest", "MalformedXML"}
"""The same of DeleteObjects: Google Cloud Storage takes it for the creation of a bucket."""
_PRECONDITION_FAILED = frozenset({"PreconditionFailed", "412"})
_CONFLICT = frozenset({"ConditionalRequestConflict", "OperationAborted", "409"})


class Conflict(Exception):
    """Several create an object at this moment; the store has not decided between them."""


class Objects:
    """Objects by keys that do not show the prefix. `capabilities` are corrected by what the store refuses."""

    def __init__(self, client: Any, bucket: str, prefix: str) -> None:
        self._client = client
        self._bucket = bucket
        self._prefix = prefix
        self._creating: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self.capabilities = Capabilities()

    def _at(self, key: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._prefix + key}

    # --- writing ------------------------------------------------------------------------------------------------------

    async def put(self, key: str, **arguments: Any) -> None:
        _require_s3(await self._client.put_object(**self._at(key), **arguments))

    async def create(self, key: str, data: bytes, mark: str) -> bool:
        """Write an object with this mark unless it exists; whether it carries the mark then. Raises Conflict.

        Exact where the store has conditional PUT. Else exact within this process and best effort between several: the
        object is looked up, written, and looked up again, because a writer that came later may have replaced it.
        """
        if self.capabilities.conditional_put:
            try:
                await self.put(key, **_marked(data, mark), IfNoneMatch="*")
            except ClientError as error:
                if code_of(error) in _PRECONDITION_FAILED:
                    return _carries(await self.head(key), mark)
                if code_of(error) in _CONFLICT:
                    raise Conflict from error
                if code_of(error) not in _UNKNOWN:
                    raise
                self.capabilities = replace(self.capabilities, conditional_put=False)
            else:
                return True
        async with self._creating.setdefault(key, asyncio.Lock()):
            found = await self.head(key)
            if found is None:
                await self.put(key, **_marked(data, mark))
                found = await self.head(key)
            return _carries(found, mark)

    async def refuses_to_overwrite(self, key: str, data: bytes) -> bool:
        """Whether a conditional PUT leaves an object alone that exists."""
        try:
            await self.put(key, Body=data, ContentType="application/json", IfNoneMatch="*")
        except ClientError as error:
            if code_of(error) in _UNKNOWN:
                return False
            if code_of(error) not in _PRECONDITION_FAILED | _CONFLICT:
                raise
            return True
        return False

    async def delete(self, key: str) -> None:
        """Also where there is nothing to delete, which some stores call an error."""
        try:
            await self._client.delete_object(**self._at(key))
        except ClientError as error:
            if code_of(error) != "NoSuchKey":
                raise

    async def delete_many(self, keys: Sequence[str]) -> bool:
        """Delete what exists of at most a thousand; False where the store cannot do it in one request."""
        objects = [{"Key": self._prefix + key} for key in keys]
        try:
            answer = await self._client.delete_objects(Bucket=self._bucket, Delete={"Objects": objects, "Quiet": True})
        except ClientError as error:
            if code_of(error) not in _UNKNOWN_BATCH:
                raise
            if code_of(error) in _UNKNOWN:
                self.capabilities = replace(self.capabilities, multi_delete=False)
            return False
        for failed in answer.get("Errors", ()):
            if failed.get("Code") != "NoSuchKey":
                raise ClientError({"Error": failed, "ResponseMetadata": answer["ResponseMetadata"]}, "DeleteObjects")
        return True

    # --- reading ------------------------------------------------------------------------------------------------------

    async def get(self, key: str, limit: int) -> bytes | None:
        """A whole object, None where there is none. Raises Damaged for more than `limit` bytes."""
        answer = await self._get(key)
        return None if answer is None else b"".join(await pieces_of(answer, limit, key))

    async def range(self, key: str, start: int, length: int) -> list[bytes] | None:
        """A range in pieces, none where the object ends before it; None where there is no object."""
        try:
            answer = await self._get(key, Range=f"bytes={start}-{start + length - 1}")
        except ClientError as error:
            if code_of(error) in OUT_OF_RANGE:
                return []
            raise
        return None if answer is None else await pieces_of(answer, length, key)

    async def exists(self, key: str) -> bool:
        """By a GET of one byte: its 404 tells a missing object from a missing store, a HEAD's may be any proxy's."""
        with contextlib.suppress(Damaged):  # the store does not know ranges
            return await self.range(key, 0, 1) is not None
        return True

    async def answers_ranges(self, key: str) -> bool:
        answer = await self._first_byte(key)
        return answer is None or _is_partial(answer)

    async def _first_byte(self, key: str) -> dict[str, Any] | None:
        """What an answer to a GET of one byte says of the object; the body is dropped. None where there is none."""
        answer = await self._get(key, Range="bytes=0-0")
        if answer is not None:
            with contextlib.suppress(Damaged):
                await pieces_of(answer, 1, key)
        return answer

    async def _get(self, key: str, **arguments: Any) -> dict[str, Any] | None:
        try:
            answer: dict[str, Any] = await self._client.get_object(**self._at(key), **arguments)
        except ClientError as error:
            if code_of(error) == "NoSuchKey":
                return None
            raise
        _require_s3(answer)
        return answer

    async def head(self, key: str) -> dict[str, Any] | None:
        """What is known of an object, None where there is none. Not every store tells `ContentLength`."""
        try:
            answer: dict[str, Any] = await self._client.head_object(**self._at(key))
        except ClientError as error:
            if code_of(error) in ABSENT:
                return None
            raise
        _require_s3(answer)
        return answer

    async def size(self, key: str) -> int | None:
        """An object's length in bytes, None where there is no object."""
        if self.capabilities.head_length:
            found = await self.head(key)
            if found is None:
                return None
            if "ContentLength" in found:
                return int(found["ContentLength"])
        return await self._size_by_range(key)

    async def _size_by_range(self, key: str) -> int | None:
        try:
            answer = await self._first_byte(key)
        except ClientError as error:
            if code_of(error) in OUT_OF_RANGE:
                return 0
            raise
        if answer is None:
            return None
        if whole := _WHOLE.search(answer.get("ContentRange", "")):
            return int(whole[1])
        if _is_partial(answer) or "ContentLength" not in answer:
            raise NotS3
        return int(answer["ContentLength"])

    async def list(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """One page. `arguments` are the client's own but for the bucket."""
        answer: dict[str, Any] = await self._client.list_objects_v2(Bucket=self._bucket, **arguments)
        if "KeyCount" not in answer and "Name" not in answer:
            raise NotS3
        return answer


_WHOLE = re.compile(r"/([0-9]{1,15})\Z", re.ASCII)


def _marked(data: bytes, mark: str) -> dict[str, Any]:
    return {"Body": data, "ContentType": "application/json", "Metadata": {"mark": mark}}


def _is_partial(answer: Mapping[str, Any]) -> bool:
    return bool(answer["ResponseMetadata"]["HTTPStatusCode"] == 206)


def _carries(found: Mapping[str, Any] | None, mark: str) -> bool:
    return found is not None and found["Metadata"].get("mark") == mark


def _require_s3(answer: Mapping[str, Any]) -> None:
    """Any web server answers 200 to something; a store tells an object's ETag."""
    if "ETag" not in answer:
        raise NotS3
