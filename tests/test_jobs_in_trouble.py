"""Generations whose store fails, stalls or comes late in the moment in which it is needed."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from sidecar.domain import ANONYMOUS, JobId
from sidecar.edge import keys as app_keys
from sidecar.ports import SystemClock
from sidecar.storages import keys
from sidecar.storages.file import FileStorage
from sidecar.storages.job_records import encode_job, encode_key
from tests.conftest import Sidecar, StartSidecar, metric_becomes
from tests.fake_kserve import FakeKServe, succeed_when
from tests.job_store_contract import job, lease, result
from tests.odd_store import Odd, at, odd
from tests.storage_contract import put
from tests.test_jobs import BRIEF, DEPTH, call, ended, start

__all__ = ["odd"]

BUDGET = {"RESPONSE_BUDGET": "0.2s"}


def prompts(kserve: FakeKServe) -> list[str]:
    return [instance["prompt"] for instance in kserve.instances]


def digest_of(key: str) -> str:
    """How the store knows an idempotency key of a caller who is nobody in particular."""
    return hashlib.sha256(f"{ANONYMOUS}\0{key}".encode()).hexdigest()


def takes_no_jobs(sidecar: Sidecar) -> Path:
    """A store that keeps images and cannot keep jobs, until the file is removed."""
    obstacle = sidecar.store / "jobs"
    obstacle.write_bytes(b"")
    return obstacle


def another_process(sidecar: Sidecar) -> contextlib.AbstractAsyncContextManager[FileStorage]:
    """A store on the same directory."""
    return FileStorage(sidecar.store, max_bytes=None, clock=SystemClock(), observer=lambda event: None).opened()


# --- no record can be written when the call's time is over ------------------------------------------------------------


async def test_what_the_runtime_has_begun_gets_a_handle_although_the_store_takes_no_record(
    start_sidecar: StartSidecar, kserve: FakeKServe
) -> None:
    sidecar = await start_sidecar(**BRIEF)
    takes_no_jobs(sidecar)
    release = asyncio.Event()
    kserve.script.append(succeed_when(release))
    handle = await start(sidecar)
    assert (handle["status"], handle["job_id"] is not None) == ("working", True)
    told = await call(sidecar, "cancel_generation", job_id=handle["job_id"])
    assert (told["status"], told["job_id"]) == ("working", handle["job_id"])
    release.set()
    done = await ended(sidecar, handle["job_id"])
    assert (done["status"], done["job_id"], len(done["images"])) == ("completed", handle["job_id"], 1)
    assert len(kserve.instances) == 1


async def test_a_record_that_the_store_did_not_take_is_there_once_the_store_is_back(
    start_sidecar: StartSidecar, kserve: FakeKServe
) -> None:
    sidecar, other = await start_sidecar(**BRIEF), await start_sidecar(JOB_LEASE_INTERVAL="1h", **BUDGET)
    obstacle = takes_no_jobs(sidecar)
    release = asyncio.Event()
    kserve.script.append(succeed_when(release))
    handle = await start(sidecar)
    obstacle.unlink()
    async with asyncio.timeout(30):
        while (await call(other, "get_generation", job_id=handle["job_id"], wait_seconds=0))["status"] != "working":
            pass
    release.set()
    assert (await ended(other, handle["job_id"]))["status"] == "completed"


async def test_what_only_waits_is_given_up_where_its_caller_cannot_be_given_a_handle(
    start_sidecar: StartSidecar, kserve: FakeKServe
) -> None:
    sidecar = await start_sidecar(**BRIEF)
    release = asyncio.Event()
    kserve.script.append(succeed_when(release))
    first = await start(sidecar, "first")
    moved = (sidecar.store / "jobs").rename(sidecar.store / "jobs-elsewhere")
    obstacle = takes_no_jobs(sidecar)
    second = await start(sidecar, "second")
    assert (second["status"], second["job_id"]) == ("failed", None)
    assert await sidecar.metric(DEPTH) == 0
    obstacle.unlink()
    moved.rename(obstacle)
    release.set()
    await ended(sidecar, first["job_id"])
    third = await start(sidecar, "third")
    await ended(sidecar, third["job_id"])
    assert prompts(kserve) == ["first", "third"]


async def test_a_call_whose_key_cannot_be_kept_leaves_its_place_in_the_line_at_once(
    sidecar: Sidecar, kserve: FakeKServe
) -> None:
    release = asyncio.Event()
    kserve.script.append(succeed_when(release))
    first = asyncio.create_task(start(sidecar, "first"))
    await kserve.seen(1)
    obstacle = sidecar.store / "jobs" / "open"
    obstacle.parent.mkdir()
    obstacle.write_bytes(b"")
    second = await start(sidecar, "second", idempotency_key="k")
    assert (second["status"], second["job_id"], await sidecar.metric(DEPTH)) == ("failed", None, 0)
    obstacle.unlink()
    again = asyncio.create_task(start(sidecar, "second", idempotency_key="k"))
    await metric_becomes(sidecar, DEPTH, 1)
    release.set()
    assert ((await first)["status"], (await again)["status"]) == ("completed", "completed")
    assert prompts(kserve) == ["first", "second"]


async def test_a_key_that_is_given_up_in_the_moment_it_was_lost_is_won_by_the_next_try(
    odd: Odd, start_sidecar: StartSidecar, kserve: FakeKServe, tmp_path: Path
) -> None:
    """Another pod has it while this one offers its job, and withdraws before anybody can ask how that one stands."""
    sidecar = await start_sidecar(**at(odd), SPOOL_PATH=str(tmp_path / "spool"), JOB_LEASE_INTERVAL="1h")
    others = job(SystemClock().now())
    theirs = keys.open_job_key(others.job_id)

    def another_has_won(kept: str) -> None:
        if kept.startswith("jobs/open/"):
            odd.on_kept = lambda key: None
            key = keys.idempotency_key(digest_of("k"))
            odd.kept |= {theirs: encode_job(others), key: encode_key(others.job_id)}
            odd.on_get[theirs] = lambda: odd.on_get.update({key: lambda: (odd.kept.pop(theirs), odd.kept.pop(key))})

    odd.on_kept = another_has_won
    made = await start(sidecar, idempotency_key="k", result="link")
    assert (made["status"], len(kserve.instances), theirs in odd.kept) == ("completed", 1, False)
    again = await start(sidecar, idempotency_key="k", result="link")
    assert (again["job_id"], again["images"]) == (made["job_id"], made["images"])


async def test_a_key_that_is_lost_again_and_again_is_told_as_one_of_which_nothing_is_known(
    odd: Odd, start_sidecar: StartSidecar, kserve: FakeKServe, tmp_path: Path
) -> None:
    """Its job is a newer version's, which this one can neither read nor put aside."""
    sidecar = await start_sidecar(**at(odd), SPOOL_PATH=str(tmp_path / "spool"), JOB_LEASE_INTERVAL="1h")
    newer = JobId.new(SystemClock().now())
    odd.kept[keys.open_job_key(newer)] = b'{"schema_version": 99}'
    odd.kept[keys.idempotency_key(digest_of("k"))] = encode_key(newer)
    told = await start(sidecar, idempotency_key="k")
    assert (told["status"], told["job_id"], told["retry_after_seconds"]) == ("working", None, 1)
    assert "Repeat the call with the same idempotency_key" in told["message"]
    assert kserve.instances == []
    assert [key for key in odd.kept if key.startswith("jobs/open/")] == [keys.open_job_key(newer)]


@pytest.mark.parametrize("begun", [True, False])
async def test_a_store_that_stalls_keeps_no_caller_from_an_answer(
    begun: bool, odd: Odd, start_sidecar: StartSidecar, kserve: FakeKServe, tmp_path: Path
) -> None:
    sidecar = await start_sidecar(**at(odd), SPOOL_PATH=str(tmp_path / "spool"), **BUDGET)
    release = asyncio.Event()
    kserve.script.append(succeed_when(release))
    if not begun:
        await start(sidecar, "ahead")
    odd.going_on.clear()
    async with asyncio.timeout(15):
        told = await start(sidecar, "a cat")
    expected = ("working", False) if begun else ("failed", True)
    assert (told["status"], told["job_id"] is None) == expected
    odd.going_on.set()
    release.set()
    await sidecar.service.drained()
    assert prompts(kserve) == (["a cat"] if begun else ["ahead"])


async def test_a_poll_of_what_waits_here_is_answered_while_the_store_cannot_be_read(
    start_sidecar: StartSidecar, kserve: FakeKServe
) -> None:
    sidecar = await start_sidecar(**BUDGET, JOB_LEASE_INTERVAL="1h")
    release = asyncio.Event()
    kserve.script.append(succeed_when(release))
    await start(sidecar, "first")
    second = await start(sidecar, "second")
    elsewhere = sidecar.store.rename(sidecar.store.with_name("elsewhere"))
    polled = await call(sidecar, "get_generation", job_id=second["job_id"], wait_seconds=0)
    assert (polled["status"], polled["job_id"]) == ("queued", second["job_id"])
    elsewhere.rename(sidecar.store)
    release.set()
    assert (await ended(sidecar, second["job_id"]))["status"] == "completed"


# --- leaving ----------------------------------------------------------------------------------------------------------


async def test_who_leaves_while_a_handle_is_made_takes_along_what_waits(
    odd: Odd, start_sidecar: StartSidecar, kserve: FakeKServe, tmp_path: Path
) -> None:
    sidecar = await start_sidecar(**at(odd), SPOOL_PATH=str(tmp_path / "spool"), **BUDGET)
    release = asyncio.Event()
    kserve.script.append(succeed_when(release))
    await start(sidecar, "first")
    odd.asked.clear()
    odd.going_on.clear()
    leaving = asyncio.create_task(start(sidecar, "second"))
    await odd.asked.wait()  # its record is on the way
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    await metric_becomes(sidecar, DEPTH, 0)
    odd.going_on.set()
    release.set()
    await sidecar.service.drained()
    assert prompts(kserve) == ["first"]
    async with asyncio.timeout(30):  # and nobody else paints it
        while any(key.startswith("jobs/open/") for key in odd.kept):
            await asyncio.sleep(0.02)


async def test_a_caller_who_leaves_between_two_images_leaves_no_job_behind(
    sidecar: Sidecar, kserve: FakeKServe
) -> None:
    release = asyncio.Event()
    kserve.script.append(succeed_when(release))
    leaving = asyncio.create_task(start(sidecar, "two", num_images=2))
    await kserve.seen(1)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    await metric_becomes(sidecar, 'imagegen_http_requests_total{method="POST",route="/mcp",status="499"}', 1)
    release.set()
    await sidecar.service.drained()
    await start(sidecar, "next", result="link")
    assert (prompts(kserve), sidecar.stored_jobs()) == (["two", "next"], [])


@pytest.fixture
async def behind_another(never: None, odd: Odd, start_sidecar: StartSidecar, tmp_path: Path) -> tuple[Sidecar, JobId]:
    """A pod whose runtime works for ever, and the generation that waits behind that."""
    settings = {"RESPONSE_BUDGET": "0.5s", "JOB_LEASE_INTERVAL": "1h", "SPOOL_PATH": str(tmp_path / "spool")}
    sidecar = await start_sidecar(**at(odd), **settings)
    await start(sidecar, "running")
    return sidecar, JobId((await start(sidecar, "waiting"))["job_id"])


async def test_what_gets_its_handle_while_the_server_leaves_is_left_to_the_next_too(
    odd: Odd, behind_another: tuple[Sidecar, JobId]
) -> None:
    sidecar, _ = behind_another
    odd.going_on.clear()
    third = asyncio.create_task(start(sidecar, "third"))
    await metric_becomes(sidecar, DEPTH, 2)
    odd.asked.clear()
    leaving = asyncio.create_task(sidecar.app[app_keys.JOBS].drain(0))
    await odd.asked.wait()  # the second one is being handed over
    odd.asked.clear()
    await odd.asked.wait()  # and the third one recorded
    odd.going_on.set()
    told = await third
    await leaving
    assert (told["status"], f"jobs/open/{told['job_id']}.json" in odd.kept) == ("queued", True)


async def test_who_leaves_in_a_hurry_waits_for_no_store(odd: Odd, behind_another: tuple[Sidecar, JobId]) -> None:
    sidecar, _ = behind_another
    odd.going_on.clear()
    async with asyncio.timeout(10):  # less than any call of the store may take
        await sidecar.app[app_keys.JOBS].drain(0.0, store_seconds=0.1)
    assert not sidecar.service.busy
    odd.going_on.set()


async def test_what_was_just_being_handed_over_when_the_hurry_began_is_handed_over_all_the_same(
    odd: Odd, behind_another: tuple[Sidecar, JobId]
) -> None:
    sidecar, waiting = behind_another
    odd.asked.clear()
    odd.going_on.clear()
    leaving = asyncio.create_task(sidecar.app[app_keys.JOBS].drain(0.0))
    await odd.asked.wait()
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    odd.going_on.set()
    odd.stalled.clear()
    key = keys.lease_key(waiting, 1)
    odd.kept.pop(key, None)
    await sidecar.app[app_keys.JOBS].drain(0.0, store_seconds=5)
    assert json.loads(odd.kept[key])["released"] is True


# --- what the images alone would not tell -----------------------------------------------------------------------------


async def test_what_is_held_here_is_found_by_its_job_id_while_the_store_is_away(
    odd: Odd, start_sidecar: StartSidecar, tmp_path: Path
) -> None:
    sidecar = await start_sidecar(**at(odd), SPOOL_PATH=str(tmp_path / "spool"), JOB_LEASE_INTERVAL="1h")
    odd.refused, odd.breaks_off = {"records/", "jobs/"}, True
    made = await start(sidecar, result="link")
    found = await call(sidecar, "get_generation", job_id=made["job_id"])
    assert (found["status"], found["images"]) == ("completed", made["images"])


async def test_images_held_elsewhere_are_not_passed_over_in_silence(
    odd: Odd, start_sidecar: StartSidecar, tmp_path: Path
) -> None:
    def refuse_the_next(key: str) -> None:
        if key.startswith("records/"):
            odd.refused = {"records/"}

    sidecar = await start_sidecar(**at(odd), SPOOL_PATH=str(tmp_path / "spool"))
    other = await start_sidecar(**at(odd), SPOOL_PATH=str(tmp_path / "other"))
    odd.on_kept = refuse_the_next
    made = await start(sidecar, num_images=2, result="link")
    assert len(made["images"]) == 2
    found = await call(other, "get_generation", job_id=made["job_id"])
    assert (len(found["images"]), "1 of 2 images" in (found["message"] or "")) == (1, True)


async def test_an_image_of_somebody_else_is_not_shown_as_a_generation_s(sidecar: Sidecar, tmp_path: Path) -> None:
    """Should two owners ever share the few digits that stand for them in an id."""
    now = SystemClock().now()
    job_id = JobId.new(now)
    async with another_process(sidecar) as store:
        await put(store, now, owner="somebody else", image_id=job_id.image(1))
    assert (await call(sidecar, "get_generation", job_id=str(job_id)))["status"] == "failed"


# --- late -------------------------------------------------------------------------------------------------------------


async def test_a_record_that_arrives_after_its_job_has_ended_is_not_taken_up(
    sidecar: Sidecar, kserve: FakeKServe
) -> None:
    """The store took longer for it than anybody waited, and its caller was told that it had failed."""
    await sidecar.until_ready()
    record = job(SystemClock().now())
    async with another_process(sidecar) as store:
        await store.jobs.acknowledge(record, result(record))
        await store.jobs.offer(record)
        await store.jobs.renew(replace(lease(record), released=True))
    await sidecar.app[app_keys.JOBS].takeover.look()
    await sidecar.service.drained()
    assert kserve.instances == []
    assert [name.split("/")[0] for name in sidecar.stored_jobs()] == ["done", "failed"]
