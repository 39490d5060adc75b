"""A small Headscale: its admin API in every release's dialect, and what registering a machine does."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Any, Final, Literal

from werkzeug import Response
from werkzeug.exceptions import MethodNotAllowed, NotFound
from werkzeug.routing import Map, Rule

from tests.simulators.dialects import (
    DIALECTS,
    LETTERS,
    Dialect,
    HostnameRefusedError,
    KeyCheck,
    KeyForm,
    KeyUser,
    LoginMatch,
    Never,
    Shown,
    TaggedFilter,
    TaggedUser,
    Unmatched,
    openapi,
    swagger,
)
from tests.simulators.service import Service
from tests.simulators.wire import (
    EXHAUSTED,
    INVALID,
    NOT_FOUND,
    UNIMPLEMENTED,
    UNKNOWN,
    ZERO,
    Body,
    Field,
    RefusedError,
    json_response,
    parse_id,
    read_body,
    time_text,
)

if TYPE_CHECKING:
    from werkzeug import Request

TAGGED_DEVICES_ID: Final = 2147455555

TOO_MANY_NODES: Final = 6000
"""About so many fill a gRPC message of 4 MiB."""

SILENT_LOSS: Final = timedelta(minutes=15)
"""About how long the kernel retransmits to a client that vanished."""

EPHEMERAL_TIMEOUT: Final = timedelta(seconds=120)

REGISTER_METHODS: Final = {
    "auth_key": "REGISTER_METHOD_AUTH_KEY",
    "cli": "REGISTER_METHOD_CLI",
    "oidc": "REGISTER_METHOD_OIDC",
}

BASE64URL: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
HEX: Final = "0123456789abcdef"

RegisteredBy = Literal["auth_key", "cli", "oidc"]
Where = Literal["list", "get", "change"]


class RegistrationRefusedError(Exception):
    """A machine was not let in; the text is the server's."""


class NodeGoneError(Exception):
    """A machine that polls was told that its node does not exist."""


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """A user of the tailnet."""

    id: int
    name: str
    email: str
    provider: str
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class PreAuthKey:
    """A pre-auth key; `key` is the secret."""

    id: int
    key: str
    user_id: int | None
    reusable: bool
    ephemeral: bool
    used: bool
    expires_at: datetime
    created_at: datetime
    tags: tuple[str, ...]

    @property
    def is_legacy(self) -> bool:
        """Whether it was made before 0.28, which shows it in full for ever."""
        return not self.key.startswith("hskey-auth-")

    @property
    def masked(self) -> str:
        """What lists show of it."""
        return self.key if self.is_legacy else f"{self.key[: len('hskey-auth-') + 12]}-***"


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """An API key."""

    id: int
    key: str
    expires_at: datetime
    created_at: datetime

    @property
    def prefix(self) -> str:
        """The part that is no secret."""
        return self.key[: len("hskey-api-") + 12] if self.key.startswith("hskey-api-") else self.key[:7]


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A member of the tailnet, as it was when it was asked for."""

    id: int
    machine_key: str
    node_key: str
    disco_key: str
    addresses: tuple[str, ...]
    name: str
    given_name: str
    user_id: int | None
    """Its owner; of a tagged node who made the key, if anyone did."""
    tags: tuple[str, ...]
    registered_by: RegisteredBy
    stored_key_id: int | None
    """Which key it came with, as the database has it."""
    pre_auth_key: PreAuthKey | None
    """That key as it was then, or the one it came back with: what the memory has."""
    created_at: datetime
    last_seen: datetime | None
    expires_at: datetime | None
    stored_expires_at: datetime | None
    """What a restart makes of `expires_at`."""

    @property
    def address(self) -> str:
        """The first of its addresses."""
        return self.addresses[0]


@dataclass(slots=True, kw_only=True)
class _State:
    """Everything the server knows; rows are immutable, so a copy of the tables is a snapshot."""

    users: dict[int, User] = field(default_factory=dict)
    keys: dict[int, PreAuthKey] = field(default_factory=dict)
    api_keys: dict[int, ApiKey] = field(default_factory=dict)
    nodes: dict[int, Node] = field(default_factory=dict)
    last_ids: dict[str, int] = field(default_factory=dict)

    def copy(self) -> _State:
        return _State(
            users=dict(self.users),
            keys=dict(self.keys),
            api_keys=dict(self.api_keys),
            nodes=dict(self.nodes),
            last_ids=dict(self.last_ids),
        )

    def next_id(self, table: str) -> int:
        self.last_ids[table] = self.last_ids.get(table, 0) + 1
        return self.last_ids[table]


class _Sessions:
    """Who holds a long poll open, and who did."""

    def __init__(self) -> None:
        self.open: set[int] = set()
        self.closed_at: dict[int, datetime] = {}
        self.lost_at: dict[int, datetime] = {}

    def online(self, node_id: int, now: datetime, grace: timedelta) -> bool:
        if node_id in self.open:
            return True
        closed_at, lost_at = self.closed_at.get(node_id), self.lost_at.get(node_id)
        if lost_at is not None and now < lost_at + SILENT_LOSS:
            return True
        return closed_at is not None and now < closed_at + grace

    def offline_since(self, node_id: int) -> datetime | None:
        if node_id in self.open:
            return None
        lost_at = self.lost_at.get(node_id)
        return lost_at + SILENT_LOSS if lost_at is not None else self.closed_at.get(node_id)

    def connect(self, node_id: int) -> None:
        self.open.add(node_id)
        self.closed_at.pop(node_id, None)
        self.lost_at.pop(node_id, None)

    def disconnect(self, node_id: int, now: datetime, *, silently: bool) -> None:
        self.open.discard(node_id)
        (self.lost_at if silently else self.closed_at)[node_id] = now

    def forget(self, node_id: int) -> None:
        self.open.discard(node_id)
        self.closed_at.pop(node_id, None)
        self.lost_at.pop(node_id, None)


class _Addresses:
    """Sequential allocation: a pointer that only moves forward, until the server restarts."""

    FAMILIES: Final[Mapping[str, tuple[type[IPv4Address | IPv6Address], str]]] = {
        "v4": (IPv4Address, "100.64.0.0"),
        "v6": (IPv6Address, "fd7a:115c:a1e0::"),
    }

    def __init__(self, families: tuple[str, ...]) -> None:
        self.families = families
        self.restart()

    def restart(self) -> None:
        self._last = dict.fromkeys(self.families, 0)

    def next(self, taken: set[str]) -> tuple[str, ...]:
        found = []
        for family in self.families:
            kind, base = self.FAMILIES[family]
            while True:
                self._last[family] += 1
                address = str(kind(base) + self._last[family])
                if address not in taken:
                    break
            found.append(address)
        return tuple(found)


Handler = Callable[["HeadscaleSimulator", "Request", dict[str, str]], Response]
Exists = Callable[[Dialect], bool]


@dataclass(frozen=True, slots=True)
class _Route:
    method: str
    path: str
    handler: Handler
    exists: Exists


_ROUTES: list[_Route] = []


def _always(_dialect: Dialect) -> bool:
    return True


def _route(method: str, path: str, exists: Exists = _always) -> Callable[[Handler], Handler]:
    def register(handler: Handler) -> Handler:
        _ROUTES.append(_Route(method, path, handler, exists))
        return handler

    return register


PUBLIC: Final = frozenset({"/health", "/version", "/swagger", "/swagger/v1/openapiv2.json", "/api/v1/openapi.json"})


class HeadscaleSimulator(Service):
    """One Headscale server; see the methods for what it can be made to do."""

    def __init__(
        self,
        version: str = "0.28.0",
        *,
        now: Callable[[], datetime] | None = None,
        api_key: str | None = None,
        reported_version: str | None = None,
        families: tuple[str, ...] = ("v4", "v6"),
        offline_grace: timedelta | None = None,
        seed: int = 1,
    ) -> None:
        """Start an empty server.

        Args:
            version: one of `DIALECTS`.
            now: the clock, aware UTC; the real one when left out.
            api_key: the API key that it accepts; made up in the release's form when left out.
            reported_version: what /version says instead of the version, such as `dev`.
            families: address families it hands out, of `v4` and `v6`.
            offline_grace: how long a node stays online after it disconnected; the release's when left out.
            seed: of everything random.
        """
        super().__init__()
        self.dialect = DIALECTS[version]
        self.reported_version = reported_version
        self._now = now or (lambda: datetime.now(UTC))
        self._random = random.Random(seed)  # noqa: S311 - reproducible on purpose
        self._grace = offline_grace
        self._secrets: list[str] = []
        self._state = _State()
        self._before = self._state
        self._sessions = _Sessions()
        self._addresses = _Addresses(families)
        self._map = self._routes()
        self._api_key_id = self._add_api_key(api_key).id

    # --- What a test or the demo does ---------------------------------------------------------------

    @property
    def version(self) -> str:
        """The release it speaks."""
        return self.dialect.version

    @property
    def api_key(self) -> str:
        """The API key made last."""
        with self.lock:
            return self._state.api_keys[self._api_key_id].key

    @property
    def users(self) -> list[User]:
        """Every user, by id."""
        with self.lock:
            return list(self._state.users.values())

    @property
    def keys(self) -> list[PreAuthKey]:
        """Every pre-auth key, by id, secrets included."""
        with self.lock:
            return list(self._state.keys.values())

    @property
    def nodes(self) -> list[Node]:
        """Every node, by id."""
        with self.lock:
            return list(self._state.nodes.values())

    def node(self, node_id: int) -> Node | None:
        """One node as it is now."""
        with self.lock:
            return self._state.nodes.get(node_id)

    def secrets(self) -> list[str]:
        """Every secret that was ever handed out or accepted."""
        with self.lock:
            return list(self._secrets)

    def add_user(self, name: str, email: str = "", *, provider: str = "") -> User:
        """Make a user; only a provider's (`oidc`) may have no name, or one that is taken."""
        with self.lock:
            taken = any(user.name == name and user.provider == provider for user in self._state.users.values())
            if not provider and (taken or not name):
                message = f"user {name!r} cannot be added"
                raise ValueError(message)
            return self._add_user(name, email, provider)

    def create_key(
        self,
        user: User | str | None,
        *,
        reusable: bool = False,
        ephemeral: bool = False,
        expires_in: timedelta = timedelta(hours=1),
        tags: tuple[str, ...] = (),
    ) -> PreAuthKey:
        """Make a pre-auth key, as the command line in the server's pod does."""
        with self.lock:
            owner = self._user_named(user)
            if owner is None and not (tags and self.dialect.key_user is KeyUser.ID_OR_TAGS):
                message = f"a key needs a user on {self.version}"
                raise ValueError(message)
            return self._add_key(
                owner and owner.id,
                reusable=reusable,
                ephemeral=ephemeral,
                expires_at=self._now() + expires_in,
                tags=tags,
            )

    def add_node(
        self,
        hostname: str,
        *,
        user: User | str | None,
        tags: tuple[str, ...] = (),
        online: bool = True,
        registered_by: RegisteredBy = "auth_key",
        expires_at: datetime | None = None,
        pre_auth_key: PreAuthKey | None = None,
        machine_key: str | None = None,
        addresses: tuple[str, ...] | None = None,
    ) -> Node:
        """Put a node there, as if it had registered some time ago.

        Args:
            hostname: what the machine calls itself; named by the release's rules.
            user: owner, or who made the key of a tagged node; None only with tags, from 0.28 on.
            tags: with `tag:`.
            online: whether it holds a session.
            registered_by: how it came in.
            expires_at: None = never.
            pre_auth_key: the key it came with; for `auth_key` one is made up when left out.
            machine_key: with `mkey:`; made up when left out.
            addresses: its addresses; the next free ones when left out.
        """
        with self.lock:
            owner = self._user_named(user)
            if owner is None and not (tags and self.dialect.key_user is KeyUser.ID_OR_TAGS):
                message = f"a node needs a user on {self.version}"
                raise ValueError(message)
            self._remember()
            if registered_by == "auth_key" and pre_auth_key is None:
                pre_auth_key = self._add_key(
                    owner and owner.id,
                    reusable=False,
                    ephemeral=False,
                    expires_at=self._now() + timedelta(hours=1),
                    tags=tags,
                )
            if registered_by == "auth_key" and pre_auth_key is not None:
                pre_auth_key = self._use(self._state.keys[pre_auth_key.id])
            node = self._add_node(
                hostname,
                machine_key=machine_key or self._new_key("mkey:"),
                node_key=self._new_key("nodekey:"),
                user_id=owner and owner.id,
                tags=tags,
                registered_by=registered_by,
                key=pre_auth_key,
                expires_at=expires_at,
                addresses=addresses,
            )
            if online:
                self._sessions.connect(node.id)
            return node

    def register(
        self,
        *,
        key: str | None,
        hostname: str,
        machine_key: str | None = None,
        node_key: str | None = None,
    ) -> Node:
        """Register a machine, as the control protocol does.

        Args:
            key: pre-auth key; None = the client shows none.
            hostname: what the machine calls itself.
            machine_key: with `mkey:`; a new machine's when left out.
            node_key: with `nodekey:`; a new one when left out.

        Returns:
            The node, new or known; not connected yet.

        Raises:
            RegistrationRefusedError: with the server's text.
        """
        with self.lock:
            self._remember()
            self._sweep()
            return self._register(
                key,
                hostname,
                machine_key or self._new_key("mkey:"),
                node_key or self._new_key("nodekey:"),
            )

    def connect(self, node_id: int) -> None:
        """Open a node's long poll.

        Raises:
            NodeGoneError: there is no such node.
        """
        with self.lock:
            self._sweep()
            if node_id not in self._state.nodes:
                message = "node not found"
                raise NodeGoneError(message)
            self._sessions.connect(node_id)
            self._change(node_id, last_seen=self._now())

    def disconnect(self, node_id: int, *, silently: bool = False) -> None:
        """Close a node's long poll.

        Args:
            node_id: the node; one that is gone is no error.
            silently: the machine vanished: the server goes on believing in it for a quarter of an hour.
        """
        with self.lock:
            if node_id not in self._state.nodes:
                self._sessions.forget(node_id)
                return
            self._sessions.disconnect(node_id, self._now(), silently=silently)
            if not silently:
                self._change(node_id, last_seen=self._now())

    def session_open(self, node_id: int) -> bool:
        """Whether a client still has its long poll; from 0.27 on also that of a deleted node."""
        with self.lock:
            return node_id in self._sessions.open

    def online(self, node_id: int) -> bool:
        """What the API says about a node."""
        with self.lock:
            return self._online(self._state.nodes[node_id])

    def readdress(self, node_id: int) -> Node:
        """Give a node the next free addresses."""
        with self.lock:
            self._remember()
            return self._change(node_id, addresses=self._next_addresses())

    def delete_node(self, node_id: int) -> None:
        """Delete a node, as a person would."""
        with self.lock:
            self._remember()
            self._delete_node(node_id)

    def expire_key(self, key_id: int) -> None:
        """Expire a pre-auth key, as a person would."""
        with self.lock:
            self._remember()
            self._state.keys[key_id] = replace(self._state.keys[key_id], expires_at=self._now())

    def expire_node(self, node_id: int) -> Node:
        """Expire a node, as a person would."""
        with self.lock:
            self._remember()
            return self._expire(node_id, self._now())

    def upgrade(self, version: str) -> None:
        """Restart as another release, with the same database."""
        with self.lock:
            self.dialect = DIALECTS[version]
            self._map = self._routes()
            self.restart()

    def restart(self) -> None:
        """Restart: everybody offline, what was only in memory lost, addresses counted from the lowest."""
        with self.lock:
            self._remember()
            self._sessions = _Sessions()
            self._addresses.restart()
            for node in self.nodes:
                stored = self._state.keys.get(node.stored_key_id or 0)
                self._change(node.id, pre_auth_key=stored, expires_at=node.stored_expires_at)
                self._sessions.closed_at[node.id] = self._now() - timedelta(days=1)
                if stored is not None and stored.ephemeral:
                    self._sessions.closed_at[node.id] = self._now() - self._offline_grace

    def revoke_api_key(self, *, delete: bool = False) -> None:
        """Make the API key useless: expire it, or delete it so that it is unknown."""
        with self.lock:
            self._remember()
            key = self._state.api_keys[self._api_key_id]
            expired = replace(key, expires_at=self._now())
            self._state.api_keys[key.id] = replace(expired, key="deleted." + key.key) if delete else expired

    def rotate_api_key(self, api_key: str | None = None) -> str:
        """Expire the API key and give the new one."""
        with self.lock:
            self.revoke_api_key()
            self._api_key_id = self._add_api_key(api_key).id
            return self.api_key

    # --- Rows ---------------------------------------------------------------------------------------

    def _remember(self) -> None:
        self._before = self._state.copy()

    def _text(self, alphabet: str, length: int) -> str:
        return "".join(self._random.choices(alphabet, k=length))

    def _new_key(self, prefix: str) -> str:
        return prefix + self._text(HEX, 64)

    def _user_named(self, user: User | str | None) -> User | None:
        if not isinstance(user, str):
            return user
        return next(known for known in self._state.users.values() if known.name == user)

    def _add_user(self, name: str, email: str, provider: str) -> User:
        self._remember()
        user = User(
            id=self._state.next_id("users"), name=name, email=email, provider=provider, created_at=self._now()
        )
        self._state.users[user.id] = user
        return user

    def _add_api_key(self, key: str | None) -> ApiKey:
        if key is None:
            prefixed = self.dialect.key_form is not KeyForm.HEX
            key = (
                f"hskey-api-{self._text(BASE64URL, 12)}-{self._text(BASE64URL, 64)}"
                if prefixed
                else f"{self._text(BASE64URL, 7)}.{self._text(BASE64URL, 32)}"
            )
        now = self._now()
        row = ApiKey(
            id=self._state.next_id("api_keys"), key=key, created_at=now, expires_at=now + timedelta(days=90)
        )
        self._state.api_keys[row.id] = row
        self._secrets.append(key)
        return row

    def _add_key(
        self,
        user_id: int | None,
        *,
        reusable: bool,
        ephemeral: bool,
        expires_at: datetime,
        tags: tuple[str, ...],
    ) -> PreAuthKey:
        self._remember()
        match self.dialect.key_form:
            case KeyForm.HEX:
                secret = self._text(HEX, 48)
            case KeyForm.PREFIXED_BASE64:
                secret = f"hskey-auth-{self._text(BASE64URL, 12)}-{self._text(BASE64URL, 64)}"
            case KeyForm.PREFIXED_HEX:
                secret = f"hskey-auth-{self._text(HEX, 12)}-{self._text(HEX, 64)}"
        key = PreAuthKey(
            id=self._state.next_id("keys"),
            key=secret,
            user_id=user_id,
            reusable=reusable,
            ephemeral=ephemeral,
            used=False,
            expires_at=expires_at,
            created_at=self._now(),
            tags=tuple(dict.fromkeys(tags)),
        )
        self._state.keys[key.id] = key
        self._secrets.append(secret)
        return key

    def _use(self, key: PreAuthKey) -> PreAuthKey:
        used = replace(key, used=not key.reusable or self.dialect.reusable_becomes_used)
        self._state.keys[key.id] = used
        return used

    def _next_addresses(self) -> tuple[str, ...]:
        return self._addresses.next({address for node in self.nodes for address in node.addresses})

    def _change(self, node_id: int, **changes: Any) -> Node:  # noqa: ANN401 - any of Node's fields
        node = replace(self._state.nodes[node_id], **changes)
        self._state.nodes[node_id] = node
        return node

    def _add_node(
        self,
        hostname: str,
        *,
        machine_key: str,
        node_key: str,
        user_id: int | None,
        tags: tuple[str, ...],
        registered_by: RegisteredBy,
        key: PreAuthKey | None,
        expires_at: datetime | None,
        addresses: tuple[str, ...] | None = None,
    ) -> Node:
        name = self.dialect.hostname(hostname, machine_key, self._random)
        node = Node(
            id=self._state.next_id("nodes"),
            machine_key=machine_key,
            node_key=node_key,
            disco_key=self._new_key("discokey:"),
            addresses=self._next_addresses() if addresses is None else addresses,
            name=name,
            given_name=self._free_given_name(self.dialect.given_name(name)),
            user_id=user_id,
            tags=tags,
            registered_by=registered_by,
            stored_key_id=key and key.id,
            pre_auth_key=key,
            created_at=self._now(),
            last_seen=self._now(),
            expires_at=expires_at,
            stored_expires_at=expires_at,
        )
        self._state.nodes[node.id] = node
        return node

    def _free_given_name(self, wanted: str) -> str:
        taken = {node.given_name for node in self.nodes}
        if wanted not in taken:
            return wanted
        if self.dialect.given_name_numbered:
            number = 1
            while True:
                suffix = f"-{number}"
                candidate = wanted[: 63 - len(suffix)] + suffix
                if candidate not in taken:
                    return candidate
                number += 1
        return f"{wanted[:53]}-{self._text(LETTERS, 8)}"

    def _delete_node(self, node_id: int) -> None:
        del self._state.nodes[node_id]
        if not (self.dialect.deleted_session_stays and node_id in self._sessions.open):
            self._sessions.forget(node_id)

    def _expire(self, node_id: int, instant: datetime | None) -> Node:
        changes = {"expires_at": instant}
        if self.dialect.expiry_survives_restart:
            changes["stored_expires_at"] = instant
        return self._change(node_id, **changes)

    @property
    def _offline_grace(self) -> timedelta:
        return timedelta(seconds=self.dialect.offline_grace_s) if self._grace is None else self._grace

    def _online(self, node: Node) -> bool:
        return self._sessions.online(node.id, self._now(), self._offline_grace)

    def _is_expired(self, node: Node) -> bool:
        return node.expires_at is not None and node.expires_at <= self._now()

    def _sweep(self) -> None:
        """Delete the ephemeral nodes that have been away for too long."""
        for node in self.nodes:
            if node.pre_auth_key is None or not node.pre_auth_key.ephemeral:
                continue
            since = self._sessions.offline_since(node.id)
            if since is not None and since + self._offline_grace + EPHEMERAL_TIMEOUT <= self._now():
                self._remember()
                self._delete_node(node.id)

    # --- Registration -------------------------------------------------------------------------------

    def _register(self, secret: str | None, hostname: str, machine_key: str, node_key: str) -> Node:
        key = next((key for key in self._state.keys.values() if key.key == secret), None)
        known = self._known_machine(key, machine_key, node_key)
        if known is not None and self._may_skip_key(known, key, node_key):
            return self._log_in(known, hostname, node_key, key=None)
        if secret is None:
            message = "node must log in"
            raise RegistrationRefusedError(message)
        key = self._checked(key)
        if self.dialect.login_takes_an_address:
            spare = self._next_addresses()
        else:
            spare = None
        if known is None and self.dialect.login_match is LoginMatch.MACHINE_AND_OWNERSHIP and key.tags:
            known = self._convertible(machine_key)
            if known is not None:
                self._change(known.id, tags=key.tags, user_id=None)
        if known is not None:
            return self._log_in(known, hostname, node_key, key=self._use(key))
        try:
            self.dialect.hostname(hostname, machine_key, random.Random(0))  # noqa: S311 - a check only
        except HostnameRefusedError as error:
            raise RegistrationRefusedError(str(error)) from error
        return self._add_node(
            hostname,
            machine_key=machine_key,
            node_key=node_key,
            user_id=key.user_id,
            tags=key.tags,
            registered_by="auth_key",
            key=self._use(key),
            expires_at=None,
            addresses=spare,
        )

    def _checked(self, key: PreAuthKey | None) -> PreAuthKey:
        if key is None:
            raise RegistrationRefusedError(self.dialect.unknown_key_text)
        if key.expires_at <= self._now():
            raise RegistrationRefusedError(self.dialect.expired_key_text)
        if key.used and not key.reusable:
            raise RegistrationRefusedError(self.dialect.used_key_text)
        return key

    def _known_machine(self, key: PreAuthKey | None, machine_key: str, node_key: str) -> Node | None:
        """The node as which this machine comes back."""
        own = [node for node in self.nodes if node.machine_key == machine_key]
        owner = None if key is None else key.user_id
        match self.dialect.login_match:
            case LoginMatch.MACHINE_OR_NODE_KEY:
                return next((node for node in self.nodes if node.machine_key == machine_key or node.node_key == node_key), None)
            case LoginMatch.LOWEST_ID_OF_MACHINE:
                return next((node for node in own[:1] if key is None or node.user_id == owner), None)
            case LoginMatch.MACHINE_AND_USER:
                if key is None:
                    return next((node for node in own if node.node_key == node_key), None)
                return next((node for node in own if owner is not None and node.user_id == owner), None)
            case LoginMatch.MACHINE_AND_OWNERSHIP:
                if key is None:
                    return next((node for node in own if node.node_key == node_key), None)
                if key.tags:
                    return next((node for node in own if node.tags), None)
                return next((node for node in own if not node.tags and node.user_id == owner), None)

    def _convertible(self, machine_key: str) -> Node | None:
        """The user-owned node that a tagged key makes a tagged one."""
        own = [node for node in self.nodes if node.machine_key == machine_key]
        if len(own) > 1:
            message = "ambiguous node ownership"
            raise RegistrationRefusedError(message)
        return own[0] if own else None

    def _may_skip_key(self, known: Node, key: PreAuthKey | None, node_key: str) -> bool:
        """Whether a known machine is let in without its key being checked."""
        live = not self._is_expired(known)
        if known.node_key != node_key:
            return live and self.dialect.login_match is LoginMatch.MACHINE_OR_NODE_KEY
        match self.dialect.key_check:
            case KeyCheck.IF_EXPIRED | KeyCheck.UNLESS_LIVE if key is None:
                return live
            case KeyCheck.IF_EXPIRED | KeyCheck.UNLESS_LIVE:
                return live
            case KeyCheck.ALWAYS:
                return live and key is None
            case KeyCheck.UNLESS_SAME_KEY:
                same = key is not None and known.pre_auth_key is not None and key.id == known.pre_auth_key.id
                return live and (key is None or same)
            case KeyCheck.UNLESS_SAME_USER:
                return live
        return False

    def _log_in(self, known: Node, hostname: str, node_key: str, *, key: PreAuthKey | None) -> Node:
        """Take a known machine in again."""
        dialect = self.dialect
        changes: dict[str, Any] = {"node_key": node_key, "last_seen": self._now()}
        if dialect.hostname_follows:
            name = dialect.hostname(hostname, known.machine_key, self._random)
            changes["name"] = name
            if dialect.given_name_follows_login and known.given_name == dialect.given_name(known.name):
                changes["given_name"] = dialect.given_name(name)
        if key is not None:
            changes["pre_auth_key"] = key
            if not dialect.second_key_until_restart:
                changes["stored_key_id"] = key.id
            if dialect.login_match is LoginMatch.MACHINE_OR_NODE_KEY:
                changes["user_id"] = key.user_id
            if dialect.login_loses_created_at:
                changes["created_at"] = ZERO
            if dialect.tagged_revives or not known.tags:
                changes |= {"expires_at": None, "stored_expires_at": None}
        return self._change(known.id, **changes)

    # --- HTTP ---------------------------------------------------------------------------------------

    def _routes(self) -> Map:
        rules = [
            Rule(route.path, methods=[route.method], endpoint=route.handler)
            for route in _ROUTES
            if route.exists(self.dialect)
        ]
        return Map(rules, merge_slashes=False)

    def answer(self, request: Request, *, stale: bool) -> Response:
        """Execute one request, with the lock held."""
        if not stale:
            return self._answer(request)
        present, self._state = self._state, self._before.copy()
        try:
            return self._answer(request)
        finally:
            self._state = present

    def _answer(self, request: Request) -> Response:
        self._sweep()
        gateway = request.path.startswith("/api/v1/") and not self.dialect.strict_json
        guarded = gateway or (self.dialect.all_of_api_needs_key and request.path.startswith("/api"))
        if guarded:
            refusal = self._unauthorized(request)
            if refusal is not None:
                return refusal
        try:
            handler, arguments = self._map.bind_to_environ(request.environ).match()
        except MethodNotAllowed:
            if gateway:
                return RefusedError("Method Not Allowed", code=UNIMPLEMENTED).response(self.dialect)
            return Response("", 405)
        except NotFound:
            if gateway:
                return RefusedError("Not Found", code=NOT_FOUND).response(self.dialect)
            return self._unmatched()
        private = request.path.startswith("/api/") and request.path not in PUBLIC
        if private and not guarded:
            refusal = self._unauthorized(request)
            if refusal is not None:
                return refusal
        try:
            response: Response = handler(self, request, dict(arguments))
        except RefusedError as error:
            return error.response(self.dialect)
        return response

    def _unmatched(self) -> Response:
        match self.dialect.unmatched:
            case Unmatched.EMPTY_404:
                return Response(b"", 404, content_type=None)
            case Unmatched.BLANK_PAGE_200:
                return Response("<html>\n<body></body>\n</html>\n", 200, content_type="text/html; charset=utf-8")
            case Unmatched.TEXT_404:
                return Response("404 page not found\n", 404, content_type="text/plain; charset=utf-8")

    def _unauthorized(self, request: Request) -> Response | None:
        header = request.headers.get("Authorization", "")
        status = 401
        if header.startswith("Bearer "):
            token = header.removeprefix("Bearer ")
            known = next((key for key in self._state.api_keys.values() if key.key == token), None)
            if known is not None and known.expires_at > self._now():
                return None
            if known is None:
                status = self.dialect.wrong_key_status
        if self.dialect.strict_json:
            return RefusedError("Unauthorized", status=401).response(self.dialect)
        return Response("Unauthorized", status, content_type="text/plain; charset=utf-8")

    # --- JSON ---------------------------------------------------------------------------------------

    def _time(self, instant: datetime, *, nanos: int = 0) -> str:
        return time_text(self.dialect, instant, nanos=nanos)

    def _user_json(self, user: User) -> dict[str, Any]:
        name = user.name
        if not name and self.dialect.user_name_falls_back:
            name = user.email or str(user.id)
        shown = {"id": str(user.id), "name": name, "createdAt": self._time(user.created_at, nanos=_nanos(user.id))}
        if not self.dialect.user_details:
            return shown
        return shown | {
            "displayName": "",
            "email": user.email,
            "providerId": f"https://sso.example.com/{user.id}" if user.provider else "",
            "provider": user.provider,
            "profilePicUrl": "",
        }

    def _key_json(self, key: PreAuthKey, *, secret: bool) -> dict[str, Any]:
        user = None if key.user_id is None else self._state.users.get(key.user_id)
        shown: Any = None if user is None else self._user_json(user)
        if user is not None and self.dialect.key_user_shown is Shown.NAME:
            shown = user.name
        elif user is not None and self.dialect.key_user_shown is Shown.EMAIL_OR_NAME:
            shown = user.email or user.name
        return {
            "user": shown,
            "id": str(key.id),
            "key": key.key if secret or not self.dialect.keys_masked else key.masked,
            "reusable": key.reusable,
            "ephemeral": key.ephemeral,
            "used": key.used,
            "expiration": self._time(key.expires_at),
            "createdAt": self._time(key.created_at, nanos=_nanos(key.id)),
            "aclTags": list(key.tags),
        }

    def _node_json(self, node: Node, where: Where) -> dict[str, Any]:
        dialect = self.dialect
        live_key = self._state.keys.get(node.stored_key_id or 0)
        key = node.pre_auth_key if dialect.key_snapshot_in_node else live_key
        shown: dict[str, Any] = {
            "id": str(node.id),
            "machineKey": node.machine_key,
            "nodeKey": node.node_key,
            "discoKey": node.disco_key,
            "ipAddresses": list(node.addresses),
            "name": node.name,
            "user": self._node_user_json(node, where),
            "lastSeen": None if node.last_seen is None else self._time(node.last_seen, nanos=_nanos(node.id)),
            "expiry": self._expiry_json(node),
            "preAuthKey": None if key is None else self._key_json(key, secret=False),
            "createdAt": self._time(node.created_at, nanos=_nanos(node.id)),
            "registerMethod": REGISTER_METHODS[node.registered_by],
            "givenName": node.given_name,
            "online": (where != "change" or dialect.online_everywhere) and self._online(node),
        }
        if dialect.forced_tags:
            valid = list(node.tags) if where == "list" and dialect.valid_tags_in_list else []
            shown |= {"forcedTags": list(node.tags), "invalidTags": [], "validTags": valid}
        else:
            shown["tags"] = list(node.tags)
        if dialect.routes_in_node:
            shown |= {"approvedRoutes": [], "availableRoutes": [], "subnetRoutes": []}
        return shown

    def _node_user_json(self, node: Node, where: Where) -> dict[str, Any] | None:
        if node.tags and self.dialect.tagged_pseudo_user:
            if where == "list":
                pseudo = User(id=TAGGED_DEVICES_ID, name="tagged-devices", email="", provider="", created_at=ZERO)
                return self._user_json(pseudo)
            if self.dialect.tagged_user is TaggedUser.NULL:
                return None
        user = None if node.user_id is None else self._state.users.get(node.user_id)
        return None if user is None else self._user_json(user)

    def _expiry_json(self, node: Node) -> str | None:
        if node.expires_at is not None:
            return self._time(node.expires_at)
        never = self.dialect.never
        if never is Never.NULL or (never is Never.NULL_IF_TAGGED and node.tags):
            return None
        return self._time(ZERO)

    # --- Looking things up --------------------------------------------------------------------------

    def _requested_node(self, arguments: Mapping[str, str], *, code: int, operation: str) -> Node:
        node_id = parse_id(arguments["node_id"])
        node = self._state.nodes.get(node_id)
        if node is None and node_id == 0 and self.dialect.zero_id_hits_first and self._state.nodes:
            return self.nodes[0]
        if node is None:
            message = "record not found" if self.dialect.unknown_node_code == UNKNOWN else "node not found"
            raise RefusedError(message, code=code, status=404, operation=operation)
        return node

    def _user_by_name(self, name: str, *, operation: str) -> User:
        found = [user for user in self._state.users.values() if user.name == name]
        if not name and self.dialect.sole_user_by_default:
            found = self.users
        if not found:
            message = "user not found"
            raise RefusedError(message, status=404, operation=operation)
        if len(found) > 1:
            message = f"expected exactly one user, found {len(found)}"
            raise RefusedError(message, status=500, operation=operation)
        return found[0]

    def _user_by_id(self, user_id: int, *, operation: str) -> User:
        user = self._state.users.get(user_id)
        if user is None and user_id == 0 and self.dialect.zero_id_hits_first and self._state.users:
            return self.users[0]
        if user is None:
            message = "user not found"
            raise RefusedError(message, status=404, operation=operation)
        return user


def _nanos(row_id: int) -> int:
    """Something below the microsecond, as the real server's clock has it."""
    return row_id * 37 % 1000


# --- Finding out ------------------------------------------------------------------------------------


@_route("GET", "/health")
def _health(_sim: HeadscaleSimulator, _request: Request, _arguments: dict[str, str]) -> Response:
    return json_response({"status": "pass"}, content_type="application/health+json; charset=utf-8")


@_route("GET", "/version", lambda dialect: dialect.version_path)
def _version(sim: HeadscaleSimulator, _request: Request, _arguments: dict[str, str]) -> Response:
    return json_response(
        {
            "version": sim.reported_version or f"v{sim.version}",
            "commit": "0" * 40,
            "buildTime": "2026-01-01T00:00:00Z",
            "go": {"version": "go1.25.5", "os": "linux", "arch": "amd64"},
            "dirty": False,
        }
    )


@_route("GET", "/swagger/v1/openapiv2.json", lambda dialect: dialect.swagger)
def _swagger(sim: HeadscaleSimulator, _request: Request, _arguments: dict[str, str]) -> Response:
    return json_response(swagger(sim.dialect))


@_route("GET", "/api/v1/openapi.json", lambda dialect: dialect.strict_json)
def _openapi(sim: HeadscaleSimulator, _request: Request, _arguments: dict[str, str]) -> Response:
    return json_response(openapi(sim.dialect), content_type="application/openapi+json")


@_route("GET", "/api/v1/health", lambda dialect: dialect.api_health)
def _api_health(_sim: HeadscaleSimulator, _request: Request, _arguments: dict[str, str]) -> Response:
    return json_response({"databaseConnectivity": True})


@_route("GET", "/api/v1/machine", lambda dialect: dialect.machine_api)
def _machines(_sim: HeadscaleSimulator, _request: Request, _arguments: dict[str, str]) -> Response:
    return json_response({"machines": []})


# --- Users ------------------------------------------------------------------------------------------


def _has_nodes(dialect: Dialect) -> bool:
    return not dialect.machine_api


@_route("GET", "/api/v1/user", _has_nodes)
def _list_users(sim: HeadscaleSimulator, request: Request, _arguments: dict[str, str]) -> Response:
    users = sim.users
    name, email, user_id = (request.args.get(key, "") for key in ("name", "email", "id"))
    wanted_id = parse_id(user_id) if sim.dialect.user_filter else 0
    if sim.dialect.user_filter and name:
        users = [user for user in users if user.name == name]
    elif sim.dialect.user_filter and email:
        users = [user for user in users if user.email == email]
    elif wanted_id:
        users = [user for user in users if user.id == wanted_id]
    return json_response({"users": [sim._user_json(user) for user in users]})


@_route("GET", "/api/v1/user/<name>", lambda dialect: dialect.user_by_name and not dialect.machine_api)
def _get_user(sim: HeadscaleSimulator, _request: Request, arguments: dict[str, str]) -> Response:
    return json_response({"user": sim._user_json(sim._user_by_name(arguments["name"], operation=""))})


@_route("POST", "/api/v1/user", _has_nodes)
def _create_user(sim: HeadscaleSimulator, request: Request, _arguments: dict[str, str]) -> Response:
    fields = {"name": Field.TEXT}
    if sim.dialect.user_details:
        fields |= {"displayName": Field.TEXT, "email": Field.TEXT, "pictureUrl": Field.TEXT}
    body = read_body(request, sim.dialect, fields)
    name = body.text("name")
    if any(user.name == name and not user.provider for user in sim.users):
        raise RefusedError(
            sim.dialect.duplicate_user_text,
            code=sim.dialect.duplicate_user_code,
            status=409,
            operation="creating user",
        )
    return json_response({"user": sim._user_json(sim._add_user(name, body.text("email"), ""))})


# --- Nodes ------------------------------------------------------------------------------------------


def _dns_name(name: str) -> bool:
    return bool(name) and len(name) <= 63 and all(character in LETTERS + "-." for character in name)


@_route("GET", "/api/v1/node", _has_nodes)
def _list_nodes(sim: HeadscaleSimulator, request: Request, _arguments: dict[str, str]) -> Response:
    dialect = sim.dialect
    nodes = sim.nodes
    name = request.args.get("user", "")
    if name:
        if dialect.node_filter_checks_name and not _dns_name(name):
            message = "username must only contain lowercase letters, numbers, dashes and dots"
            raise RefusedError(message)
        user = sim._user_by_name(name, operation="listing nodes")
        hidden = dialect.tagged_filter is TaggedFilter.NOBODY
        nodes = [node for node in nodes if node.user_id == user.id and not (hidden and node.tags)]
    if len(nodes) > TOO_MANY_NODES and not dialect.strict_json:
        message = "grpc: received message larger than max (4200000 vs. 4194304)"
        raise RefusedError(message, code=EXHAUSTED)
    shown = [sim._node_json(node, "list") for node in nodes]
    return json_response({"nodes": shown})


@_route("GET", "/api/v1/node/<node_id>", _has_nodes)
def _get_node(sim: HeadscaleSimulator, _request: Request, arguments: dict[str, str]) -> Response:
    node = sim._requested_node(arguments, code=sim.dialect.unknown_node_code, operation="")
    return json_response({"node": sim._node_json(node, "get")})


@_route("DELETE", "/api/v1/node/<node_id>", _has_nodes)
def _delete_node(sim: HeadscaleSimulator, _request: Request, arguments: dict[str, str]) -> Response:
    node = sim._requested_node(arguments, code=sim.dialect.unknown_node_code, operation="")
    sim.delete_node(node.id)
    return json_response({})


def _query_time(request: Request, name: str) -> datetime | None:
    text = request.args.get(name)
    if text is None:
        return None
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        instant = None
    if instant is None or instant.tzinfo is None:
        message = f"parsing field {name!r}: invalid timestamp"
        raise RefusedError(message, code=INVALID)
    return instant


def _expiry_wanted(sim: HeadscaleSimulator, request: Request) -> Body:
    """What a request to expire a node asks for; an empty body means now."""
    dialect = sim.dialect
    if dialect.expire_body:
        return read_body(request, dialect, {"expiry": Field.TIME, "disableExpiry": Field.FLAG}, required=False)
    values: dict[str, Any] = {}
    if dialect.expire_query:
        values["expiry"] = _query_time(request, "expiry")
    if dialect.expire_disable and request.args.get("disableExpiry", request.args.get("disable_expiry")) == "true":
        values["disableExpiry"] = True
    return Body(values)


@_route("POST", "/api/v1/node/<node_id>/expire", _has_nodes)
def _expire_node(sim: HeadscaleSimulator, request: Request, arguments: dict[str, str]) -> Response:
    parse_id(arguments["node_id"])
    wanted = _expiry_wanted(sim, request)
    expiry, disable = wanted.time("expiry"), wanted.flag("disableExpiry")
    if expiry is not None and disable:
        message = "cannot set both disable_expiry and expiry"
        raise RefusedError(message, code=INVALID, status=400)
    node = sim._requested_node(arguments, code=UNKNOWN, operation="expiring node")
    sim._remember()
    node = sim._expire(node.id, None if disable else expiry or sim._now())
    return json_response({"node": sim._node_json(node, "change")})


@_route("POST", "/api/v1/node/<node_id>/rename/<new_name>", _has_nodes)
def _rename_node(sim: HeadscaleSimulator, _request: Request, arguments: dict[str, str]) -> Response:
    import re

    node = sim._requested_node(arguments, code=UNKNOWN, operation="renaming node")
    name = arguments["new_name"]
    if re.fullmatch(sim.dialect.rename_pattern, name) is None:
        message = "name is invalid"
        raise RefusedError(message, status=400, operation="renaming node")
    others = {other.given_name for other in sim.nodes if other.id != node.id or not sim.dialect.rename_to_own_name}
    if name in others:
        message = "name is not unique"
        raise RefusedError(message, status=400, operation="renaming node")
    sim._remember()
    return json_response({"node": sim._node_json(sim._change(node.id, given_name=name), "change")})


# --- Pre-auth keys ----------------------------------------------------------------------------------


def _check_tags(tags: tuple[str, ...]) -> None:
    for tag in tags:
        message = ""
        if not tag.startswith("tag:"):
            message = "tag must start with the string 'tag:'"
        elif tag.lower() != tag:
            message = "tag should be lowercase"
        elif len(tag.split()) != 1:
            message = "tags must not contain spaces"
        if message:
            raise RefusedError(message, code=INVALID, status=400, operation="invalid tag")


@_route("GET", "/api/v1/preauthkey", _has_nodes)
def _list_keys(sim: HeadscaleSimulator, request: Request, _arguments: dict[str, str]) -> Response:
    keys = sim.keys
    if not sim.dialect.keys_by_id:
        user = _key_user(sim, request.args.get("user", ""))
        keys = [key for key in keys if key.user_id == user.id]
    return json_response({"preAuthKeys": [sim._key_json(key, secret=False) for key in keys]})


def _key_user(sim: HeadscaleSimulator, given: str) -> User:
    """The user that an older release wants to hear with every pre-auth key."""
    if sim.dialect.key_user is KeyUser.NAME:
        return sim._user_by_name(given, operation="")
    return sim._user_by_id(parse_id(given), operation="")


@_route("POST", "/api/v1/preauthkey", _has_nodes)
def _create_key(sim: HeadscaleSimulator, request: Request, _arguments: dict[str, str]) -> Response:
    dialect = sim.dialect
    by_name = dialect.key_user is KeyUser.NAME
    body = read_body(
        request,
        dialect,
        {
            "user": Field.TEXT if by_name else Field.ID,
            "reusable": Field.FLAG,
            "ephemeral": Field.FLAG,
            "expiration": Field.TIME,
            "aclTags": Field.TEXTS,
        },
    )
    tags = body.texts("aclTags")
    _check_tags(tags)
    operation = "creating pre-auth key"
    user: User | None = None
    if by_name:
        user = sim._user_by_name(body.text("user"), operation=operation)
    elif body.number("user") or dialect.key_user is KeyUser.ID:
        user = sim._user_by_id(body.number("user"), operation=operation)
    elif not tags:
        message = "auth-key must be either tagged or owned by user"
        raise RefusedError(message, status=400, operation=operation)
    key = sim._add_key(
        user and user.id,
        reusable=body.flag("reusable"),
        ephemeral=body.flag("ephemeral"),
        expires_at=body.time("expiration") or ZERO,
        tags=tags,
    )
    return json_response({"preAuthKey": sim._key_json(key, secret=True)})


@_route("POST", "/api/v1/preauthkey/expire", _has_nodes)
def _expire_key(sim: HeadscaleSimulator, request: Request, _arguments: dict[str, str]) -> Response:
    dialect = sim.dialect
    if dialect.keys_by_id:
        body = read_body(request, dialect, {"id": Field.ID})
        key = sim._state.keys.get(body.number("id"))
        if key is None and dialect.keys_unknown_is_404:
            message = "record not found"
            raise RefusedError(message, status=404, operation="expiring pre-auth key")
    else:
        by_name = dialect.key_user is KeyUser.NAME
        body = read_body(request, dialect, {"user": Field.TEXT if by_name else Field.ID, "key": Field.TEXT})
        key = _key_of_user(sim, body)
    if key is not None:
        sim.expire_key(key.id)
    return json_response({})


def _key_of_user(sim: HeadscaleSimulator, body: Body) -> PreAuthKey:
    """The key that an older release is asked to expire, by its secret."""
    key = next((key for key in sim.keys if key.key == body.text("key")), None)
    if key is None:
        message = "AuthKey not found" if sim.dialect.keys_expire_once else "record not found"
        raise RefusedError(message)
    owner = sim._state.users[key.user_id or 0]
    by_name = sim.dialect.key_user is KeyUser.NAME
    if (owner.name != body.text("user")) if by_name else (owner.id != body.number("user")):
        message = "preauth key does not belong to user"
        raise RefusedError(message)
    if sim.dialect.keys_expire_once and key.expires_at <= sim._now():
        message = "AuthKey expired"
        raise RefusedError(message)
    if sim.dialect.keys_expire_once and key.used and not key.reusable:
        message = "AuthKey has already been used"
        raise RefusedError(message)
    return key


@_route("DELETE", "/api/v1/preauthkey", lambda dialect: dialect.keys_by_id)
def _delete_key(sim: HeadscaleSimulator, request: Request, _arguments: dict[str, str]) -> Response:
    key_id = parse_id(request.args.get("id", ""))
    if key_id not in sim._state.keys and sim.dialect.keys_unknown_is_404:
        message = "record not found"
        raise RefusedError(message, status=404, operation="deleting pre-auth key")
    sim._remember()
    sim._state.keys.pop(key_id, None)
    for node in sim.nodes:
        if node.stored_key_id == key_id:
            sim._change(node.id, stored_key_id=None)
    return json_response({})


@_route("GET", "/api/v1/apikey", _has_nodes)
def _list_api_keys(sim: HeadscaleSimulator, _request: Request, _arguments: dict[str, str]) -> Response:
    shown = [
        {
            "id": str(key.id),
            "prefix": f"{key.prefix}-***" if sim.dialect.keys_masked else key.prefix,
            "expiration": sim._time(key.expires_at),
            "createdAt": sim._time(key.created_at, nanos=_nanos(key.id)),
            "lastSeen": None,
        }
        for key in sim._state.api_keys.values()
    ]
    return json_response({"apiKeys": shown})


# --- For a simulated machine in another process -----------------------------------------------------


@_route("POST", "/sim/register")
def _sim_register(sim: HeadscaleSimulator, request: Request, _arguments: dict[str, str]) -> Response:
    asked: dict[str, Any] = request.get_json(force=True)
    try:
        node = sim.register(
            key=asked.get("key"),
            hostname=asked["hostname"],
            machine_key=asked.get("machineKey"),
            node_key=asked.get("nodeKey"),
        )
    except RegistrationRefusedError as error:
        return Response(str(error), 401, content_type="text/plain; charset=utf-8")
    return json_response(sim._node_json(node, "get"))


def _sim_node_id(request: Request) -> int:
    asked: dict[str, Any] = request.get_json(force=True)
    return int(asked["nodeId"])


@_route("POST", "/sim/connect")
def _sim_connect(sim: HeadscaleSimulator, request: Request, _arguments: dict[str, str]) -> Response:
    try:
        sim.connect(_sim_node_id(request))
    except NodeGoneError as error:
        return Response(str(error), 404, content_type="text/plain; charset=utf-8")
    return json_response({})


@_route("POST", "/sim/disconnect")
def _sim_disconnect(sim: HeadscaleSimulator, request: Request, _arguments: dict[str, str]) -> Response:
    sim.disconnect(_sim_node_id(request), silently=bool(request.get_json(force=True).get("silently")))
    return json_response({})


@_route("POST", "/sim/readdress")
def _sim_readdress(sim: HeadscaleSimulator, request: Request, _arguments: dict[str, str]) -> Response:
    return json_response(sim._node_json(sim.readdress(_sim_node_id(request)), "get"))
