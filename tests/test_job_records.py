"""The records of generations: what their images share is written once, and what an older version wrote is read."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from sidecar.domain import JobRecord, JobResult, MissingImage
from sidecar.storages.job_records import decode_job, encode_job
from tests.job_store_contract import NOW, job, result

LONGEST = "😀" * 2000


def largest() -> tuple[JobRecord, JobResult]:
    """Four images with the longest texts there may be, all of them missing."""
    record = job(images=4)
    requests = tuple(replace(one, prompt=LONGEST, negative_prompt=LONGEST) for one in record.requests)
    missing = tuple(
        MissingImage(number=number, seed=number, reason="runtime_failed", message="m" * 400) for number in range(1, 5)
    )
    return replace(record, requests=requests), replace(result(record), missing=missing)


def test_a_record_comes_back_as_it_was() -> None:
    for record, end in (largest(), (whole := job(), result(whole)), (job(images=2), None)):
        assert decode_job(encode_job(record, end)) == (record, end)


def test_images_that_differ_in_more_than_the_seed_come_back_as_they_were() -> None:
    record = job(images=3)
    first, second, third = record.requests
    mixed = replace(record, requests=(first, replace(second, width=None, prompt="another"), third))
    assert decode_job(encode_job(mixed)) == (mixed, None)


def test_what_four_images_share_is_written_once() -> None:
    record, end = largest()
    assert len(encode_job(record, end)) < 2 * len(LONGEST.encode()) + 2500


def test_a_record_of_the_version_before_is_read_and_written_anew_as_one_of_this_version() -> None:
    record, end = largest()
    document = json.loads(encode_job(record, end))
    shared, each = document["requests"]["shared"], document["requests"]["each"]
    document["requests"] = [shared | one for one in each]
    gaps = document["result"]["missing"]
    document["result"]["missing"] = [gaps["shared"] | one for one in gaps["each"]]
    found, found_end = decode_job(json.dumps(document | {"schema_version": 1}).encode())
    assert (replace(found, schema_version=record.schema_version), found_end) == (record, end)
    assert encode_job(found, found_end) == encode_job(record, end)


@pytest.mark.parametrize(
    "requests",
    [None, {}, [], {"shared": {}}, {"shared": 1, "each": [{}]}, {"shared": {}, "each": [1]}, {"each": []}, "shared"],
)
def test_a_record_without_whole_requests_is_none(requests: object) -> None:
    document = json.loads(encode_job(job())) | {"requests": requests}
    with pytest.raises(ValueError, match="job"):
        decode_job(json.dumps(document).encode())


def test_the_moment_of_a_result_is_kept() -> None:
    record, end = largest()
    decoded = decode_job(encode_job(record, end))[1]
    assert decoded is not None
    assert decoded.finished == NOW
