"""Decide which nodes and records this program owns. No other module decides what may be changed.

A workload has a main name, which is the hostname of its node, and can have further names, which are those in the
settings DNS_ALIASES and DNS_SHARED_NAMES.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from ipaddress import IPv4Network, IPv6Network
from typing import TypeAlias

from lifecycle.domain.errors import UserError
from lifecycle.domain.model import IpAddress, Node, Record, RegisterMethod, User

IpNetwork: TypeAlias = IPv4Network | IPv6Network

ADDRESS_TYPES = frozenset({"A", "AAAA"})
MANAGED_TYPES = ADDRESS_TYPES | {"CNAME"}

WILDCARD = "*."

# The mark of a record is the comment in Cloudflare that shows who owns the record. Every mark starts with this text
# and the version of the format, 1.
_MARK_PREFIX = "tailscale-lifecycle/"

# A mark as returned by `workload_mark`, such as "tailscale-lifecycle/1 services grafana.example.com".
_WORKLOAD_MARK = re.compile(r"\S+ \S+ ([a-z0-9-]+(?:\.[a-z0-9-]+)+)", re.ASCII)

_ID_SELECTOR = "id:"


def mark_of(owner: str) -> str:
    """Return the mark of an owner (DNS_OWNER): the comment of the owner's records at main names."""
    return f"{_MARK_PREFIX}1 {owner}"


def workload_mark(mark: str, main_name: str) -> str:
    """Return the mark of a workload's records at its further names.

    It contains the main name, so that two workloads with the same further name do not change each other's records.
    """
    return f"{mark} {main_name}"


def main_name_of(record: Record, mark: str) -> str | None:
    """Return the main name of the workload that owns the record; None if the record does not have this owner's mark."""
    if record.comment == mark:
        return record.name if record.type in ADDRESS_TYPES else None
    match = _WORKLOAD_MARK.fullmatch(record.comment)
    if match is None or record.type not in MANAGED_TYPES or record.comment != workload_mark(mark, match[1]):
        return None
    return match[1]


def record_name(name: str, domain: str) -> str:
    """Return the full name of a record in lower case. The domain is appended to a name without a dot."""
    name = name.casefold()
    return name if "." in name.removeprefix(WILDCARD) else f"{name}.{domain}"


def is_in_domain(name: str, domain: str) -> bool:
    """Return True if the name is the domain itself, or a name below the domain."""
    return name == domain or name.endswith(f".{domain}")


def could_have_main_name(node: Node, name: str) -> bool:
    """Return True if the name could be the main name of the node's workload.

    It is unknown here which domain the pod appends to a hostname without a dot, so each domain is possible.
    """
    hostname = node.hostname.casefold()
    return name == hostname or ("." not in hostname and name.startswith(f"{hostname}."))


def choose_user(users: Iterable[User], selector: str | None) -> User:
    """Choose the Headscale user that owns the pre-auth keys and nodes of this program.

    Args:
        selector: a name, an e-mail address (used if no user has this name) or `id:N`; None = the only user.

    Raises:
        UserError: no user matches, or several do. The message lists all users.
    """
    every_user = sorted(users, key=lambda user: (user.name, user.id or ""))
    listing = "; ".join(map(_describe_user, every_user))
    if not every_user:
        name = "services" if selector is None or selector.startswith(_ID_SELECTOR) else selector
        raise UserError(f"Headscale has no user. Create one with `headscale users create {name}`")
    if selector is None:
        if len(every_user) > 1:
            raise UserError(f"Headscale has several users. Set HEADSCALE_USER to the owner of the node: {listing}")
        return every_user[0]
    match _matching_users(every_user, selector):
        case [user]:
            return user
        case []:
            raise UserError(f"Headscale has no user called {selector}. Set HEADSCALE_USER to one of these: {listing}")
        case several:
            ids = " or ".join(f"{_ID_SELECTOR}{user.id}" for user in several)
            raise UserError(
                f"Headscale has {len(several)} users called {selector}. Set HEADSCALE_USER to {ids}: {listing}"
            )


def _matching_users(users: Sequence[User], selector: str) -> list[User]:
    if selector.startswith(_ID_SELECTOR):
        return [user for user in users if user.id == selector.removeprefix(_ID_SELECTOR)]
    by_name = [user for user in users if user.name == selector]
    return by_name or [user for user in users if user.email and user.email.casefold() == selector.casefold()]


def _describe_user(user: User) -> str:
    values = {"id": user.id, "e-mail": user.email, "provider": user.provider}
    details = [f"{label} {value}" for label, value in values.items() if value]
    return f"{user.name or '(no name)'} ({', '.join(details)})" if details else user.name


@dataclass(frozen=True, slots=True)
class NodeOwnership:
    """Criteria for owning a node: it has our hostname, a pre-auth key registered it, and it belongs to our user.

    Instead of the user, a node without a user must have a tag of our pre-auth keys (AUTHKEY_TAGS).
    """

    hostname: str
    user: User
    tags: frozenset[str] = frozenset()

    def has_our_hostname(self, node: Node) -> bool:
        """Return True if the node has exactly our hostname, without regard to case."""
        return node.hostname.casefold() == self.hostname.casefold()

    def is_owned(self, node: Node) -> bool:
        """Return True if we may change the node; False if that is uncertain."""
        if node.registered_by is not RegisterMethod.AUTH_KEY or not self.has_our_hostname(node):
            return False
        if node.owner is not None:
            return node.owner.is_same(self.user)
        return bool(node.tags & self.tags)


class NameKind(Enum):
    """The kinds of DNS names that a workload can have. The kind decides which records the name has."""

    MAIN = auto()
    """The hostname of the node. It has address records."""
    ALIAS = auto()
    """A name in DNS_ALIASES. It has a CNAME record that points to the main name."""
    DOMAIN = auto()
    """The domain itself, if it is in DNS_ALIASES. It has address records: a CNAME would hide the other records."""
    SHARED = auto()
    """A name in DNS_SHARED_NAMES. It has the address records of all workloads that share the name."""


@dataclass(frozen=True, slots=True)
class RecordOwnership:
    """Criteria for owning a record: it has exactly our name, and our mark as its comment.

    At the main name, an address record without a comment is ours too, if its address is in the VPN.

    Attributes:
        name: the full name in lower case, without a trailing dot.
        mark: the comment of our records at this name.
        target: the main name; "" if `name` is the main name.
    """

    name: str
    mark: str
    vpn_prefixes: tuple[IpNetwork, ...]
    kind: NameKind = NameKind.MAIN
    target: str = ""

    def is_owned(self, record: Record) -> bool:
        """Return True if we may change the record; False if that is uncertain."""
        if record.name != self.name:
            return False
        if self.kind is not NameKind.MAIN:
            # The settings can change the kind of a name, so a record with our mark is ours whatever its type.
            return record.type in MANAGED_TYPES and record.comment == self.mark
        if record.type not in ADDRESS_TYPES:
            return False
        if record.comment:
            return record.comment == self.mark
        return record.address is not None and self.is_vpn_address(record.address)

    def is_alias(self, record: Record) -> bool:
        """Return True if this name is an alias, and the record is a CNAME that points to the main name."""
        is_cname = self.kind is NameKind.ALIAS and record.type == "CNAME"
        return is_cname and record.content.lower().removesuffix(".") == self.target

    def can_coexist(self, record: Record) -> bool:
        """Return True if this name is shared, and the record is an address record of this or another workload."""
        has_mark = record.comment.startswith(_MARK_PREFIX) and _WORKLOAD_MARK.fullmatch(record.comment) is not None
        return self.kind is NameKind.SHARED and record.type in ADDRESS_TYPES and has_mark

    def is_marked(self, record: Record) -> bool:
        """Return True if the record is ours and has our mark."""
        return self.is_owned(record) and record.comment == self.mark

    def has_another_mark(self, record: Record) -> bool:
        """Return True if the record has the mark of another owner or workload."""
        return (
            record.name == self.name
            and record.type in MANAGED_TYPES
            and record.comment.startswith(_MARK_PREFIX)
            and record.comment != self.mark
        )

    def is_vpn_address(self, address: IpAddress) -> bool:
        """Return True if the address is in the VPN."""
        return any(address in prefix for prefix in self.vpn_prefixes)

    def vpn_addresses(self, addresses: Sequence[IpAddress]) -> tuple[IpAddress, ...]:
        """Return the addresses that are inside the VPN's prefixes, in the same order."""
        return tuple(address for address in addresses if self.is_vpn_address(address))


def records_at_removed_names(
    records: Iterable[Record], main: RecordOwnership, further: Iterable[RecordOwnership]
) -> list[Record]:
    """Return the records of this workload, by their mark, at further names that were removed from its settings.

    Args:
        records: any records of the zone.
        further: the ownership at each further name that the settings still contain.

    Returns:
        The records, in ascending order of id.
    """
    mark = workload_mark(main.mark, main.name)
    current = {main.name, *(ownership.name for ownership in further)}
    marked = [record for record in records if record.comment == mark and record.type in MANAGED_TYPES]
    return sorted((record for record in marked if record.name not in current), key=lambda record: record.id)
