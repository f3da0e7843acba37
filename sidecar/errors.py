"""Everything that can go wrong, as one tree.

Each message is written for the caller: what was wrong and what to do or what is allowed. It never holds a secret, a
traceback or an unbounded piece of foreign text. `edge/errors_map.py` is the only place where these meet a wire.
"""

from __future__ import annotations

import unicodedata
from typing import ClassVar

_READ_PER_CHARACTER = 4  # so that what is removed or joined seldom shortens the result, and huge texts cost little
_REPLACED = {"Cc": " ", "Zl": " ", "Zp": " ", "Cf": "", "Cs": "?"}
"""What stands for a character in a text that is shown, by its Unicode category."""

INTERNAL = "Something went wrong inside the image server; its log tells what. Trying again may help."
"""What a caller is told of the unknown."""


class SidecarError(Exception):
    """The root. `reason` is a stable word for metrics and logs."""

    reason: ClassVar[str] = "error"

    def __init__(self, message: str, *, retry_after: float | None = None, detail: str | None = None) -> None:
        """`retry_after` is in seconds; None means that waiting alone will not help.

        `detail` is for the operator's eyes, in /readyz and the log: unlike the message it may name an endpoint or a
        bucket. None: the message says it all.
        """
        super().__init__(message)
        self.message = message
        self.retry_after = retry_after
        self.detail = message if detail is None else detail


class BadConfiguration(SidecarError):
    """One or more settings are wrong; `problems` has one line for each."""

    reason = "bad_configuration"

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class InvalidRequest(SidecarError):
    """The caller's arguments are wrong; the message says which, and what is allowed."""

    reason = "invalid_request"


class ImageNotFound(SidecarError):
    """No such image: unknown, malformed, deleted and expired look alike."""

    reason = "image_not_found"

    def __init__(self) -> None:
        super().__init__("There is no image with this id: it may have expired or been deleted.")


class ImageDamaged(ImageNotFound):
    """The store has something of this image that cannot be shown. `detail` says what is wrong with it."""

    reason = "image_damaged"

    def __init__(self, detail: str) -> None:
        SidecarError.__init__(
            self, "The stored image with this id is damaged and cannot be shown. Generate it again.", detail=detail
        )


class JobNotFound(SidecarError):
    """No such generation: unknown, malformed, foreign and expired look alike."""

    reason = "job_not_found"

    def __init__(self) -> None:
        super().__init__("There is no generation with this job_id: it may have expired, or it was never given out.")


class KeyConflict(SidecarError):
    """The idempotency key was used with other arguments."""

    reason = "key_conflict"


class TakenElsewhere(SidecarError):
    """Another process has begun, cancelled or ended this generation."""

    reason = "taken_elsewhere"

    def __init__(self) -> None:
        super().__init__("The generation was taken over or cancelled elsewhere.")


class Interrupted(SidecarError):
    """The process that worked on a generation ended before the image was stored."""

    reason = "interrupted"


class QueueFull(SidecarError):
    """As many generations wait for this model as are allowed to."""

    reason = "queue_full"


class ShuttingDown(SidecarError):
    """The sidecar is stopping and takes no new generations."""

    reason = "shutting_down"


class UndecodablePicture(SidecarError):
    """The bytes carry the structure of a picture but do not decode to one."""

    reason = "undecodable_picture"


class NoPreview(SidecarError):
    """Decoding the picture would take, or took, more memory or time than one preview may; the image is untouched.

    `why` is the part of the message that says so. `retry_after` is None where the picture itself is the reason.
    """

    reason = "no_preview"

    def __init__(self, why: str, *, retry_after: float | None = None) -> None:
        super().__init__(f"This picture has no preview: {why}. The image itself can be had.", retry_after=retry_after)
        self.args = (why,)  # what a copy is made of
        self.why = why


class DecoderUnavailable(SidecarError):
    """No process for decoding can be started at the moment."""

    reason = "decoder_unavailable"


class RuntimeFailure(SidecarError):
    """The model's runtime did not deliver an image."""

    reason = "runtime_failed"


class RuntimeUnreachable(RuntimeFailure):
    """No connection could be made, so the work has not started."""

    reason = "unreachable"


class RuntimeNotReady(RuntimeFailure):
    """The runtime is up but its model is not loaded, so the work has not started."""

    reason = "not_ready"


class RuntimeBusy(RuntimeFailure):
    """The runtime refused the work for now (429, or 503 while ready)."""

    reason = "busy"


class ModelUnknownToRuntime(RuntimeFailure):
    """The runtime serves no model of the configured name."""

    reason = "unknown_model"


class RuntimeRefusedParameters(RuntimeFailure):
    """The runtime rejected what was asked for (400, 422)."""

    reason = "refused_parameters"


class RuntimeOutOfMemory(RuntimeFailure):
    """The accelerator's memory does not hold the image asked for."""

    reason = "out_of_memory"


class RuntimeTimedOut(RuntimeFailure):
    """The caller's wait is over; the runtime may still be working."""

    reason = "timed_out"


class RuntimeLostAnswer(RuntimeFailure):
    """The connection broke after the request was sent: the work may have been done and cannot be asked for again."""

    reason = "lost_answer"


class RuntimeAnsweredNonsense(RuntimeFailure):
    """The answer is not an image in the shape of the protocol."""

    reason = "answered_nonsense"


class StorageFailure(SidecarError):
    """The store cannot take or give images at the moment."""

    reason = "storage_unavailable"


class StoreAway(StorageFailure):
    """The store is out of order for now and nothing is known to be configured wrongly; images are held until then."""


class StorageFull(StorageFailure):
    """The store has no room for another image."""

    reason = "storage_full"


class GenerationUnknown(StorageFailure):
    """The store cannot be asked how a generation stands: it may be queued, working or ended. It has not failed.

    `job_id` is None where the store could not even say which generation an idempotency key belongs to.
    """

    def __init__(
        self, message: str, *, job_id: str | None, retry_after: float | None = None, detail: str | None = None
    ) -> None:
        super().__init__(message, retry_after=retry_after or 10.0, detail=detail)
        self.job_id = job_id


def bounded(text: str, limit: int = 300) -> str:
    """Foreign text on one line of at most `limit` characters, fit for a message, a title or a log."""
    line = " ".join(cleaned(text, _READ_PER_CHARACTER * limit).split())
    return _cut(line, limit)


def cleaned(text: str, limit: int) -> str:
    """Foreign text of at most `limit` characters that cannot command its reader: a terminal, a browser, a log viewer.

    Line ends and tabs stay. Other control characters become spaces, lone surrogates question marks; format characters
    (bidirectional overrides, zero-width characters and their like: Unicode's category Cf) go.
    """
    text = _cut(text, limit)
    return text if text.isprintable() else "".join(map(_shown, text))


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _shown(character: str) -> str:
    if character in "\n\t" or character.isprintable():
        return character
    return _REPLACED.get(unicodedata.category(character), character)
