"""What differs between the releases of Headscale, as data.

Each release is the one before with the changes it made. Facts come from the source of the named tags;
0.30 is the unreleased state of July 2026, which does not have the changes of 0.29.3.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum, auto
from random import Random
from types import MappingProxyType
from typing import Any, Final

MAX_LABEL: Final = 63
LETTERS: Final = string.ascii_lowercase + string.digits


class HostnameRefusedError(Exception):
    """A hostname with which this release registers no node."""


class Unmatched(Enum):
    """The response to an unknown path outside `/api/v1/`."""

    EMPTY_404 = auto()
    BLANK_PAGE_200 = auto()
    TEXT_404 = auto()


class KeyUser(Enum):
    """How a request identifies the user of a pre-auth key."""

    NAME = auto()
    ID = auto()
    ID_OR_TAGS = auto()


class Shown(Enum):
    """How a response identifies the user of a pre-auth key."""

    NAME = auto()
    EMAIL_OR_NAME = auto()
    OBJECT = auto()


class NoExpiry(Enum):
    """How a response shows that a node does not expire."""

    ZERO = auto()
    NULL = auto()
    NULL_IF_TAGGED = auto()


class LoginMatch(Enum):
    """How the node of a machine that registers again is found."""

    MACHINE_OR_NODE_KEY = auto()
    """The node keeps its id and moves to the key's user."""
    LOWEST_ID_OF_MACHINE = auto()
    """The oldest node of the machine, if the key's user owns it."""
    MACHINE_AND_USER = auto()
    """The machine's node of the key's user; a key without a user matches nothing."""
    MACHINE_AND_OWNERSHIP = auto()
    """As before, or the machine's tagged node. A tagged key takes over its only node."""


class KeyCheck(Enum):
    """When the key of a known machine with an unchanged node key must be valid."""

    ALWAYS = auto()
    UNLESS_SAME_KEY = auto()
    UNLESS_KNOWN = auto()
    UNLESS_LIVE = auto()
    UNLESS_LIVE_OR_TAGGED = auto()
    """A tagged node counts as live. A tagged node's login with another key that has tags is always checked."""


class LoginTags(Enum):
    """When a known machine gets the tags of the key that it registers again with."""

    IF_ANY = auto()
    ALWAYS = auto()
    NEVER = auto()
    IF_ANOTHER_KEY = auto()
    """If the key has tags and is not the key that the node first registered with."""


class KeyForm(Enum):
    """The format of a new pre-auth key."""

    HEX = auto()
    PREFIXED_BASE64 = auto()
    PREFIXED_HEX = auto()


# --- Hostnames -------------------------------------------------------------------------------------


def _raw_labels(hostname: str, _machine_key: str, _random: Random) -> str:
    if any(len(label) > MAX_LABEL for label in hostname.split(".")):
        raise HostnameRefusedError("hostname label is longer than 63 characters")
    return hostname


def _raw_at_most_63(hostname: str, _machine_key: str, _random: Random) -> str:
    if len(hostname) > MAX_LABEL:
        raise HostnameRefusedError("hostname is longer than 63 characters")
    return hostname


def _raw(hostname: str, _machine_key: str, _random: Random) -> str:
    return hostname


def _validated(hostname: str, machine_key: str, random: Random) -> str:
    lowered = hostname.lower()
    if not lowered:
        return f"node-{machine_key[:8]}"
    if re.fullmatch(r"[a-z0-9][a-z0-9.-]{0,61}[a-z0-9]", lowered) is None:
        return "invalid-" + "".join(random.choices(LETTERS, k=8))
    return lowered


def _dashed(name: str) -> str:
    return re.sub(r"[^a-z0-9.-]+", "-", name.lower().replace("'", "").replace("@", "."))


def _stripped(name: str) -> str:
    return re.sub(r"[^a-z0-9.-]", "", name.lower())


def _label(name: str) -> str:
    for suffix in (".local", ".localdomain", ".lan"):
        name = name.removesuffix(suffix)
    inner = re.sub(r"^[^a-z0-9]+|[^a-z0-9]+$", "", name[:MAX_LABEL].lower())
    return re.sub(r"[^a-z0-9-]", "", re.sub(r"[ .@_]", "-", inner)) or "node"


# --- The table -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """One release."""

    version: str

    # Detection
    machine_api: bool = False
    """Serves only the older API, whose objects are machines."""
    version_path: bool = False
    api_health: bool = False
    swagger: bool = True
    unmatched: Unmatched = Unmatched.EMPTY_404
    all_of_api_needs_key: bool = False
    """An unknown path below /api requires the API key, also outside /api/v1/."""
    strict_json: bool = False
    """Huma instead of the gRPC gateway: unknown fields, numbers for ids, other content types refused;
    errors as problem+json; its own times; the OpenAPI document instead of swagger's."""

    # Errors
    wrong_key_status: int = 500
    unknown_node_code: int = 2
    unknown_node_text: str = "record not found"
    changed_unknown_node_text: str = "record not found"
    """The error if an unknown node is to be expired or renamed."""
    duplicate_user_code: int = 2
    duplicate_user_text: str = "user already exists"

    # Users
    user_details: bool = False
    user_filter: bool = False
    user_by_name: bool = True
    """GET /user/{name} exists."""
    user_name_falls_back: bool = False
    user_name_pattern: str = r"[a-z0-9.-]{0,63}"
    node_filter_checks_name: bool = True
    """The list filter rejects a value that is not a DNS name."""
    sole_user_by_default: bool = False
    """A request without a name means the only user."""

    # Pre-auth keys
    key_user: KeyUser = KeyUser.NAME
    key_user_shown: Shown = Shown.NAME
    key_form: KeyForm = KeyForm.HEX
    api_key_lengths: tuple[int, int] = (7, 32)
    """Whether both parts of a key created by 0.27 or older are shown."""
    api_key_prefix_lengths: frozenset[int] = frozenset({7, 10})
    """The length of the first part that a key created by 0.27 or older needs to be accepted."""
    key_tags_everywhere: bool = True
    """Shown in other objects than lists of keys."""
    keys_masked: bool = False
    keys_by_id: bool = False
    """Keys of all users are in one list, and are expired and deleted by id."""
    keys_unknown_is_404: bool = False
    keys_expire_once: bool = True
    """Expiring a used or expired key is an error."""
    reusable_becomes_used: bool = True
    key_snapshot_in_node: bool = False
    """Until the server restarts, a node shows its key as it was at registration."""
    second_key_until_restart: bool = False
    """The key of a later registration is kept in memory only."""
    unknown_key_text: str = "AuthKey not found"
    expired_key_text: str = "AuthKey expired"
    used_key_text: str = "AuthKey has already been used"

    # Nodes as shown
    forced_tags: bool = True
    """forcedTags, validTags, invalidTags; otherwise tags."""
    valid_tags_in_list: bool = False
    routes_in_node: bool = False
    online_everywhere: bool = False
    tagged_pseudo_user: bool = False
    """Lists show the user tagged-devices."""
    tagged_user_hidden: bool = False
    """A tagged node has no user when it is read alone, and is in no user's list."""
    no_expiry: NoExpiry = NoExpiry.ZERO
    zero_id_hits_first: bool = True

    # Nodes as expired
    expire_query: bool = False
    expire_disable: bool = False
    expire_body: bool = False
    expiry_survives_restart: bool = True

    # Names
    hostname: Callable[[str, str, Random], str] = _raw_labels
    hostname_follows: bool = False
    given_name: Callable[[str], str] = _dashed
    given_name_numbered: bool = False
    given_name_follows_login: bool = True
    rename_pattern: str = r"[a-z0-9.-]{1,63}"
    rename_to_own_name: bool = False

    # Registration and sessions
    live_needs_no_key: bool = True
    """A live node is accepted before its key is checked."""
    login_match: LoginMatch = LoginMatch.MACHINE_OR_NODE_KEY
    key_check: KeyCheck = KeyCheck.ALWAYS
    login_tags: LoginTags = LoginTags.IF_ANY
    login_resets_online: bool = False
    tagged_keeps_user: bool = True
    """A node with tags keeps the user of the key that it registered with."""
    tagged_revives: bool = True
    """An expired tagged node can be used again after a login."""
    login_takes_an_address: bool = False
    login_keeps_first_key: bool = True
    """A node that registers again with another key still shows its first key."""
    frees_addresses: bool = False
    """The address of a deleted node can be assigned before the server restarts."""
    login_loses_created_at: bool = False
    logout_in_1970: bool = False
    """A client that logs out expires in 1970, not now."""
    tagged_logs_out: bool = True
    """A tagged node expires when its client logs out. If it does not, an upgrade removes the expiry of tagged nodes."""
    offline_grace_s: int = 0
    deleted_session_stays: bool = False


V0_22 = Dialect(version="0.22.3", machine_api=True)

V0_23 = Dialect(version="0.23.0", key_tags_everywhere=False, api_key_lengths=(10, 43))

V0_24 = replace(
    V0_23,
    version="0.24.3",
    key_tags_everywhere=True,
    duplicate_user_text="creating user: UNIQUE constraint failed: users.name",
    user_details=True,
    user_filter=True,
    user_by_name=False,
    node_filter_checks_name=False,
    sole_user_by_default=True,
    key_user_shown=Shown.EMAIL_OR_NAME,
    valid_tags_in_list=True,
    hostname=_raw_at_most_63,
    hostname_follows=True,
    given_name=_stripped,
)

V0_25 = replace(
    V0_24,
    version="0.25.1",
    api_key_lengths=(7, 32),
    keys_expire_once=False,
    reusable_becomes_used=False,
    unknown_key_text="invalid pre auth key",
    expired_key_text="authkey expired",
    used_key_text="authkey already used",
    no_expiry=NoExpiry.NULL,
    rename_pattern=r"[a-z0-9.-]{2,63}",
    user_name_pattern=r"(?=..)(?!\d)[\w.-]*@?[\w.-]*",
    login_match=LoginMatch.LOWEST_ID_OF_MACHINE,
    login_tags=LoginTags.ALWAYS,
    logout_in_1970=True,
    login_takes_an_address=True,
    login_keeps_first_key=False,
    login_loses_created_at=True,
)

V0_26 = replace(
    V0_25,
    version="0.26.1",
    sole_user_by_default=False,
    key_user=KeyUser.ID,
    key_user_shown=Shown.OBJECT,
    routes_in_node=True,
)

V0_27_0 = replace(
    V0_26,
    version="0.27.0",
    version_path=True,
    api_health=True,
    wrong_key_status=401,
    unknown_node_code=5,
    unknown_node_text="node not found",
    changed_unknown_node_text="node not found in NodeStore",
    user_name_pattern=r".+",
    duplicate_user_code=13,
    duplicate_user_text="failed to create user: creating user: UNIQUE constraint failed: users.name",
    key_snapshot_in_node=True,
    online_everywhere=True,
    no_expiry=NoExpiry.ZERO,
    zero_id_hits_first=False,
    expire_query=True,
    hostname=_validated,
    rename_to_own_name=True,
    live_needs_no_key=False,
    login_match=LoginMatch.MACHINE_AND_USER,
    login_resets_online=True,
    login_takes_an_address=False,
    login_loses_created_at=False,
    offline_grace_s=10,
    deleted_session_stays=True,
)

V0_27 = replace(
    V0_27_0,
    version="0.27.1",
    expiry_survives_restart=False,
    key_check=KeyCheck.UNLESS_SAME_KEY,
)

V0_28 = replace(
    V0_27,
    version="0.28.0",
    unmatched=Unmatched.BLANK_PAGE_200,
    changed_unknown_node_text="node no longer exists in NodeStore",
    user_name_falls_back=True,
    key_user=KeyUser.ID_OR_TAGS,
    key_form=KeyForm.PREFIXED_BASE64,
    keys_masked=True,
    api_key_prefix_lengths=frozenset({7}),
    keys_by_id=True,
    second_key_until_restart=True,
    forced_tags=False,
    tagged_pseudo_user=True,
    frees_addresses=True,
    no_expiry=NoExpiry.NULL_IF_TAGGED,
    key_check=KeyCheck.UNLESS_KNOWN,
    login_tags=LoginTags.NEVER,
    tagged_revives=False,
)

V0_29_2 = replace(
    V0_28,
    version="0.29.2",
    unmatched=Unmatched.TEXT_404,
    all_of_api_needs_key=True,
    tagged_user_hidden=True,
    no_expiry=NoExpiry.NULL,
    expire_disable=True,
    expiry_survives_restart=True,
    hostname=_raw,
    given_name=_label,
    given_name_numbered=True,
    given_name_follows_login=False,
    rename_pattern=r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?",
    login_match=LoginMatch.MACHINE_AND_OWNERSHIP,
    key_check=KeyCheck.UNLESS_LIVE,
    login_resets_online=False,
    tagged_keeps_user=False,
    logout_in_1970=False,
)

V0_29_3 = replace(
    V0_29_2,
    version="0.29.3",
    second_key_until_restart=False,
    key_check=KeyCheck.UNLESS_LIVE_OR_TAGGED,
    login_tags=LoginTags.IF_ANOTHER_KEY,
    tagged_revives=True,
    tagged_logs_out=False,
)

V0_30 = replace(
    V0_29_2,
    version="0.30.0",
    swagger=False,
    all_of_api_needs_key=False,
    strict_json=True,
    key_form=KeyForm.PREFIXED_HEX,
    keys_unknown_is_404=True,
    expire_query=False,
    expire_body=True,
)

DIALECTS: Final[Mapping[str, Dialect]] = MappingProxyType(
    {
        dialect.version: dialect
        for dialect in (V0_22, V0_23, V0_24, V0_25, V0_26, V0_27_0, V0_27, V0_28, V0_29_2, V0_29_3, V0_30)
    }
)

VERSIONS: Final = tuple(version for version, dialect in DIALECTS.items() if not dialect.machine_api)
"""The releases whose API has nodes, oldest first."""


# --- The API documents, by which a client detects the release --------------------------------------


def swagger(dialect: Dialect) -> dict[str, Any]:
    """The document at /swagger/v1/openapiv2.json, as far as releases differ in it.

    Its `info.version` is never filled in.
    """
    api = "/api/v1"
    operation: dict[str, Any] = {"responses": {"200": {"description": "A successful response."}}}
    document: dict[str, Any] = {
        "swagger": "2.0",
        "info": {"title": "headscale/v1/headscale.proto", "version": "version not set"},
        "tags": [{"name": "HeadscaleService"}],
        "consumes": ["application/json"],
        "produces": ["application/json"],
    }
    if dialect.machine_api:
        document["paths"] = {
            f"{api}/machine": {"get": operation},
            f"{api}/machine/{{machineId}}": {"get": operation, "delete": operation},
            f"{api}/preauthkey": {"get": operation, "post": operation},
            f"{api}/user": {"get": operation, "post": operation},
        }
        document["definitions"] = {"v1Machine": {"type": "object"}, "v1User": _swagger_object(id="string")}
        return document

    by_id = dialect.key_user is not KeyUser.NAME
    paths: dict[str, Any] = {
        f"{api}/apikey": {"get": operation, "post": operation},
        f"{api}/node": {"get": operation},
        f"{api}/node/{{nodeId}}": {"get": operation, "delete": operation},
        f"{api}/node/{{nodeId}}/expire": {"post": operation},
        f"{api}/node/{{nodeId}}/rename/{{newName}}": {"post": operation},
        f"{api}/node/{{nodeId}}/tags": {"post": operation},
        f"{api}/preauthkey": {"get": operation, "post": operation},
        f"{api}/preauthkey/expire": {"post": operation},
        f"{api}/user": {"get": operation, "post": operation},
    }
    if by_id:
        paths[f"{api}/node/{{nodeId}}/approve_routes"] = {"post": operation}
    else:
        paths[f"{api}/routes"] = {"get": operation}
    if dialect.user_by_name:
        paths[f"{api}/user/{{name}}"] = {"get": operation, "delete": operation}
    else:
        paths[f"{api}/user/{{id}}"] = {"delete": operation}
    if dialect.api_health:
        paths[f"{api}/health"] = {"get": operation}
    if dialect.keys_by_id:
        paths[f"{api}/preauthkey"] = {"get": operation, "post": operation, "delete": operation}
    if dialect.expire_disable:
        paths[f"{api}/auth/register"] = {"post": operation}
        expire = {"name": "disableExpiry", "in": "query", "required": False, "type": "boolean"}
        paths[f"{api}/node/{{nodeId}}/expire"] = {"post": {**operation, "parameters": [expire]}}

    uint64 = {"type": "string", "format": "uint64"}
    node = _swagger_object(id=uint64, name="string", givenName="string", online="boolean")
    tag_lists = ("forcedTags", "invalidTags", "validTags") if dialect.forced_tags else ("tags",)
    for name in tag_lists:
        node["properties"][name] = {"type": "array", "items": {"type": "string"}}
    document["paths"] = paths
    document["definitions"] = {
        "v1Node": node,
        "v1User": _swagger_object(id=uint64 if dialect.user_details else "string", name="string"),
        "v1CreatePreAuthKeyRequest": _swagger_object(
            user=uint64 if by_id else "string",
            reusable="boolean",
            ephemeral="boolean",
            expiration={"type": "string", "format": "date-time"},
        ),
    }
    return document


def _swagger_object(**properties: str | dict[str, str]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {name: {"type": kind} if isinstance(kind, str) else kind for name, kind in properties.items()},
    }


def openapi(dialect: Dialect) -> dict[str, Any]:
    """The document at /api/v1/openapi.json, from 0.30 on, in outline."""
    operation: dict[str, Any] = {"responses": {"200": {"description": "OK"}}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Headscale API", "version": f"v{dialect.version}"},
        "paths": {
            "/api/v1/node": {"get": operation},
            "/api/v1/node/{nodeId}": {"get": operation, "delete": operation},
            "/api/v1/node/{nodeId}/expire": {"post": operation},
            "/api/v1/preauthkey": {"get": operation, "post": operation, "delete": operation},
            "/api/v1/preauthkey/expire": {"post": operation},
            "/api/v1/user": {"get": operation, "post": operation},
        },
    }
