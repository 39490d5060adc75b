"""Test that users, nodes, keys and times are parsed in the form of each Headscale release."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lifecycle.clients.headscale.cli import last_json
from lifecycle.clients.headscale.parsing import (
    parse_api_key,
    parse_id,
    parse_node,
    parse_pre_auth_key,
    parse_time,
    parse_user,
)
from lifecycle.domain.model import KeyOrigin, Node, RegisterMethod, User
from tests.clients.json_values import JSON

# The errors that parsers raise for a malformed value. The callers of the parsers turn them into a ResponseError.
MALFORMED = (ValueError, KeyError, TypeError, AttributeError)

MACHINE_KEY = "mkey:" + "0a" * 32
SECRET = "0123456789abcdef" * 3
INSTANT = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)

SVC = {"id": "1", "name": "svc", "createdAt": "2024-10-01T08:00:00.123456789Z"}
# The pseudo-user that some releases report as the owner of tagged nodes.
TAGGED_DEVICES = {"id": "2147455555", "name": "tagged-devices", "createdAt": "0001-01-01T00:00:00Z"}

NODE: dict[str, Any] = {
    "id": "12",
    "machineKey": MACHINE_KEY,
    "nodeKey": "nodekey:" + "0b" * 32,
    "discoKey": "discokey:" + "00" * 32,
    "ipAddresses": ["100.64.0.5", "fd7a:115c:a1e0::5"],
    "name": "grafana.example.com",
    "user": SVC,
    "lastSeen": "2026-03-01T12:00:00.123456789Z",
    "expiry": None,
    "preAuthKey": {"user": SVC, "id": "7", "key": SECRET, "used": True, "aclTags": []},
    "createdAt": "2026-03-01T11:00:00Z",
    "registerMethod": "REGISTER_METHOD_AUTH_KEY",
    "givenName": "grafana-example-com",
    "online": True,
    "tags": ["tag:svc"],
}

KEY: dict[str, Any] = {
    "user": SVC,
    "id": "7",
    "key": SECRET,
    "reusable": True,
    "ephemeral": False,
    "used": True,
    "expiration": "2026-03-01T13:00:00Z",
    "createdAt": "2026-03-01T12:00:00.123456Z",
    "aclTags": ["tag:svc"],
}


def try_parse(parse: Callable[[Any], Any], payload: Any) -> tuple[bool, Any]:
    """Return whether the value is valid, and what it was parsed to."""
    try:
        return True, parse(payload)
    except MALFORMED:
        return False, None


def is_id(value: object) -> bool:
    """Return True for an id as Headscale writes it: a string in the API, a number in the output of `headscale`."""
    return type(value) in (str, int) and re.fullmatch("[1-9][0-9]*", str(value)) is not None


class TestTime:
    """Times in the REST API and in the output of the `headscale` command (CLI)."""

    @pytest.mark.parametrize(
        ("value", "instant"),
        [
            pytest.param("2026-03-01T12:00:00Z", INSTANT.replace(microsecond=0), id="without-fraction"),
            pytest.param("2026-03-01T12:00:00.5Z", INSTANT.replace(microsecond=500_000), id="1-digit"),
            pytest.param("2026-03-01T12:00:00.123456Z", INSTANT, id="6-digits"),
            pytest.param("2026-03-01T12:00:00.123456789Z", INSTANT, id="9-digits"),
            pytest.param("2026-03-01T12:00:00.123456999Z", INSTANT, id="truncated-not-rounded"),
            pytest.param("2026-03-01T14:00:00.123456+02:00", INSTANT, id="offset-east"),
            pytest.param("2026-03-01T07:30:00.123456789-04:30", INSTANT, id="offset-west"),
            # Headscale sets this expiry at logout.
            pytest.param("1970-01-01T00:02:03Z", datetime(1970, 1, 1, 0, 2, 3, tzinfo=UTC), id="logged-out"),
            pytest.param("9999-12-31T23:59:59Z", datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC), id="end-of-year-9999"),
            pytest.param({"seconds": 1772366400, "nanos": 123456789}, INSTANT, id="cli-output"),
            pytest.param({"seconds": 1772366400}, INSTANT.replace(microsecond=0), id="cli-output-without-nanos"),
            pytest.param({"seconds": 123}, datetime(1970, 1, 1, 0, 2, 3, tzinfo=UTC), id="cli-output-logged-out"),
            pytest.param({"seconds": -1}, datetime(1969, 12, 31, 23, 59, 59, tzinfo=UTC), id="before-1970"),
            pytest.param(None, None, id="null"),
            pytest.param("", None, id="empty"),
            # Go writes a time that is not set as the start of year 1, with the local mean time as offset.
            pytest.param("0001-01-01T00:00:00Z", None, id="year-1"),
            pytest.param("0001-01-01T00:53:28+00:53", None, id="year-1-east"),
            pytest.param("0000-12-31T19:03:58-04:56", None, id="year-1-west"),
            pytest.param({"seconds": -62135596800}, None, id="cli-output-year-1"),
        ],
    )
    def test_instant_is_parsed(self, value: object, instant: datetime | None) -> None:
        assert parse_time(value) == instant

    @pytest.mark.parametrize(
        "value",
        [
            pytest.param("2026-03-01T12:00:00", id="without-zone"),
            pytest.param("2026-03-01", id="date"),
            pytest.param("yesterday", id="words"),
            pytest.param("1772366400", id="digits"),
            pytest.param(1772366400, id="number"),
            pytest.param(0, id="zero"),
            pytest.param(False, id="false"),
            pytest.param({}, id="empty-object"),
            pytest.param({"nanos": 5}, id="nanos-only"),
            pytest.param({"seconds": "1772366400"}, id="seconds-as-string"),
            pytest.param({"seconds": 1.5}, id="half-seconds"),
            pytest.param({"seconds": True}, id="seconds-is-boolean-true"),
            pytest.param({"seconds": 10**12}, id="after-year-9999"),
            pytest.param({"seconds": 10**30}, id="seconds-out-of-range"),
            pytest.param({"seconds": -(10**12)}, id="before-year-1"),
            pytest.param({"seconds": 1, "nanos": "5"}, id="nanos-as-string"),
            pytest.param({"seconds": 1, "nanos": 10**9}, id="too-many-nanos"),
            pytest.param({"seconds": 1, "nanos": -1}, id="negative-nanos"),
            pytest.param("9999-12-31T23:59:59-05:00", id="after-year-9999-in-UTC"),
            pytest.param([], id="list"),
        ],
    )
    def test_malformed_instant_is_an_error(self, value: object) -> None:
        """None would mean that there is no such time, for example that a node never expires."""
        with pytest.raises(MALFORMED):
            parse_time(value)

    @given(
        st.datetimes(
            min_value=datetime(2, 1, 2),  # noqa: DTZ001 - the strategy adds the zone
            max_value=datetime(9999, 12, 30),  # noqa: DTZ001
            timezones=st.builds(
                timezone, st.integers(-14 * 60, 14 * 60).map(lambda minutes: timedelta(minutes=minutes))
            ),
        ),
        st.booleans(),
    )
    def test_every_instant_is_parsed_to_utc(self, instant: datetime, ends_in_z: bool) -> None:
        text = instant.astimezone(UTC).isoformat().replace("+00:00", "Z") if ends_in_z else instant.isoformat()
        parsed_instant = parse_time(text)
        assert parsed_instant == instant
        assert parsed_instant is not None
        assert parsed_instant.utcoffset() == timedelta()

    @given(JSON)
    def test_arbitrary_value_is_parsed_or_malformed(self, value: Any) -> None:
        is_valid, instant = try_parse(parse_time, value)
        if not is_valid:
            return
        if instant is None:
            assert value in (None, "") or str(value).startswith("0001-") or "seconds" in value
        else:
            assert instant.utcoffset() == timedelta()
            assert isinstance(value, str) or type(value["seconds"]) is int


class TestId:
    """An id is parsed to a decimal string, whether it was received as a string or a number."""

    @pytest.mark.parametrize(
        ("value", "text"),
        [
            *[("1", "1"), (1, "1"), (str(2**64 - 1), str(2**64 - 1)), (2**64 - 1, str(2**64 - 1))],
            *[(None, None), ("", None), (0, None), ("0", None)],
        ],
    )
    def test_id_is_parsed(self, value: object, text: str | None) -> None:
        """An absent id is None."""
        assert parse_id(value) == text

    @pytest.mark.parametrize(
        "value", ["-1", -1, "01", "1.0", 1.0, 0.0, "1e3", " 1", "1\n", "x", True, False, [], {}, "\u0661", "1" * 21]
    )
    def test_malformed_id_is_an_error(self, value: object) -> None:
        with pytest.raises((ValueError, TypeError)):
            parse_id(value)

    @given(JSON)
    def test_arbitrary_value_is_parsed_or_malformed(self, value: Any) -> None:
        is_valid, parsed_id = try_parse(parse_id, value)

        assert not is_valid or parsed_id == (str(value) if is_id(value) else None)


class TestUser:
    """Owners of nodes and keys. A node with a malformed owner must not be treated as a node without an owner."""

    @pytest.mark.parametrize(
        ("payload", "user"),
        [
            pytest.param(SVC, User("1", "svc"), id="object"),
            pytest.param({"id": 1, "name": "svc"}, User("1", "svc"), id="id-as-number"),
            pytest.param("svc", User(None, "svc"), id="name-up-to-0.25"),
            pytest.param("svc@example.com", User(None, "svc@example.com"), id="email-on-0.24"),
            pytest.param({"id": "3", "name": ""}, User("3", ""), id="without-a-name"),
            pytest.param(
                {"id": 3, "email": "a@b"},
                User("3", "", email="a@b"),
                id="empty-name-omitted-in-cli-output",
            ),
            pytest.param({"name": "svc"}, User(None, "svc"), id="name-only"),
            pytest.param({"id": "", "name": "svc"}, User(None, "svc"), id="name-with-empty-id"),
            pytest.param(None, None, id="null"),
            pytest.param("", None, id="empty-string"),
            pytest.param({}, None, id="empty-object"),
            pytest.param({"id": "", "name": ""}, None, id="empty-strings-instead-of-null"),
            pytest.param({"id": "0", "name": ""}, None, id="id-zero"),
            pytest.param(TAGGED_DEVICES, None, id="tagged-devices-user"),
            pytest.param({"id": 2147455555, "name": "tagged-devices"}, None, id="tagged-devices-user-in-cli-output"),
        ],
    )
    def test_user_is_parsed(self, payload: object, user: User | None) -> None:
        assert parse_user(payload) == user

    @pytest.mark.parametrize(
        "payload",
        [
            {"message": "internal error"},
            {"id": "x", "name": "svc"},
            {"id": "1", "name": 5},
            {"id": "1", "name": ["svc"]},
            {"id": True, "name": "svc"},
            {"id": -1, "name": "svc"},
            1,
            True,
            False,
            0,
            [],
            ["svc"],
        ],
    )
    def test_malformed_user_is_an_error(self, payload: object) -> None:
        with pytest.raises((ValueError, TypeError)):
            parse_user(payload)

    @given(JSON)
    def test_arbitrary_value_is_parsed_or_malformed(self, payload: Any) -> None:
        is_valid, user = try_parse(parse_user, payload)
        if not is_valid:
            return
        if user is not None:
            assert user.name == (payload if isinstance(payload, str) else payload.get("name") or "")
            assert user.id is None or user.id == str(payload["id"])
        elif payload:
            assert payload.get("name") in (None, "", "tagged-devices")
            assert payload.get("id") in (None, "", "0", 0) or payload.get("name") == "tagged-devices"


def node_with(**fields: Any) -> dict[str, Any]:
    """Return NODE with these fields replaced; `...` removes a field."""
    return {name: value for name, value in (NODE | fields).items() if value is not ...}


class TestNode:
    """Nodes in the form of each release."""

    def test_node_is_parsed(self) -> None:
        assert parse_node(NODE) == Node(
            id="12",
            hostname="grafana.example.com",
            machine_key=MACHINE_KEY,
            addresses=(ip_address("100.64.0.5"), ip_address("fd7a:115c:a1e0::5")),
            user=User("1", "svc"),
            tags=frozenset({"tag:svc"}),
            registered_by=RegisterMethod.AUTH_KEY,
            pre_auth_key=KeyOrigin("7", User("1", "svc")),
            online=True,
            expires_at=None,
            last_seen=INSTANT,
        )

    @pytest.mark.parametrize(
        ("fields", "name", "value"),
        [
            pytest.param({"id": 12}, "id", "12", id="id-as-number"),
            pytest.param({"name": "My_Host"}, "hostname", "My_Host", id="hostname-is-not-converted"),
            pytest.param({"name": ""}, "hostname", "", id="no-hostname"),
            pytest.param({"name": ...}, "hostname", "", id="no-hostname-in-cli-output"),
            pytest.param({"ipAddresses": []}, "addresses", (), id="no-address"),
            pytest.param({"ipAddresses": ...}, "addresses", (), id="addresses-omitted"),
            pytest.param({"ipAddresses": None}, "addresses", (), id="addresses-null"),
            pytest.param({"ipAddresses": ["fd00::1"]}, "addresses", (ip_address("fd00::1"),), id="IPv6-only"),
            pytest.param({"user": None}, "user", None, id="tagged-from-0.29-on"),
            pytest.param({"user": TAGGED_DEVICES}, "user", None, id="tagged-on-0.28"),
            pytest.param({"user": ...}, "user", None, id="user-omitted"),
            pytest.param({"tags": ...}, "tags", frozenset(), id="no-tags"),
            pytest.param({"tags": None}, "tags", frozenset(), id="tags-null"),
            pytest.param(
                {"tags": ..., "forcedTags": ["tag:a"], "validTags": ["tag:b"], "invalidTags": ["tag:c"]},
                "tags",
                frozenset({"tag:a", "tag:b"}),
                id="tags-up-to-0.27",
            ),
            pytest.param({"registerMethod": 1}, "registered_by", RegisterMethod.AUTH_KEY, id="auth-key-as-number"),
            pytest.param({"registerMethod": 2}, "registered_by", RegisterMethod.CLI, id="CLI-as-number"),
            pytest.param({"registerMethod": 3}, "registered_by", RegisterMethod.OIDC, id="OIDC-as-number"),
            pytest.param({"registerMethod": "REGISTER_METHOD_CLI"}, "registered_by", RegisterMethod.CLI, id="CLI"),
            pytest.param({"registerMethod": "REGISTER_METHOD_OIDC"}, "registered_by", RegisterMethod.OIDC, id="OIDC"),
            pytest.param(
                {"registerMethod": "REGISTER_METHOD_UNSPECIFIED"},
                "registered_by",
                RegisterMethod.UNKNOWN,
                id="unspecified",
            ),
            pytest.param({"registerMethod": "NEW"}, "registered_by", RegisterMethod.UNKNOWN, id="unknown-method"),
            pytest.param({"registerMethod": ...}, "registered_by", RegisterMethod.UNKNOWN, id="method-omitted"),
            pytest.param({"registerMethod": True}, "registered_by", RegisterMethod.UNKNOWN, id="true-is-not-1"),
            pytest.param({"registerMethod": 1.0}, "registered_by", RegisterMethod.UNKNOWN, id="1.0-is-not-1"),
            pytest.param({"preAuthKey": None}, "pre_auth_key", None, id="no-key"),
            pytest.param({"preAuthKey": ...}, "pre_auth_key", None, id="key-omitted"),
            pytest.param(
                {"preAuthKey": {"id": "", "key": "", "user": {"id": "", "name": ""}}},
                "pre_auth_key",
                None,
                id="empty-strings-instead-of-null",
            ),
            pytest.param(
                {"preAuthKey": {"id": "7", "user": "svc"}},
                "pre_auth_key",
                KeyOrigin("7", User(None, "svc")),
                id="key's-user-by-name-up-to-0.25",
            ),
            # A key with tags needs no user.
            pytest.param(
                {"preAuthKey": {"id": 7, "user": None}}, "pre_auth_key", KeyOrigin("7", None), id="key-without-user"
            ),
            pytest.param(
                {"preAuthKey": {"id": "7", "createdAt": "2026-03-01T12:00:00.123456789Z"}},
                "pre_auth_key",
                KeyOrigin("7", None, INSTANT),
                id="creation-time-of-the-key",
            ),
            pytest.param({"online": False}, "online", False, id="offline"),
            pytest.param({"online": ...}, "online", False, id="offline-in-cli-output"),
            pytest.param({"online": None}, "online", False, id="online-null"),
            pytest.param({"expiry": "0001-01-01T00:00:00Z"}, "expires_at", None, id="no-expiry-as-year-1"),
            pytest.param({"expiry": ...}, "expires_at", None, id="no-expiry-omitted"),
            pytest.param({"expiry": "2026-03-01T12:00:00.123456Z"}, "expires_at", INSTANT, id="expires"),
            pytest.param({"lastSeen": None}, "last_seen", None, id="never-seen"),
            pytest.param({"somethingNew": {"a": [1]}}, "id", "12", id="unknown-field"),
        ],
    )
    def test_field_in_each_form(self, fields: dict[str, Any], name: str, value: object) -> None:
        assert getattr(parse_node(node_with(**fields)), name) == value

    @pytest.mark.parametrize(
        "fields",
        [
            pytest.param({"id": ...}, id="no-id"),
            pytest.param({"id": "0"}, id="id-zero"),
            pytest.param({"id": "x"}, id="id-with-letters"),
            pytest.param({"machineKey": ...}, id="no-machine-key"),
            pytest.param({"machineKey": ""}, id="empty-machine-key"),
            pytest.param({"machineKey": 5}, id="machine-key-as-number"),
            pytest.param({"machineKey": "mkey:\ud800"}, id="machine-key-is-not-text"),
            pytest.param({"name": None}, id="name-null"),
            pytest.param({"ipAddresses": ["x"]}, id="not-an-address"),
            pytest.param({"ipAddresses": "100.64.0.5"}, id="addresses-as-string"),
            pytest.param({"ipAddresses": [1681915909]}, id="address-as-number"),
            pytest.param({"ipAddresses": [True]}, id="address-is-boolean-true"),
            pytest.param({"ipAddresses": {"100.64.0.5": 1}}, id="addresses-as-object"),
            pytest.param({"tags": "tag:svc"}, id="tags-as-string"),
            pytest.param({"tags": {"tag:svc": True}}, id="tags-as-object"),
            pytest.param({"tags": [["tag:svc"]]}, id="nested-list-of-tags"),
            pytest.param({"tags": ["tag:svc", None]}, id="tag-null"),
            pytest.param({"user": {"message": "no"}}, id="object-that-is-not-a-user"),
            pytest.param({"user": 1}, id="user-as-number"),
            pytest.param({"user": False}, id="user-is-boolean-false"),
            pytest.param({"preAuthKey": {"user": SVC}}, id="key-with-user-but-no-id"),
            pytest.param({"preAuthKey": "7"}, id="key-as-string"),
            pytest.param({"preAuthKey": {"id": "7", "user": {"x": 1}}}, id="key-with-object-that-is-not-a-user"),
            pytest.param({"preAuthKey": []}, id="key-as-list"),
            pytest.param({"preAuthKey": False}, id="key-is-boolean-false"),
            pytest.param({"expiry": "soon"}, id="expiry-in-words"),
            pytest.param({"expiry": {"seconds": 10**30}}, id="expiry-out-of-range"),
            pytest.param({"lastSeen": 5}, id="last-seen-as-number"),
            pytest.param({"online": "true"}, id="online-as-string"),
        ],
    )
    def test_malformed_node_is_an_error(self, fields: dict[str, Any]) -> None:
        with pytest.raises(MALFORMED):
            parse_node(node_with(**fields))

    @given(st.sampled_from(sorted({*NODE, "forcedTags", "validTags"})), JSON)
    def test_arbitrary_value_in_a_field_is_parsed_or_malformed(self, field: str, value: Any) -> None:
        """Each value is parsed, or is reported as malformed. No other error is raised."""
        is_valid, node = try_parse(parse_node, node_with(**{field: value}))
        if is_valid and field == "registerMethod":
            assert (node.registered_by is RegisterMethod.AUTH_KEY) is (type(value) is int and value == 1)

    @given(JSON)
    def test_arbitrary_value_is_malformed(self, payload: Any) -> None:
        assert try_parse(parse_node, payload) == (False, None)


class TestPreAuthKey:
    """Pre-auth keys, from a list or just created."""

    def test_key_is_parsed(self) -> None:
        key = parse_pre_auth_key(KEY)

        assert (key.id, key.user, key.tags) == ("7", User("1", "svc"), frozenset({"tag:svc"}))
        assert (key.reusable, key.ephemeral, key.used) == (True, False, True)
        assert (key.created_at, key.expires_at) == (INSTANT, datetime(2026, 3, 1, 13, tzinfo=UTC))
        assert key.secret.get_secret_value() == SECRET
        assert SECRET not in repr(key)

    @pytest.mark.parametrize(
        ("fields", "secret"),
        [
            ({"key": "hskey-auth-abcdefghijkl-" + "-_" * 32}, "hskey-auth-abcdefghijkl-" + "-_" * 32),
            ({"key": "hskey-auth-abcdefghijkl-***"}, None),
            ({"key": ""}, None),
            ({"key": None}, None),
        ],
    )
    def test_secret_is_kept_unless_it_is_masked_or_empty(self, fields: dict[str, Any], secret: str | None) -> None:
        key = parse_pre_auth_key(KEY | fields).known_secret

        assert (key.get_secret_value() if key else None) == secret

    def test_omitted_fields_have_defaults(self) -> None:
        key = parse_pre_auth_key({"id": 7})

        assert (key.reusable, key.ephemeral, key.used) == (False, False, False)
        assert (key.user, key.tags, key.known_secret, key.expires_at, key.created_at) == (
            None,
            frozenset(),
            None,
            None,
            None,
        )
        with pytest.raises(ValueError):  # noqa: PT011 - no other ValueError is raised here
            _ = key.secret

    @pytest.mark.parametrize(
        "fields",
        [
            {"id": None},
            {"id": "x"},
            {"key": 5},
            {"key": ["a"]},
            {"key": "\ud800"},
            {"used": "true"},
            {"reusable": 1},
            {"user": 5},
            {"user": {"x": 1}},
            {"aclTags": "tag:svc"},
            {"aclTags": {"tag:svc": 1}},
            {"aclTags": [5]},
            {"expiration": "soon"},
            {"createdAt": 5},
        ],
    )
    def test_malformed_key_is_an_error(self, fields: dict[str, Any]) -> None:
        with pytest.raises(MALFORMED):
            parse_pre_auth_key(KEY | fields)

    @given(st.sampled_from(sorted(KEY)), JSON)
    def test_arbitrary_value_in_a_field_is_parsed_or_malformed(self, field: str, value: Any) -> None:
        """Each value is parsed, or is reported as malformed. No other error is raised."""
        try_parse(parse_pre_auth_key, KEY | {field: value})


class TestApiKey:
    """API keys in a list: their prefix and expiry."""

    @pytest.mark.parametrize(
        ("listed", "prefix"),
        [
            pytest.param("gX7-A24fQA", "gX7-A24fQA", id="0.23"),
            pytest.param("Dvg0aDZ", "Dvg0aDZ", id="0.27"),
            pytest.param("d1WdO8-***", "d1WdO8-", id="created by 0.27, listed by 0.28"),
            pytest.param("hskey-api-8ZTWr3e-rZKX-***", "hskey-api-8ZTWr3e-rZKX-", id="0.28"),
            pytest.param("hskey-api-b2d4b895cbf7-***", "hskey-api-b2d4b895cbf7-", id="0.30"),
        ],
    )
    def test_api_key_is_parsed(self, listed: str, prefix: str) -> None:
        """The values are from real servers."""
        assert parse_api_key({"prefix": listed, "expiration": None}) == (prefix, None)
        assert parse_api_key({"prefix": listed, "expiration": "2026-03-01T12:00:00.123456Z"}) == (prefix, INSTANT)

    @pytest.mark.parametrize(
        "payload",
        [{}, {"prefix": ""}, {"prefix": "***"}, {"prefix": "abc***"}, {"prefix": "hskey-"}, {"prefix": 5}, []],
    )
    def test_malformed_api_key_is_an_error(self, payload: Any) -> None:
        """A short prefix could match several keys."""
        with pytest.raises(MALFORMED):
            parse_api_key(payload)


class TestCliOutput:
    """Field names in the output of the `headscale` command."""

    def test_snake_case_names_are_converted_at_every_depth(self) -> None:
        printed = {"pre_auth_key": {"acl_tags": ["tag:a_b"], "created_at": None}, "nodes": [{"ip_addresses": ["a_b"]}]}

        assert last_json(json.dumps(printed)) == {
            "preAuthKey": {"aclTags": ["tag:a_b"], "createdAt": None},
            "nodes": [{"ipAddresses": ["a_b"]}],
        }
