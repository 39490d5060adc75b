"""Parse users, nodes and keys from the REST API and the command line of every release of Headscale.

Each function raises ValueError, KeyError, TypeError or AttributeError for a malformed value. The callers, in `http.py`
and `exec.py`, turn these exceptions into the error "malformed response".
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from socket import AF_INET, AF_INET6, inet_pton
from typing import Any, TypeVar

from pydantic import SecretStr

from lifecycle.domain.model import IpAddress, KeyOrigin, Node, PreAuthKey, RegisterMethod, User

Value = TypeVar("Value")

# From 0.28 on, lists of nodes contain this name as the user of tagged nodes, which have no user in the database.
_TAGGED_DEVICES = "tagged-devices"

# The methods by name and, for the output of the command line, by number.
_REGISTER_METHODS: dict[object, RegisterMethod] = {
    **dict.fromkeys(("REGISTER_METHOD_AUTH_KEY", 1), RegisterMethod.AUTH_KEY),
    **dict.fromkeys(("REGISTER_METHOD_CLI", 2), RegisterMethod.CLI),
    **dict.fromkeys(("REGISTER_METHOD_OIDC", 3), RegisterMethod.OIDC),
}

# The shortest prefix of an API key in any release.
_MIN_PREFIX_LENGTH = 7

_ID = re.compile(r"[1-9][0-9]{0,19}")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NANOSECONDS_PER_SECOND = 1_000_000_000

# The members that each object of the REST API always has. A node also has `tags` from 0.28 on, or `forcedTags` and
# `validTags` up to 0.27.
_USER = frozenset({"id", "name"})
_NODE = _USER | {"machineKey", "ipAddresses", "user", "preAuthKey", "registerMethod", "online", "expiry", "lastSeen"}
_TAGS = frozenset({"tags", "forcedTags"})
_KEY_OF_NODE = frozenset({"id", "user", "createdAt"})
_KEY = frozenset({"id", "user", "key", "reusable", "ephemeral", "used", "expiration", "createdAt", "aclTags"})


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
    user = _user(user_id, name, email, provider)
    return None if user.name == _TAGGED_DEVICES or not (user.id or user.name) else user


def _user(user_id: Any, name: Any, email: Any, provider: Any) -> User:
    return User(parse_id(user_id), _value(name, str), _value(email, str), _value(provider, str))


def parse_listed_user(payload: Any) -> User:
    """Parse an item of the list of users. It contains only users of the database, one of which can have any name."""
    user = _user(payload.get("id"), payload.get("name"), payload.get("email"), payload.get("provider"))
    if not (user.id or user.name):
        raise ValueError("not a user")
    return user


def parse_node(payload: Any) -> Node:
    """Parse a node."""
    machine_key = _ascii(payload["machineKey"])
    hostname = payload.get("name", "")
    if not machine_key or not isinstance(hostname, str):
        raise TypeError("a node without a machine key, or with a malformed name")
    return Node(
        id=parse_required_id(payload["id"]),
        hostname=hostname,
        machine_key=machine_key,
        addresses=tuple(map(_address, _texts(payload.get("ipAddresses")))),
        user=parse_user(payload.get("user")),
        tags=frozenset(tag for member in ("tags", "forcedTags", "validTags") for tag in _texts(payload.get(member))),
        registered_by=_parse_register_method(payload.get("registerMethod")),
        pre_auth_key=_parse_key_origin(payload.get("preAuthKey")),
        online=_value(payload.get("online"), bool),
        expires_at=parse_time(payload.get("expiry")),
        last_seen=parse_time(payload.get("lastSeen")),
    )


def _address(text: str) -> IpAddress:
    # inet_pton() is several times as fast as ipaddress.ip_address(). A list has thousands of addresses.
    try:
        return IPv6Address(inet_pton(AF_INET6, text)) if ":" in text else IPv4Address(inet_pton(AF_INET, text))
    except OSError:
        raise ValueError("not an IP address") from None


def _parse_register_method(value: Any) -> RegisterMethod:
    # The values True and 1.0 are malformed. They are not looked up, because they would find the method of the number 1.
    return _REGISTER_METHODS.get(value if type(value) in (str, int) else None, RegisterMethod.UNKNOWN)


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
    secret = _ascii(payload.get("key"))
    return PreAuthKey(
        id=parse_required_id(payload["id"]),
        user=parse_user(payload.get("user")),
        tags=frozenset(_texts(payload.get("aclTags"))),
        reusable=_value(payload.get("reusable"), bool),
        ephemeral=_value(payload.get("ephemeral"), bool),
        used=_value(payload.get("used"), bool),
        created_at=parse_time(payload.get("createdAt")),
        expires_at=parse_time(payload.get("expiration")),
        # From 0.28 on, Headscale masks the secret in lists, with asterisks at the end.
        known_secret=SecretStr(secret) if secret and not secret.endswith("*") else None,
    )


def parse_api_key(payload: Any) -> tuple[str, datetime | None]:
    """Parse an API key in a list. Return the first characters of the key, and when it expires (None = never).

    Up to 0.27, a key is `<prefix>.<secret>`, with 10 and 43 characters (up to 0.24) or 7 and 32 characters. From 0.28
    on, a new key is `hskey-api-<12 characters>-<64 characters>`, and each listed prefix ends in `***`.
    """
    prefix = payload["prefix"].rstrip("*")
    if len(prefix) < _MIN_PREFIX_LENGTH:
        raise ValueError("the prefix is too short to identify a key")
    return prefix, parse_time(payload.get("expiration"))


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


def parse_if_node(members: dict[str, Any]) -> Any:
    """Parse a JSON object of a list of nodes if it is a node. Return any other object, such as a user, unchanged."""
    return parse_complete_node(members) if "machineKey" in members else members


def require_node(item: Any) -> Node:
    """Return an item of a list of nodes that `parse_if_node` has parsed."""
    if not isinstance(item, Node):
        raise TypeError("not a node")
    return item


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


def parse_required_id(value: Any) -> str:
    """Parse a 64-bit id that must not be absent."""
    required = parse_id(value)
    if required is None:
        raise ValueError("the id is missing")
    return required


def _value(value: Any, kind: type[Value]) -> Value:
    """Return the value if it has this type; for null, the empty value, because the command line omits empty values."""
    if value is None:
        return kind()
    if not isinstance(value, kind):
        raise TypeError(f"not a {kind.__name__}")
    return value


def _ascii(value: Any) -> str:
    """Return a key as text; "" for null. In JSON, text can contain surrogates, which cannot be written to a file."""
    return _value(value, str).encode("ascii").decode()


def _texts(values: Any) -> list[str]:
    if not all(isinstance(text, str) for text in _value(values, list)):
        raise TypeError("not a list of strings")
    return values or []


def parse_time(value: Any) -> datetime | None:
    """Parse a time, and return a timezone-aware datetime in UTC; None for null and for year 1, which mean "not set".

    Args:
        value: RFC 3339 with any offset and up to nine decimal places, or `{"seconds": …, "nanos": …}` as written by
            the command line.
    """
    # `isinstance` is used instead of `match`, which takes five times as long. A list has thousands of times.
    if value is None or value == "":
        return None
    # This is the start of year 1 in UTC, written in a time zone west of Greenwich.
    if isinstance(value, str) and value.startswith("0000-12-31T"):
        return None
    try:
        instant = datetime.fromisoformat(value) if isinstance(value, str) else _instant_of_numbers(value)
        if instant.tzinfo is None:
            raise ValueError("an instant without a time zone")
        return None if instant.year == 1 else instant.astimezone(UTC)
    except OverflowError:
        raise ValueError("not an instant in the years 1 to 9999") from None


def _instant_of_numbers(value: dict[str, Any]) -> datetime:
    seconds, nanoseconds = value["seconds"], value.get("nanos", 0)
    if type(seconds) is not int or type(nanoseconds) is not int or not 0 <= nanoseconds < _NANOSECONDS_PER_SECOND:
        raise ValueError("seconds is not an integer, or nanos is not a fraction of a second")
    return _EPOCH + timedelta(seconds=seconds, microseconds=nanoseconds // 1000)
