"""Criteria for owning nodes and records; no other module decides what may be changed."""

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

# The beginning of the marks of all owners, in every version of this program.
_MARK_FAMILY = "tailscale-lifecycle/"

# See `workload_mark`: the program with its version, the owner, and the main name.
_WORKLOAD_MARK = re.compile(r"\S+ \S+ ([a-z0-9-]+(?:\.[a-z0-9-]+)+)", re.ASCII)

_ID_SELECTOR = "id:"


def mark_of(owner: str) -> str:
    """Return the mark: the comment that identifies an owner's records. It is ASCII, and compared exactly."""
    return f"{_MARK_FAMILY}1 {owner}"


def workload_mark(mark: str, main_name: str) -> str:
    """Return the mark of a workload's records under its further names (DNS_ALIASES, DNS_SHARED_NAMES).

    It contains the main name: two workloads of one owner can be configured with the same further name, and neither
    may change the records of the other.
    """
    return f"{mark} {main_name}"


def marked_workload(record: Record, mark: str) -> str | None:
    """Return the main name of the workload that the record belongs to; None if it has no mark of this owner."""
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
    """Return True if the name is the domain itself or below it."""
    return name == domain or name.endswith(f".{domain}")


def may_have_name(node: Node, name: str) -> bool:
    """Return True if this can be the record name of the node: the domain that its pod appends is unknown here."""
    hostname = node.hostname.casefold()
    return name == hostname or ("." not in hostname and name.startswith(f"{hostname}."))


def choose_user(users: Iterable[User], selector: str | None) -> User:
    """Choose the Headscale user that owns our keys and nodes.

    Args:
        selector: a name, an e-mail address or `id:N`; None = the only user. A name takes precedence over an e-mail
            address.

    Raises:
        UserError: there is not exactly one such user; the message lists all users.
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
    details = [
        f"{label} {value}"
        for label, value in (("id", user.id), ("e-mail", user.email), ("provider", user.provider))
        if value
    ]
    return f"{user.name or '(no name)'} ({', '.join(details)})" if details else user.name


@dataclass(frozen=True, slots=True)
class NodeIdentity:
    """Criteria for owning a node: its hostname, and its user. If it has no user, a tag of our keys counts instead."""

    hostname: str
    user: User
    tags: frozenset[str] = frozenset()

    def has_our_name(self, node: Node) -> bool:
        """Return True if the node has exactly our hostname, without regard to case."""
        return node.hostname.casefold() == self.hostname.casefold()

    def owns_node(self, node: Node) -> bool:
        """Return True if we may change the node; False if that is uncertain."""
        is_by_key = node.registered_by is RegisterMethod.AUTH_KEY
        return is_by_key and self.has_our_name(node) and self._belongs_to_our_user(node)

    def _belongs_to_our_user(self, node: Node) -> bool:
        if node.owner is not None:
            return node.owner.is_same(self.user)
        return bool(node.tags & self.tags)


class NameKind(Enum):
    """The kinds of a workload's names. The kind decides which records a name has."""

    MAIN = auto()
    """The name of the node. It has address records."""
    ALIAS = auto()
    """A further name. It has a CNAME record that points to the main name."""
    APEX_ALIAS = auto()
    """A further name that is the domain itself. It has address records, since a CNAME would hide other records."""
    SHARED = auto()
    """A name of several workloads. It has the address records of each."""


@dataclass(frozen=True, slots=True)
class RecordIdentity:
    """Criteria for owning a record: it has exactly our name, and our mark.

    At the main name, an address record without a comment is ours too, if its address is in the VPN.

    Attributes:
        name: the full name in lower case, without a trailing dot.
        mark: the comment of our records.
        target: the main name; "" if this is the main name.
    """

    name: str
    mark: str
    vpn_prefixes: tuple[IpNetwork, ...]
    kind: NameKind = NameKind.MAIN
    target: str = ""

    def owns_record(self, record: Record) -> bool:
        """Return True if we may change the record; False if that is uncertain."""
        if record.name != self.name:
            return False
        if self.kind is not NameKind.MAIN:
            # The kind of a name can change with the settings, so records of every kind are ours.
            return record.type in MANAGED_TYPES and record.comment == self.mark
        if record.type not in ADDRESS_TYPES:
            return False
        if record.comment:
            return record.comment == self.mark
        return record.address is not None and self.is_vpn_address(record.address)

    def is_alias(self, record: Record) -> bool:
        """Return True if this name is an alias, and the record is a CNAME that points to the main name."""
        points_to_target = record.type == "CNAME" and record.content.lower().removesuffix(".") == self.target
        return points_to_target and self.kind is NameKind.ALIAS

    def can_coexist(self, record: Record) -> bool:
        """Return True if this name is shared, and the record is another workload's address record."""
        has_mark = record.comment.startswith(_MARK_FAMILY) and _WORKLOAD_MARK.fullmatch(record.comment) is not None
        return self.kind is NameKind.SHARED and record.type in ADDRESS_TYPES and has_mark

    def is_marked(self, record: Record) -> bool:
        """Return True if the record is ours and has our mark."""
        return self.owns_record(record) and record.comment == self.mark

    def is_marked_by_another(self, record: Record) -> bool:
        """Return True if the record has the mark of another owner or workload."""
        return (
            record.name == self.name
            and record.type in MANAGED_TYPES
            and record.comment.startswith(_MARK_FAMILY)
            and record.comment != self.mark
        )

    def is_vpn_address(self, address: IpAddress) -> bool:
        """Return True if the address is inside one of the prefixes."""
        return any(address in prefix for prefix in self.vpn_prefixes)

    def vpn_addresses(self, addresses: Sequence[IpAddress]) -> tuple[IpAddress, ...]:
        """Return the addresses inside the prefixes, in the same order."""
        return tuple(address for address in addresses if self.is_vpn_address(address))


def leftovers(records: Iterable[Record], main: RecordIdentity, further: Iterable[RecordIdentity]) -> list[Record]:
    """Return this workload's records under names that it no longer has, in ascending order of id."""
    mark = workload_mark(main.mark, main.name)
    names = {main.name, *(record_identity.name for record_identity in further)}
    return sorted(
        (
            record
            for record in records
            if record.comment == mark and record.type in MANAGED_TYPES and record.name not in names
        ),
        key=lambda record: record.id,
    )
