"""What a store that speaks S3 can do. Several of them lack a part of it, and none says so before it is asked.

Backblaze B2 and Alibaba OSS answer a conditional PUT with 501 NotImplemented; others ignore the condition. Google Cloud
Storage has no DeleteObjects. R2 and Google Cloud Storage leave the length out of some answers to HEAD.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sidecar.ports import Findings

if TYPE_CHECKING:
    from sidecar.storages.s3_objects import Objects


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What is assumed of a store before it was probed, and what was found by then."""

    conditional_put: bool = True
    """A PUT with `If-None-Match: *` fails with 412 where the object exists."""
    multi_delete: bool = True
    """DeleteObjects."""
    head_length: bool = True
    """HEAD answers with a Content-Length."""
    ranges: bool = True
    """GET with a Range answers 206 with that range."""

    @property
    def findings(self) -> Findings:
        return Findings(
            summary="; ".join(
                (
                    f"conditional PUT: {_yes_or(self.conditional_put, 'no')}",
                    f"DeleteObjects: {_yes_or(self.multi_delete, 'no, objects are deleted one by one')}",
                    f"HEAD with a length: {_yes_or(self.head_length, 'no, lengths are read with a GET of one byte')}",
                    f"ranges: {_yes_or(self.ranges, 'no')}",
                )
            ),
            shortfall=" ".join(
                words
                for has_it, words in ((self.conditional_put, _NO_CONDITIONS), (self.ranges, _NO_RANGES))
                if not has_it
            ),
        )


_NO_CONDITIONS = (
    "The image store has no conditional PUT (If-None-Match), so where two pods try at the same moment both may win an "
    "idempotency key or a job: an image may be painted twice. Run one pod, or use a store with conditional writes."
)
_NO_RANGES = (
    "The image store does not answer ranges: images over 64 KiB may fail with IMAGE_DELIVERY=proxy, and clients get no "
    "parts of images."
)


def _yes_or(has_it: bool, otherwise: str) -> str:
    return "yes" if has_it else otherwise


async def probe(objects: Objects, key: str) -> Capabilities:
    """Try each capability on the object `key`, which must exist; it is deleted. Four or five small requests.

    Raises what the client raises where the store refuses an operation that every S3 store has.
    """
    conditional_put = await objects.refuses_to_overwrite(key, b"{}")
    head = await objects.head(key)
    ranges = await objects.answers_ranges(key)
    multi_delete = await objects.delete_many([key, f"{key}-absent"])
    if not multi_delete:
        await objects.delete(key)
    return Capabilities(
        conditional_put=conditional_put,
        multi_delete=multi_delete,
        head_length=head is None or "ContentLength" in head,
        ranges=ranges,
    )
