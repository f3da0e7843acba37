"""Clean-up: what goes, what stays, and what a pass survives. The plain sweeps are in test_file_store.py."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from sidecar.core.sweeper import DELETIONS_PER_PASS, Sweeper
from sidecar.domain import (
    Deletion,
    GeneratedImage,
    ImageId,
    ImageRecord,
    Inventory,
    RecordPage,
    StoredImage,
    SweepReport,
)
from sidecar.errors import StorageFailure
from sidecar.events import Event, StorageCounted, Swept
from sidecar.ports import ExpiredImage, Findings, Link, OpenFile, RecordFilter, StagedFile, SystemClock
from sidecar.storages import keys
from sidecar.storages.directory import Directory
from sidecar.storages.file import FileStorage
from sidecar.storages.file_jobs import FileJobs
from tests.conftest import Sidecar, StartSidecar, metric_becomes
from tests.storage_contract import DAY, PNG, HeldClock, listed, put

HOUR = timedelta(hours=1)


class Facts:
    """An observer that remembers clean-up, and can be waited on."""

    def __init__(self) -> None:
        self.passes: asyncio.Queue[Swept] = asyncio.Queue()
        self.counted: list[Inventory] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, Swept):
            self.passes.put_nowait(event)
        if isinstance(event, StorageCounted):
            self.counted.append(event.inventory)

    async def next_pass(self, *, failed: bool) -> Swept:
        async with asyncio.timeout(30):
            while True:
                swept = await self.passes.get()
                if (swept.failure is not None) == failed:
                    return swept


@pytest.fixture
def clock() -> HeldClock:
    return HeldClock()


@pytest.fixture
def facts() -> Facts:
    return Facts()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "images"


@pytest.fixture
async def store(root: Path, clock: HeldClock, facts: Facts) -> AsyncIterator[FileStorage]:
    async with FileStorage(root, max_bytes=None, clock=clock, observer=facts).opened() as opened:
        yield opened


@pytest.fixture
def sweeper(store: FileStorage, clock: HeldClock, facts: Facts) -> Sweeper:
    return Sweeper(store, store.jobs, interval=0.01, clock=clock, observer=facts)


def files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def aged(path: Path, hours: float, clock: HeldClock, data: bytes = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    moment = clock.now().timestamp() - hours * 3600
    os.utime(path, (moment, moment))
    return path


def deeds(report: SweepReport) -> dict[str, int]:
    return {"deleted": report.deleted, "leftovers": report.leftovers_deleted, "errors": report.errors}


# --- what goes --------------------------------------------------------------------------------------------------------


async def test_a_pass_states_what_it_did_and_what_remains(
    store: FileStorage, sweeper: Sweeper, clock: HeldClock, facts: Facts
) -> None:
    for life in (HOUR, HOUR, DAY):
        await put(store, clock.now(), life=life)
    clock.advance(HOUR)
    report = await sweeper.sweep()
    assert report == SweepReport(deleted=2, freed_bytes=2 * len(PNG), seconds=0.0)
    assert facts.passes.get_nowait() == Swept(report=report)
    (counted,) = facts.counted
    assert (counted.images, counted.size_bytes, counted.errors) == (1, len(PNG), 0)
    assert counted.free_bytes is not None
    assert counted.free_bytes > 0


async def test_a_second_pass_finds_nothing(store: FileStorage, sweeper: Sweeper, clock: HeldClock) -> None:
    await put(store, clock.now(), life=HOUR)
    clock.advance(HOUR)
    assert (await sweeper.sweep()).deleted == 1
    assert await sweeper.sweep() == SweepReport()


async def test_nothing_of_an_image_is_left_and_its_empty_directories_go_in_time(
    store: FileStorage, sweeper: Sweeper, clock: HeldClock, root: Path
) -> None:
    image_id = (await put(store, clock.now() - 3 * HOUR, life=HOUR)).record.image_id
    await store.put_thumbnail(image_id, b"small")
    await sweeper.sweep()
    assert files(root) == set()
    long_ago = clock.now().timestamp() - 7200
    for directory in [path for path in root.rglob("*") if path.is_dir()]:
        os.utime(directory, (long_ago, long_ago))
    (root / keys.record_key(image_id)).parent.parent.joinpath("somebody's").mkdir()
    clock.advance(2 * HOUR)
    await put(store, clock.now())
    await sweeper.sweep()
    shards = {path.name for path in (root / "images").iterdir()}
    assert image_id.text[: keys.SHARD_DIGITS] not in shards
    assert len(shards) == 1


async def test_an_expiry_entry_whose_image_is_gone_goes_uncounted(
    store: FileStorage, sweeper: Sweeper, clock: HeldClock, root: Path
) -> None:
    entry = root / keys.expiry_key(clock.now() - HOUR, ImageId.new(clock.now()))
    aged(entry, 0, clock)
    assert await sweeper.sweep() == SweepReport()
    assert not entry.exists()


@pytest.mark.parametrize(("hours", "left"), [(0.98, True), (1.02, False)])
@pytest.mark.parametrize("kind", ["image", "jpeg", "thumbnail", "record", "staged", "staged record"])
async def test_halves_and_leftovers_go_after_an_hour(
    kind: str, hours: float, left: bool, store: FileStorage, sweeper: Sweeper, clock: HeldClock, root: Path
) -> None:
    image_id = ImageId.new(clock.now() - 2 * HOUR, "alice")
    path = {
        "image": keys.image_key(image_id, "image/png"),
        "jpeg": keys.image_key(image_id, "image/jpeg"),
        "thumbnail": keys.thumbnail_key(image_id),
        "record": keys.record_key(image_id),
        "staged": f"staging/0123456789ab-{image_id}.part",
        "staged record": "staging/0123456789ab-0011223344556677.part",
    }[kind]
    aged(root / path, hours, clock, PNG)
    report = await sweeper.sweep()
    assert ((root / path).exists(), report.leftovers_deleted, report.errors) == (left, int(not left), 0)


async def test_a_whole_image_is_no_orphan_however_old_its_files_are(
    store: FileStorage, sweeper: Sweeper, clock: HeldClock, root: Path
) -> None:
    kept = [(await put(store, clock.now(), owner=owner, life=None)).record for owner in ("alice", "bob")]
    for record in kept:
        await store.put_thumbnail(record.image_id, b"small")
    before = files(root)
    for name in before:
        os.utime(root / name, (0, 0))
    for directory in [path for path in root.rglob("*") if path.is_dir()]:
        os.utime(directory, (0, 0))
    clock.advance(10_000 * DAY)
    assert deeds(await sweeper.sweep()) == {"deleted": 0, "leftovers": 0, "errors": 0}
    assert files(root) == before


async def test_a_writer_at_work_is_left_alone(
    store: FileStorage, sweeper: Sweeper, clock: HeldClock, root: Path
) -> None:
    async with store.stage(ImageId.new(clock.now()), 10) as staged:
        await staged.write(b"half")
        clock.advance(timedelta(minutes=50))
        assert await sweeper.sweep() == SweepReport()
        assert staged.path.exists()


# --- what stays -------------------------------------------------------------------------------------------------------


async def test_foreign_files_are_left_alone_and_not_counted_as_images(
    store: FileStorage, sweeper: Sweeper, clock: HeldClock, root: Path, facts: Facts
) -> None:
    record = (await put(store, clock.now(), life=None)).record
    shard = f"images/{record.image_id.text[: keys.SHARD_DIGITS]}"
    record_shard = str(Path(keys.record_key(record.image_id)).parent)
    expiry_shard = str(Path(keys.expiry_key(clock.now() - HOUR, record.image_id)).parent)
    names = ["README", f"{record.image_id}x", "0" * 42]
    directories = ("images", shard, "records", record_shard, "expiry", expiry_shard)
    foreign = [aged(root / directory / name, 99, clock) for directory in directories for name in names]
    foreign += [aged(root / "lost+found" / "#12", 99, clock), aged(root / ".snapshot", 99, clock)]
    assert deeds(await sweeper.sweep()) == {"deleted": 0, "leftovers": 0, "errors": 0}
    assert [path for path in foreign if not path.exists()] == []
    assert (await store.get(record.image_id)).record == record
    assert facts.counted[-1].images == 1


@pytest.mark.parametrize("time", ["", "0", "1", "0" * 8, "0" * 10])
async def test_an_entry_that_names_no_time_of_ours_deletes_no_image(
    time: str, store: FileStorage, sweeper: Sweeper, clock: HeldClock, root: Path
) -> None:
    record = (await put(store, clock.now(), life=DAY)).record
    entry = aged(root / "expiry" / "00000" / f"{time}-{record.image_id}", 99, clock)
    assert (await sweeper.sweep()).deleted == 0
    assert (await store.get(record.image_id)).record == record
    assert entry.exists()


async def test_images_made_while_passes_run_are_all_there(
    store: FileStorage, sweeper: Sweeper, clock: HeldClock, root: Path
) -> None:
    """An image is there before its record is: a pass must not take the one without the other for an orphan."""
    passes = asyncio.create_task(sweeper.run())
    try:
        stored = [(await put(store, clock.now())).record.image_id for _ in range(60)]
    finally:
        passes.cancel()
        await asyncio.gather(passes, return_exceptions=True)
    assert set(await listed(store, limit=50)) == set(stored)


# --- what a pass survives ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["image", "record", "thumbnail", "expiry"])
async def test_an_image_that_resists_is_counted_as_an_error_and_holds_up_nobody(
    part: str, store: FileStorage, sweeper: Sweeper, clock: HeldClock, root: Path
) -> None:
    others = [(await put(store, clock.now(), life=HOUR)).record.image_id for _ in range(2)]
    stuck = (await put(store, clock.now(), life=HOUR / 2)).record
    assert stuck.expires is not None
    key = {
        "image": keys.image_key(stuck.image_id, "image/png"),
        "record": keys.record_key(stuck.image_id),
        "thumbnail": keys.thumbnail_key(stuck.image_id),
        "expiry": keys.expiry_key(stuck.expires, stuck.image_id),
    }[part]
    (root / key).unlink(missing_ok=True)
    (root / key / "in the way").mkdir(parents=True)  # even root cannot unlink a directory
    clock.advance(HOUR)
    report = await sweeper.sweep()
    assert (report.deleted >= 2, report.errors > 0) == (True, True)
    assert not [name for name in files(root) if any(other.text in name for other in others)]
    (root / key / "in the way").rmdir()
    (root / key).rmdir()
    clock.advance(2 * HOUR)
    for name in files(root):
        os.utime(root / name, (0, 0))
    assert (await sweeper.sweep()).errors == 0
    assert files(root) == set()


async def test_a_directory_among_the_leftovers_holds_up_nobody(
    store: FileStorage, sweeper: Sweeper, clock: HeldClock, root: Path, facts: Facts
) -> None:
    in_the_way = root / "staging" / "0-directory"
    in_the_way.mkdir()
    os.utime(in_the_way, (0, 0))
    leftover = aged(root / "staging" / "0123456789ab-crashed.part", 2, clock)
    assert (await sweeper.sweep()).leftovers_deleted == 1
    assert not leftover.exists()
    assert facts.counted, "the inventory was not reached"


async def test_a_pass_that_fails_does_not_stop_the_next_one(
    store: FileStorage, sweeper: Sweeper, clock: HeldClock, root: Path, facts: Facts, tmp_path: Path
) -> None:
    await put(store, clock.now(), life=HOUR)
    passes = asyncio.create_task(sweeper.run())
    await facts.next_pass(failed=False)
    root.rename(tmp_path / "away")
    failed = await facts.next_pass(failed=True)
    assert failed.failure == "The image store cannot be used at the moment (No such file or directory)."
    assert failed.report.errors == 1
    clock.advance(HOUR)
    (tmp_path / "away").rename(root)
    async with asyncio.timeout(30):
        while files(root):
            await facts.next_pass(failed=False)
    passes.cancel()
    await asyncio.gather(passes, return_exceptions=True)


# --- bounded work -----------------------------------------------------------------------------------------------------


@dataclass
class ManyExpired:
    """A store that only sweeps: `due` images are past their time, and each deletion does what `outcome` says.

    The first `resisting` of them cannot be deleted.
    """

    due: int
    outcome: Deletion | StorageFailure | Exception
    resisting: int = 0
    backend: str = "memory"
    tried: int = 0
    due_since: datetime = field(default_factory=lambda: datetime.now(UTC) - DAY)
    inventories: list[datetime] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.index = [f"{number:06}" for number in range(self.due)]
        self.stuck = set(self.index[: self.resisting])

    async def expired(self, now: datetime) -> AsyncIterator[ExpiredImage]:
        image_id = ImageId.new(now)
        for key in self.index if now > self.due_since else ():
            yield ExpiredImage(image_id, key)

    async def delete_expired(self, expired: Sequence[ExpiredImage]) -> list[Deletion | BaseException]:
        self.tried += len(expired)
        outcomes: list[Deletion | BaseException] = [
            StorageFailure("stuck") if one.key in self.stuck else self.outcome for one in expired
        ]
        deleted = {one.key for one, outcome in zip(expired, outcomes, strict=True) if isinstance(outcome, Deletion)}
        self.index = [key for key in self.index if key not in deleted]
        return outcomes

    async def delete_leftovers(self, now: datetime) -> int:
        return 0

    async def clock_offset(self) -> float | None:
        return None

    async def take_inventory(self, now: datetime | None) -> Inventory:
        assert now is not None
        self.inventories.append(now)
        return Inventory()

    # what a sweep has no use for
    def reserve(self, size: int) -> AbstractContextManager[None]:
        raise NotImplementedError

    def stage(self, image_id: ImageId, expected: int) -> AbstractAsyncContextManager[StagedFile]:
        raise NotImplementedError

    async def commit(self, image: GeneratedImage, record: ImageRecord) -> StoredImage:
        raise NotImplementedError

    async def get(self, image_id: ImageId) -> StoredImage:
        raise NotImplementedError

    def at_hand(self, image_id: ImageId) -> Path | None:
        raise NotImplementedError

    async def thumbnail(self, image_id: ImageId) -> bytes | None:
        raise NotImplementedError

    async def put_thumbnail(self, image_id: ImageId, data: bytes) -> None:
        raise NotImplementedError

    async def page(
        self, owner: str, *, limit: int, cursor: str | None = None, matches: RecordFilter | None = None
    ) -> RecordPage:
        raise NotImplementedError

    async def delete(self, image_id: ImageId) -> Deletion:
        raise NotImplementedError

    async def check(self) -> None:
        raise NotImplementedError

    @property
    def findings(self) -> Findings | None:
        raise NotImplementedError

    async def open(self, stored: StoredImage, head: int) -> OpenFile:
        raise NotImplementedError

    def stream(self, stored: StoredImage, start: int, length: int) -> AsyncIterator[bytes]:
        raise NotImplementedError

    async def link(self, stored: StoredImage) -> Link | None:
        raise NotImplementedError

    @property
    def held(self) -> int:
        raise NotImplementedError

    async def send_held(self) -> None:
        raise NotImplementedError

    @property
    def link_origin(self) -> str | None:
        raise NotImplementedError


def sweeper_of(store: ManyExpired, facts: Facts) -> Sweeper:
    no_jobs = FileJobs(Directory(Path("/nowhere"), facts))
    return Sweeper(store, no_jobs, interval=3600, clock=SystemClock(), observer=facts)


async def test_a_pass_deletes_so_many_and_says_that_there_is_more(facts: Facts) -> None:
    store = ManyExpired(due=2 * DELETIONS_PER_PASS + 5, outcome=Deletion(first=True, freed_bytes=2))
    reports = [await sweeper_of(store, facts).sweep() for _ in range(3)]
    assert [(report.deleted, report.freed_bytes, report.more) for report in reports] == [
        (DELETIONS_PER_PASS, 2 * DELETIONS_PER_PASS, True),
        (DELETIONS_PER_PASS, 2 * DELETIONS_PER_PASS, True),
        (5, 10, False),
    ]
    assert len(store.inventories) == 3


async def test_a_pass_that_ends_with_the_last_image_says_that_there_is_no_more(facts: Facts) -> None:
    store = ManyExpired(due=DELETIONS_PER_PASS, outcome=Deletion(first=True))
    assert (await sweeper_of(store, facts).sweep()).more is False


async def test_after_a_pass_that_left_some_the_next_does_not_wait_for_its_interval(facts: Facts) -> None:
    store = ManyExpired(due=DELETIONS_PER_PASS + 1, outcome=Deletion(first=True))
    passes = asyncio.create_task(sweeper_of(store, facts).run())
    assert (await facts.next_pass(failed=False)).report.more
    assert (await facts.next_pass(failed=False)).report.deleted == 1
    passes.cancel()
    await asyncio.gather(passes, return_exceptions=True)


async def test_entries_whose_images_are_gone_are_work_too(facts: Facts) -> None:
    """Another pod was first, or somebody removed the images by hand."""
    store = ManyExpired(due=2 * DELETIONS_PER_PASS, outcome=Deletion(first=False))
    report = await sweeper_of(store, facts).sweep()
    assert (store.tried, report.deleted, report.more) == (DELETIONS_PER_PASS, 0, True)


async def test_a_pass_that_could_delete_nothing_does_not_call_for_another_one_at_once(facts: Facts) -> None:
    """Credentials without the right to delete: the next pass would try the same again."""
    store = ManyExpired(due=3 * DELETIONS_PER_PASS, outcome=StorageFailure("forbidden"))
    reports = [await sweeper_of(store, facts).sweep() for _ in range(2)]
    assert [(report.deleted, report.errors, report.more) for report in reports] == [
        (0, DELETIONS_PER_PASS, False),
        (0, DELETIONS_PER_PASS, False),
    ]


async def test_what_resists_keeps_nobody_from_their_turn_and_gets_another_one_itself(facts: Facts) -> None:
    store = ManyExpired(due=2 * DELETIONS_PER_PASS, outcome=Deletion(first=True), resisting=DELETIONS_PER_PASS + 5)
    sweeper = sweeper_of(store, facts)
    reports = [await sweeper.sweep() for _ in range(3)]
    assert [(report.deleted, report.errors, report.more) for report in reports] == [
        (0, DELETIONS_PER_PASS, False),
        (DELETIONS_PER_PASS - 5, 5, False),
        (0, DELETIONS_PER_PASS, False),
    ]


@pytest.mark.parametrize("error", [StorageFailure("stuck"), RuntimeError("a defect of ours")])
async def test_errors_are_counted_and_the_rest_of_the_pass_is_done(error: Exception, facts: Facts) -> None:
    store = ManyExpired(due=3, outcome=error)
    report = await sweeper_of(store, facts).sweep()
    assert report.errors >= 1
    assert (report.deleted, store.tried) == (0, 3)
    assert len(store.inventories) == 1


# --- a life of its own ------------------------------------------------------------------------------------------------


async def gone(sidecar: Sidecar, url: str) -> None:
    async with asyncio.timeout(30):
        while (await sidecar.get(url))[0].status != 404:
            await asyncio.sleep(0.01)


async def swept(sidecar: Sidecar, image_id: str) -> None:
    async with asyncio.timeout(30):
        while any(image_id in name for name in sidecar.stored()):
            await asyncio.sleep(0.01)


async def test_a_running_sidecar_cleans_up_by_itself(start_sidecar: StartSidecar) -> None:
    sidecar = await start_sidecar(IMAGE_TTL="300ms", CLEANUP_INTERVAL="100ms")
    image = await sidecar.made()
    await gone(sidecar, image["url"])
    await gone(sidecar, image["thumbnail_url"])
    async with asyncio.timeout(30):
        while sidecar.stored():
            await asyncio.sleep(0.01)
    await metric_becomes(sidecar, "imagegen_cleanup_deleted_total", 1)
    assert sidecar.stored() == []


async def test_a_longer_life_does_not_bring_back_what_was_promised_a_short_one(
    start_sidecar: StartSidecar,
) -> None:
    brief = await start_sidecar(IMAGE_TTL="200ms", CLEANUP_INTERVAL="7d")
    image = await brief.made()
    await gone(brief, image["url"])
    assert any(image["image_id"] in name for name in brief.stored())
    for ttl in ("0", "7d"):
        lasting = await start_sidecar(IMAGE_TTL=ttl, CLEANUP_INTERVAL="7d")
        assert (await lasting.get(f"/images/{image['image_id']}"))[0].status == 404
        await swept(lasting, image["image_id"])


async def test_a_shorter_life_does_not_take_what_was_promised_a_long_one(start_sidecar: StartSidecar) -> None:
    lasting, for_ever = await start_sidecar(IMAGE_TTL="1h"), await start_sidecar(IMAGE_TTL="0")
    kept = [await lasting.made(), await for_ever.made()]
    assert kept[0]["expires_at"] is not None
    assert kept[1]["expires_at"] is None
    brief = await start_sidecar(IMAGE_TTL="100ms", CLEANUP_INTERVAL="100ms")
    image = await brief.made()
    await swept(brief, image["image_id"])
    for one in kept:
        assert (await brief.get(f"/images/{one['image_id']}"))[0].status == 200
    promised = (await brief.service.get(ImageId(kept[0]["image_id"]))).record.expires
    assert promised is not None
    told = datetime.fromisoformat(kept[0]["expires_at"])
    assert abs(promised - told) <= timedelta(milliseconds=1)


async def test_an_image_kept_for_ever_has_no_place_in_the_expiry_index(start_sidecar: StartSidecar) -> None:
    sidecar = await start_sidecar(IMAGE_TTL="0")
    image = await sidecar.made()
    assert [name.split("/")[0] for name in sidecar.stored()] == ["images", "records"]
    record = json.loads(next(sidecar.store.glob("records/*/*/*.json")).read_bytes())
    assert (record["image_id"], record["expires_at"], record["owner"]) == (image["image_id"], None, "anonymous")


def sweep_processes(root: Path, count: int) -> Iterator[dict[str, int]]:
    """`sweep` by hand, several at once; each one's line."""
    environment = {"PATH": os.environ["PATH"], "STORAGE_PATH": str(root)}
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-m", "sidecar", "sweep"],
                    env=environment,
                    cwd=Path(__file__).parent.parent,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
            for _ in range(count)
        ]
        for process in processes:
            out, err = process.communicate(timeout=30)
            assert process.returncode == 0, err
            (line,) = out.splitlines()
            yield json.loads(line)


async def test_processes_that_sweep_one_directory_at_once_count_each_image_once(
    store: FileStorage, root: Path, clock: HeldClock
) -> None:
    yesterday = datetime.now(UTC) - DAY
    for number in range(150):
        await put(store, yesterday - number * timedelta(seconds=30), life=HOUR)
    kept = (await put(store, clock.now())).record.image_id
    reports = await asyncio.to_thread(lambda: list(sweep_processes(root, 3)))
    assert sum(report["deleted"] for report in reports) == 150
    assert sum(report["freed_bytes"] for report in reports) == 150 * len(PNG)
    assert [report["errors"] for report in reports] == [0, 0, 0]
    assert await listed(store) == [kept]
