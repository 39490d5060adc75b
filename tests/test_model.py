"""Test comparisons of users and of records, and the expiry of nodes and of pre-auth keys."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace
from datetime import datetime, timedelta

import pytest
from pydantic import SecretStr

from lifecycle.domain.model import PreAuthKey, Record, User
from tests.builders import EXPIRED, NOW, OUR_COMMENT, OUR_USER, a_node, a_record, a_spec

LATER = NOW + timedelta(seconds=1)
V6 = "fd7a:115c:a1e0::1"

KEY = PreAuthKey(
    id="7",
    user=OUR_USER,
    tags=frozenset(),
    reusable=False,
    ephemeral=False,
    used=False,
    created_at=NOW,
    expires_at=LATER,
)


@pytest.mark.parametrize(
    ("user", "other_user", "is_same"),
    [
        pytest.param(User("1", "svc"), User("1", "svc"), True, id="same-id-and-name"),
        pytest.param(User("1", "svc"), User("1", "renamed"), True, id="same-id-and-other-name"),
        pytest.param(User("1", "svc"), User("2", "svc"), False, id="other-id-and-same-name"),
        pytest.param(User("1", "svc"), User(None, "svc"), True, id="one-id-and-same-name"),
        pytest.param(User("1", "svc"), User(None, "ann"), False, id="one-id-and-other-name"),
        pytest.param(User("1", "svc"), User(None, "1"), False, id="name-that-equals-the-id"),
        pytest.param(User(None, "svc"), User(None, "svc"), True, id="no-ids-and-same-name"),
        pytest.param(User(None, "svc"), User(None, "SVC"), False, id="no-ids-and-name-in-upper-case"),
    ],
)
def test_users_are_compared_by_id_and_without_it_by_name(user: User, other_user: User, is_same: bool) -> None:
    assert user.is_same(other_user) is is_same
    assert other_user.is_same(user) is is_same


@pytest.mark.parametrize(
    ("expires_at", "is_expired"),
    [(None, False), (LATER, False), (NOW, True), (EXPIRED, True)],
)
def test_node_is_expired_from_the_moment_of_its_expiry(expires_at: datetime | None, is_expired: bool) -> None:
    assert replace(a_node(), expires_at=expires_at).is_expired(NOW) is is_expired


@pytest.mark.parametrize(
    ("key", "is_usable"),
    [
        pytest.param(KEY, True, id="fresh"),
        pytest.param(replace(KEY, expires_at=NOW), False, id="expires-just-now"),
        pytest.param(replace(KEY, expires_at=None), True, id="never-expires"),
        pytest.param(replace(KEY, used=True), False, id="used"),
        pytest.param(replace(KEY, used=True, reusable=True), True, id="used-and-reusable"),
        pytest.param(replace(KEY, reusable=True, expires_at=NOW), False, id="reusable-and-expired"),
    ],
)
def test_key_is_usable_until_it_is_used_or_expired(key: PreAuthKey, is_usable: bool) -> None:
    assert key.is_usable(NOW) is is_usable


def test_key_can_have_an_unknown_secret() -> None:
    """From 0.28 on, Headscale returns the secret of a key when it creates the key, but not when it lists keys."""
    assert replace(KEY, known_secret=SecretStr("s3cr3t")).secret.get_secret_value() == "s3cr3t"
    assert "s3cr3t" not in repr(replace(KEY, known_secret=SecretStr("s3cr3t")))
    with pytest.raises(ValueError, match="unknown"):
        _ = KEY.secret


@pytest.mark.parametrize(
    ("record", "differences"),
    [
        pytest.param(a_record(), {}, id="none"),
        pytest.param(a_record(content="100.64.0.2"), {"content": "100.64.0.1"}, id="content"),
        pytest.param(a_record(content="nonsense"), {"content": "100.64.0.1"}, id="content-that-is-not-an-address"),
        pytest.param(a_record(ttl_s=1), {"ttl": 60}, id="ttl"),
        pytest.param(a_record(proxied=True), {"proxied": False}, id="proxied"),
        pytest.param(a_record(comment=""), {"comment": OUR_COMMENT}, id="no-comment"),
        pytest.param(a_record(comment=OUR_COMMENT.upper()), {"comment": OUR_COMMENT}, id="comment-in-upper-case"),
        pytest.param(
            a_record(content="100.64.0.2", ttl_s=1, proxied=True, comment=""),
            {"content": "100.64.0.1", "ttl": 60, "proxied": False, "comment": OUR_COMMENT},
            id="all",
        ),
    ],
)
def test_differences_between_a_record_and_the_desired_record(record: Record, differences: dict[str, object]) -> None:
    assert a_spec().differences(record) == differences


@pytest.mark.parametrize("spelling", [V6, V6.upper(), "fd7a:115c:a1e0:0:0:0:0:1", "fd7a:115c:a1e0:0000::0001"])
def test_addresses_are_compared_by_value(spelling: str) -> None:
    assert a_spec(V6).differences(a_record(type_="AAAA", content=spelling)) == {}


def test_values_are_immutable() -> None:
    for value, name in (
        (a_node(), "id"),
        (a_record(), "content"),
        (a_spec(), "ttl_s"),
        (OUR_USER, "name"),
        (KEY, "used"),
    ):
        with pytest.raises(FrozenInstanceError):
            setattr(value, name, "x")
