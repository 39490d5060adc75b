"""The state of the simulated Headscale: users, keys and nodes, and the registrations and connections of machines."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Final, Literal

from tests.simulators.dialects import (
    DIALECTS,
    LETTERS_AND_DIGITS,
    Dialect,
    HostnameRefusedError,
    KeyCheck,
    KeyFormat,
    KeyUser,
    LoginMatch,
    LoginTags,
)
from tests.simulators.upstream import Upstream
from tests.simulators.wire import ZERO

SILENT_LOSS: Final = timedelta(minutes=15)
"""The time after which the server detects that a client has disappeared: Linux retransmits for about 15 minutes."""

BASE64URL: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
HEX: Final = "0123456789abcdef"

LEGACY_API_KEY: Final = re.compile(r"([-_A-Za-z0-9]{7}|[-_A-Za-z0-9]{10})\.[-_A-Za-z0-9]{32,43}")
"""The format of API keys up to 0.27."""

MAX_BEFORE_SUFFIX: Final = 53
"""The maximum length of a given name before its random suffix."""

RegisteredBy = Literal["auth_key", "cli", "oidc"]


class RegistrationRefusedError(Exception):
    """The server refused a registration. The real server would send the same message."""


class NodeGoneError(Exception):
    """The server responds to a machine that its node does not exist."""


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
    """A pre-auth key. The attribute `key` is its secret."""

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
    def masked(self) -> str:
        """The key in lists from 0.28 on: its prefix, or the whole key if it has the old format."""
        prefix = "hskey-auth-"
        return f"{self.key[: len(prefix) + 12]}-***" if self.key.startswith(prefix) else self.key


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """An API key."""

    id: int
    key: str
    expires_at: datetime
    created_at: datetime

    @property
    def prefix(self) -> str:
        """The public part of the key, if the key has the old format."""
        return self.key.partition(".")[0][:10]

    @property
    def masked(self) -> str:
        """The key in lists from 0.28 on: its prefix."""
        prefix = "hskey-api-"
        return f"{self.key[: len(prefix) + 12]}-***" if self.key.startswith(prefix) else f"{self.prefix}***"


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A node. It is immutable: a change creates another `Node` with the same id.

    Attributes:
        user_id: the id of the owner. For a tagged node, the user of its pre-auth key if the release stores this user.
        stored_key_id: the id of the node's pre-auth key in the database.
        pre_auth_key: the node's pre-auth key in the memory of the server, as the key was at the registration or login.
        expires_at: the expiry in the memory of the server; None = the node does not expire.
        stored_expires_at: the expiry in the database, which applies after a restart of the server.
    """

    id: int
    machine_key: str
    node_key: str
    disco_key: str
    addresses: tuple[str, ...]
    name: str
    given_name: str
    user_id: int | None
    tags: tuple[str, ...]
    registered_by: RegisteredBy
    stored_key_id: int | None
    pre_auth_key: PreAuthKey | None
    created_at: datetime
    last_seen: datetime | None
    expires_at: datetime | None
    stored_expires_at: datetime | None

    @property
    def address(self) -> str:
        """The first address."""
        return self.addresses[0]


@dataclass(slots=True, kw_only=True)
class Database:
    """The tables of the database. Their rows are immutable, so a copy of the tables is a backup."""

    users: dict[int, User] = field(default_factory=dict)
    keys: dict[int, PreAuthKey] = field(default_factory=dict)
    api_keys: dict[int, ApiKey] = field(default_factory=dict)
    nodes: dict[int, Node] = field(default_factory=dict)
    last_ids: dict[str, int] = field(default_factory=dict)

    def copy(self) -> Database:
        return Database(
            users=dict(self.users),
            keys=dict(self.keys),
            api_keys=dict(self.api_keys),
            nodes=dict(self.nodes),
            last_ids=dict(self.last_ids),
        )

    def next_id(self, table: str) -> int:
        self.last_ids[table] = self.last_ids.get(table, 0) + 1
        return self.last_ids[table]


class _Addresses:
    """Assigns addresses in ascending order. After a restart of the server, it starts again from the lowest address."""

    BASES: Final = (IPv4Address("100.64.0.0"), IPv6Address("fd7a:115c:a1e0::"))

    def __init__(self) -> None:
        self.restart()

    def restart(self, reserved: Iterable[str] = ()) -> None:
        """Start again from the lowest address.

        Args:
            reserved: addresses that are not assigned before the next restart.
        """
        self._last = [0, 0]
        self._reserved = frozenset(reserved)

    def next(self, used: set[str]) -> tuple[str, ...]:
        """Return the next free address of each family, IPv4 first."""
        return tuple(self._next(family, used) for family in range(len(self.BASES)))

    def _next(self, family: int, used: set[str]) -> str:
        while True:
            self._last[family] += 1
            address = str(self.BASES[family] + self._last[family])
            if address not in used and address not in self._reserved:
                return address


class Tailnet(Upstream):
    """The users, keys and nodes of one server. Each public method is a transaction, and can be called in any thread.

    Attributes:
        database_is_down: True if the server refuses every API key, and reports that it is unhealthy.
    """

    def __init__(
        self,
        version: str = "0.28.0",
        *,
        now: Callable[[], datetime] | None = None,
        api_key: str | None = None,
        reported_version: str | None = None,
    ) -> None:
        """Start an empty server.

        Args:
            version: the release, which is a key of `DIALECTS`.
            now: returns the time in UTC; the real time if omitted.
            api_key: the accepted API key; generated in the release's format if omitted.
            reported_version: the version that /version returns, such as `dev`; the release if omitted.
        """
        super().__init__()
        self.dialect: Dialect = DIALECTS[version]
        self.reported_version = reported_version
        self.database_is_down = False
        self._now = now or (lambda: datetime.now(UTC))
        self._random = random.Random(1)
        self._secrets: list[str] = []
        self._state = Database()
        # The state before the last change, to undo a refused registration or to respond with old data.
        self._previous_state = self._state
        # By node id: when the server detects the end of the connection, which can be in the future; None = it is open.
        self._session_ends: dict[int, datetime | None] = {}
        self._addresses = _Addresses()
        self._api_key_id = self._add_api_key(api_key).id

    # --- State --------------------------------------------------------------------------------------

    def now(self) -> datetime:
        """Return the server's time."""
        return self._now()

    @property
    def version(self) -> str:
        """The release."""
        return self.dialect.version

    @property
    def api_key(self) -> str:
        """The API key of the last rotation, or the first API key."""
        with self.lock:
            return self._state.api_keys[self._api_key_id].key

    @property
    def accepts_api_key(self) -> bool:
        """True if this release accepts the format of `api_key`. 0.28 and newer refuse keys of 0.24 and older."""
        with self.lock:
            return self._known_api_key(self.api_key) is not None

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
        """Return a node; None if it does not exist."""
        with self.lock:
            return self._state.nodes.get(node_id)

    def online(self, node_id: int) -> bool:
        """Return True if the API reports the node as online."""
        with self.lock:
            end = self._session_ends.get(node_id, ZERO)
            return end is None or self._now() - timedelta(seconds=self.dialect.offline_grace_s) < end

    def secrets(self) -> list[str]:
        """Return every API key and pre-auth key that was created or accepted at any time."""
        with self.lock:
            return list(self._secrets)

    # --- Actions of an administrator ----------------------------------------------------------------

    def add_user(self, name: str, email: str = "", *, provider: str = "") -> User:
        """Create a user. Only users of a provider (`oidc`) can have no name, or the name of another user."""
        with self.lock:
            exists = any(user.name == name and user.provider == provider for user in self.users)
            if not provider and (exists or not name):
                raise ValueError(f"user {name!r} cannot be added")
            self._save_previous_state()
            user_id = self._state.next_id("users")
            user = User(id=user_id, name=name, email=email, provider=provider, created_at=self._now())
            self._state.users[user.id] = user
            return user

    def create_key(
        self,
        user: User | str | None,
        *,
        tags: tuple[str, ...] = (),
        expires_in: timedelta = timedelta(hours=1),
        reusable: bool = False,
    ) -> PreAuthKey:
        """Create a pre-auth key, as `headscale preauthkeys create` does."""
        with self.lock:
            self._save_previous_state()
            owner_id, expires_at = self._owner_id(user, tags), self._now() + expires_in
            return self._add_key(owner_id, expires_at=expires_at, tags=tags, reusable=reusable)

    def expire_key(self, key_id: int) -> None:
        """Expire a pre-auth key."""
        with self.lock:
            self._save_previous_state()
            self._state.keys[key_id] = replace(self._state.keys[key_id], expires_at=self._now())

    def delete_key(self, key_id: int) -> None:
        """Delete a pre-auth key. Nodes that registered with the key keep it in memory until the next restart."""
        with self.lock:
            self._save_previous_state()
            self._state.keys.pop(key_id, None)
            for node in self.nodes:
                if node.stored_key_id == key_id:
                    self._change(node.id, stored_key_id=None)

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
        """Add a node that has registered earlier.

        Args:
            hostname: the hostname of the machine. The release derives the node's name from it.
            user: the owner, or the user of a tagged node's key. None is possible from 0.28 on, for a node with tags.
            tags: the tags, including the prefix `tag:`.
            online: True if the node's client is connected.
            registered_by: how the node registered.
            expires_at: when the node expires; None = never.
            pre_auth_key: the key of a node that registered with a key (`auth_key`); a new key if omitted.
            machine_key: the machine key, including the prefix `mkey:`; a random one if omitted.
            addresses: the addresses; the next free ones if omitted.
        """
        with self.lock:
            owner_id = self._owner_id(user, tags)
            self._save_previous_state()
            key = None
            if registered_by == "auth_key":
                key = self._mark_used(pre_auth_key or self._add_key(owner_id, tags=tags))
            node = self._add_node(
                hostname,
                machine_key=machine_key or self._new_key("mkey:"),
                node_key=self._new_key("nodekey:"),
                user_id=owner_id,
                tags=tags,
                registered_by=registered_by,
                key=key,
                expires_at=expires_at,
                addresses=addresses,
            )
            if online:
                self._session_ends[node.id] = None
            return node

    def delete_node(self, node_id: int) -> None:
        """Delete a node. From 0.27 on, a connected client is not notified."""
        with self.lock:
            self._save_previous_state()
            del self._state.nodes[node_id]
            if not self.dialect.deleted_session_stays or self._session_ends.get(node_id) is not None:
                self._session_ends.pop(node_id, None)

    def expire_node(self, node_id: int, expires_at: datetime | None = None) -> Node:
        """Set the expiry of a node, by default to the current time."""
        with self.lock:
            self._save_previous_state()
            instant = expires_at or self._now()
            changes: dict[str, Any] = {"expires_at": instant}
            if self.dialect.expiry_survives_restart:
                changes["stored_expires_at"] = instant
            return self._change(node_id, **changes)

    def rename_node(self, node_id: int, given_name: str) -> Node:
        """Rename a node."""
        with self.lock:
            self._save_previous_state()
            return self._change(node_id, given_name=given_name)

    def move_node(self, node_id: int, user: str) -> Node:
        """Move a node to another user, which is possible up to 0.27."""
        if self.dialect.key_user is KeyUser.ID_OR_TAGS:
            raise ValueError(f"{self.version} cannot move nodes")
        with self.lock:
            self._save_previous_state()
            return self._change(node_id, user_id=self._owner_id(user, ()))

    def readdress(self, node_id: int) -> Node:
        """Assign the next free addresses to a node.

        Raises:
            NodeGoneError: the node does not exist.
        """
        with self.lock:
            if node_id not in self._state.nodes:
                raise NodeGoneError("node not found")
            self._save_previous_state()
            return self._change(node_id, addresses=self._next_addresses())

    def upgrade(self, version: str) -> None:
        """Restart with another release and the same database, which the release may migrate."""
        with self.lock:
            self.dialect = DIALECTS[version]
            if self.dialect.upgrade_revives_tagged:
                for node in self.nodes:
                    if node.tags:
                        self._change(node.id, stored_expires_at=None)
            self.restart()

    def restart(self) -> None:
        """Restart: all nodes are offline, state in memory is lost, and the lowest free addresses are assigned next."""
        with self.lock:
            self._save_previous_state()
            self._session_ends.clear()
            used = [address for node in self.nodes for address in node.addresses]
            # Up to 0.27, addresses that are in use now are not assigned until the next restart, even if their nodes are
            # deleted.
            self._addresses.restart(() if self.dialect.frees_addresses else used)
            for node in self.nodes:
                key = self._state.keys.get(node.stored_key_id or 0)
                self._change(node.id, pre_auth_key=key, expires_at=node.stored_expires_at)

    def backup(self) -> Database:
        """Return a copy of the database."""
        with self.lock:
            return self._state.copy()

    def restore(self, backup: Database) -> None:
        """Restart with a backup. Nodes that were added later no longer exist, and their ids are assigned again."""
        with self.lock:
            self._state = backup.copy()
            self.restart()

    def add_api_key(self) -> str:
        """Create another API key, and return it. `api_key` stays the same, and valid."""
        with self.lock:
            self._save_previous_state()
            return self._add_api_key(None).key

    def rotate_api_key(self) -> str:
        """Expire `api_key`, and replace it by another key, which is returned."""
        with self.lock:
            self._save_previous_state()
            key = self._state.api_keys[self._api_key_id]
            self._state.api_keys[key.id] = replace(key, expires_at=self._now())
            self._api_key_id = self._add_api_key(None).id
            return self.api_key

    # --- Actions of a machine -----------------------------------------------------------------------

    def register(
        self,
        *,
        key: str | None,
        hostname: str,
        machine_key: str | None = None,
        node_key: str | None = None,
    ) -> Node:
        """Register a machine, as a Tailscale client does. If the server knows the machine already, this is a login.

        Args:
            key: the secret of a pre-auth key; None = the machine sends none.
            machine_key: the machine key, including the prefix `mkey:`; a random one if omitted.
            node_key: the node key, including the prefix `nodekey:`; a random one if omitted.

        Returns:
            The node, which is not connected yet.

        Raises:
            RegistrationRefusedError: the server refused the registration.
        """
        with self.lock:
            self._save_previous_state()
            return self._register(
                key,
                hostname,
                machine_key or self._new_key("mkey:"),
                node_key or self._new_key("nodekey:"),
            )

    def connect(self, node_id: int) -> None:
        """Connect a node's client.

        Raises:
            NodeGoneError: the node does not exist.
        """
        with self.lock:
            if node_id not in self._state.nodes:
                raise NodeGoneError("node not found")
            self._session_ends[node_id] = None
            self._change(node_id, last_seen=self._now())

    def disconnect(self, node_id: int, *, silently: bool = False) -> None:
        """Disconnect a node's client.

        Args:
            node_id: the id of the node, which can have been deleted.
            silently: True if the client disappears without closing the connection, which the server detects after 15
                minutes.
        """
        with self.lock:
            if node_id not in self._state.nodes:
                self._session_ends.pop(node_id, None)
                return
            self._session_ends[node_id] = self._now() + (SILENT_LOSS if silently else timedelta())
            if not silently:
                self._change(node_id, last_seen=self._now())

    # --- Rows ---------------------------------------------------------------------------------------

    def _save_previous_state(self) -> None:
        self._previous_state = self._state.copy()

    def _random_text(self, alphabet: str, length: int) -> str:
        return "".join(self._random.choices(alphabet, k=length))

    def _new_key(self, prefix: str) -> str:
        return prefix + self._random_text(HEX, 64)

    def _owner_id(self, user: User | str | None, tags: tuple[str, ...]) -> int | None:
        if isinstance(user, str):
            user = next(known for known in self.users if known.name == user)
        if user is not None:
            return user.id
        if tags and self.dialect.key_user is KeyUser.ID_OR_TAGS:
            return None
        raise ValueError(f"a key or node of {self.version} needs a user")

    def _add_api_key(self, key: str | None) -> ApiKey:
        if key is None and self.dialect.key_format is KeyFormat.OLD:
            prefix, secret = self.dialect.api_key_lengths
            key = f"{self._random_text(BASE64URL, prefix)}.{self._random_text(BASE64URL, secret)}"
        elif key is None:
            key = f"hskey-api-{self._random_text(BASE64URL, 12)}-{self._random_text(BASE64URL, 64)}"
        now = self._now()
        row = ApiKey(id=self._state.next_id("api_keys"), key=key, created_at=now, expires_at=now + timedelta(days=90))
        self._state.api_keys[row.id] = row
        self._secrets.append(key)
        return row

    def _known_api_key(self, token: str) -> ApiKey | None:
        known = next((key for key in self._state.api_keys.values() if key.key == token), None)
        legacy = LEGACY_API_KEY.fullmatch(token)
        if legacy is not None and len(legacy[1]) not in self.dialect.api_key_prefix_lengths:
            return None
        return known

    def _new_pre_auth_secret(self) -> str:
        match self.dialect.key_format:
            case KeyFormat.OLD:
                return self._random_text(HEX, 48)
            case KeyFormat.PREFIXED_BASE64:
                return f"hskey-auth-{self._random_text(BASE64URL, 12)}-{self._random_text(BASE64URL, 64)}"
            case KeyFormat.PREFIXED_HEX:
                return f"hskey-auth-{self._random_text(HEX, 12)}-{self._random_text(HEX, 64)}"

    def _add_key(
        self,
        user_id: int | None,
        *,
        reusable: bool = False,
        ephemeral: bool = False,
        expires_at: datetime | None = None,
        tags: tuple[str, ...] = (),
    ) -> PreAuthKey:
        now = self._now()
        key = PreAuthKey(
            id=self._state.next_id("keys"),
            key=self._new_pre_auth_secret(),
            user_id=user_id,
            reusable=reusable,
            ephemeral=ephemeral,
            used=False,
            expires_at=expires_at or now + timedelta(hours=1),
            created_at=now,
            tags=tuple(dict.fromkeys(tags)),
        )
        self._state.keys[key.id] = key
        self._secrets.append(key.key)
        return key

    def _mark_used(self, key: PreAuthKey) -> PreAuthKey:
        current = self._state.keys[key.id]
        used = replace(current, used=not current.reusable or self.dialect.reusable_becomes_used)
        self._state.keys[key.id] = used
        return used

    def _next_addresses(self) -> tuple[str, ...]:
        return self._addresses.next({address for node in self.nodes for address in node.addresses})

    def _change(self, node_id: int, **changes: Any) -> Node:
        node = replace(self._state.nodes[node_id], **changes)
        self._state.nodes[node_id] = node
        return node

    def _add_node(
        self, hostname: str, *, key: PreAuthKey | None, addresses: tuple[str, ...] | None, **row: Any
    ) -> Node:
        """Add a node. The other arguments are attributes of `Node`."""
        name = self.dialect.hostname(hostname, row["machine_key"], self._random)
        now = self._now()
        if row["tags"] and not self.dialect.tagged_keeps_user:
            row["user_id"] = None
        node = Node(
            id=self._state.next_id("nodes"),
            disco_key=self._new_key("discokey:"),
            addresses=self._next_addresses() if addresses is None else addresses,
            name=name,
            given_name=self._free_given_name(self.dialect.given_name(name)),
            stored_key_id=None if key is None else key.id,
            pre_auth_key=key,
            created_at=now,
            last_seen=now,
            stored_expires_at=row["expires_at"],
            **row,
        )
        self._state.nodes[node.id] = node
        return node

    def _free_given_name(self, name: str) -> str:
        """Return the given name. If another node has this name, append a suffix."""
        used = {node.given_name for node in self.nodes}
        if name not in used:
            return name
        if not self.dialect.given_name_numbered:
            return f"{name[:MAX_BEFORE_SUFFIX]}-{self._random_text(LETTERS_AND_DIGITS, 8)}"
        number = 1
        while f"{name}-{number}" in used:
            number += 1
        return f"{name}-{number}"

    # --- Sessions -----------------------------------------------------------------------------------

    def _is_expired(self, node: Node) -> bool:
        return node.expires_at is not None and node.expires_at <= self._now()

    def _shown_key(self, node: Node) -> PreAuthKey | None:
        """Return the pre-auth key that responses show for a node."""
        if self.dialect.key_snapshot_in_node:
            return node.pre_auth_key
        return self._state.keys.get(node.stored_key_id or 0)

    # --- Registration -------------------------------------------------------------------------------

    def _register(self, secret: str | None, hostname: str, machine_key: str, node_key: str) -> Node:
        known = self._known_node_without_check(secret, machine_key, node_key)
        if known is not None:
            return self._change(known.id, node_key=node_key, **self._names(known, hostname))
        if secret is None:
            raise RegistrationRefusedError("node must log in")
        key = next((key for key in self.keys if key.key == secret), None)
        if key is None:
            raise RegistrationRefusedError(self.dialect.unknown_key_text)
        if key.ephemeral:
            raise NotImplementedError("Headscale would delete the node when it has been offline for two minutes")
        known = self._known_node_with_key(key, machine_key, node_key)
        if known is None or not self._may_skip_check(known, key, node_key):
            self._check(key)
        addresses = self._next_addresses() if self.dialect.login_takes_an_address else None
        if known is not None:
            return self._log_in(known, hostname, node_key, self._mark_used(key))
        try:
            return self._add_node(
                hostname,
                machine_key=machine_key,
                node_key=node_key,
                user_id=key.user_id,
                tags=key.tags,
                registered_by="auth_key",
                key=self._mark_used(key),
                expires_at=None,
                addresses=addresses,
            )
        except HostnameRefusedError as error:
            self._state = self._previous_state.copy()
            raise RegistrationRefusedError(str(error)) from error

    def _check(self, key: PreAuthKey) -> None:
        if key.expires_at <= self._now():
            raise RegistrationRefusedError(self.dialect.expired_key_text)
        if key.used and not key.reusable:
            raise RegistrationRefusedError(self.dialect.used_key_text)

    def _known_node_without_check(self, secret: str | None, machine_key: str, node_key: str) -> Node | None:
        """Return the machine's node if it has not expired and the login needs no check of a key."""
        if secret is not None and not self.dialect.live_needs_no_key:
            return None
        by_machine = self.dialect.login_match is LoginMatch.MACHINE_OR_NODE_KEY
        for node in self.nodes:
            same_machine = node.machine_key == machine_key
            if not (node.node_key == node_key or (by_machine and same_machine)) or self._is_expired(node):
                continue
            if not same_machine and not by_machine:
                raise RegistrationRefusedError("node exist with different machine key")
            return node
        return None

    def _known_node_with_key(self, key: PreAuthKey, machine_key: str, node_key: str) -> Node | None:
        """Return the node of a machine that logs in with this key; None = the machine gets a new node."""
        of_machine = [node for node in self.nodes if node.machine_key == machine_key]
        of_user = [node for node in of_machine if key.user_id is not None and node.user_id == key.user_id]
        match self.dialect.login_match:
            case LoginMatch.MACHINE_OR_NODE_KEY:
                matching = [node for node in self.nodes if node in of_machine or node.node_key == node_key]
            case LoginMatch.LOWEST_ID_OF_MACHINE:
                matching = [node for node in of_machine[:1] if node in of_user]
            case LoginMatch.MACHINE_AND_USER:
                matching = of_user
            case LoginMatch.MACHINE_AND_OWNERSHIP:
                tagged = [node for node in of_machine if node.tags]
                matching = [node for node in of_user if not node.tags] or tagged
                if not matching and key.user_id is None:
                    matching = of_machine
                    if len(matching) > 1:
                        raise RegistrationRefusedError("ambiguous node ownership")
        return matching[0] if matching else None

    def _may_skip_check(self, known: Node, key: PreAuthKey, node_key: str) -> bool:
        """Return True if a login is accepted even if the key is used or expired."""
        if known.node_key != node_key:
            return False
        match self.dialect.key_check:
            case KeyCheck.ALWAYS:
                return False
            case KeyCheck.UNLESS_SAME_KEY:
                return self._is_its_key(known, key)
            case KeyCheck.NEVER:
                return True
            case KeyCheck.UNLESS_LIVE:
                return not self._is_expired(known) and not self._takes_tags(known, key)
            case KeyCheck.UNLESS_LIVE_OR_TAGGED:
                return (bool(known.tags) or not self._is_expired(known)) and not self._takes_tags(known, key)

    def _takes_tags(self, known: Node, key: PreAuthKey) -> bool:
        takes_tags = {
            LoginTags.ALWAYS: True,
            LoginTags.IF_ANY: bool(key.tags),
            LoginTags.NEVER: False,
            LoginTags.IF_UNTAGGED: bool(key.tags) and not known.tags,
            LoginTags.IF_ANOTHER_KEY: bool(key.tags) and not (known.tags and self._is_its_key(known, key)),
        }
        return takes_tags[self.dialect.login_tags]

    @staticmethod
    def _is_its_key(node: Node, key: PreAuthKey) -> bool:
        """Return True if the key is the one with which the node registered or last logged in."""
        return node.pre_auth_key is not None and node.pre_auth_key.id == key.id

    def _names(self, known: Node, hostname: str) -> dict[str, Any]:
        """Return the changes of a node's names if its machine logs in with this hostname."""
        if not self.dialect.hostname_follows:
            return {}
        try:
            name = self.dialect.hostname(hostname, known.machine_key, self._random)
        except HostnameRefusedError:
            return {}
        was_renamed = known.given_name != self.dialect.given_name(known.name)
        if self.dialect.given_name_follows_login and not was_renamed:
            return {"name": name, "given_name": self.dialect.given_name(name)}
        return {"name": name}

    def _log_in(self, known: Node, hostname: str, node_key: str, key: PreAuthKey) -> Node:
        """Log a known machine in, and return its changed node."""
        dialect = self.dialect
        changes: dict[str, Any] = {
            "node_key": node_key,
            "last_seen": self._now(),
            "pre_auth_key": key,
            "registered_by": "auth_key",
            **self._names(known, hostname),
        }
        if not dialect.second_key_until_restart:
            changes["stored_key_id"] = key.id
        if dialect.login_keeps_first_key and known.stored_key_id is not None:
            changes |= {"stored_key_id": known.stored_key_id, "pre_auth_key": known.pre_auth_key}
        if dialect.login_match is LoginMatch.MACHINE_OR_NODE_KEY:
            changes["user_id"] = key.user_id
        if dialect.login_loses_created_at:
            changes["created_at"] = ZERO
        if self._takes_tags(known, key):
            changes["tags"] = key.tags
            if not dialect.tagged_keeps_user and not known.tags:
                changes["user_id"] = None
        if dialect.tagged_revives or not known.tags:
            changes |= {"expires_at": None, "stored_expires_at": None}
        if dialect.login_resets_online:
            self._session_ends.pop(known.id, None)
        return self._change(known.id, **changes)
