"""The nouns: users, nodes, pre-auth keys and records, as frozen values."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TypeAlias

from pydantic import SecretStr

IpAddress: TypeAlias = IPv4Address | IPv6Address


class RegisterMethod(StrEnum):
    """How a node came into the tailnet."""

    AUTH_KEY = "auth key"
    CLI = "CLI"
    OIDC = "OIDC"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class User:
    """Who owns an untagged node, in Headscale's sense.

    Attributes:
        id: decimal text; None where Headscale up to 0.25 gives only a name.
        name: the name as Headscale shows it.
    """

    id: str | None
    name: str

    def is_same(self, other: User) -> bool:
        """Whether both are one user: by id where both have one, else by name."""
        if self.id is not None and other.id is not None:
            return self.id == other.id
        return self.name == other.name


@dataclass(frozen=True, slots=True)
class PreAuthKey:
    """A pre-auth key as a list shows it, or as it was minted.

    Attributes:
        id: decimal text.
        user: who it registers nodes for; None for a key that only has tags.
        key: the secret itself; None where Headscale masks it (lists from 0.28 on).
        used: a node has registered with it.
    """

    id: str
    user: User | None
    tags: frozenset[str]
    reusable: bool
    ephemeral: bool
    used: bool
    created_at: datetime | None
    expires_at: datetime | None
    key: SecretStr | None = None

    @property
    def secret(self) -> SecretStr:
        """The key's secret; only a key that was just made surely has one."""
        if self.key is None:
            raise ValueError("the key was listed, not made")
        return self.key

    def usable(self, now: datetime) -> bool:
        """Whether a node could still register with it."""
        expired = self.expires_at is not None and self.expires_at <= now
        return not expired and (self.reusable or not self.used)


@dataclass(frozen=True, slots=True)
class KeySpec:
    """What a pre-auth key should be.

    Attributes:
        life: from the moment it is made, longer than an image pull and a few restarts.
    """

    user: User
    life: timedelta
    reusable: bool = False
    ephemeral: bool = False
    tags: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class KeyMetadata:
    """The content of the metadata file beside the key: which node belongs to this pod.

    Attributes:
        pre_auth_key_id: the key that was written; decimal text.
        kept_node_id: the last known node of this pod, or with NODE_POLICY=keep the node that it will come back as;
            decimal text.
        kept_machine_key: the machine key of that node. Headscale assigns an id again after its database was restored.
        key_sha256: digest of the key that was written after the metadata; None if it is unknown.
    """

    pre_auth_key_id: str | None
    kept_node_id: str | None = None
    kept_machine_key: str | None = None
    key_sha256: str | None = None


@dataclass(frozen=True, slots=True)
class KeyOrigin:
    """What a node remembers of the pre-auth key that it came with."""

    id: str
    user: User | None


@dataclass(frozen=True, slots=True)
class Node:
    """A member of the tailnet.

    Attributes:
        id: decimal text, greater for later nodes.
        hostname: what the node calls itself; may repeat, compared without regard to case.
        machine_key: `mkey:` and 64 hex digits; a node that comes back with kept state has the same.
        addresses: at most one of each family, in no order; may be empty.
        user: who owns it; None for a tagged node from Headscale 0.28 on.
        pre_auth_key: the key it came with; None for a person's machine.
        online: a hint: may be true for a quarter of an hour after a silent loss.
        expires_at: None = never.
        last_seen: when it went offline; no heartbeat, so that it says nothing of a node that is online or whose
            server was restarted. None where Headscale does not know.
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

    def expired(self, now: datetime) -> bool:
        """Whether the node has to log in again."""
        return self.expires_at is not None and self.expires_at <= now

    @property
    def owner(self) -> User | None:
        """Its own user, else that of the key it came with; None where neither names one.

        The node's own goes first: an administrator may have given the node to somebody else since.
        """
        return self.user or (self.pre_auth_key.user if self.pre_auth_key else None)

    @property
    def sequence(self) -> int:
        """The id as a number, to tell the later of two nodes."""
        return int(self.id)


def describe(node: Node) -> str:
    """Describe a node in a few words."""
    owner = node.user.name if node.user else ", ".join(sorted(node.tags)) or "none"
    return f"hostname {node.hostname}, owner {owner}, registered by {node.registered_by}"


@dataclass(frozen=True, slots=True)
class Record:
    """A DNS record that exists at Cloudflare.

    Attributes:
        name: the full name in lower case, without a trailing dot.
        content: an address in text form for A and AAAA.
        ttl_s: seconds; 1 = automatic.
        comment: "" when there is none.
    """

    id: str
    name: str
    type: str
    content: str
    ttl_s: int
    proxied: bool
    comment: str

    @property
    def address(self) -> IpAddress | None:
        """The content as an address; None when it is none."""
        try:
            return ip_address(self.content)
        except ValueError:
            return None


def record_type(address: IpAddress) -> str:
    """The type of a record that holds the address: A or AAAA."""
    return "A" if isinstance(address, IPv4Address) else "AAAA"


@dataclass(frozen=True, slots=True)
class RecordSpec:
    """What a record should say; always DNS-only, since a VPN address cannot be proxied."""

    name: str
    address: IpAddress
    ttl_s: int
    comment: str

    @property
    def type(self) -> str:
        """A or AAAA, as the address demands."""
        return record_type(self.address)

    def differences(self, record: Record) -> dict[str, str | int | bool]:
        """What of the record has to change, in Cloudflare's field names; empty when all is well."""
        differing: dict[str, str | int | bool] = {}
        # As addresses: IPv6 has many spellings.
        if record.address != self.address:
            differing["content"] = str(self.address)
        if record.ttl_s != self.ttl_s:
            differing["ttl"] = self.ttl_s
        if record.proxied:
            differing["proxied"] = False
        if record.comment != self.comment:
            differing["comment"] = self.comment
        return differing
