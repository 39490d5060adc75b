"""Values for Headscale's users, nodes and pre-auth keys, and for Cloudflare's DNS records."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Annotated, TypeAlias

from pydantic import AwareDatetime, Field, SecretStr

IpAddress: TypeAlias = IPv4Address | IPv6Address

DecimalId: TypeAlias = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,19}$")]

# Headscale's database can round the creation time of a key. The time in a list of keys then differs from the time in
# the response to the request that created the key.
_TIME_TOLERANCE = timedelta(seconds=1)


class RegisterMethod(StrEnum):
    """How a node was registered."""

    AUTH_KEY = "auth key"
    CLI = "CLI"
    OIDC = "OIDC"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class User:
    """A Headscale user.

    Attributes:
        id: decimal digits; None if the response contains only the name, as with Headscale up to 0.25.
        name: not unique: a local user and a user from OIDC can have the same name.
        email: "" if there is none.
        provider: the login provider, such as "oidc"; "" for a local user.
    """

    id: str | None
    name: str
    email: str = ""
    provider: str = ""

    @property
    def label(self) -> str:
        """The user's name for messages. A user from OIDC can have an e-mail address and no name."""
        return self.name or self.email or f"id {self.id}"

    def is_same(self, other: User) -> bool:
        """Return True if both are the same user. Their ids are compared if both users have one, else their names."""
        if self.id is not None and other.id is not None:
            return self.id == other.id
        return self.name == other.name


@dataclass(frozen=True, slots=True)
class PreAuthKey:
    """A pre-auth key that exists in Headscale.

    Attributes:
        id: decimal digits.
        user: the owner of nodes that register with this key; None for a key that only has tags.
        known_secret: the secret; None if Headscale masks it, as in lists from release 0.28 on.
    """

    id: str
    user: User | None
    tags: frozenset[str]
    reusable: bool
    ephemeral: bool
    used: bool
    created_at: datetime | None
    expires_at: datetime | None
    known_secret: SecretStr | None = None

    @property
    def secret(self) -> SecretStr:
        """The secret. Raise ValueError if it is unknown."""
        if self.known_secret is None:
            raise ValueError("the secret is unknown")
        return self.known_secret

    def is_usable(self, now: datetime) -> bool:
        """Return True if a node can register with this key."""
        is_expired = self.expires_at is not None and self.expires_at <= now
        return not is_expired and (self.reusable or not self.used)


@dataclass(frozen=True, slots=True)
class KeySpec:
    """A pre-auth key to create. Its lifetime has to cover an image pull and some restarts of the pod."""

    user: User
    lifetime: timedelta
    reusable: bool = False
    ephemeral: bool = False
    tags: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class KeyMetadata:
    """The key metadata, a file beside the key file. It identifies the key, and the node of this pod.

    An id alone identifies neither a key nor a node: after Headscale's database was restored from a backup, Headscale
    assigns the same ids again.

    Attributes:
        pre_auth_key_id: the id of the key in the key file; None if there is no metadata file.
        node_id: the id of this pod's last known node. With NODE_POLICY=keep, the previous pod had the same node.
        machine_key: the machine key of the node `node_id`.
        key_sha256: the digest of the key; None if unknown. The metadata file is written before the key file. If the
            key in the key file has another digest, the key file was not written afterwards.
        key_created_at: when Headscale created the key; None if unknown.
    """

    pre_auth_key_id: DecimalId | None
    node_id: DecimalId | None = None
    machine_key: str | None = None
    key_sha256: str | None = None
    key_created_at: AwareDatetime | None = None

    def identifies_key(self, key: PreAuthKey | KeyOrigin) -> bool:
        """Return True if the metadata identifies this key."""
        expected, actual = self.key_created_at, key.created_at
        is_same_time = expected is None or actual is None or abs(actual - expected) < _TIME_TOLERANCE
        return key.id == self.pre_auth_key_id and is_same_time


@dataclass(frozen=True, slots=True)
class KeyOrigin:
    """The pre-auth key that a node registered with."""

    id: str
    user: User | None
    created_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Node:
    """A node of the VPN.

    Attributes:
        id: decimal digits. A node that registered later has a larger id. After Headscale's database was restored from
            a backup, another node can get the same id.
        hostname: not unique; compared without regard to case.
        machine_key: `mkey:` and 64 hex digits. It stays the same while the machine keeps its state.
        addresses: at most one of each family, in any order; can be empty.
        user: the user that Headscale reports as the owner; None for a tagged node from Headscale 0.28 on.
        pre_auth_key: the key that the node registered with; None for another register method.
        online: not reliable: it can stay true for 15 minutes after the connection was lost.
        expires_at: None = never.
        last_seen: when the node went offline; None if unknown. Headscale does not update it during a connection. It can
            be as old as the node's registration while the node is online, and for any node after Headscale restarted.
    """

    id: str
    hostname: str
    machine_key: str
    addresses: tuple[IpAddress, ...]
    user: User | None
    tags: frozenset[str]
    registered_by: RegisterMethod
    pre_auth_key: KeyOrigin | None
    online: bool
    expires_at: datetime | None
    last_seen: datetime | None = None

    def is_expired(self, now: datetime) -> bool:
        """Return True if the node has expired, so that it has to log in again before it can connect."""
        return self.expires_at is not None and self.expires_at <= now

    @property
    def owner(self) -> User | None:
        """The user of the node, or else the user of the key that the node registered with; None if neither exists."""
        # The node's own user comes first, because an administrator can move a node to another user.
        return self.user or (self.pre_auth_key.user if self.pre_auth_key else None)

    @property
    def sequence(self) -> int:
        """The id as a number, by which nodes are sorted in the order of their registration."""
        return int(self.id)


def describe(node: Node) -> str:
    """Return a short description of a node, for messages. A node without a user is owned by its tags."""
    owner = f"user {node.user.label}" if node.user else f"owner {', '.join(sorted(node.tags)) or 'none'}"
    return f"hostname {node.hostname}, {owner}, registered by {node.registered_by}"


@dataclass(frozen=True, slots=True)
class Record:
    """A DNS record that exists at Cloudflare.

    Attributes:
        name: the full name in lower case, without a trailing dot.
        content: an address in text form for A and AAAA, a name for CNAME.
        ttl_s: the time to live in seconds; 1 = automatic.
        comment: "" if there is none.
        read_only: another Cloudflare product manages the record, such as a Workers custom domain.
    """

    id: str
    name: str
    type: str
    content: str
    ttl_s: int
    proxied: bool
    comment: str
    read_only: bool = False

    @property
    def address(self) -> IpAddress | None:
        """The content as an address; None if the content is not an address, as for a CNAME record."""
        try:
            return ip_address(self.content)
        except ValueError:
            return None


def record_type(address: IpAddress) -> str:
    """Return the type of an address record: A or AAAA."""
    return "A" if isinstance(address, IPv4Address) else "AAAA"


@dataclass(frozen=True, slots=True)
class RecordSpec:
    """A DNS record that should exist. It never uses Cloudflare's proxy, which cannot reach a VPN address."""

    name: str
    content: IpAddress | str
    ttl_s: int
    comment: str

    @property
    def type(self) -> str:
        """A, AAAA or CNAME, depending on the content."""
        return "CNAME" if isinstance(self.content, str) else record_type(self.content)

    def has_content_of(self, record: Record) -> bool:
        """Return True if the record has the same content, even if an IPv6 address or a name is written differently."""
        if isinstance(self.content, str):
            return record.content.lower().removesuffix(".") == self.content
        return record.address == self.content

    def differences(self, record: Record) -> dict[str, str | int | bool]:
        """Return the fields to change and their new values, named as in Cloudflare's API; empty if nothing differs."""
        differing: dict[str, str | int | bool] = {}
        if not self.has_content_of(record):
            differing["content"] = str(self.content)
        if record.ttl_s != self.ttl_s:
            differing["ttl"] = self.ttl_s
        if record.proxied:
            differing["proxied"] = False
        if record.comment != self.comment:
            differing["comment"] = self.comment
        return differing
