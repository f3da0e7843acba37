"""Presigned URLs: the same for half their life, and never living longer than what they rest on."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from sidecar.ports import Link
from sidecar.storages.s3_links import Signer, link

NOW = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)
LATER = NOW + timedelta(days=365)
DAY = 86400.0


def signed(
    life: float, *, now: datetime = NOW, until: datetime = LATER, credentials: datetime | None = None, token: str = ""
) -> Link:
    signer = Signer("key", "secret", token or None, credentials)
    return link("https://s3.example.org/pictures", "images/a.png", signer, region="eu", life=life, now=now, until=until)


def life_left(found: Link, now: datetime = NOW) -> float:
    """What the URL itself says."""
    query = URL(found.url).query
    begun = datetime.strptime(query["X-Amz-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    ends = begun + timedelta(seconds=int(query["X-Amz-Expires"]))
    assert ends == found.expires
    return (ends - now).total_seconds()


@given(st.integers(10, 7 * 86400), st.integers(0, 10**7))
def test_a_url_lives_for_at_least_half_of_its_life_and_never_longer_than_all_of_it(life: int, passed: int) -> None:
    now = NOW + timedelta(seconds=passed)
    assert life / 2 - 1 <= life_left(signed(life, now=now), now) <= life


@given(st.integers(0, 1799), st.integers(0, 1799))
def test_it_is_the_same_within_half_a_life(one: int, other: int) -> None:
    assert signed(3600, now=NOW + timedelta(seconds=one)) == signed(3600, now=NOW + timedelta(seconds=other))


@pytest.mark.parametrize(
    ("left", "found"),
    [
        (600.0, signed(DAY, until=NOW + timedelta(minutes=10))),
        (900.0, signed(DAY, credentials=NOW + timedelta(minutes=15))),
        (600.0, signed(DAY, until=NOW + timedelta(minutes=10), credentials=NOW + timedelta(minutes=15))),
    ],
    ids=["image", "credentials", "both"],
)
def test_it_ends_with_the_image_and_with_the_credentials(left: float, found: Link) -> None:
    assert life_left(found) == left


def test_it_never_lives_longer_than_a_store_allows() -> None:
    assert int(URL(signed(30 * DAY).url).query["X-Amz-Expires"]) == 7 * 86400


def test_the_token_of_a_session_is_part_of_it() -> None:
    assert URL(signed(3600, token="a/b+c=").url).query["X-Amz-Security-Token"] == "a/b+c="
