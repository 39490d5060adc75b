"""All that differs between Headscale's versions: how to tell them apart, and how to read what they say.

Sources: the REST API v1 and its generated description at each tag from v0.23.0 to v0.29.2 and on the
main branch that becomes 0.30 (`proto/headscale/v1`, `hscontrol/grpcv1.go`, `hscontrol/api/v1`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import Any

from pydantic import SecretStr

from lifecycle.clients.http import Answer
from lifecycle.domain.errors import ApiError, AuthError, ConflictError, NotFoundError, ResponseError, TransientError
from lifecycle.domain.model import KeyOrigin, Node, PreAuthKey, RegisterMethod, User

UPSTREAM = "Headscale"

OLDEST_MINOR = 23

_VERSION = re.compile(r"v?0\.(\d{1,4})\.(\d{1,4})([-+].*)?", re.ASCII)

# The owner that lists give to tagged nodes from 0.28 on; no row of the database.
_TAGGED_DEVICES = "tagged-devices"

_REGISTER_METHODS: dict[object, RegisterMethod] = {
    "REGISTER_METHOD_AUTH_KEY": RegisterMethod.AUTH_KEY,
    "REGISTER_METHOD_CLI": RegisterMethod.CLI,
    "REGISTER_METHOD_OIDC": RegisterMethod.OIDC,
    1: RegisterMethod.AUTH_KEY,
    2: RegisterMethod.CLI,
    3: RegisterMethod.OIDC,
}

# Of the part of an API key that is no secret.
_SHORTEST_BEGINNING = 7

# gRPC's codes as the gateway writes them into a body.
_GRPC_UNKNOWN = 2
_GRPC_NOT_FOUND = 5
_GRPC_RESOURCE_EXHAUSTED = 8

# What 0.23 and 0.24 say, as a server error, to whoever wants to expire such a key.
_USELESS_KEY = frozenset({"AuthKey expired", "AuthKey has already been used"})

_CLI_GRPC = re.compile(r"rpc error: code = (\w+) desc = (.*)", re.DOTALL)
_CLI_STATUS = re.compile(r"unexpected response status: (.*)", re.DOTALL)
_SNAKE = re.compile(r"_([a-z])")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND_NS = 1_000_000_000

_UNAUTHORIZED = 401
_FORBIDDEN = 403
_NOT_FOUND = 404
_TOO_MANY = 429
_SERVER_ERROR = 500


@dataclass(frozen=True, slots=True)
class Dialect:
    """What one version of Headscale wants to hear.

    Attributes:
        version: as the server says it, or the range that its API belongs to.
        user_by_id: pre-auth keys name their user by id (0.26 and newer), else by name.
        keys_by_user: the list of pre-auth keys is one user's (0.27 and older), else everybody's.
        key_expire_by_id: a pre-auth key is expired by its id (0.28 and newer), else by its secret.
    """

    version: str
    user_by_id: bool
    keys_by_user: bool
    key_expire_by_id: bool

    @classmethod
    def of_minor(cls, minor: int, version: str) -> Dialect:
        """The dialect of 0.MINOR.

        Raises:
            ResponseError: the server is too old for this program.
        """
        if minor < OLDEST_MINOR:
            raise too_old(version)
        return cls(
            version=version,
            user_by_id=minor >= 26,  # noqa: PLR2004 - see the attribute
            keys_by_user=minor <= 27,  # noqa: PLR2004
            key_expire_by_id=minor >= 28,  # noqa: PLR2004
        )


@dataclass(frozen=True, slots=True)
class ListedApiKey:
    """An API key as a list shows it.

    Attributes:
        beginning: how the key itself begins.
        expires_at: None = never.
    """

    beginning: str
    expires_at: datetime | None


def too_old(version: str) -> ResponseError:
    """The error for a server from before the API that this program speaks."""
    return ResponseError(
        f"Headscale {version} is not supported; upgrade it to 0.{OLDEST_MINOR} or newer, one minor version at a time",
        upstream=UPSTREAM,
    )


def dialect_of_version(text: object) -> Dialect | None:
    """The dialect of a version such as "v0.28.0" or "0.30.0-beta.1"; None for "dev" and the like."""
    match = _VERSION.fullmatch(text) if isinstance(text, str) else None
    # A build from a working copy calls itself v0.0.0-<date>-<hash>.
    if match is None or match[1] == "0":
        return None
    return Dialect.of_minor(int(match[1]), match[0].removeprefix("v"))


def dialect_of_swagger(document: Any) -> Dialect | None:
    """The dialect behind a generated API description (up to 0.29), which names no version itself.

    Raises:
        ResponseError: it describes the API from before 0.23.
    """
    match document:
        case {"paths": dict(paths), "definitions": dict(definitions)}:
            pass
        case _:
            return None
    if "/api/v1/machine" in paths:
        raise too_old("0.22 or older")
    match paths.get("/api/v1/preauthkey"):
        case {"delete": dict()}:
            return Dialect.of_minor(28, "0.28 or 0.29")
    if _is_number(definitions, "v1CreatePreAuthKeyRequest", "user"):
        return Dialect.of_minor(26, "0.26 or 0.27")
    if "/api/v1/node" in paths:
        return Dialect.of_minor(23, "0.23 to 0.25")
    return None


def dialect_of_openapi(document: Any) -> Dialect | None:
    """The dialect behind the description that 0.30 and newer serve."""
    match document:
        case {"openapi": str(), "paths": dict(paths)} if "/api/v1/node" in paths:
            return Dialect.of_minor(30, "0.30 or newer")
        case _:
            return None


def dialect_of_help(text: str) -> Dialect | None:
    """The dialect of a command line, by its help for `preauthkeys list`: how that wants to be told the user."""
    if "preauthkeys list" not in text:
        return None
    match re.search(r"--user (string|uint)", text):
        case None:
            return Dialect.of_minor(28, "0.28 or newer")
        case found if found[1] == "uint":
            return Dialect.of_minor(26, "0.26 or 0.27")
    return Dialect.of_minor(23, "0.23 to 0.25")


def _is_number(definitions: dict[str, Any], message: str, field: str) -> bool:
    match definitions.get(message):
        case {"properties": dict(properties)}:
            match properties.get(field):
                case {"format": "uint64"}:
                    return True
    return False


def explain(what: str, answer: Answer) -> ApiError | None:
    """What a refusal by Headscale means; its status alone does not tell, up to 0.29.

    Args:
        what: the request, for the message.
        answer: any answer that is no success.

    Returns:
        None when the status says it all.
    """
    code, text = _reason(answer.json)
    status = answer.status
    if status in (_UNAUTHORIZED, _FORBIDDEN) or (
        # Up to 0.26 a wrong key is a server error with this one word as its body.
        status == _SERVER_ERROR and answer.text.strip() == "Unauthorized"
    ):
        return AuthError(
            f"Headscale refused the API key ({what}: {status}); make a new one with "
            "`headscale apikeys create --expiration 90d` and put it where HEADSCALE_API_KEY comes from",
            upstream=UPSTREAM,
            status=status,
        )
    if status == _SERVER_ERROR and code == _GRPC_UNKNOWN:
        return _explain_text(what, text)
    if status == _NOT_FOUND:
        if code == _GRPC_NOT_FOUND or _is_problem(answer):
            return NotFoundError(f"Headscale: {what}: no such thing", upstream=UPSTREAM, status=status)
        return TransientError(
            f"the answer to {what} is a 404 that is not Headscale's own: a proxy before a Headscale that is "
            "starting, or HEADSCALE_URL points elsewhere",
            upstream=UPSTREAM,
            status=status,
        )
    if status == _TOO_MANY and code == _GRPC_RESOURCE_EXHAUSTED:
        return ResponseError(
            f"Headscale cannot put so many nodes into one answer ({what}: {status}); delete old nodes, or "
            "upgrade it to 0.30",
            upstream=UPSTREAM,
            status=status,
        )
    return None


def _explain_text(what: str, text: str) -> ApiError | None:
    """What a server error means to which Headscale gave no kind: its text alone tells."""
    if "not found" in text:
        return NotFoundError(f"Headscale: {what}: no such thing", upstream=UPSTREAM, status=_SERVER_ERROR)
    if text in _USELESS_KEY:
        return ConflictError(
            f"Headscale: {what}: the key is of no use any more", upstream=UPSTREAM, status=_SERVER_ERROR
        )
    return None


def _reason(body: Any) -> tuple[int | None, str]:
    match body:
        case {"code": int(code), "message": str(message)}:
            return code, message
        case _:
            return None, ""


def _is_problem(answer: Answer) -> bool:
    return (
        answer.headers.get("content-type", "").startswith("application/problem+json")
        and isinstance(answer.json, dict)
        and answer.json.get("status") == answer.status
    )


def cli_refusal(text: str) -> tuple[str | None, str]:
    """The kind of refusal in a command line's error, and what the server said.

    Returns:
        gRPC's code up to 0.29, such as "NotFound"; from 0.30 on "" for every refusal; None when it was not
        the server that refused.
    """
    if match := _CLI_GRPC.search(text):
        return match[1], match[2]
    if match := _CLI_STATUS.search(text):
        return "", match[1]
    return None, text


def camelised(value: Any) -> Any:
    """A value with the API's own field names: the command line's up to 0.29 are `ip_addresses` and the like."""
    match value:
        case dict():
            return {_SNAKE.sub(lambda at: at[1].upper(), name): camelised(item) for name, item in value.items()}
        case list():
            return [camelised(item) for item in value]
    return value


def user_reference(user: User, dialect: Dialect) -> str:
    """How a request about pre-auth keys names a user."""
    return user.id if dialect.user_by_id and user.id is not None else user.name


def no_sense(what: str) -> ResponseError:
    """The error for an answer that is not Headscale's, or not one that this code understands."""
    return ResponseError(
        f"the answer to {what} is not what Headscale says; is HEADSCALE_URL the address of Headscale itself, "
        "without a path behind it?",
        upstream=UPSTREAM,
    )


def parse_user(payload: Any) -> User | None:
    """A user, in any place and version; None for a tagged node's stand-in and for nobody.

    Raises:
        ValueError, TypeError: it is something else; to take that for nobody would make the node anybody's.
    """
    match payload:
        case None | "":
            return None
        case str(name):
            return User(id=None, name=name)
        case dict() if not payload or payload.keys() & {"id", "name"}:
            user_id, name = parse_id(payload.get("id")), _text(payload, "name")
            if name == _TAGGED_DEVICES or not (user_id or name):
                return None
            return User(id=user_id, name=name)
    raise ValueError("a user has an id and a name")


def parse_listed_user(payload: Any) -> User:
    """A user from the list of all, which has neither stand-ins nor gaps.

    Raises:
        ValueError, TypeError: it is none.
    """
    user = parse_user(payload)
    if user is None:
        raise ValueError("a list of users holds users")
    return user


NODE_MEMBERS = frozenset(
    {
        *("nodes", "id", "name", "machineKey", "ipAddresses", "user", "preAuthKey", "registerMethod"),
        *("tags", "forcedTags", "validTags", "online", "expiry", "lastSeen"),
    }
)
"""What `parse_node` reads of a list of nodes: the rest, which is most of it and holds keys up to 0.27, is not kept."""


def parse_node(payload: Any) -> Node:
    """A node of any version.

    Raises:
        ValueError, KeyError, TypeError: it lacks what this code relies on.
    """
    machine_key = payload["machineKey"]
    hostname = payload["name"]
    if not isinstance(machine_key, str) or not machine_key or not isinstance(hostname, str):
        raise TypeError("a node has a machine key and a name")
    return Node(
        id=_required_id(payload["id"]),
        hostname=hostname,
        machine_key=machine_key,
        addresses=tuple(ip_address(text) for text in _texts(payload, "ipAddresses")),
        user=parse_user(payload.get("user")),
        tags=frozenset(tag for field in ("tags", "forcedTags", "validTags") for tag in _texts(payload, field)),
        registered_by=_parse_register_method(payload.get("registerMethod")),
        pre_auth_key=_parse_key_origin(payload.get("preAuthKey")),
        online=payload.get("online") is True,
        expires_at=parse_time(payload.get("expiry")),
        last_seen=parse_time(payload.get("lastSeen")),
    )


def _parse_register_method(value: Any) -> RegisterMethod:
    match value:
        # To a dictionary, true is 1.
        case bool():
            return RegisterMethod.UNKNOWN
        case str() | int():
            return _REGISTER_METHODS.get(value, RegisterMethod.UNKNOWN)
    return RegisterMethod.UNKNOWN


def _parse_key_origin(payload: Any) -> KeyOrigin | None:
    """The key that a node came with; its secret, which stands there up to 0.27, is left behind."""
    if payload is None:
        return None
    key_id, user = parse_id(payload.get("id")), parse_user(payload.get("user"))
    if key_id is not None:
        return KeyOrigin(key_id, user)
    if user is not None:
        raise ValueError("a pre-auth key has an id")
    return None


def parse_pre_auth_key(payload: Any) -> PreAuthKey:
    """A pre-auth key of any version, from a list or as it was minted.

    Raises:
        ValueError, KeyError, TypeError: it lacks what this code relies on.
    """
    secret = _text(payload, "key")
    return PreAuthKey(
        id=_required_id(payload["id"]),
        user=parse_user(payload.get("user")),
        tags=frozenset(_texts(payload, "aclTags")),
        reusable=payload.get("reusable") is True,
        ephemeral=payload.get("ephemeral") is True,
        used=payload.get("used") is True,
        created_at=parse_time(payload.get("createdAt")),
        expires_at=parse_time(payload.get("expiration")),
        # Lists mask it from 0.28 on.
        key=SecretStr(secret) if secret and not secret.endswith("*") else None,
    )


def parse_api_key(payload: Any) -> ListedApiKey:
    """An API key as a list shows it.

    Up to 0.27 a key is `<beginning>.<secret>`, of 10 and 43 characters up to 0.24, then of 7 and 32. From 0.28
    on new ones are `hskey-api-<12>-<64>`, and all are shown as their beginning and `***`.

    Raises:
        ValueError, KeyError, TypeError: it lacks what this code relies on.
    """
    beginning = payload["prefix"].rstrip("*")
    if len(beginning) < _SHORTEST_BEGINNING:
        raise ValueError("so short a beginning tells no key from others")
    return ListedApiKey(beginning, parse_time(payload.get("expiration")))


def parse_id(value: Any) -> str | None:
    """A 64-bit id, given as decimal text or as a number; None for none.

    Raises:
        ValueError: it is something else.
    """
    match value:
        case None:
            return None
        case bool():
            pass
        case str() | int():
            text = str(value)
            if text in {"", "0"}:
                return None
            if re.fullmatch(r"[1-9][0-9]{0,19}", text):
                return text
    raise ValueError("an id is a positive whole number")


def _required_id(value: Any) -> str:
    found = parse_id(value)
    if found is None:
        raise ValueError("an id is missing")
    return found


def _text(payload: Any, field: str) -> str:
    """A text; empty where the command line leaves it out, as it does with all that is empty."""
    value = payload.get(field)
    if value is not None and not isinstance(value, str):
        raise TypeError(f"{field} is a text")
    return value or ""


def _texts(payload: Any, field: str) -> list[str]:
    values = payload.get(field)
    if values is None:
        return []
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise TypeError(f"{field} is a list of texts")
    return values


def parse_time(value: Any) -> datetime | None:
    """An instant as aware UTC; None for null and for year 1, which both mean "not set".

    Args:
        value: RFC 3339 with up to nine digits of a fraction and any offset, or the CLI's
            `{"seconds": …, "nanos": …}`.

    Raises:
        ValueError: it is something else.
    """
    try:
        at = _instant(value)
        return None if at is None or at.year == 1 else at.astimezone(UTC)
    except OverflowError:
        raise ValueError("an instant is in the years 1 to 9999") from None


def _instant(value: Any) -> datetime | None:
    match value:
        case None | "":
            return None
        case {"seconds": bool()}:
            pass
        case {"seconds": int(seconds)}:
            nanoseconds = value.get("nanos", 0)
            if type(nanoseconds) is not int or not 0 <= nanoseconds < _SECOND_NS:
                raise ValueError("nanos are a part of a second")
            return _EPOCH + timedelta(seconds=seconds, microseconds=nanoseconds // 1000)
        case str(text) if text.startswith("0000-12-31T"):
            # Year 1, told west of Greenwich.
            return None
        case str(text):
            at = datetime.fromisoformat(text)
            if at.tzinfo is None:
                raise ValueError("an instant has a zone")
            return at
    raise ValueError("an instant is RFC 3339")
