"""What the keys of a listing name: ours as keys.py makes them, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.domain import IMAGE_EXTENSIONS, ImageId, JobId
from sidecar.storages import keys, listed_keys

MOMENT = datetime(2026, 11, 27, 12, 30, 0, 123456, UTC)
IMAGE = ImageId.new(MOMENT)
JOB = JobId.new(MOMENT)

OURS: list[tuple[Callable[[str], object], str, object]] = [
    *((listed_keys.image_object, keys.image_key(IMAGE, media_type), (IMAGE, False)) for media_type in IMAGE_EXTENSIONS),
    (listed_keys.image_object, keys.thumbnail_key(IMAGE), (IMAGE, True)),
    (listed_keys.recorded_image, keys.record_key(IMAGE), IMAGE),
    (listed_keys.expiry_entry, keys.expiry_key(MOMENT, IMAGE), (MOMENT.replace(microsecond=123000), IMAGE)),
    (listed_keys.open_job_part, keys.open_job_key(JOB), (JOB, "job")),
    (listed_keys.open_job_part, keys.begun_key(JOB), (JOB, "begun")),
    (listed_keys.open_job_part, keys.lease_key(JOB, 12), (JOB, 12)),
    (listed_keys.done_job, keys.done_job_key(JOB), JOB),
    (listed_keys.failed_mark, keys.failed_job_key(JOB, kept=False), str(JOB)),
    (listed_keys.failed_mark, keys.failed_job_key(JOB, kept=True), keys.failed_job_key(JOB, kept=True)[12:]),
    (listed_keys.job_object, keys.open_job_key(JOB), "open"),
    (listed_keys.job_object, keys.lease_key(JOB, 3), "beside"),
    (listed_keys.job_object, keys.done_job_key(JOB), "ended"),
    (listed_keys.job_object, keys.failed_job_key(JOB, kept=True), "failed"),
    (listed_keys.job_object, keys.idempotency_key("a" * 64), "beside"),
    (listed_keys.deletion_claim, f"deleting/{IMAGE}", IMAGE),
    (listed_keys.probing_instance, "probe/0123456789ab", "0123456789ab"),
]
CASES = [pytest.param(*case, id=re.sub(r"[0-9a-z]{26,}", "ID", case[1])) for case in OURS]


@pytest.mark.parametrize(("names", "key", "named"), CASES)
def test_a_key_of_ours_names_what_it_was_made_of(names: Callable[[str], object], key: str, named: object) -> None:
    assert names(key) == named


@pytest.mark.parametrize(("names", "key", "named"), CASES)
def test_a_key_that_differs_anywhere_is_foreign(names: Callable[[str], object], key: str, named: object) -> None:
    others = [key[:end] for end in range(len(key))] + [f"{key[:at]}/{key[at:]}" for at in range(len(key) + 1)]
    others += [key.upper(), f"{key} ", f"x/{key}", f"{key}.json", f"{key}\n", f"{key}/x"]
    others_of_ours = {keys.lease_key(JOB, 1), keys.failed_job_key(JOB, kept=False)}
    assert [other for other in others if other not in others_of_ours and names(other) is not None] == []


@pytest.mark.parametrize(
    "stem",
    ["readme", str(IMAGE)[:-1], f"{IMAGE}0", f"{str(IMAGE)[:-1]}u"],
    ids=["a word", "too short", "too long", "a letter that ids lack"],
)
def test_a_key_of_our_form_whose_name_is_no_id_is_foreign(stem: str) -> None:
    shard, reversed_shard = stem[:5], keys.record_key(IMAGE).split("/")[2]
    others = [
        f"images/{shard}/{stem}.png",
        f"images/{shard}/{stem}.thumbnail.webp",
        f"records/{stem[9:17]}/{reversed_shard}/{stem}.json",
        f"expiry/{keys.expiry_key(MOMENT, IMAGE).split('/')[1]}/{str(IMAGE)[:9]}-{stem}",
        f"jobs/open/{stem}.json",
        f"jobs/open/{stem}.begun",
        f"jobs/open/{stem}.lease-1",
        f"jobs/done/{shard}/{stem}.json",
        f"jobs/failed/{stem}",
        f"deleting/{stem}",
    ]
    assert [(key, names.__name__) for key in others for names, *_ in OURS if names(key) is not None] == []


@pytest.mark.parametrize("attempt", ["0", "01", "-1", "٣", "10000", "9" * 900, "1.5", ""])
def test_a_lease_of_an_attempt_that_nobody_comes_to_is_foreign(attempt: str) -> None:
    assert listed_keys.open_job_part(f"jobs/open/{JOB}.lease-{attempt}") is None


FOLDERS = ("images/", "records/", "expiry/", "jobs/open/", "jobs/done/", "deleting/", "probe/", "")


@given(
    st.sampled_from(FOLDERS),
    st.lists(
        st.one_of(st.text(max_size=40), st.sampled_from([str(IMAGE), keys.record_name(IMAGE), "1m8f8"])), max_size=4
    ),
    st.sampled_from(["/", ".", "-", ""]),
)
def test_any_key_at_all_is_told_to_be_ours_or_foreign(folder: str, parts: list[str], between: str) -> None:
    key = folder + between.join(parts)
    found = {names.__name__: names(key) for names, *_ in OURS}
    for thing in found.values():
        assert thing is None or str(IMAGE) in key or keys.record_name(IMAGE) in key or key.startswith("probe/")
