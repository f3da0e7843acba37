"""A diffusers model behind KServe's v1 protocol: `POST …/v1/models/NAME:predict`.

A predict is sent again only where the runtime cannot have begun the work: no connection, 429, or 503 and 404 while the
model says that it is not ready. A time-out or a lost answer is never retried, because the runtime goes on working for
a client that has left and a second request would double its load. For the same reason a predict uses a connection of
its own: a pooled one that the server has just closed would leave open whether the request arrived.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NoReturn
from urllib.parse import urlsplit

import aiofiles
import aiohttp
import structlog
from opentelemetry import propagate
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt, wait_exponential_jitter

from sidecar.config import ModelSettings, Secret
from sidecar.domain import GeneratedImage, GenerationRequest
from sidecar.errors import (
    ModelUnknownToRuntime,
    RuntimeAnsweredNonsense,
    RuntimeBusy,
    RuntimeFailure,
    RuntimeLostAnswer,
    RuntimeNotReady,
    RuntimeUnreachable,
    bounded,
)
from sidecar.events import PredictRetried
from sidecar.ports import Observer, Readiness, RuntimeMetrics, StagedFile
from sidecar.runtimes.arriving_image import ArrivingImage
from sidecar.runtimes.http_session import (
    MAX_INTERIM_RESPONSES,
    TooLarge,
    TooManyInterimResponses,
    at_most,
    start_of,
)
from sidecar.runtimes.kserve_answer import AnswerReader, ErrorInAnswer
from sidecar.runtimes.kserve_errors import answered_error, error_text, redirected, refusal, unexpected_keyword
from sidecar.runtimes.kserve_probe import Seen, listed_models, seen
from sidecar.runtimes.profiles import PROFILES, instance_for
from sidecar.runtimes.unpacking import DamagedPacking, UnknownCoding

_NOT_STARTED = (RuntimeUnreachable, RuntimeNotReady, RuntimeBusy)
_ATTEMPTS = 5
_LONGEST_WAIT = 8.0
_PROBE_SECONDS = 2.0
_ERROR_BODY_BYTES = 64 * 1024
_METRICS_BYTES = 16 * 1024 * 1024
_METRICS_SECONDS = 8.0  # less than Prometheus gives a scrape by default
_SCRAPES = 8  # at once: each holds about a megabyte
_METRICS_TYPE = re.compile(
    r"(?:text/plain|application/openmetrics-text)(?:\s*;\s*[a-z]+=\"?[\w.-]{1,40}\"?){0,8}", re.ASCII | re.IGNORECASE
)
_JSON_SLACK_BYTES = 1024 * 1024  # an answer holds more than its image: prompt, model name, white space


class KServeV1Runtime:
    """The `Runtime` port on one KServe v1 model."""

    def __init__(
        self, model: ModelSettings, session: aiohttp.ClientSession, *, max_image_bytes: int, observer: Observer
    ) -> None:
        self._model = model
        self._session = session
        self._max_image_bytes = max_image_bytes
        self._observer = observer
        self._refused: set[str] = set()
        self._scrapes = asyncio.Semaphore(_SCRAPES)
        self._tls: ssl.SSLContext | bool = ssl.create_default_context(cafile=model.ca_file) if model.ca_file else True

    async def generate(self, request: GenerationRequest, staged: StagedFile) -> GeneratedImage:
        image = ArrivingImage(staged)
        sent = await self._predict(request, image)
        picture = image.picture(self._max_image_bytes)
        await image.flush()
        return GeneratedImage(
            path=staged.path,
            sha256=image.sha256,
            size_bytes=image.size_bytes,
            picture=picture,
            seed_applied=PROFILES[self._model.profile].takes_seed and "seed" in sent,
            dropped_parameters=tuple(key for key in instance_for(request, self._model, ()) if key not in sent),
            sparse=image.sparse(picture),
        )

    def forget(self) -> None:
        self._refused.clear()

    async def readiness(self) -> Readiness:
        return (await self._look()).readiness

    async def _look(self) -> Seen:
        """Ask the model's own URL. Raises nothing for a runtime in trouble."""
        try:
            async with asyncio.timeout(_PROBE_SECONDS), self._request("GET", self._model.endpoint) as response:
                body = await start_of(response, _ERROR_BODY_BYTES)
                return seen(response.status, body, response.headers.get("Location", ""))
        except TimeoutError:
            return Seen(Readiness(ready=False, reached=False, detail="does not answer"))
        except RuntimeFailure as error:  # the token cannot be read
            return Seen(Readiness(ready=False, reached=False, detail=error.message))
        except UnknownCoding as error:
            detail = f"answers with Content-Encoding {error.coding!r}, which it was asked not to do"
            return Seen(Readiness(ready=False, reached=True, detail=detail))
        except UnicodeError:
            return Seen(
                Readiness(ready=False, reached=True, detail="cannot be reached (no such host can be asked for)")
            )
        except (aiohttp.ClientError, OSError) as error:
            return Seen(Readiness(ready=False, reached=True, detail=f"cannot be reached ({type(error).__name__})"))

    async def _listed_models(self) -> str:
        """A sentence on what the runtime lists; an empty text where it lists nothing readable in time."""
        try:
            url, configured = self._model.endpoint.rsplit("/", 1)
            async with asyncio.timeout(_PROBE_SECONDS), self._request("GET", url) as response:
                if response.status != 200:
                    return ""
                return listed_models(await start_of(response, _ERROR_BODY_BYTES), configured)
        except (RuntimeFailure, UnknownCoding, aiohttp.ClientError, OSError, UnicodeError):  # a time-out is an OSError
            return ""

    @asynccontextmanager
    async def metrics(self) -> AsyncIterator[RuntimeMetrics]:
        parts = urlsplit(self._model.endpoint)
        url = f"{parts.scheme}://{parts.netloc}/metrics"
        try:
            async with asyncio.timeout(_METRICS_SECONDS), self._scrapes, self._request("GET", url) as response:
                if response.status != 200:
                    raise RuntimeFailure(f"The runtime answers HTTP {response.status} for its metrics.")
                yield RuntimeMetrics(_metrics_type(response), at_most(response, _METRICS_BYTES))
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise RuntimeUnreachable("The runtime does not give its metrics at the moment.") from error
        except TooLarge as error:
            raise RuntimeFailure(f"The runtime's metrics are larger than {_METRICS_BYTES:,} bytes.") from error
        except (UnknownCoding, DamagedPacking) as error:
            raise RuntimeFailure(
                f"The runtime's metrics cannot be unpacked by their Content-Encoding: {bounded(str(error), 60)}."
            ) from error

    # --- a predict ----------------------------------------------------------------------------------------------------

    async def _predict(self, request: GenerationRequest, image: ArrivingImage) -> dict[str, Any]:
        """Fill `image`; the instance that was sent for it."""
        retrying = AsyncRetrying(
            retry=retry_if_exception(_cannot_have_started),
            stop=stop_after_attempt(_ATTEMPTS),
            wait=_wait,
            before_sleep=self._tell_retry,
            reraise=True,
        )
        async for attempt in retrying:
            with attempt:
                return await self._predict_without_refused_keys(request, image)
        raise AssertionError("unreachable: the last attempt raises")

    async def _predict_without_refused_keys(self, request: GenerationRequest, image: ArrivingImage) -> dict[str, Any]:
        """Send; where the runtime names a key it does not take, send once more without that key."""
        while True:
            instance = instance_for(request, self._model, self._refused)
            try:
                await self._send(instance, image)
                return instance
            except _UnexpectedKeyword as unexpected:
                if unexpected.key not in instance or unexpected.key == "prompt":
                    raise unexpected.failure from None
                self._refused.add(unexpected.key)
                self._observer(PredictRetried(model=self._model.name, reason="refused_parameters", wait=0.0))

    async def _send(self, instance: dict[str, Any], image: ArrivingImage) -> None:
        body = json.dumps({"instances": [instance]}).encode()
        headers = {"Content-Type": "application/json", "Connection": "close"}
        try:
            async with self._request("POST", f"{self._model.endpoint}:predict", data=body, headers=headers) as response:
                if response.status // 100 != 2:
                    await self._refuse(response)
                await self._read_answer(response, image)
        except (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError) as error:
            raise RuntimeFailure(
                "The certificate of the model's runtime is not trusted; its operator sets KSERVE_CA_FILE."
            ) from error
        except aiohttp.ClientConnectorError as error:
            self.forget()
            raise RuntimeUnreachable(
                "The model's runtime cannot be reached; it may be starting.", retry_after=30
            ) from error
        except aiohttp.ConnectionTimeoutError as error:
            raise RuntimeUnreachable("The model's runtime does not accept connections.", retry_after=30) from error
        except TooManyInterimResponses as error:
            raise RuntimeAnsweredNonsense(
                f"The model's runtime sent more than {MAX_INTERIM_RESPONSES} interim responses (1xx) before its answer."
            ) from error
        except (aiohttp.ClientError, OSError) as error:
            self.forget()
            raise RuntimeLostAnswer(
                "The connection to the model's runtime broke while it was working; it may have crashed. "
                "A smaller size may help; the call can be repeated once the runtime is back."
            ) from error

    async def _read_answer(self, response: aiohttp.ClientResponse, image: ArrivingImage) -> None:
        reader = AnswerReader(image)
        limit = self._max_image_bytes * 4 // 3 + _JSON_SLACK_BYTES
        try:
            async for chunk in at_most(response, limit):
                reader.feed(chunk)
                await image.flush()
        except UnknownCoding as error:
            raise RuntimeAnsweredNonsense(
                f"The model's runtime, or a proxy before it, answered with Content-Encoding {error.coding!r}; allowed: "
                "none, gzip, deflate. Its operator turns the compression off."
            ) from error
        except DamagedPacking as error:
            raise RuntimeAnsweredNonsense(
                "The model's runtime, or a proxy before it, answered a body that does not fit its Content-Encoding."
            ) from error
        except TooLarge as error:
            raise RuntimeAnsweredNonsense(
                f"The model's runtime answered more than the {self._max_image_bytes:,} bytes that an image may have "
                "(MAX_IMAGE_BYTES)."
            ) from error
        try:
            reader.finish()
        except ErrorInAnswer as error:
            text = await self._without_token(error.said)
            self._raise(answered_error(text), response.status, text)

    async def _refuse(self, response: aiohttp.ClientResponse) -> NoReturn:
        if 300 <= response.status < 400:
            raise redirected(response.status, response.headers.get("Location", ""))
        try:
            said = error_text(await start_of(response, _ERROR_BODY_BYTES))
        except UnknownCoding:
            said = ""
        text = await self._without_token(said)
        found = await self._look() if response.status in (404, 503) else None
        failure = refusal(response.status, text, retry_after=_seconds(response.headers.get("Retry-After")), seen=found)
        if isinstance(failure, ModelUnknownToRuntime) and (listed := await self._listed_models()):
            failure = ModelUnknownToRuntime(f"{failure.message.removesuffix('.')}. {listed}")
        if isinstance(failure, RuntimeNotReady):
            self.forget()  # it may have restarted
        if found is not None and found.may_be_at_work:
            raise failure from _MayHaveStarted()
        self._raise(failure, response.status, text)

    def _raise(self, failure: RuntimeFailure, status: int, text: str) -> NoReturn:
        if (key := unexpected_keyword(status, text)) is not None:
            raise _UnexpectedKeyword(key, failure)
        raise failure

    async def _without_token(self, text: str) -> str:
        """Some servers echo what they were sent."""
        token = await _read_secret(self._model.token) if self._model.token is not None else ""
        return text.replace(token, "***") if token else text

    @asynccontextmanager
    async def _request(
        self, method: str, url: str, headers: dict[str, str] | None = None, **kwargs: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        sent = dict(headers or {})
        propagate.inject(sent)
        if request_id := structlog.contextvars.get_contextvars().get("request_id"):
            sent["X-Request-ID"] = request_id
        if self._model.token is not None:
            sent["Authorization"] = f"Bearer {await _read_secret(self._model.token)}"
        async with self._session.request(
            method, url, headers=sent, ssl=self._tls, allow_redirects=False, **kwargs
        ) as response:
            try:
                yield response
            finally:
                if response.status != 200:
                    response.close()  # after an error kserve may have spoiled the connection: never pool it

    def _tell_retry(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        reason = error.reason if isinstance(error, RuntimeFailure) else "unknown"
        self._observer(PredictRetried(model=self._model.name, reason=reason, wait=state.upcoming_sleep))


def _metrics_type(response: aiohttp.ClientResponse) -> str:
    """The Content-Type to pass on. Raises RuntimeFailure for what a browser might run as a page of this server's."""
    given = response.headers.get("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
    if _METRICS_TYPE.fullmatch(given) is None:
        raise RuntimeFailure(
            f"The runtime answers its metrics with the Content-Type {bounded(ascii(given), 100)}; allowed: text/plain "
            "and application/openmetrics-text."
        )
    return given


class _UnexpectedKeyword(Exception):
    def __init__(self, key: str, failure: RuntimeFailure) -> None:
        super().__init__(key)
        self.key = key
        self.failure = failure


class _MayHaveStarted(Exception):
    """The cause of a refusal that says nothing of whether the work has begun."""


def _cannot_have_started(error: BaseException) -> bool:
    return isinstance(error, _NOT_STARTED) and not isinstance(error.__cause__, _MayHaveStarted)


_backoff = wait_exponential_jitter(multiplier=0.25, max=_LONGEST_WAIT, jitter=0.25)


def _wait(state: RetryCallState) -> float:
    """Exponential backoff with jitter; a busy runtime's own Retry-After where it is short."""
    error = state.outcome.exception() if state.outcome else None
    asked = error.retry_after if isinstance(error, RuntimeBusy) and error.retry_after else 0.0
    return max(_backoff(state), asked if asked <= _LONGEST_WAIT else 0.0)


def _seconds(header: str | None) -> float | None:
    with contextlib.suppress(TypeError, ValueError):
        return max(0.0, float(header or ""))
    return None


async def _read_secret(secret: Secret) -> str:
    """A bearer token without the line end that files tend to have. Raises RuntimeFailure."""
    text = secret.text or ""
    try:
        if secret.file is not None:
            async with aiofiles.open(secret.file, encoding="utf-8") as file:
                text = await file.read()
    except OSError as error:
        raise RuntimeUnreachable("The token for the model's runtime cannot be read.") from error
    except ValueError as error:
        raise RuntimeFailure("The token for the model's runtime is not a text.") from error
    if not text.strip().isprintable():
        raise RuntimeFailure("The token for the model's runtime is not one line of text.")
    return text.strip()
