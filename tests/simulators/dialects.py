"""The differences between the releases of Headscale, as data.

Each release is an object `Dialect`. It is defined by its changes to an earlier release, which were read from the source
code of both releases. 0.30 is the main branch of July 2026, which does not have the changes of 0.29.3.

A client *logs in* when it registers a machine that the server knows already. A node is *live* if it has not expired.
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
LETTERS_AND_DIGITS: Final = string.ascii_lowercase + string.digits


class HostnameRefusedError(Exception):
    """The release does not register a node with the hostname."""


class UnknownPath(Enum):
    """The response to an unknown path outside `/api/v1/`."""

    EMPTY_404 = auto()
    BLANK_PAGE_200 = auto()
    TEXT_404 = auto()


class KeyUser(Enum):
    """How a request for a pre-auth key identifies the key's user."""

    NAME = auto()
    ID = auto()
    ID_OR_TAGS = auto()
    """A key with tags needs no user."""


class KeyUserFormat(Enum):
    """How a response describes the user of a pre-auth key."""

    NAME = auto()
    EMAIL_OR_NAME = auto()
    OBJECT = auto()


class NoExpiry(Enum):
    """The field `expiry` in a response if the node does not expire."""

    ZERO = auto()
    """Go's zero time, in the year 1."""
    NULL = auto()
    NULL_IF_TAGGED = auto()
    """Null for a tagged node, and Go's zero time for any other node."""


class LoginMatch(Enum):
    """Which node a machine gets when it logs in with a pre-auth key. If no node matches, the machine gets a new one."""

    MACHINE_OR_NODE_KEY = auto()
    """The node that has the machine's machine key or node key. The node keeps its id, and moves to the key's user."""
    LOWEST_ID_OF_MACHINE = auto()
    """The oldest node of the machine, if this node belongs to the key's user."""
    MACHINE_AND_USER = auto()
    """The machine's node that belongs to the key's user. A key without a user matches no node."""
    MACHINE_AND_OWNERSHIP = auto()
    """The machine's untagged node that belongs to the key's user. If there is none, the machine's tagged node.

    For a key without a user, the tagged node, or else the machine's only node."""


class KeyCheck(Enum):
    """Whether the pre-auth key must be valid if `LoginMatch` finds a node, and its node key is unchanged."""

    ALWAYS = auto()
    NEVER = auto()
    UNLESS_SAME_KEY = auto()
    """The key must be valid, unless it is the node's pre-auth key."""
    UNLESS_LIVE = auto()
    """The key must be valid if the node has expired, or if the node gets the key's tags."""
    UNLESS_LIVE_OR_TAGGED = auto()
    """The key must be valid if the node has expired and is not tagged, or if the node gets the key's tags."""


class LoginTags(Enum):
    """When a node gets the tags of the pre-auth key with which its machine logs in."""

    IF_ANY = auto()
    """If the key has tags."""
    ALWAYS = auto()
    """If the key has no tags, the node loses its tags."""
    NEVER = auto()
    IF_UNTAGGED = auto()
    """If the key has tags, and the node is not tagged."""
    IF_ANOTHER_KEY = auto()
    """If the key has tags, unless the node is tagged and this is its pre-auth key."""


class KeyFormat(Enum):
    """The format of new API keys and pre-auth keys."""

    OLD = auto()
    """Without the prefix `hskey-`."""
    PREFIXED_BASE64 = auto()
    PREFIXED_HEX = auto()


# --- Hostnames -------------------------------------------------------------------------------------

# A node has a name, which comes from the hostname of its machine, and a unique given name, which comes from the name.
# These functions return them. Each release uses one of the functions for the name and one for the given name.


def _raw_labels(hostname: str, _machine_key: str, _random: Random) -> str:
    """Return the hostname. Refuse it if one of its labels is too long."""
    if any(len(label) > MAX_LABEL for label in hostname.split(".")):
        raise HostnameRefusedError("hostname label is longer than 63 characters")
    return hostname


def _raw_at_most_63(hostname: str, _machine_key: str, _random: Random) -> str:
    """Return the hostname. Refuse it if it is too long."""
    if len(hostname) > MAX_LABEL:
        raise HostnameRefusedError("hostname is longer than 63 characters")
    return hostname


def _raw(hostname: str, _machine_key: str, _random: Random) -> str:
    """Return the hostname without changes."""
    return hostname


def _validated(hostname: str, machine_key: str, random: Random) -> str:
    """Return the hostname in lower case. If it is invalid, return a generated name."""
    lowered = hostname.lower()
    if not lowered:
        return f"node-{machine_key[:8]}"
    if re.fullmatch(r"[a-z0-9][a-z0-9.-]{0,61}[a-z0-9]", lowered) is None:
        return "invalid-" + "".join(random.choices(LETTERS_AND_DIGITS, k=8))
    return lowered


def _dashed(name: str) -> str:
    """Return the name with dashes instead of invalid characters."""
    return re.sub(r"[^a-z0-9.-]+", "-", name.lower().replace("'", "").replace("@", "."))


def _stripped(name: str) -> str:
    """Return the name without invalid characters."""
    return re.sub(r"[^a-z0-9.-]", "", name.lower())


def _label(name: str) -> str:
    """Return a valid DNS label that is similar to the name."""
    for suffix in (".local", ".localdomain", ".lan"):
        name = name.removesuffix(suffix)
    inner = re.sub(r"^[^a-z0-9]+|[^a-z0-9]+$", "", name[:MAX_LABEL].lower())
    return re.sub(r"[^a-z0-9-]", "", re.sub(r"[ .@_]", "-", inner)) or "node"


# --- The releases ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """The behavior of one release. The text below a boolean field describes the behavior if the field is True."""

    version: str

    # Endpoints and formats
    machine_api: bool = False
    """The API has machines instead of nodes."""
    version_path: bool = False
    """GET /version exists."""
    swagger: bool = True
    """The API is described at /swagger/v1/openapiv2.json instead of /api/v1/openapi.json."""
    unknown_path: UnknownPath = UnknownPath.EMPTY_404
    all_of_api_needs_key: bool = False
    """All unknown paths below /api/ require the API key. Otherwise, only those below /api/v1/ do."""
    uses_huma: bool = False
    """The server uses the library Huma instead of the gRPC gateway. Huma refuses unknown fields, ids that are numbers,
    and content types other than JSON. The formats of errors and times also differ."""

    # Errors
    wrong_key_status: int = 500
    """The HTTP status if the API key is unknown."""
    unknown_node_code: int = 2
    """The gRPC code if a node does not exist."""
    unknown_node_text: str = "record not found"

    # Users
    user_details: bool = False
    """Users have an email and a provider."""
    user_name_falls_back: bool = False
    """A user without a name is listed with the email or the id as the name."""
    sole_user_by_default: bool = False
    """If there is only one user, a request without a user name refers to this user."""

    # Keys
    key_user: KeyUser = KeyUser.NAME
    key_user_format: KeyUserFormat = KeyUserFormat.NAME
    key_format: KeyFormat = KeyFormat.OLD
    api_key_lengths: tuple[int, int] = (7, 32)
    """The lengths of the prefix and of the secret of a new API key in the old format."""
    api_key_prefix_lengths: frozenset[int] = frozenset({7, 10})
    """The lengths that the prefix of an API key in the old format may have. Other keys are refused."""
    key_tags_everywhere: bool = True
    """Every response with a pre-auth key contains its tags. Otherwise, only lists do."""
    keys_masked: bool = False
    """Lists do not contain the secrets of keys."""
    identifies_keys_by_id: bool = False
    """Requests to list or expire pre-auth keys do not contain a user. The list has the keys of all users, and a key is
    identified by its id."""
    unknown_key_is_404: bool = False
    """A request to expire a pre-auth key that does not exist returns 404. Otherwise, it returns 200, or up
    to 0.27 500."""
    expiring_needs_valid_key: bool = True
    """Expiring a used or expired pre-auth key is an error."""
    reusable_becomes_used: bool = True
    """A reusable key is marked as used."""
    key_snapshot_in_node: bool = False
    """Until the server restarts, responses show the pre-auth key of a node as it was at registration."""
    second_key_until_restart: bool = False
    """A login with another pre-auth key changes the node's pre-auth key only until the server restarts."""
    unknown_key_text: str = "AuthKey not found"
    expired_key_text: str = "AuthKey expired"
    used_key_text: str = "AuthKey has already been used"

    # Nodes in responses
    forced_tags: bool = True
    """A node has the fields forcedTags, validTags and invalidTags instead of tags."""
    valid_tags_in_list: bool = False
    """In lists, validTags contains the same tags as forcedTags. Otherwise, it is empty."""
    routes_in_node: bool = False
    """Nodes have fields for routes."""
    tagged_pseudo_user: bool = False
    """In lists, the user of a tagged node is tagged-devices."""
    tagged_user_hidden: bool = False
    """A tagged node that is not read in a list has no user."""
    no_expiry: NoExpiry = NoExpiry.ZERO
    zero_id_hits_first: bool = True
    """A request for the node with id 0 affects the first node."""
    expiry_survives_restart: bool = True
    """The time at which an administrator expires a node is stored in the database."""

    # Names of nodes
    hostname: Callable[[str, str, Random], str] = _raw_labels
    """Returns the name of a node. The arguments are the hostname and the machine key of its machine."""
    hostname_follows: bool = False
    """A login with another hostname changes the name."""
    given_name: Callable[[str], str] = _dashed
    """Returns the given name of a node. The argument is the name of the node."""
    given_name_numbered: bool = False
    """If another node has the given name, a number is appended instead of random letters."""
    given_name_follows_login: bool = True
    """A login with another hostname also changes the given name, unless the node was renamed."""

    # Registration and sessions
    live_needs_no_key: bool = True
    """The login of a live node needs no valid pre-auth key, whatever `key_check` is, if the node key is unchanged.
    With `MACHINE_OR_NODE_KEY`, this also applies if only the machine key is unchanged."""
    login_match: LoginMatch = LoginMatch.MACHINE_OR_NODE_KEY
    key_check: KeyCheck = KeyCheck.ALWAYS
    login_tags: LoginTags = LoginTags.IF_ANY
    login_resets_online: bool = False
    """After a login, the node is offline until it connects."""
    tagged_keeps_user: bool = True
    """The user of the pre-auth key is stored in a tagged node."""
    tagged_revives: bool = True
    """A login removes the expiry of any node. In other releases, it does not do so for a tagged node."""
    login_takes_an_address: bool = False
    """A login uses up a free address, although the node keeps its old address."""
    login_keeps_first_key: bool = True
    """A login with another pre-auth key does not change the node's pre-auth key."""
    frees_addresses: bool = False
    """An address that was in use when the server started can be assigned again as soon as its node is deleted.
    Otherwise, it can be assigned only after another restart."""
    login_loses_created_at: bool = False
    """A login sets the time of creation to Go's zero time."""
    upgrade_revives_tagged: bool = False
    """An upgrade to the release removes the expiry of all tagged nodes."""
    offline_grace_s: int = 0
    """How long a node stays online after its client has disconnected."""
    deleted_session_stays: bool = False
    """The connection of a client stays open when its node is deleted."""


V0_22 = Dialect(version="0.22.3", machine_api=True)

V0_23 = Dialect(version="0.23.0", key_tags_everywhere=False, api_key_lengths=(10, 43))

V0_24 = replace(
    V0_23,
    version="0.24.3",
    key_tags_everywhere=True,
    user_details=True,
    sole_user_by_default=True,
    key_user_format=KeyUserFormat.EMAIL_OR_NAME,
    valid_tags_in_list=True,
    hostname=_raw_at_most_63,
    hostname_follows=True,
    given_name=_stripped,
)

V0_25 = replace(
    V0_24,
    version="0.25.1",
    api_key_lengths=(7, 32),
    expiring_needs_valid_key=False,
    reusable_becomes_used=False,
    unknown_key_text="invalid pre auth key",
    expired_key_text="authkey expired",
    used_key_text="authkey already used",
    no_expiry=NoExpiry.NULL,
    login_match=LoginMatch.LOWEST_ID_OF_MACHINE,
    login_tags=LoginTags.ALWAYS,
    login_takes_an_address=True,
    login_keeps_first_key=False,
    login_loses_created_at=True,
)

V0_26 = replace(
    V0_25,
    version="0.26.1",
    sole_user_by_default=False,
    key_user=KeyUser.ID,
    key_user_format=KeyUserFormat.OBJECT,
    routes_in_node=True,
)

V0_27_0 = replace(
    V0_26,
    version="0.27.0",
    version_path=True,
    wrong_key_status=401,
    unknown_node_code=5,
    unknown_node_text="node not found",
    key_snapshot_in_node=True,
    no_expiry=NoExpiry.ZERO,
    zero_id_hits_first=False,
    hostname=_validated,
    live_needs_no_key=False,
    login_match=LoginMatch.MACHINE_AND_USER,
    login_resets_online=True,
    login_takes_an_address=False,
    login_loses_created_at=False,
    offline_grace_s=10,
    deleted_session_stays=True,
)

V0_27_1 = replace(
    V0_27_0,
    version="0.27.1",
    expiry_survives_restart=False,
    key_check=KeyCheck.UNLESS_SAME_KEY,
)

V0_28 = replace(
    V0_27_1,
    version="0.28.0",
    unknown_path=UnknownPath.BLANK_PAGE_200,
    user_name_falls_back=True,
    key_user=KeyUser.ID_OR_TAGS,
    key_format=KeyFormat.PREFIXED_BASE64,
    keys_masked=True,
    api_key_prefix_lengths=frozenset({7}),
    identifies_keys_by_id=True,
    second_key_until_restart=True,
    forced_tags=False,
    tagged_pseudo_user=True,
    frees_addresses=True,
    no_expiry=NoExpiry.NULL_IF_TAGGED,
    key_check=KeyCheck.NEVER,
    login_tags=LoginTags.NEVER,
    tagged_revives=False,
)

V0_29_2 = replace(
    V0_28,
    version="0.29.2",
    unknown_path=UnknownPath.TEXT_404,
    all_of_api_needs_key=True,
    tagged_user_hidden=True,
    no_expiry=NoExpiry.NULL,
    expiry_survives_restart=True,
    hostname=_raw,
    given_name=_label,
    given_name_numbered=True,
    given_name_follows_login=False,
    login_match=LoginMatch.MACHINE_AND_OWNERSHIP,
    key_check=KeyCheck.UNLESS_LIVE,
    login_tags=LoginTags.IF_UNTAGGED,
    login_resets_online=False,
    tagged_keeps_user=False,
)

V0_29_3 = replace(
    V0_29_2,
    version="0.29.3",
    second_key_until_restart=False,
    key_check=KeyCheck.UNLESS_LIVE_OR_TAGGED,
    login_tags=LoginTags.IF_ANOTHER_KEY,
    tagged_revives=True,
    upgrade_revives_tagged=True,
)

V0_30 = replace(
    V0_29_2,
    version="0.30.0",
    swagger=False,
    all_of_api_needs_key=False,
    uses_huma=True,
    key_format=KeyFormat.PREFIXED_HEX,
    unknown_key_is_404=True,
)

DIALECTS: Final[Mapping[str, Dialect]] = MappingProxyType(
    {
        dialect.version: dialect
        for dialect in (V0_22, V0_23, V0_24, V0_25, V0_26, V0_27_0, V0_27_1, V0_28, V0_29_2, V0_29_3, V0_30)
    }
)

VERSIONS: Final = tuple(version for version, dialect in DIALECTS.items() if not dialect.machine_api)
"""The releases whose API has nodes, oldest first."""


# --- Descriptions of the API, by which a client detects the release ------------------------------------


def swagger(dialect: Dialect) -> dict[str, Any]:
    """Return the document at /swagger/v1/openapiv2.json, with the parts by which the program detects the release.

    As in the real document, `info.version` does not contain the release.
    """
    operation: dict[str, Any] = {"responses": {"200": {"description": "A successful response."}}}
    methods = ("get", "post", "delete") if dialect.identifies_keys_by_id else ("get", "post")
    user = {"type": "string"} if dialect.key_user is KeyUser.NAME else {"type": "string", "format": "uint64"}
    return {
        "swagger": "2.0",
        "info": {"title": "headscale/v1/headscale.proto", "version": "version not set"},
        "paths": {
            f"/api/v1/{'machine' if dialect.machine_api else 'node'}": {"get": operation},
            "/api/v1/preauthkey": dict.fromkeys(methods, operation),
        },
        "definitions": {"v1CreatePreAuthKeyRequest": {"type": "object", "properties": {"user": user}}},
    }


def openapi(dialect: Dialect) -> dict[str, Any]:
    """Return the essential parts of the document at /api/v1/openapi.json, which exists from 0.30 on."""
    operation: dict[str, Any] = {"responses": {"200": {"description": "OK"}}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Headscale API", "version": f"v{dialect.version}"},
        "paths": {"/api/v1/node": {"get": operation}},
    }
