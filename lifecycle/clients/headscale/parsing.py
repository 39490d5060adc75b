"""Parse users, nodes and keys from the REST API and the command line of every release of Headscale.

Each function raises ValueError, KeyError, TypeError or AttributeError for a malformed value. The callers, in `http.py`
and `exec.py`, turn these exceptions into the error "malformed response".
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from socket import AF_INET, AF_INET6, inet_pton
from typing import Any

from pydantic import SecretStr

from lifecycle.domain.model import IpAddress, KeyOrigin, Node, PreAuthKey, RegisterMethod, User

# From 0.28 on, lists contain this name as the user of tagged nodes. Such a user does not exist in the database.
_TAGGED_DEVICES = "tagged-devices"

_REGISTER_METHODS: dict[object, RegisterMethod] = {
    "REGISTER_METHOD_AUTH_KEY": RegisterMethod.AUTH_KEY,
    "REGISTER_METHOD_CLI": RegisterMethod.CLI,
    "REGISTER_METHOD_OIDC": RegisterMethod.OIDC,
    1: RegisterMethod.AUTH_KEY,
    2: RegisterMethod.CLI,
    3: RegisterMethod.OIDC,
}

# The shortest prefix of an API key in any release.
_MIN_PREFIX_LENGTH = 7

_ID = re.compile(r"[1-9][0-9]{0,19}")
_SNAKE = re.compile(r"_([a-z])")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NANOSECONDS_PER_SECOND = 1_000_000_000

# The members that each object of the REST API always has. A node also has `tags` from 0.28 on, or `forcedTags` up to
# 0.27.
_USER = frozenset({"id", "name"})
_NODE = frozenset(
    {
        *("id", "name", "machineKey", "ipAddresses", "user", "preAuthKey", "registerMethod"),
        *("online", "expiry", "lastSeen"),
    }
)
_TAGS = frozenset({"tags", "forcedTags"})
_KEY_OF_NODE = frozenset({"id", "user", "createdAt"})
_KEY = frozenset({"id", "user", "key", "reusable", "ephemeral", "used", "expiration", "createdAt", "aclTags"})


@dataclass(frozen=True, slots=True)
class ListedApiKey:
    """An API key in a list.

    Attributes:
        prefix: the first characters of the key.
        expires_at: None = never.
    """

    prefix: str
    expires_at: datetime | None


def parse_user(payload: Any) -> User | None:
    """Parse the owner of a node or key.

    Returns:
        None for null, an empty value, and the owner that Headscale shows for tagged nodes. A malformed owner is an
        error, because the node must not be treated as one without an owner.
    """
    match payload:
        case None | "":
            return None
        case str(name):
            return User(id=None, name=name)
        case dict() if not payload or payload.keys() & {"id", "name"}:
            return _owner(payload.get("id"), payload.get("name"), payload.get("email"), payload.get("provider"))
    raise ValueError("not a user")


# Thousands of nodes share a few owners, so each owner is parsed only once. Without `typed`, the cache would treat the
# malformed id True as 1.
@lru_cache(maxsize=100, typed=True)
def _owner(user_id: Any, name: Any, email: Any, provider: Any) -> User | None:
    user = User(parse_id(user_id), _text(name), _text(email), _text(provider))
    return None if user.name == _TAGGED_DEVICES or not (user.id or user.name) else user


def parse_listed_user(payload: Any) -> User:
    """Parse an item of the list of users."""
    user = parse_user(payload)
    if user is None or not isinstance(payload, dict):
        raise ValueError("not a user")
    return user


def parse_node(payload: Any) -> Node:
    """Parse a node."""
    machine_key = payload["machineKey"]
    hostname = payload["name"]
    if not isinstance(machine_key, str) or not machine_key or not isinstance(hostname, str):
        raise TypeError("a node without a machine key or a name")
    return Node(
        id=_required_id(payload["id"]),
        hostname=hostname,
        machine_key=machine_key,
        addresses=tuple(map(_address, _texts(payload, "ipAddresses"))),
        user=parse_user(payload.get("user")),
        tags=frozenset(_texts(payload, "tags") + _texts(payload, "forcedTags") + _texts(payload, "validTags")),
        registered_by=_parse_register_method(payload.get("registerMethod")),
        pre_auth_key=_parse_key_origin(payload.get("preAuthKey")),
        online=_flag(payload, "online"),
        expires_at=parse_time(payload.get("expiry")),
        last_seen=parse_time(payload.get("lastSeen")),
    )


def _address(text: str) -> IpAddress:
    # inet_pton() is six times as fast as ipaddress.ip_address(), which took a fifth of the time of parsing a list.
    try:
        return IPv6Address(inet_pton(AF_INET6, text)) if ":" in text else IPv4Address(inet_pton(AF_INET, text))
    except OSError:
        raise ValueError("not an IP address") from None


def _parse_register_method(value: Any) -> RegisterMethod:
    # A Boolean is malformed. It is not looked up, because True would find the method of the number 1.
    if isinstance(value, str | int) and not isinstance(value, bool):
        return _REGISTER_METHODS.get(value, RegisterMethod.UNKNOWN)
    return RegisterMethod.UNKNOWN


def _parse_key_origin(payload: Any) -> KeyOrigin | None:
    """Parse the key that a node registered with, without the secret that releases up to 0.27 include."""
    if payload is None:
        return None
    key_id, user = parse_id(payload.get("id")), parse_user(payload.get("user"))
    if key_id is not None:
        return KeyOrigin(key_id, user, parse_time(payload.get("createdAt")))
    if user is not None:
        raise ValueError("a pre-auth key without an id")
    return None


def parse_pre_auth_key(payload: Any) -> PreAuthKey:
    """Parse a pre-auth key from a list, or a key that was just created."""
    secret = _text(payload.get("key"))
    return PreAuthKey(
        id=_required_id(payload["id"]),
        user=parse_user(payload.get("user")),
        tags=frozenset(_texts(payload, "aclTags")),
        reusable=_flag(payload, "reusable"),
        ephemeral=_flag(payload, "ephemeral"),
        used=_flag(payload, "used"),
        created_at=parse_time(payload.get("createdAt")),
        expires_at=parse_time(payload.get("expiration")),
        # From 0.28 on, Headscale masks the secret in lists, with asterisks at the end.
        known_secret=SecretStr(secret) if secret and not secret.endswith("*") else None,
    )


def parse_api_key(payload: Any) -> ListedApiKey:
    """Parse an API key in a list.

    Up to 0.27, a key is `<prefix>.<secret>`, with 10 and 43 characters (up to 0.24) or 7 and 32 characters. From 0.28
    on, a new key is `hskey-api-<12 characters>-<64 characters>`, and each listed prefix ends in `***`.
    """
    prefix = payload["prefix"].rstrip("*")
    if len(prefix) < _MIN_PREFIX_LENGTH:
        raise ValueError("the prefix is too short to identify a key")
    return ListedApiKey(prefix, parse_time(payload.get("expiration")))


def parse_complete_user(payload: Any) -> User:
    """Parse an item of the REST API's list of users. Unlike the command line, the API omits no empty members."""
    _require(payload, _USER)
    return parse_listed_user(payload)


def parse_complete_node(payload: Any) -> Node:
    """Parse a node of the REST API, which omits no member."""
    _require(payload, _NODE)
    if not payload.keys() & _TAGS:
        raise KeyError(*_TAGS)
    if payload["preAuthKey"] is not None:
        _require(payload["preAuthKey"], _KEY_OF_NODE)
    return parse_node(payload)


def parse_complete_pre_auth_key(payload: Any) -> PreAuthKey:
    """Parse a pre-auth key of the REST API, which omits no member."""
    _require(payload, _KEY)
    return parse_pre_auth_key(payload)


def _require(payload: Any, members: frozenset[str]) -> None:
    if not payload.keys() >= members:
        raise KeyError(*(members - payload.keys()))


def parse_id(value: Any) -> str | None:
    """Parse a 64-bit id, which is decimal text or a number; None for null, "" and 0."""
    if value is None:
        return None
    if isinstance(value, str | int) and not isinstance(value, bool):
        text = str(value)
        if text in {"", "0"}:
            return None
        if _ID.fullmatch(text):
            return text
    raise ValueError("not a positive integer")


def _required_id(value: Any) -> str:
    required = parse_id(value)
    if required is None:
        raise ValueError("the id is missing")
    return required


def _text(value: Any) -> str:
    """Return a text; "" if it is absent, because the command line omits empty values."""
    if value is not None and not isinstance(value, str):
        raise TypeError("not a string")
    return value or ""


def _flag(payload: Any, field: str) -> bool:
    """Return a Boolean; False if it is absent, because the command line omits false values."""
    value = payload.get(field)
    if value is not None and not isinstance(value, bool):
        raise TypeError(f"{field} is not a Boolean")
    return bool(value)


def _texts(payload: Any, field: str) -> list[str]:
    values = payload.get(field)
    if values is None:
        return []
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise TypeError(f"{field} is not a list of strings")
    return values


def parse_time(value: Any) -> datetime | None:
    """Parse a time, and return a timezone-aware datetime in UTC; None for null and for year 1, which mean "not set".

    Args:
        value: RFC 3339 with any offset and up to nine decimal places, or `{"seconds": …, "nanos": …}` as written by
            the command line.
    """
    # `isinstance` is used instead of `match`, which takes five times as long. A list has thousands of times.
    try:
        if isinstance(value, str) and value:
            return _instant_of_text(value)
        if isinstance(value, dict):
            return _instant_of_numbers(value)
    except OverflowError:
        raise ValueError("not an instant in the years 1 to 9999") from None
    if value is None or value == "":
        return None
    raise ValueError("not an RFC 3339 instant")


def _instant_of_text(text: str) -> datetime | None:
    if text.startswith("0000-12-31T"):
        # This is the start of year 1 in UTC, written in a time zone west of Greenwich.
        return None
    instant = datetime.fromisoformat(text)
    if instant.tzinfo is None:
        raise ValueError("an instant without a time zone")
    return None if instant.year == 1 else instant.astimezone(UTC)


def _instant_of_numbers(value: dict[str, Any]) -> datetime | None:
    seconds, nanoseconds = value.get("seconds"), value.get("nanos", 0)
    if type(seconds) is not int or type(nanoseconds) is not int or not 0 <= nanoseconds < _NANOSECONDS_PER_SECOND:
        raise ValueError("seconds is not an integer, or nanos is not a fraction of a second")
    instant = _EPOCH + timedelta(seconds=seconds, microseconds=nanoseconds // 1000)
    return None if instant.year == 1 else instant


def with_camel_case_names(value: Any) -> Any:
    """Rename the members of JSON from the command line as in the REST API: `ip_addresses` becomes `ipAddresses`."""
    match value:
        case dict():
            return {
                _SNAKE.sub(lambda match: match[1].upper(), name): with_camel_case_names(item)
                for name, item in value.items()
            }
        case list():
            return [with_camel_case_names(item) for item in value]
    return value
