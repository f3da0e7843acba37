"""Names and records: what is written can be read back, and nothing foreign is taken for it."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from datetime import UTC, datetime, timedelta, timezone
from pathlib import PurePosixPath
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sidecar.domain import (
    ANONYMOUS,
    GenerationRequest,
    ImageId,
    ImageRecord,
    JobId,
    Picture,
    expiry,
    owner_tag,
    reverse_digits,
    sortable_time,
    time_from_sortable,
)
from sidecar.errors import ImageNotFound
from sidecar.storages import keys
from sidecar.storages.records import decode_record, encode_record

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
LAST_MOMENT = datetime(3084, 1, 1)  # noqa: DTZ001
MOMENTS = st.datetimes(min_value=datetime(1970, 1, 1), max_value=LAST_MOMENT, timezones=st.just(UTC))  # noqa: DTZ001
DIGITS = st.text(ALPHABET, min_size=9, max_size=9)
IDS = st.text(ALPHABET, min_size=43, max_size=43).map(ImageId)
A_MOMENT = datetime(2026, 11, 24, 12, 30, tzinfo=UTC)
AN_ID = ImageId.new(A_MOMENT)

# --- times ------------------------------------------------------------------------------------------------------------


@given(DIGITS)
def test_every_millisecond_survives_the_way_there_and_back(digits: str) -> None:
    assert sortable_time(time_from_sortable(digits)) == digits
    assert reverse_digits(reverse_digits(digits)) == digits


@given(st.lists(MOMENTS, min_size=2, max_size=10))
def test_names_sort_as_times_do_and_reversed_ones_the_other_way(moments: list[datetime]) -> None:
    digits = [sortable_time(moment) for moment in sorted(moments)]
    assert digits == sorted(digits)
    backwards = [reverse_digits(name) for name in digits]
    assert backwards == sorted(backwards, reverse=True)


@pytest.mark.parametrize("moment", [datetime.min, datetime(1969, 12, 31), datetime(9999, 12, 31)])  # noqa: DTZ001, DTZ901
def test_a_time_beyond_all_names_still_has_one(moment: datetime) -> None:
    digits = sortable_time(moment.replace(tzinfo=UTC))
    assert digits == ("z" * 9 if moment.year == 9999 else "0" * 9)


@pytest.mark.parametrize("other", ["é", "i", "l", "o", "u", "A", "-1", " 1", "١", "\0", "1_0"])
def test_characters_that_are_no_digits_are_refused(other: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        time_from_sortable(other)


def test_the_zone_of_a_clock_does_not_matter() -> None:
    elsewhere = A_MOMENT.astimezone(timezone(timedelta(hours=5, minutes=45)))
    assert sortable_time(elsewhere) == sortable_time(A_MOMENT)


@given(MOMENTS)
def test_images_without_an_end_have_no_expiry(created: datetime) -> None:
    assert expiry(created, None) is None
    assert expiry(created, 90.0) == created + timedelta(seconds=90)


# --- ids --------------------------------------------------------------------------------------------------------------


@given(MOMENTS, st.text(max_size=50))
def test_an_id_says_when_it_was_made_and_for_whom_but_not_who_that_is(created: datetime, owner: str) -> None:
    image_id = ImageId.new(created, owner)
    assert ImageId.parse(image_id.text) == image_id
    assert image_id.created == time_from_sortable(sortable_time(created))
    assert image_id.created.tzinfo is UTC
    assert image_id.owner_tag == owner_tag(owner)
    assert set(image_id.text) <= set(ALPHABET)


def test_ids_made_one_after_the_other_sort_so() -> None:
    ids = [ImageId.new(A_MOMENT + timedelta(milliseconds=count), ANONYMOUS).text for count in range(200)]
    shuffled = random.Random(7).sample(ids, len(ids))
    assert sorted(shuffled) == ids


def test_ids_of_one_moment_share_no_more_of_their_122_bits_than_chance_allows() -> None:
    """The random part is what is left after time and owner; each of its bits is as often 0 as 1."""
    ids = [ImageId.new(A_MOMENT).text for _ in range(4000)]
    tails = [tail for text in ids if (tail := text.removeprefix(ids[0][:17])) != text]
    assert len(set(tails)) == 4000
    bits = 5 * len(tails[0])
    assert bits >= 122
    numbers = [sum(ALPHABET.index(digit) << (5 * place) for place, digit in enumerate(tail)) for tail in tails]
    for bit in range(bits):
        ones = sum(number >> bit & 1 for number in numbers)
        assert abs(ones - 2000) < 8 * math.sqrt(1000)  # eight standard deviations


@given(MOMENTS)
def test_the_images_of_one_job_are_listed_in_the_order_asked_for(created: datetime) -> None:
    """Records are listed by name, newest first; the images of one job are of one moment (issue 14)."""
    job_id = JobId.new(created)
    images = job_id.images(4)
    assert images == job_id.images(4)
    names = [keys.record_name(image_id) for image_id in images]
    assert names == sorted(names)
    later = JobId.new(created + timedelta(milliseconds=1)).images(4)
    assert max(keys.record_name(image_id) for image_id in later) < names[0]
    assert {image_id.created for image_id in images} == {job_id.created}


def test_an_image_of_a_job_leads_neither_to_the_job_nor_to_its_other_images() -> None:
    """What is left of an id after time, owner and number: 125 bits, each as often 0 as 1."""
    tails = [image_id.text[18:] for _ in range(1000) for image_id in JobId.new(A_MOMENT).images(4)]
    assert len(set(tails)) == 4000
    assert {len(tail) for tail in tails} == {25}
    numbers = [sum(ALPHABET.index(digit) << (5 * place) for place, digit in enumerate(tail)) for tail in tails]
    for bit in range(125):
        ones = sum(number >> bit & 1 for number in numbers)
        assert abs(ones - 2000) < 8 * math.sqrt(1000)  # eight standard deviations


HOSTILE = [
    "",
    ".",
    "..",
    "../" * 20,
    "../../../../../../../../../../../etc/passwd",
    "%2e%2e%2f" * 5,
    "\0" * 43,
    "0" * 42,
    "0" * 44,
    "0" * 10_000,
    "x" * 10_240,
    "0" * 42 + "\n",
    "0" * 43 + "\n",
    " " + "0" * 43,
    "0" * 42 + "é",
    "٠" * 43,  # digits, but not ours
    "０" * 43,
    "I" * 43,
    "l" * 43,
    AN_ID.text.upper(),
    AN_ID.text + ".png",
    AN_ID.text[:-1] + "\0",
    AN_ID.text[:-1] + "\ud800",
    AN_ID.text[:20] + "/" + AN_ID.text[21:],
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_what_is_no_id_is_not_found_and_nothing_worse(text: str) -> None:
    with pytest.raises(ImageNotFound):
        ImageId.parse(text)
    with pytest.raises((ImageNotFound, ValueError)):
        keys.image_id_of_record_name(text)
    assert keys.expiry_of_name(text) is None
    assert not keys.is_shard(text)


@given(st.text() | st.text(ALPHABET + "./\0", max_size=60))
def test_whatever_parses_is_fit_for_a_file_name(text: str) -> None:
    try:
        image_id = ImageId.parse(text)
    except ImageNotFound:
        return
    assert set(image_id.text) <= set(ALPHABET)
    assert len(image_id.text) == 43


# --- keys -------------------------------------------------------------------------------------------------------------


@given(IDS, MOMENTS)
def test_no_key_leaves_its_directory_and_all_shards_are_alike(image_id: ImageId, expires: datetime) -> None:
    found = {
        "records": keys.record_key(image_id),
        "images": keys.image_key(image_id, "image/webp"),
        "expiry": keys.expiry_key(expires, image_id),
    }
    for directory, key in found.items():
        path = PurePosixPath(key)
        assert path.parts[0] == directory
        assert keys.is_shard(path.parent.name)
        assert not path.is_absolute()
        assert ".." not in path.parts
    assert PurePosixPath(keys.thumbnail_key(image_id)).parent == PurePosixPath(found["images"]).parent


@pytest.mark.parametrize(
    ("media_type", "ending"), [("image/png", "png"), ("image/jpeg", "jpg"), ("image/webp", "webp")]
)
def test_a_picture_of_each_kind_has_a_key_that_is_found_without_knowing_the_kind(media_type: str, ending: str) -> None:
    key = keys.image_key(AN_ID, media_type)
    assert key in keys.every_image_key(AN_ID)
    assert PurePosixPath(key).name == f"{AN_ID}.{Picture(media_type=media_type, width=1, height=1).extension}"
    assert PurePosixPath(key).suffix == f".{ending}"


@given(IDS)
def test_a_record_name_leads_back_to_its_id(image_id: ImageId) -> None:
    name = keys.record_name(image_id)
    assert keys.image_id_of_record_name(name) == image_id
    assert PurePosixPath(keys.record_key(image_id)).stem == name


@given(MOMENTS, MOMENTS, st.text(max_size=5))
def test_record_keys_of_one_owner_sort_newest_first(one: datetime, other: datetime, owner: str) -> None:
    older, newer = (keys.record_key(ImageId.new(moment, owner)) for moment in sorted((one, other)))
    assert older.rsplit("/", 2)[0] == newer.rsplit("/", 2)[0]
    if abs(one - other) > timedelta(milliseconds=1):
        assert newer < older


@given(IDS, MOMENTS)
def test_an_expiry_entry_leads_back_to_its_time_and_id(image_id: ImageId, expires: datetime) -> None:
    name = keys.expiry_key(expires, image_id).rsplit("/", 1)[1]
    assert keys.expiry_of_name(name) == (time_from_sortable(sortable_time(expires)), image_id)


@given(
    st.text()
    | st.builds("{}-{}".format, st.text(ALPHABET, max_size=14), IDS)
    | st.builds("{}{}".format, st.text(max_size=20), IDS)
)
@example(f"-{AN_ID}")
@example(f"0-{AN_ID}")
@example(f"{'z' * 5000}-{AN_ID}")
@example(f"{sortable_time(A_MOMENT)}-{AN_ID}.part")
def test_only_what_names_an_expiry_as_we_write_it_is_taken_for_one(name: str) -> None:
    """Whatever is taken for an entry is swept at the time it names: a foreign name must not delete an image."""
    found = keys.expiry_of_name(name)
    if found is not None:
        assert keys.expiry_key(*found).rsplit("/", 1)[1] == name


# --- records ----------------------------------------------------------------------------------------------------------

TEXTS = st.text(max_size=30)
SIZES = st.integers(1, 2**31 - 1)
SECONDS = st.integers(0, 10**7).map(lambda milliseconds: milliseconds / 1000)
REQUESTS = st.builds(
    GenerationRequest,
    model=TEXTS,
    prompt=st.text(max_size=200),
    seed=st.integers(0, 2**32 - 1),
    negative_prompt=st.none() | TEXTS,
    width=st.none() | SIZES,
    height=st.none() | SIZES,
    num_inference_steps=st.none() | SIZES,
    guidance_scale=st.none() | st.floats(0, 30),
)
RECORDS = st.builds(
    ImageRecord,
    image_id=IDS,
    owner=TEXTS,
    request=REQUESTS,
    picture=st.builds(
        Picture, media_type=st.sampled_from(["image/png", "image/jpeg", "image/webp"]), width=SIZES, height=SIZES
    ),
    size_bytes=SIZES,
    sha256=st.text("0123456789abcdef", min_size=64, max_size=64),
    seed_applied=st.booleans(),
    dropped_parameters=st.lists(TEXTS, max_size=3).map(tuple),
    created=MOMENTS,
    expires=st.none() | MOMENTS,
    queue_seconds=SECONDS,
    runtime_seconds=SECONDS,
    black=st.booleans(),
    schema_version=st.just(1),
)
A_RECORD = ImageRecord(
    image_id=AN_ID,
    owner=ANONYMOUS,
    request=GenerationRequest(model="painter", prompt='a "cat"\n🐈', seed=7, width=64, guidance_scale=4.5),
    picture=Picture(media_type="image/png", width=64, height=48),
    size_bytes=1234,
    sha256="ab" * 32,
    seed_applied=True,
    dropped_parameters=("guidance_scale",),
    created=AN_ID.created,
    expires=AN_ID.created + timedelta(days=1),
    queue_seconds=0.25,
    runtime_seconds=1.5,
)


def document() -> dict[str, Any]:
    read: dict[str, Any] = json.loads(encode_record(A_RECORD))
    return read


def written(read: Any) -> bytes:
    return json.dumps(read).encode()


@given(RECORDS)
def test_a_record_comes_back_as_it_was(record: ImageRecord) -> None:
    assert decode_record(encode_record(record)) == record


def test_a_record_on_disk_is_plain_json() -> None:
    assert document() == {
        "schema_version": 1,
        "image_id": AN_ID.text,
        "owner": "anonymous",
        "created_at": "2026-11-24T12:30:00+00:00",
        "expires_at": "2026-11-25T12:30:00+00:00",
        "sha256": "ab" * 32,
        "size_bytes": 1234,
        "media_type": "image/png",
        "width": 64,
        "height": 48,
        "request": {
            "model": "painter",
            "prompt": 'a "cat"\n🐈',
            "seed": 7,
            "negative_prompt": None,
            "width": 64,
            "height": None,
            "num_inference_steps": None,
            "guidance_scale": 4.5,
        },
        "seed_applied": True,
        "dropped_parameters": ["guidance_scale"],
        "queue_seconds": 0.25,
        "runtime_seconds": 1.5,
    }


def test_a_record_is_one_line_and_holds_no_key_twice() -> None:
    data = encode_record(A_RECORD)
    assert b"\n" not in data
    twice: list[str] = []

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in found]
        twice.extend({name for name in names if names.count(name) > 1})
        return dict(found)

    json.loads(data, object_pairs_hook=pairs)
    assert twice == []


def test_fields_of_tomorrow_are_ignored() -> None:
    read = document()
    read |= {"mood": "blue", "tags": [{"a": 1}]}
    read["request"]["scheduler"] = "ddim"
    assert decode_record(written(read)) == A_RECORD


@pytest.mark.parametrize("version", [2, 99, 0, -1, "1", None, [1], {}, 1.5, 10**400])
def test_a_record_of_a_version_that_is_not_ours_is_refused(version: Any) -> None:
    with pytest.raises(ValueError, match=r"version|not an image record"):
        decode_record(written(document() | {"schema_version": version}))


REQUEST_OPTIONAL = {
    field.name for field in dataclasses.fields(GenerationRequest) if field.default is not dataclasses.MISSING
}


@pytest.mark.parametrize("field", list(document()))
def test_a_record_without_one_of_its_fields_is_refused(field: str) -> None:
    read = document()
    del read[field]
    with pytest.raises(ValueError, match=r".+"):
        decode_record(written(read))


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(GenerationRequest)])
def test_of_a_request_only_what_may_be_left_out_may_be_missing(field: str) -> None:
    read = document()
    del read["request"][field]
    if field in REQUEST_OPTIONAL:
        assert getattr(decode_record(written(read)).request, field) is None
    else:
        with pytest.raises(ValueError, match=r".+"):
            decode_record(written(read))


SPOILT: dict[str, Any] = {
    "expires_at": "2026-11-25T12:30:00",  # no zone: it cannot be compared with any clock
    "created_at": "2026-11-24T12:30:00",
    "media_type": "text/html",
    "image_id": "../../../../etc/passwd",
    "size_bytes": "1234",
    "width": None,
    "height": [],
    "sha256": 7,
    "owner": None,
    "seed_applied": "no",
    "dropped_parameters": "seed",
    "black": "no",
    "request": {"model": "painter", "prompt": 7, "seed": "x"},
    "queue_seconds": "soon",
    "runtime_seconds": {},
}


@pytest.mark.parametrize("field", SPOILT)
def test_a_record_with_a_field_of_the_wrong_kind_is_refused(field: str) -> None:
    """What is let in here goes on to headers, clocks and file names, where it would be an unexpected error."""
    with pytest.raises(ValueError, match=r".+"):
        decode_record(written(document() | {field: SPOILT[field]}))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(list(document())), VALUES)
def test_a_spoilt_field_is_refused_or_harmless(field: str, value: Any) -> None:
    try:
        record = decode_record(written(document() | {field: value}))
    except ValueError:
        return
    assert record.expired(A_MOMENT) in (True, False)
    assert keys.image_key(record.image_id, record.picture.media_type).startswith("images/")
    assert decode_record(encode_record(record)) == record


@given(st.binary() | VALUES.map(written) | st.binary().map(lambda cut: encode_record(A_RECORD)[: len(cut)]))
@example(b"[" * 100_000)
@example(b'{"a":' * 100_000)
@example(b'{"schema_version":' + b"9" * 5000 + b"}")
@example(b"\xff\xfe\x00")
@example(b"\xef\xbb\xbf{}")
@example(b"NaN")
@example(encode_record(A_RECORD) + b"{}")
@example(encode_record(A_RECORD)[:-1])
@example(b"")
def test_rubbish_is_refused_in_one_way(data: bytes) -> None:
    with pytest.raises(ValueError, match=r".*"):
        decode_record(data)
