"""Functions that return nodes, records and other values. A test passes only the fields that it depends on."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address, ip_network

from lifecycle.domain.model import IpAddress, KeyOrigin, Node, Record, RecordSpec, RegisterMethod, User
from lifecycle.domain.ownership import NameKind, NodeOwnership, RecordOwnership

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
EXPIRED = NOW - timedelta(seconds=1)
"""An expiry time that has passed."""

NAME = "grafana.example.com"
"""The workload's main name: the hostname of its node, which is also the name of its record."""
OUR_COMMENT = "tailscale-lifecycle/1 default"
"""The comment of our records at the main name. `default` is the default DNS_OWNER."""
COMMENT_OF_OTHER_OWNER = "tailscale-lifecycle/1 staging"
"""The comment of records that were created with another DNS_OWNER."""
COMMENT_AT_FURTHER_NAMES = f"{OUR_COMMENT} {NAME}"
"""The comment of our records at the names in DNS_ALIASES and DNS_SHARED_NAMES. It contains the main name."""

OUR_USER = User("1", "svc")
"""The user that owns our nodes and keys."""
ANN = User("2", "ann")
"""Another user."""
VPN_PREFIXES = (ip_network("100.64.0.0/10"), ip_network("fd7a:115c:a1e0::/48"))

# The criteria for owning a node, and for owning a record at the main name.
NODE_OWNERSHIP = NodeOwnership(NAME, OUR_USER, frozenset({"tag:svc"}))
RECORD_OWNERSHIP = RecordOwnership(NAME, OUR_COMMENT, VPN_PREFIXES)

ALIAS = "docs.example.com"
APEX = "example.com"
"""An alias that is the domain itself."""
SHARED_NAME = "*.apps.example.com"
FURTHER_NAMES = tuple(
    RecordOwnership(name, COMMENT_AT_FURTHER_NAMES, VPN_PREFIXES, kind, NAME)
    for name, kind in ((ALIAS, NameKind.ALIAS), (APEX, NameKind.DOMAIN), (SHARED_NAME, NameKind.SHARED))
)
"""The criteria for owning a record at each of these names."""


def a_node(
    node_id: int = 1,
    *,
    hostname: str = NAME,
    user: User | None = OUR_USER,
    tags: Iterable[str] = (),
    registered_by: RegisterMethod = RegisterMethod.AUTH_KEY,
    key_user: User | None = OUR_USER,
    key_id: str = "7",
    key_created_at: datetime | None = None,
    online: bool = True,
    expires_at: datetime | None = None,
    last_seen: datetime | None = None,
    addresses: Iterable[str] | None = None,
    machine_key: str | None = None,
) -> Node:
    """Return a node. By default it is ours: registered with our user's key, online, with two addresses."""
    if addresses is None:
        addresses = (f"100.64.0.{node_id}", f"fd7a:115c:a1e0::{node_id:x}")
    return Node(
        id=str(node_id),
        hostname=hostname,
        machine_key=machine_key or f"mkey:{node_id:064x}",
        addresses=tuple(map(ip_address, addresses)),
        user=user,
        tags=frozenset(tags),
        registered_by=registered_by,
        pre_auth_key=KeyOrigin(key_id, key_user, key_created_at) if registered_by is RegisterMethod.AUTH_KEY else None,
        online=online,
        expires_at=expires_at,
        last_seen=last_seen,
    )


def a_record(
    record_id: str = "a",
    *,
    name: str = NAME,
    type_: str = "A",
    content: str = "100.64.0.1",
    ttl_s: int = 60,
    proxied: bool = False,
    comment: str = OUR_COMMENT,
) -> Record:
    """Return a record. By default it is ours, and has the address of node 1."""
    return Record(record_id, name, type_, content, ttl_s, proxied, comment)


def a_spec(address: str = "100.64.0.1", *, ttl_s: int = 60) -> RecordSpec:
    """Return the desired record of an address, by default of node 1."""
    return RecordSpec(NAME, ip_address(address), ttl_s, OUR_COMMENT)


def addresses(*texts: str) -> tuple[IpAddress, ...]:
    """Parse addresses."""
    return tuple(map(ip_address, texts))
