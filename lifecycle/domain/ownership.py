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

# The marks of all owners and versions of this program begin like this.
_MARK_FAMILY = "tailscale-lifecycle/"

# The mark of a workload ends in its main name.
_WORKLOAD_MARK = re.compile(r"\S+ \S+ ([a-z0-9-]+(?:\.[a-z0-9-]+)+)", re.ASCII)

_ID_SELECTOR = "id:"


def mark_of(owner: str) -> str:
    """Return the comment that identifies an owner's records; ASCII, compared exactly."""
    return f"{_MARK_FAMILY}1 {owner}"


def workload_mark(mark: str, main_name: str) -> str:
    """Return the comment of a workload's records under its further names: the mark of the owner, and the main name.

    Two workloads of one owner can be configured with the same further name. Only one of them may change its records.
    """
    return f"{mark} {main_name}"


def marked_workload(record: Record, mark: str) -> str | None:
    """Return the main name of the workload whose record this is; None if the record has no mark of this owner."""
    if record.comment == mark:
        return record.name if record.type in ADDRESS_TYPES else None
    found = _WORKLOAD_MARK.fullmatch(record.comment)
    is_ours = found is not None and record.type in MANAGED_TYPES and workload_mark(mark, found[1]) == record.comment
    return found[1] if found is not None and is_ours else None


def record_name(name: str, domain: str) -> str:
    """Return the full name of a record, in lower case: the domain is appended to a name without a dot."""
    name = name.casefold()
    return name if "." in name.removeprefix(WILDCARD) else f"{name}.{domain}"


def may_have_name(node: Node, name: str) -> bool:
    """Return True if the record can belong to the node, whatever domain its pod appends to a hostname without a dot."""
    hostname = node.hostname.casefold()
    return name == hostname or ("." not in hostname and name.startswith(f"{hostname}."))


def choose_user(users: Iterable[User], selector: str | None) -> User:
    """Choose the Headscale user that owns our keys and nodes.

    Args:
        selector: a name, an e-mail address or `id:N`; None = the only user. A name takes precedence over an address.

    Raises:
        UserError: there is not exactly one such user; the message lists all users.
    """
    every_user = sorted(users, key=lambda user: (user.name, user.id or ""))
    listed = "; ".join(map(_describe_user, every_user))
    if not every_user:
        name = "services" if selector is None or selector.startswith(_ID_SELECTOR) else selector
        raise UserError(f"Headscale has no user. Create one with `headscale users create {name}`")
    if selector is None:
        if len(every_user) > 1:
            raise UserError(f"Headscale has several users. Set HEADSCALE_USER to the owner of the node: {listed}")
        return every_user[0]
    match _matching(every_user, selector):
        case [user]:
            return user
        case []:
            raise UserError(f"Headscale has no user called {selector}. Set HEADSCALE_USER to one of these: {listed}")
        case several:
            ids = " or ".join(f"{_ID_SELECTOR}{user.id}" for user in several)
            raise UserError(
                f"Headscale has {len(several)} users called {selector}. Set HEADSCALE_USER to {ids}: {listed}"
            )


def _matching(users: Sequence[User], selector: str) -> list[User]:
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
    """Criteria for owning a node: hostname, user, and the tags of our keys if the node has no user."""

    hostname: str
    user: User
    tags: frozenset[str] = frozenset()

    def has_our_name(self, node: Node) -> bool:
        """Return True if the hostname is exactly ours, without regard to case."""
        return node.hostname.casefold() == self.hostname.casefold()

    def owns_node(self, node: Node) -> bool:
        """Return True if we may change the node; False if that is uncertain."""
        return self.has_our_name(node) and node.registered_by is RegisterMethod.AUTH_KEY and self._is_our_users(node)

    def _is_our_users(self, node: Node) -> bool:
        if node.owner is not None:
            return node.owner.is_same(self.user)
        return bool(node.tags & self.tags)


class NameKind(Enum):
    """What a name is to a workload, which decides what records it has."""

    MAIN = auto()
    """The name of the node: address records. A record without a comment and with a VPN address is ours, too."""
    ALIAS = auto()
    """A further name: a CNAME record that points to the main name."""
    APEX_ALIAS = auto()
    """A further name that is the domain itself, where a CNAME would hide other records: address records."""
    SHARED = auto()
    """A name of several workloads: address records beside those of the others."""


@dataclass(frozen=True, slots=True)
class RecordIdentity:
    """Criteria for owning a record: exactly our name, and our mark; at the main name also no comment and a VPN address.

    Attributes:
        name: the full name in lower case, without a trailing dot.
        mark: the comment of our records.
        target: the main name, if this name is another one.
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
            # A name can have been of another kind before.
            return record.type in MANAGED_TYPES and record.comment == self.mark
        if record.type not in ADDRESS_TYPES:
            return False
        if record.comment:
            return record.comment == self.mark
        return record.address is not None and self.is_vpn_address(record.address)

    def is_alias(self, record: Record) -> bool:
        """Return True if the record is the CNAME that an alias has."""
        is_right = record.type == "CNAME" and record.content.lower().removesuffix(".") == self.target
        return is_right and self.kind is NameKind.ALIAS

    def can_coexist(self, record: Record) -> bool:
        """Return True if the record is another workload's under a name that several share."""
        is_marked = record.comment.startswith(_MARK_FAMILY) and _WORKLOAD_MARK.fullmatch(record.comment) is not None
        return self.kind is NameKind.SHARED and record.type in ADDRESS_TYPES and is_marked

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
    """Return the records with the mark of this workload under names that it has no more, in ascending order of id."""
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
