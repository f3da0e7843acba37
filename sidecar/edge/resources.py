"""Stored images as MCP resources, `image://{image_id}`."""

from __future__ import annotations

import mcp_types as types
import pybase64

from sidecar.domain import ImageId, ImageRecord
from sidecar.edge.tools.results import image_url, rfc3339
from sidecar.edge.tools.tool import Call
from sidecar.errors import ImageNotFound, bounded

SCHEME = "image://"
PAGE = 50
LARGEST_READ = 700_000
"""Bytes of an image that is given whole: hosts refuse messages of 1 MiB, and base64 adds a third."""


async def list_images(call: Call, cursor: str | None) -> types.ListResourcesResult:
    """A page of images, newest first. Raises InvalidRequest for a cursor that is none of ours."""
    page = await call.service.list_images(limit=PAGE, cursor=cursor, owner=call.owner)
    return types.ListResourcesResult(resources=[_resource(record) for record in page.records], next_cursor=page.cursor)


def _resource(record: ImageRecord) -> types.Resource:
    return types.Resource(
        uri=f"{SCHEME}{record.image_id}",
        name=str(record.image_id),
        title=bounded(record.request.prompt, 80),
        description=f"{record.picture.width}×{record.picture.height}, {record.request.model}, "
        f"seed {record.request.seed}",
        mime_type=record.picture.media_type,
        size=record.size_bytes,
        annotations=types.Annotations(audience=["user"], last_modified=rfc3339(record.created)),
    )


def templates() -> types.ListResourceTemplatesResult:
    """The one kind of image resource."""
    template = types.ResourceTemplate(
        uri_template=f"{SCHEME}{{image_id}}",
        name="image",
        title="A generated image",
        description="One stored image by its image_id; a large one is given as a link to it.",
    )
    return types.ListResourceTemplatesResult(resource_templates=[template])


async def read_image(call: Call, uri: str) -> types.ReadResourceResult:
    """The image, or a text with its URL where it is too large for a message. Raises ImageNotFound."""
    if not uri.startswith(SCHEME):
        raise ImageNotFound
    stored = await call.service.get(ImageId.parse(uri.removeprefix(SCHEME)))
    record = stored.record
    if record.owner != call.owner:
        raise ImageNotFound
    if record.size_bytes > LARGEST_READ:
        text = f"The image has {record.size_bytes:,} bytes, too many for a message. It is at "
        where = types.TextResourceContents(
            uri=uri, mime_type="text/plain", text=f"{text}{image_url(call.base_url, record)}"
        )
        return types.ReadResourceResult(contents=[where])
    data = await call.service.read(stored)
    blob = types.BlobResourceContents(
        uri=uri, mime_type=record.picture.media_type, blob=pybase64.b64encode(data).decode()
    )
    return types.ReadResourceResult(contents=[blob])
