"""What the health routes say: looked at in the background, so that a probe never waits for a disk or a runtime."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sidecar.core.generation import Lane
from sidecar.errors import INTERNAL, SidecarError, StoreAway
from sidecar.events import Crashed, Event, RuntimeSeen, StorageProbed, StorageSeen, Swept
from sidecar.ports import Clock, Findings, Observer, Readiness, Storage

PROBE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Check:
    """One entry of a health answer."""

    status: str
    detail: str = ""


class Watch:
    """What the last look found: `check`, and `since` when its status has been what it is (aware UTC)."""

    def __init__(self, clock: Clock, check: Check) -> None:
        self._clock = clock
        self._check = check
        self.since = clock.now()

    @property
    def check(self) -> Check:
        return self._check

    @check.setter
    def check(self, found: Check) -> None:
        if found.status != self._check.status:
            self.since = self._clock.now()
        self._check = found


class StorageWatch(Watch):
    """Whether the store can be written, or this pod holds images for one that is away."""

    def __init__(self, storage: Storage, clock: Clock, observer: Observer) -> None:
        super().__init__(clock, Check("unknown", "not yet tried"))
        self._storage = storage
        self._observer = observer
        self._findings: Findings | None = None
        self.capabilities = Watch(clock, Check("unknown"))
        """What this kind of store was found to lack; unknown where there is nothing to find out."""
        self.took_images = False

    async def run(self) -> None:
        while True:
            await self.look()
            await self._clock.sleep(PROBE_SECONDS)

    async def look(self) -> None:
        try:
            await self._storage.check()
        except SidecarError as error:
            self.check = Check("degraded", error.detail + self._waiting)
            self.took_images = self.took_images or isinstance(error, StoreAway)
            writable = False
        except Exception as error:  # the next look must come all the same
            self.check = Check("degraded", INTERNAL + self._waiting)
            self._observer(Crashed(what="the look at the store", error=error))
            writable = False
        else:
            self.check = Check("degraded", self._waiting.strip()) if self._storage.held else Check("ok")
            self.took_images = writable = True
        self._observer(StorageSeen(backend=self._storage.backend, writable=writable, detail=self.check.detail))
        self._look_at_findings()

    def _look_at_findings(self) -> None:
        found = self._storage.findings
        if found is None or found == self._findings:
            return
        self._findings = found
        self.capabilities.check = Check("degraded", found.shortfall) if found.shortfall else Check("ok", found.summary)
        self._observer(StorageProbed(backend=self._storage.backend, summary=found.summary, shortfall=found.shortfall))

    @property
    def _waiting(self) -> str:
        """What would be lost with this pod."""
        return f" Finished images waiting on this pod for the store: {held}." if (held := self._storage.held) else ""


class CleanupWatch(Watch):
    """How the last clean-up pass went: an observer of passes."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock, Check("unknown", "not yet tried"))

    def __call__(self, event: Event) -> None:
        if isinstance(event, Swept):
            self.check = _of_a_pass(event)


def _of_a_pass(swept: Swept) -> Check:
    if not (swept.failure or swept.report.errors):
        return Check("ok")
    counted = f"The last clean-up pass had {swept.report.errors} error{'s' * (swept.report.errors != 1)}"
    return Check("degraded", f"{counted}: {swept.failure}" if swept.failure else f"{counted}.")


class RuntimeWatch(Watch):
    """Whether one model's runtime is ready. A predict may block the runtime's probes, so silence then means busy."""

    def __init__(self, lane: Lane, clock: Clock, observer: Observer) -> None:
        super().__init__(clock, Check("unknown", "not yet asked"))
        self._lane = lane
        self._observer = observer
        self.was_ready = False

    @property
    def ready(self) -> bool:
        """A runtime that cannot be asked is taken for ready, and its check is degraded."""
        return self.check.status in ("ok", "busy", "degraded")

    async def run(self) -> None:
        while True:
            await self.look()
            await self._clock.sleep(PROBE_SECONDS)

    async def look(self) -> None:
        seen = await self._asked()
        was_ready = self.ready
        self.check = self._judge(seen)
        self._lane.ready = self.ready
        if self.ready:
            self.was_ready = True
        elif was_ready:
            self._lane.runtime.forget()
        self._observer(RuntimeSeen(model=self._lane.settings.name, ready=self.ready, detail=self.check.detail))

    async def _asked(self) -> Readiness:
        try:
            return await self._lane.runtime.readiness()
        except Exception as error:  # the next look must come all the same
            self._observer(Crashed(what=f"the look at the runtime of {self._lane.settings.name}", error=error))
            return Readiness(ready=False, reached=True, detail=INTERNAL)

    def _judge(self, seen: Readiness) -> Check:
        if seen.ready:
            return Check("degraded", seen.detail) if seen.detail else Check("ok")
        if not seen.reached and self._lane.queue.in_flight and self.ready:
            return Check("busy", "does not answer probes while it works")
        return Check("not ready", seen.detail)


class Health:
    """The three probes, each a verdict and its checks by name."""

    def __init__(self, storage: StorageWatch, cleanup: CleanupWatch, runtimes: Mapping[str, RuntimeWatch]) -> None:
        self.storage = storage
        self.cleanup = cleanup
        self.runtimes = runtimes
        self.stopping = False

    @property
    def watches(self) -> dict[str, Watch]:
        """By name. Capabilities are there once a store was probed for them, clean-up while it fails."""
        watches: dict[str, Watch] = {"storage": self.storage}
        if self.storage.capabilities.check.status != "unknown":
            watches["storage/capabilities"] = self.storage.capabilities
        if self.cleanup.check.status == "degraded":
            watches["cleanup"] = self.cleanup
        return watches | {f"runtime/{model}": watch for model, watch in self.runtimes.items()}

    @property
    def started(self) -> bool:
        """Whether images could be taken once and every runtime was ready once."""
        return self.storage.took_images and all(watch.was_ready for watch in self.runtimes.values())

    @property
    def ready(self) -> bool:
        """A store in trouble only degrades: what can still be served stays reachable."""
        return not self.stopping and self.started and any(watch.ready for watch in self.runtimes.values())
